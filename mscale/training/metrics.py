"""Metrics of the steps dispatched: kept on the device until a log point, then fetched, checked and recorded."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mscale.errors import MscaleError
from mscale.training import evaluation, tracking
from mscale.training.recorder import Recorder
from mscale.training.settings import Run


class PendingMetrics:
    """What the device was told to compute and nobody has read yet; read, checked and recorded at log points."""

    def __init__(
        self,
        run: Run,
        recorder: Recorder,
        held_out: evaluation.HeldOut,
        track: tracking.Track | None,
        advance: Callable[..., None],
    ):
        """Starts empty at the recorder's step; ``advance`` moves the progress bar."""
        self.run, self.recorder, self.held_out = run, recorder, held_out
        self.track, self.advance = track, advance
        self.steps: list[tuple[int, int, Any]] = []  # first step, steps, metrics on the device
        self.evaluations: list[tuple[int, list[jax.Array]]] = []
        self.clock = time.monotonic()

    def read(self, step: int) -> None:
        """Waits for all of it, and records it as of ``step`` if it is finite.

        Raises:
          MscaleError: a loss or gradient is not, naming the step.
        """
        recorder, done = self.recorder, step - self.recorder.step
        values = jax.device_get([metrics for _, _, metrics in self.steps])
        nats = jax.device_get([windows for _, windows in self.evaluations])
        last: dict[str, float] = {}
        rates = {}
        for (first, count, _), metrics in zip(self.steps, values, strict=True):
            check_finite(first, {name: metrics[name][:count] for name in metrics})
            last = {name: float(metrics[name][count - 1]) for name in metrics}
            rates[first + count] = last["lr"]
        now = time.monotonic()
        if now > self.clock and done:
            recorder.tokens_per_second = done * self.run.step_tokens / (now - self.clock)
        for (at, _), windows in zip(self.evaluations, nats, strict=True):
            measured = evaluation.language_losses(windows, self.held_out)
            bad = [name for name, value in measured.items() if not math.isfinite(value["loss"])]
            if bad:
                raise MscaleError(f"the evaluation loss of {bad[0]} became non-finite at step {at}")
            recorder.add_observations(at, rates[at], measured)
            if self.track:
                self.track(at, {f"valid/{name}": value["loss"] for name, value in measured.items()})
        if last:
            recorder.add_metrics(step, last)
            if self.track:
                self.track(step, last | {"tokens_per_second": recorder.tokens_per_second})
        speed = tracking.speed_note(self.run, recorder.tokens_per_second)
        self.advance(done, note=f"{speed}, loss {last['loss']:.3f}" if last else speed)
        self.clock, recorder.step = now, step
        self.steps.clear()
        self.evaluations.clear()


def no_progress_bar(n: int = 1, note: str = "") -> None:
    """Stands for the progress bar where there is none."""


def check_finite(first: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Raises an error naming the first step whose loss or gradient is not finite."""
    bad = ~(np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"]))
    if bad.any():
        i = int(np.argmax(bad))
        raise MscaleError(
            f"step {first + i + 1}: the loss is {metrics['loss'][i]} and the gradient norm "
            f"{metrics['grad_norm'][i]}; nothing after step {first + i} was recorded. Lower the learning "
            "rate or lengthen the warmup, and start in another WORKDIR"
        )
