"""A mixture as a table and a chart: language, script, unique tokens, rate, tokens and epochs, for a token budget.

    mixture = resolve("unimax", store, sequence_length, options=SamplingOptions(budget_tokens=budget))
    rows = show.mixture_rows(mixture, budget, store)
    console.print(show.mixture_table(mixture, rows))
    show.save_chart(show.mixture_chart(mixture, rows), "mixture.html")

Counts are those of the schedule, in whole windows.
"""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mscale import languages as inventory
from mscale.data.mixture import Mixture, Sizes
from mscale.data.store import Store
from mscale.data.vocabulary import Vocabulary, load_vocabulary
from mscale.errors import MscaleError
from mscale.files import atomic_write

if TYPE_CHECKING:
    import altair as alt

_SAMPLE_TOKENS = 2_000  # decoded to detect the script
_MANY_EPOCHS = 4.0  # beyond this, repeated tokens are worth much less (Muennighoff et al. 2023)

# Classes of epochs, in colours that are safe for colour-blind readers.
_REPETITION = {
    "not all text": "#56b4e9",
    "1 to 4 epochs": "#009e73",
    "more than 4 epochs": "#d55e00",
}


@dataclass(frozen=True)
class MixtureRow:
    """One language of a mixture.

    Attributes:
      language: its code.
      script: of its train text; "" without a store that holds text.
      unique_tokens: U, in whole windows.
      rate: its sampling rate.
      tokens: D, expected: rate × budget.
      epochs: D / U.
    """

    language: str
    script: str
    unique_tokens: int
    rate: float
    tokens: float
    epochs: float


def mixture_rows(mixture: Mixture, budget_tokens: float, store: Sizes | None = None) -> list[MixtureRow]:
    """Returns a row for each language, by falling rate, then by size.

    Args:
      mixture: as resolved over the store.
      budget_tokens: tokens of the whole run.
      store: a local token store, for the scripts; None, or sizes alone, leaves them empty.

    Raises:
      MscaleError: a budget that is not above 0.
    """
    if not budget_tokens > 0:
        raise MscaleError(
            f"mixture {mixture.name!r}: a budget of {budget_tokens:,} tokens, expected more than 0"
        )
    found = []
    for language, rate in zip(mixture.languages, mixture.rates, strict=True):
        unique, tokens = mixture.unique_tokens[language], rate * budget_tokens
        script = (
            _script(store, store.path, language)
            if isinstance(store, Store) and isinstance(store.path, Path)
            else ""
        )
        found.append(MixtureRow(language, script, unique, rate, tokens, tokens / unique if unique else 0.0))
    return sorted(found, key=lambda row: (-row.rate, -row.unique_tokens, row.language))


def mixture_table(mixture: Mixture, rows: Sequence[MixtureRow], limit: int | None = None) -> Table:
    """Returns a rich table of ``rows`` with sums below; with ``limit`` the smallest rates are summed in one line.

    More than 4 epochs are highlighted: such repetition is worth much less than new text (Muennighoff et al. 2023).
    """
    shown = list(rows if limit is None else rows[:limit])
    rest = list(rows[len(shown) :])
    made = Table(title=f"mixture {mixture.name}, {len(rows)} languages", show_footer=True)
    total = sum(row.tokens for row in rows)
    unique = sum(row.unique_tokens for row in rows)
    seen = sum(min(row.tokens, row.unique_tokens) for row in rows)
    many = sum(row.epochs > _MANY_EPOCHS for row in rows)
    if many:
        made.caption = f"{many} language(s) repeated more than {_MANY_EPOCHS:g} times"
    made.add_column("language", footer="all")
    made.add_column("script", footer=f"{len({row.script for row in rows} - {''})} scripts")
    made.add_column("unique tokens", justify="right", footer=f"{unique:,}")
    made.add_column("rate", justify="right", footer=f"{sum(row.rate for row in rows):.4%}")
    made.add_column("tokens", justify="right", footer=f"{total:,.0f}")
    made.add_column("epochs", justify="right", footer=f"{total / seen:.2f}" if seen else "")
    for row in shown:
        made.add_row(*_cells(row), style="yellow" if row.epochs > _MANY_EPOCHS else None)
    if rest:
        summed = MixtureRow(
            f"{len(rest)} more",
            "",
            sum(row.unique_tokens for row in rest),
            sum(row.rate for row in rest),
            sum(row.tokens for row in rest),
            max(row.epochs for row in rest),
        )
        cells = _cells(summed)
        made.add_row(*cells[:-1], f"≤ {cells[-1]}", style="dim")
    return made


def rows_to_csv(rows: Sequence[MixtureRow]) -> str:
    """Returns ``rows`` as CSV, with a header and full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(MixtureRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def mixture_chart(mixture: Mixture, rows: Sequence[MixtureRow], limit: int = 60) -> "alt.LayerChart":
    """Returns an Altair chart: tokens drawn and unique tokens of each language on a log axis, coloured by repetition.

    Args:
      mixture: that ``rows`` describe.
      rows: as ``mixture_rows`` returns them; the first ``limit`` are drawn, and the title says so.
      limit: most languages drawn.

    Raises:
      MscaleError: Altair is not installed.
    """
    try:
        import altair as alt
    except ImportError:
        raise MscaleError("plotting needs Altair: pip install 'mscale[analysis]'") from None

    drawn = [row for row in rows[:limit] if row.tokens > 0]
    of = f" (the {len(drawn)} of the highest rates)" if len(drawn) < len(rows) else ""
    data = alt.InlineData([asdict(row) | {"repetition": _repetition(row.epochs)} for row in drawn])
    languages = alt.Y("language:N", sort=[row.language for row in drawn], title=None)
    tip = [
        alt.Tooltip("language:N"),
        alt.Tooltip("script:N"),
        *(alt.Tooltip(f"{name}:Q", format=",.3s") for name in ("unique_tokens", "tokens")),
        alt.Tooltip("rate:Q", format=".4%"),
        alt.Tooltip("epochs:Q", format=".2f"),
    ]
    base = alt.Chart(data).encode(y=languages, tooltip=tip)
    scale = alt.Scale(type="log")
    tokens = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=alt.X("tokens:Q", scale=scale, title="tokens", axis=alt.Axis(format="~s", grid=False)),
        color=alt.Color(
            "repetition:N",
            title=None,
            scale=alt.Scale(domain=list(_REPETITION), range=list(_REPETITION.values())),
        ),
    )
    unique = base.mark_tick(color="black", thickness=2).encode(x=alt.X("unique_tokens:Q", scale=scale))
    between = base.mark_rule(color="lightgrey").encode(x=alt.X("unique_tokens:Q", scale=scale), x2="tokens:Q")
    title = alt.TitleParams(
        f"Mixture {mixture.name}: {sum(row.tokens for row in rows):,.3g} tokens{of}",
        subtitle="dot: tokens drawn; tick: unique tokens there are",
    )
    return (between + unique + tokens).properties(title=title, width=480)


def save_chart(chart: "alt.LayerChart", path: str | os.PathLike) -> None:
    """Writes a chart atomically as .png, .svg or self-contained .html.

    Raises:
      MscaleError: another file name extension, or a file that cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "svg", "html"):
        raise MscaleError(
            f"{path}: cannot write a chart as {path.suffix or 'that'}, expected .png, .svg or .html"
        )
    data: Any = io.BytesIO() if kind == "png" else io.StringIO()
    of_kind: dict[str, Any] = {"png": {"scale_factor": 2}, "svg": {}, "html": {"inline": True}}
    chart.save(data, **{"format": kind, **of_kind[kind]})
    atomic_write(path, data.getvalue())


def _repetition(epochs: float) -> str:
    below, some, many = _REPETITION
    return below if epochs < 1 else some if epochs <= _MANY_EPOCHS else many


def _cells(row: MixtureRow) -> tuple[str, ...]:
    return (
        row.language,
        row.script,
        f"{row.unique_tokens:,}",
        f"{row.rate:.4%}" if row.rate >= 1e-6 else f"{row.rate:.2e}",
        f"{row.tokens:,.0f}",
        f"{row.epochs:.2f}" if row.epochs >= 0.01 else f"{row.epochs:.1e}",
    )


def _script(store: Store, path: Path, language: str) -> str:
    # From the middle of the text: files often begin in another language.
    first = max(store.train_tokens(language) - _SAMPLE_TOKENS, 0) // 2
    tokens = store.train(language, first, first + _SAMPLE_TOKENS)
    return inventory.dominant_script(_vocabulary(path).decode(tokens))


@cache
def _vocabulary(path: Path) -> Vocabulary:
    return load_vocabulary(path)
