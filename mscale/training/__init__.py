"""What one run does: settings, step, optimizer, evaluation, checkpoints, records.

What other folders import from here:

- `settings`: what a run is asked to be.
- `step`: the compiled train step.
- `optimizer`: AdamW and the warmup-stable-decay (WSD) schedule.
- `evaluation`: held-out losses.
- `checkpoints`: saving, verifying, restoring.
- `metrics`: from the device to records.
- `recorder`: what a run leaves in its folder.
- `tracking`: TensorBoard and W&B.
- `distributed`: several processes.
- `runtime`: compile cache and allocator.
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
