"""Writes the records of a run: status.json, metrics.jsonl, observations.jsonl and exposure.jsonl."""

import resource
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import jax

from mscale import observations, run_folder, scales
from mscale.observations import Exposure, Observation
from mscale.training import optimizer
from mscale.training.settings import Run, model_description


class Recorder:
    """Writes a run's records into its folder.

    Rows after the starting step are removed first, so that a resumed run writes each row once. Of several hosts,
    which all compute the same rows, only the first writes.
    """

    def __init__(
        self,
        run: Run,
        step: int,
        init: str = "scratch",
        init_tokens: int = 0,
        group: str | None = None,
    ):
        """Starts at ``step``; ``init``, ``init_tokens`` and ``group`` as in ``mscale.train.Start``."""
        self.run, self.step, self.init, self.init_tokens = run, step, init, init_tokens
        self.group = run.settings.group or group or run.name
        self.writes = jax.process_index() == 0
        self.began = time.monotonic()
        self.compile_seconds = 0.0
        self.tokens_per_second = 0.0
        self.observations = run.workdir / run_folder.OBSERVATIONS_FILE
        self.exposure = run.workdir / run_folder.EXPOSURE_FILE
        self.metrics = run.workdir / run_folder.METRICS_FILE
        self._wrote_status = 0.0
        for path in (self.observations, self.exposure, self.metrics) if self.writes else ():
            observations.truncate_rows(path, step)

    def meta(self, step: int) -> dict[str, Any]:
        """The content of a checkpoint's meta.json."""
        run = self.run
        return {
            "run": run.name,
            "group": self.group,
            "init": self.init,
            "init_tokens": self.init_tokens,
            "tokens": step * run.step_tokens,
            "vocabulary": run.store.vocabulary["fingerprint"],
            "model": model_description(run.model),
        }

    def status(self, state: str, reason: str = "", *, every: float = 0.0) -> None:
        """Replaces status.json; does nothing if that was done less than ``every`` seconds ago."""
        now = time.monotonic()
        if now - self._wrote_status < every or not self.writes:
            return
        self._wrote_status = now
        status = run_folder.RunStatus(
            state,
            self.step,
            self.run.settings.steps,
            tokens_per_second=round(self.tokens_per_second, 1),
            reason=reason,
            updated=time.time(),
            compile_seconds=round(self.compile_seconds, 3),
            seconds=round(now - self.began, 3),
            peak_memory_bytes=peak_memory_bytes(),
        )
        run_folder.write_status(self.run.workdir, status)

    def add_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Appends loss, learning rate and gradient norm of one step to metrics.jsonl."""
        if not self.writes:
            return
        row = {
            "step": step,
            "loss": values["loss"],
            "lr": values["lr"],
            "grad_norm": values["grad_norm"],
            "tokens": step * self.run.step_tokens,
            "tokens_per_second": round(self.tokens_per_second, 1),
        }
        observations.append_rows(self.metrics, [row], check=False)

    def add_observations(self, step: int, lr: float, measured: Mapping[str, Mapping[str, Any]]) -> None:
        """Appends the exposure after ``step`` and one observation for each evaluated language.

        Args:
          step: steps done.
          lr: learning rate of the last of them.
          measured: language to its losses, as from ``evaluation.language_losses``.
        """
        if not self.writes:
            return
        run, s = self.run, self.run.settings
        exposure = run.schedule.exposure(step, s.sequence_length)
        shape, tokens = run.model.shape, step * run.step_tokens
        params = scales.parameter_count(shape, run.model.vocab_size)
        rows = [
            Observation(
                run=run.name,
                study=s.study,
                tag=s.tag,
                group=self.group,
                scale=str(s.scale),
                params=params,
                params_nonembedding=scales.parameter_count_nonembedding(shape),
                mixture=s.mixture,
                languages="+".join(run.schedule.languages),
                vocabulary=run.store.vocabulary["fingerprint"],
                init=self.init,
                init_tokens=self.init_tokens,
                seed=s.seed,
                step=step,
                tokens=tokens,
                phase=optimizer.schedule_phase(
                    step, s.warmup_steps, s.steps, s.decay_steps, optimizer.SCHEDULES[int(run.hyper.schedule)]
                ),
                lr=lr,
                language=language,
                split="valid",
                target_tokens=exposure.get(language, (0, 0))[0],
                target_unique=run.schedule.windows.get(language, 0) * s.sequence_length,
                flops=float(scales.training_flops(params, tokens)),
                **values,
            )
            for language, values in measured.items()
        ]
        exposed = [
            Exposure(run=run.name, step=step, language=language, tokens=count, unique_tokens=unique)
            for language, (count, unique) in exposure.items()
        ]
        observations.append_rows(self.exposure, map(asdict, exposed))
        observations.append_rows(self.observations, map(asdict, rows))


def peak_memory_bytes() -> int:
    """Peak memory of the first local accelerator; on the CPU, of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
