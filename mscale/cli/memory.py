"""What fits where, before anyone pays: ``mscale plan memory``."""

import sys
from dataclasses import fields

import click

from mscale.cli import comma_list
from mscale.cli.plan import plan


@plan.command("memory")
@click.option(
    "--scale",
    "names",
    required=True,
    callback=comma_list,
    help="Rungs of the ladder, such as 46 or 34,42,46.",
)
@click.option("--chip", required=True, help="a100, h100, h200, b200, v4, v5e, v5p or v6e.")
@click.option("--chips", type=click.IntRange(1, 65_536), help="Default: as few as hold the run.")
@click.option("--batch", type=click.IntRange(1), help="Sequences; default: by size, as ATLAS trains.")
@click.option("--sequence-length", type=click.IntRange(1), default=2048, show_default=True)
@click.option("--vocabulary", type=click.IntRange(1), default=64_512, show_default=True)
@click.option("--data", type=click.IntRange(1), help="Only meshes with this axis; so --fsdp and --tensor.")
@click.option("--fsdp", type=click.IntRange(1))
@click.option("--tensor", type=click.IntRange(1))
def plan_memory(
    names: list[str],
    chip: str,
    chips: int | None,
    batch: int | None,
    sequence_length: int,
    vocabulary: int,
    data: int | None,
    fsdp: int | None,
    tensor: int | None,
) -> None:
    """What a run takes on each chip, in bfloat16 with blocks recomputed: every mesh, or one each of several scales."""
    from rich.console import Console
    from rich.table import Table

    from mscale import scales
    from mscale.errors import MscaleError
    from sweeps import memory

    room = memory.room(chip)
    columns = [field.name for field in fields(memory.Use)]
    table = Table("scale", "batch", "mesh", *columns, "total", f"of {room / 1e9:.1f} GB")
    fixed = {name: size for name, size in (("data", data), ("fsdp", fsdp), ("tensor", tensor)) if size}
    for name in names:
        shape = scales.get(name)
        rows = batch or scales.atlas_batch_size(scales.parameter_count(shape, vocabulary))
        sizes = shape, vocabulary, rows, sequence_length, chip
        found = memory.placements(*sizes, chips or memory.place(*sizes).chips)
        found = [one for one in found if all(getattr(one, axis) == size for axis, size in fixed.items())]
        if not found:
            wanted = " ".join(f"{axis}={size}" for axis, size in fixed.items()) or "batch"
            raise MscaleError(
                f"scale {name}: no mesh of {chips or 'these'} chips splits {rows} sequences with {wanted}; "
                f"data x fsdp must divide the batch, tensor the MLP width {shape.ffw}, all three multiply to the chips"
            )
        if len(names) > 1:  # of several scales the simplest mesh that holds it, or the one that comes closest
            fitting = [one for one in found if one.bytes_per_chip <= room]
            found = fitting[:1] or [min(found, key=lambda one: one.bytes_per_chip)]
        for one in found:
            parts = (getattr(one.use, column) for column in columns)
            fits = one.bytes_per_chip <= room
            table.add_row(
                name,
                str(rows),
                str(one),
                *(f"{part / 1e9:.2f}" for part in (*parts, one.use.total)),
                "fits" if fits else "does not fit",
            )
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        "GB on each chip. state: parameters, gradients and Adam; gathered: what fsdp makes whole to use it; "
        "activations: one input a layer and one layer's numbers; logits: the loss's block. Against the compiler: "
        "docs/training.md"
    )
