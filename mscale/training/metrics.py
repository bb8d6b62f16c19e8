"""Metrics of dispatched steps: they stay on the device until a log step, then are fetched, checked and recorded.

Fetching a value makes the host wait for the device, so the train loop does it only every ``log_every`` steps.
"""

import math
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from mscale.errors import MscaleError
from mscale.training import evaluation, tracking
from mscale.training.recorder import Recorder
from mscale.training.settings import Run


class PendingMetrics:
    """Metrics and evaluations that are still on the device, fetched at the next log step."""

    def __init__(
        self,
        run: Run,
        recorder: Recorder,
        held_out: evaluation.HeldOut,
        track: tracking.Track | None,
        advance_progress: Callable[..., None],
    ):
        """Starts empty at the recorder's step; ``advance_progress`` moves the progress bar."""
        self.run, self.recorder, self.held_out = run, recorder, held_out
        self.track, self.advance_progress = track, advance_progress
        self.dispatches: list[tuple[int, int, dict[str, jax.Array]]] = []  # first step, step count, metrics
        self.evaluations: list[tuple[int, list[jax.Array]]] = []  # step, nats of each window
        self.last_fetch = time.monotonic()

    def fetch(self, step: int) -> None:
        """Waits for all pending values and records them as of ``step`` if they are finite.

        Raises:
          MscaleError: a loss or gradient is not finite; the message names the step.
        """
        recorder, new_steps = self.recorder, step - self.recorder.step
        step_metrics = jax.device_get([metrics for _, _, metrics in self.dispatches])
        evaluation_nats = jax.device_get([nats for _, nats in self.evaluations])
        last: dict[str, float] = {}
        learning_rates = {}
        for (first, count, _), metrics in zip(self.dispatches, step_metrics, strict=True):
            check_finite(first, {name: metrics[name][:count] for name in metrics})
            last = {name: float(metrics[name][count - 1]) for name in metrics}
            learning_rates[first + count] = last["lr"]
        now = time.monotonic()
        if now > self.last_fetch and new_steps:
            recorder.tokens_per_second = new_steps * self.run.step_tokens / (now - self.last_fetch)
        for (at, _), nats in zip(self.evaluations, evaluation_nats, strict=True):
            losses = evaluation.language_losses(nats, self.held_out)
            non_finite = [name for name, values in losses.items() if not math.isfinite(values["loss"])]
            if non_finite:
                raise MscaleError(f"the evaluation loss of {non_finite[0]} became non-finite at step {at}")
            recorder.add_observations(at, learning_rates[at], losses)
            if self.track:
                self.track(at, {f"valid/{name}": values["loss"] for name, values in losses.items()})
        if last:
            recorder.add_metrics(step, last)
            if self.track:
                self.track(step, last | {"tokens_per_second": recorder.tokens_per_second})
        speed = tracking.speed_note(self.run, recorder.tokens_per_second)
        self.advance_progress(new_steps, note=f"{speed}, loss {last['loss']:.3f}" if last else speed)
        self.last_fetch, recorder.step = now, step
        self.dispatches.clear()
        self.evaluations.clear()


def no_progress_bar(n: int = 1, note: str = "") -> None:
    """Takes the place of a progress bar's ``advance`` where none is shown."""


def check_finite(first: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Checks the metrics of consecutive steps.

    Args:
      first: step number before the first of them, from 0.
      metrics: "loss" and "grad_norm", each (steps,).

    Raises:
      MscaleError: a loss or gradient norm is not finite; the message names the first such step.
    """
    non_finite = ~(np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"]))
    if non_finite.any():
        i = int(np.argmax(non_finite))
        raise MscaleError(
            f"step {first + i + 1}: the loss is {metrics['loss'][i]} and the gradient norm "
            f"{metrics['grad_norm'][i]}; nothing after step {first + i} was recorded. Lower the learning "
            "rate or lengthen the warmup, and start in another WORKDIR"
        )
