"""Training of one run: settings, step, optimizer, evaluation, checkpoints, records.

What other folders import from here:

- `settings`: settings of a run, and their checks.
- `step`: the compiled train step.
- `optimizer`: AdamW and the warmup-stable-decay (WSD) schedule.
- `evaluation`: held-out losses.
- `checkpoints`: saves, verifies and restores states.
- `metrics`: fetches losses from the device and records them.
- `recorder`: writes the records of a run.
- `tracking`: TensorBoard and W&B.
- `distributed`: several processes that train one model.
- `runtime`: compile cache and memory allocator.
"""

__all__ = [
    "checkpoints",
    "distributed",
    "evaluation",
    "metrics",
    "optimizer",
    "recorder",
    "runtime",
    "settings",
    "step",
    "tracking",
]
