"""Progress of long tasks: a bar with rate and remaining time, or lines of text if there is no terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 10.0


@contextlib.contextmanager
def progress(description: str, total: float, unit: str = "") -> Iterator[Callable[..., None]]:
    """Yields ``advance(n=1, note="")``, which moves the bar by ``n`` units and can set a note.

    Without a terminal it prints a line at most every ten seconds instead, and one at the end.
    """
    if sys.stderr.isatty():
        bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + " · {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        with bar:
            task = bar.add_task(description, total=total, rate="", note="")

            def advance(n: float = 1, note: str = "") -> None:
                bar.advance(task, n)
                speed = bar.tasks[0].speed
                bar.update(task, note=note, rate=f"{speed:,.3g} {unit}/s" if speed else "")

            yield advance
        return

    started = printed = time.monotonic()
    done = 0.0

    def advance_line(n: float = 1, note: str = "") -> None:
        nonlocal done, printed
        done += n
        now = time.monotonic()
        if now - printed >= LINE_SECONDS or done >= total:
            printed = now
            rate = done / max(now - started, 1e-9)
            left = f", {max(0.0, total - done) / rate:.0f} s left" if rate > 0 else ""
            print(
                f"{description}: {done:,.0f} of {total:,.0f} {unit}, {rate:,.3g} {unit}/s, "
                f"{now - started:.0f} s{left} {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )

    yield advance_line
