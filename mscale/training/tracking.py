"""Live metrics of a run: the speed beside the progress bar, and curves in TensorBoard or Weights & Biases.

metrics.jsonl is always written (``recorder``). The other two are optional: a run's settings turn them on, and their
packages must be installed.
"""

import contextlib
import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mscale import scales
from mscale.chips import peak_flops
from mscale.errors import MscaleError
from mscale.training.settings import Run

Track = Callable[[int, Mapping[str, float]], None]
"""Called with a step and its values by name."""


def speed_note(run: Run, tokens_per_second: float) -> str:
    """Text of the speed: tokens/s and model FLOP/s (6N and causal attention), as MFU if the devices' peak is known."""
    if not tokens_per_second:
        return ""
    shape, vocabulary = run.model.shape, run.model.vocab_size
    flops = tokens_per_second * scales.flops_per_token(shape, vocabulary, run.settings.sequence_length)
    peak = peak_flops(run.settings.peak_flops)
    utilization = f"{flops / peak:.1%} MFU" if peak else f"{flops / 1e9:,.3g} GFLOP/s"
    return f"{tokens_per_second:,.0f} tokens/s, {utilization}"


@contextlib.contextmanager
def trackers(run: Run, writes: bool = True) -> Iterator[Track]:
    """Yields ``track(step, values)``, which sends values to the trackers that the run's settings turn on.

    Args:
      run: its settings ``tensorboard`` and ``wandb`` select the trackers.
      writes: False on all hosts but the first, which sends nothing.

    Raises:
      MscaleError: the package of a tracker is not installed.
    """
    senders: list[Track] = []
    with contextlib.ExitStack() as stack:
        if writes and run.settings.tensorboard:
            senders.append(stack.enter_context(_tensorboard(run.workdir / "tensorboard")))
        if writes and run.settings.wandb:
            senders.append(stack.enter_context(_wandb(run)))

        def track(step: int, values: Mapping[str, float]) -> None:
            for send in senders:
                send(step, values)

        yield track


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[Track]:
    # tensorboard uses TensorFlow for its files if that is installed. With this module present it uses its own code.
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    writer_module = _import_optional("tensorboard.summary.writer.event_file_writer", "TENSORBOARD = False")
    event_pb2 = importlib.import_module("tensorboard.compat.proto.event_pb2")
    summary_pb2 = importlib.import_module("tensorboard.compat.proto.summary_pb2")
    import time

    writer = writer_module.EventFileWriter(str(folder))

    def send(step: int, values: Mapping[str, float]) -> None:
        scalars = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        summary = summary_pb2.Summary(value=scalars)
        writer.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()

    try:
        yield send
    finally:
        writer.close()


@contextlib.contextmanager
def _wandb(run: Run) -> Iterator[Track]:
    wandb = _import_optional("wandb", "WANDB = None")
    wandb_run = wandb.init(
        project=run.settings.wandb,
        name=run.name,
        id=run.name,
        resume="allow",
        group=run.settings.group,
        dir=str(run.workdir),
        config={
            "scale": str(run.settings.scale),
            "mixture": run.settings.mixture,
            "steps": run.settings.steps,
        },
    )
    try:
        yield lambda step, values: wandb_run.log(dict(values), step=step)
    finally:
        wandb_run.finish()


def _import_optional(module: str, alternative: str) -> Any:
    """Imports a package that may be missing; ``alternative`` is the setting that does without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MscaleError(
            f"{package} is not installed: pip install {package}, or set {alternative}"
        ) from error
