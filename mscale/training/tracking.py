"""What a run shows while it trains: speed beside the progress bar, and curves in TensorBoard or Weights & Biases.

metrics.jsonl is always written (``recorder``); the two others are optional installs that a run asks for.
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

Track = Callable[[int, Mapping[str, float]], None]


def speed_note(run: Any, tokens_per_second: float) -> str:
    """Tokens/s and the model FLOP/s (6N and causal attention), as MFU where the devices' peak is known."""
    if not tokens_per_second:
        return ""
    shape, vocabulary = run.model.shape, run.model.vocab_size
    flops = tokens_per_second * scales.flops_per_token(shape, vocabulary, run.settings.sequence_length)
    peak = peak_flops(run.settings.peak_flops)
    share = f"{flops / peak:.1%} MFU" if peak else f"{flops / 1e9:,.3g} GFLOP/s"
    return f"{tokens_per_second:,.0f} tokens/s, {share}"


@contextlib.contextmanager
def trackers(run: Any, writes: bool = True) -> Iterator[Track]:
    """Yields ``track(step, values)``, which sends values to what the run asks for.

    Args:
      run: its ``tensorboard`` and ``wandb`` settings say where to.
      writes: False on all hosts but the first.

    Raises:
      MscaleError: a package that the run asks for is not installed.
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
    # tensorboard takes TensorFlow for its files where that is installed; told there is none, it uses its own.
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    writer_module = _installed("tensorboard.summary.writer.event_file_writer", "TENSORBOARD = False")
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
def _wandb(run: Any) -> Iterator[Track]:
    wandb = _installed("wandb", "WANDB = None")
    one = wandb.init(
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
        yield lambda step, values: one.log(dict(values), step=step)
    finally:
        one.finish()


def _installed(module: str, instead: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MscaleError(f"{package} is not installed: pip install {package}, or set {instead}") from error
