"""A study's plan as a table for the terminal and a chart of the bill."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cost import bill as planner
from sweeps.study import Study

if TYPE_CHECKING:
    import altair as alt
    from rich.table import Table


def plan_table(
    study: Study,
    *,
    slots: int = 2,
    accelerator: str | None = None,
    mfu: float = 0.4,
    slices: int = 1,
    chips: int | None = None,
    printed: Mapping[str, int] | None = None,
    statements: Sequence[str] = (),
) -> "Table":
    """Returns the plan as a ``rich`` table; its caption is ``plan_lines``.

    Args:
      slots: CPU cores, for the time of a nano study.
      accelerator: name in ``mscale.chips``, for device-hours, memory and meshes; None leaves these out.
      mfu: model FLOPs utilisation.
      slices, chips: slices that train at once, and chips of each (default: the fewest that hold every run).
      printed: tag to the number of cells in a paper's table, for a column of its own.
      statements: which questions the study answers.

    Raises:
      MscaleError: an unknown accelerator, or a run that does not fit.
    """
    from rich.markup import escape
    from rich.table import Table

    result = planner.study_bill(study)
    clock = (
        planner.estimate_wall_clock(study, accelerator, mfu=mfu, slices=slices, chips=chips)
        if accelerator
        else None
    )
    table = Table(title=f"Study {study.name}", title_justify="left", caption_justify="left")
    table.add_column("tag")
    names = ["printed"] * (printed is not None) + ["cells", "distinct", "budgets", "runs", "trunks"]
    for name in (*names, "tokens", "FLOPs"):
        table.add_column(name, justify="right")
    if clock:
        for name in (f"{accelerator} hours", "GB a chip", f"mesh of {clock.chips}"):
            table.add_column(name, justify="right")
    for bill in (*result.tags, result.total):
        if bill is result.total:
            table.add_section()
        counts = [bill.configurations, bill.trainings, bill.cells, bill.runs, bill.trunks]
        row = [bill.tag, *(f"{count:,}" for count in counts), _tokens(bill.tokens), f"{bill.flops:.3g}"]
        if printed is not None:
            total = sum(printed.values())
            row.insert(1, f"{total if bill is result.total else printed.get(bill.tag, 0):,}")
        if clock:
            row.append(f"{planner.device_hours(bill.flops, accelerator or '', mfu):,.3g}")
            if bill.tag in clock.largest:
                largest = clock.largest[bill.tag]
                row += [f"{largest.bytes_per_chip / 1e9:.1f}", str(largest.mesh)]
        table.add_row(*row)
    table.caption = escape("\n".join(plan_lines(study, result, clock, slots, printed, statements)))
    return table


def _tokens(count: int) -> str:
    """The exact count, or four digits where that is too wide for a column."""
    return f"{count:,}" if count < 10**10 else f"{count:.3e}"


def plan_lines(
    study: Study,
    result: planner.StudyBill,
    clock: planner.WallClock | None,
    slots: int,
    printed: Mapping[str, int] | None,
    statements: Sequence[str],
) -> list[str]:
    """Lines below the table: savings, critical path, wall-clock time, laws identified, and notes."""
    total = result.total
    lines = []
    if printed is not None:
        lines.append(
            f"{sum(printed.values()):,} printed cells, {total.configurations:,} of them named; {total.trainings:,} "
            f"distinct trainings, each cooled at {total.cells / max(1, total.configurations):.2g} budgets."
        )
    lines += [
        f"Shared trunks and baselines save {result.saving:.0%} of the {total.naive_flops:.3g} FLOPs "
        f"that the {total.cells:,} cooled models would take one by one.",
        f"Longest chain of dependent runs: {len(result.critical_path)} runs, "
        f"{result.critical_flops:.3g} FLOPs.",
    ]
    if clock:
        lines.append(
            f"On {clock.slices} slice{'s' * (clock.slices > 1)} of {clock.chips} {clock.accelerator} at "
            f"{clock.mfu:.0%} of their peak: about {_time(clock.hours)}; never less than "
            f"{_time(clock.critical_hours)}, the longest chain."
        )
    elif planner.is_nano(study):
        lines.append(f"On {slots} CPU cores: about {planner.nano_study_seconds(study, slots):,.0f} s.")
    return [*lines, *statements, *(f"Note: {note}" for note in result.notes)]


def _time(hours: float) -> str:
    return f"{hours:,.3g} hours" if hours < 100 else f"{hours / 24:,.4g} days"


def bill_chart(study: Study, accelerator: str | None = None, mfu: float = 0.4) -> "alt.Chart":
    """Returns an Altair chart of the bill by scale and tag: FLOPs, or hours of ``accelerator``.

    Raises:
      MscaleError: Altair is not installed, or the accelerator is not known.
    """
    try:
        import altair as alt
    except ImportError:
        from mscale.errors import MscaleError

        raise MscaleError("the chart needs Altair; install mscale[analysis]") from None

    sums: dict[tuple[str, str], float] = {}
    sizes: dict[str, int] = {}
    for run in study.runs:
        scale = str(run.bindings["SCALE"])
        sizes[scale] = run.params
        value = planner.device_hours(run.flops, accelerator, mfu) if accelerator else float(run.flops)
        sums[scale, run.tag] = sums.get((scale, run.tag), 0.0) + value
    order = sorted(sizes, key=lambda scale: sizes[scale])
    names = {scale: f"{scale} · {_count(sizes[scale])}" for scale in order}
    tags = list(dict.fromkeys(run.tag for run in study.runs))
    unit = f"{accelerator} hours" if accelerator else "FLOPs"
    rows = [
        {"scale": names[scale], "tag": tag, "value": value, "place": tags.index(tag)}
        for (scale, tag), value in sums.items()
    ]
    total = sum(sums.values())
    title = f"{study.name}: {total:,.3g} {unit}" + (f" at {mfu:.0%} of peak" if accelerator else "")
    return (
        alt.Chart(alt.Data(values=rows), title=title)
        .mark_bar()
        .encode(
            y=alt.Y("scale:N", sort=[names[scale] for scale in order], title="scale · parameters"),
            x=alt.X("value:Q", title=unit, axis=alt.Axis(format=".2~e" if not accelerator else "~s")),
            color=alt.Color("tag:N", sort=tags, title="tag", scale=alt.Scale(scheme="tableau10")),
            order=alt.Order("place:Q"),
            tooltip=["scale:N", "tag:N", alt.Tooltip("value:Q", format=".3~e")],
        )
        .properties(width=560, height=alt.Step(20))
    )


def save_bill(study: Study, path: str | Path, accelerator: str | None = None, mfu: float = 0.4) -> None:
    """Writes ``bill_chart`` as .html, .json, .svg or .png, by the file name."""
    bill_chart(study, accelerator, mfu).save(str(path))


def _count(params: int) -> str:
    return f"{params / 1e9:.3g}B" if params >= 1e9 else f"{params / 1e6:.3g}M"
