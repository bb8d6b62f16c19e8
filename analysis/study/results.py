"""The schema of a study's results (laws.json), and reading them.

The file holds numbers, names and codes. The one kind of text is a `reason`: the message with which an analysis refused
the data. Sections are structs; rows of tables are dictionaries, as pandas and JSON have them. A number that the study
does not identify is None.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import msgspec

from analysis.fitting.fit import from_json
from analysis.fitting.result import Fit
from analysis.tables.records import to_json_value
from analysis.tables.remarks import Remark
from mscale.errors import MscaleError
from mscale.files import atomic_write, read_json

RESULTS_FORMAT = 4
"""Of laws.json; raised when a field changes, and results of another number are refused."""

# Which numbers of a row may be None depends on its status, which a type cannot say: checkers take them for Any.
if TYPE_CHECKING:
    _Number = Any
else:
    _Number = int | float | None
_Count = int | float  # tables from elsewhere may hold counts as floats
Kind = Literal["mono", "bilingual", "uniform", "mixed", "repeated", "continued", "unimax"]
_Status = Literal["measured", "bound", "missing"]
_Row = dict[str, _Number]  # numbers by name
_Bound = Literal["at most", "at least", ""]


class _Section(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class ScaleRow(TypedDict):
    scale: str
    params: int


class CellRow(TypedDict):
    """The runs of one kind. tokens: of a run. flops: each trunk once, branches from where they left it."""

    kind: Kind
    mixtures: int
    scales: int
    trunks: int
    runs: int
    cooled: int
    seeds: int
    tokens_low: int
    tokens_high: int
    flops: float


class StudySummary(_Section):
    """What was run. unique_tokens: of languages whose data some run repeated."""

    title: str
    runs: int
    trunks: int
    observations: int
    evaluations: int
    languages: list[str]
    unique_tokens: dict[str, int]
    trained_languages: list[str]
    scales: list[ScaleRow]
    tokens: int
    flops: float
    vocabularies: list[str]
    cells: list[CellRow]
    seconds: _Number
    workers: int | None
    peak_memory_bytes: _Number
    command: str | None


class LossRow(TypedDict):
    """A point of a loss curve."""

    run: str
    scale: str
    params: _Count
    mixture: str
    language: str
    tokens: _Count
    phase: Literal["stable", "end"]
    loss: float
    bits_per_byte: _Number
    kind: Kind


class ParameterRow(TypedDict):
    name: str
    estimate: _Number
    low: _Number
    high: _Number
    identified: bool
    reason: str
    unit: str


class LawResult(_Section):
    """A law: fitted, or refused for the `reason`. Equation, source and notes are those of the saved fit.

    points, groups: losses and trunks that it was fitted to. left_out: languages run at too few sizes. ATLAS only:
    variant (effective data of the law), own_sources (number of sources of each language with a τ of their own),
    sources (these), refused (why a variant with more τ was refused).
    """

    name: str
    fitted: bool
    reason: str = ""
    parameters: list[ParameterRow] = []
    r2: _Number = None
    r2_within: _Number = None
    points: int = 0
    groups: int = 0
    left_out: list[str] = []
    variant: Literal["", "D_t", "D_other", "K_t"] = ""
    own_sources: int = 0
    sources: dict[str, list[str]] = {}
    refused: str = ""


class PointRow(TypedDict):
    """A loss that a law was fitted to. K: languages of the run. epochs: over its data of the language."""

    law: str
    run: str
    language: str
    scale: str
    params: _Count
    tokens: _Count
    target_tokens: _Count
    mixture: str
    epochs: float
    K: int
    observed: float
    predicted: _Number


class HeldOutRow(TypedDict):
    """R² of a law on held-out losses, and its difference from that of Chinchilla."""

    law: Literal["chinchilla", "atlas_D_t", "atlas_D_other", "atlas_K_t"]
    split: str
    r2: _Number
    low: _Number
    high: _Number
    difference: _Number
    difference_low: _Number
    difference_high: _Number
    n: int | None
    reason: str


class ScoreRow(TypedDict):
    """A bilingual transfer score (`transfer.matrix.SCORE_COLUMNS`)."""

    scale: str
    params: _Count
    target: str
    source: str
    d: _Number
    score: _Number
    low: _Number
    high: _Number
    tau: _Number
    status: _Status
    bound: _Bound
    phase: Literal["stable", "end"]
    reason: Remark | None


class PlantedRow(ScoreRow):
    relatedness: float
    same_family: bool


class AdaptationRow(TypedDict):
    """An adaptation score (`transfer.adaptation.adaptation_scores`)."""

    scale: str
    target: str
    source: str
    d_max: float
    score: _Number
    low: _Number
    high: _Number
    final: _Number
    status: _Status
    reason: Remark | None


class AgreementRow(TypedDict):
    pairs: int
    spearman: _Number
    p: _Number
    smallest_p: _Number
    table: list[PlantedRow]


class StatisticsRow(TypedDict):
    languages: int
    symmetry: _Row | None
    script: _Row | None
    family: _Row | None
    top_sources: dict[str, int]


class PredictedCellRow(TypedDict):
    target: str
    source: str
    score: float
    low: float
    high: float
    status: Literal["predicted"]


class PredictionRow(TypedDict):
    """Cells predicted from others (`transfer.forest.Predictions`), or why there are none."""

    cells: list[PredictedCellRow]
    reason: str
    groups: NotRequired[list[str]]
    features: NotRequired[dict[str, list[str]]]
    r2: NotRequired[float]
    r2_low: NotRequired[_Number]
    r2_high: NotRequired[_Number]
    spearman: NotRequired[float]
    pairs: NotRequired[int]
    ablation: NotRequired[list[dict[str, Any]]]
    gains: NotRequired[list[dict[str, Any]]]
    importance: NotRequired[dict[str, float]]


class PublishedRow(TypedDict):
    """Agreement with the published matrix."""

    pairs: int
    correlation: _Number
    low: _Number
    high: _Number
    table: list[dict[str, Any]]


class TransferResult(_Section):
    """The transfer matrix. scale, d, params: of the part that the report shows. units: the matrix in other units."""

    noise: dict[str, _Row] = {}
    matrix: list[ScoreRow] = []
    curves: list[ScoreRow] = []
    cooled: list[ScoreRow] = []
    adaptation: list[AdaptationRow] = []
    scale: str | None = None
    d: _Number = None
    params: _Count | None = None
    agreement: AgreementRow | None = None
    published: PublishedRow | None = None
    units: dict[str, list[ScoreRow]] = {}
    units_missing: dict[str, Remark] = {}
    statistics: StatisticsRow | None = None
    predicted: PredictionRow = msgspec.field(default_factory=lambda: PredictionRow(cells=[], reason=""))
    next_pairs: list[dict[str, Any]] = []
    error: str = ""


class UniformRow(TypedDict):
    """The cooled loss of a uniform mixture of K languages; tokens: of all of them."""

    scale: str
    params: _Count
    K: _Count
    tokens: _Count
    language: str
    loss: float


class CapacityResult(_Section):
    """Growth to more languages. start: the share of size in the reducible loss, and that of a compute-optimal start."""

    points: list[UniformRow] = []
    multipliers: list[_Row] = []
    exponents: dict[str, _Row] = {}
    iso: list[_Row] = []
    start: _Row | None = None
    lines: list[UniformRow] = []
    identified: bool = False
    reason: str = ""


class CrossoverRow(TypedDict):
    """A crossover (`crossover.CROSSOVER_COLUMNS`)."""

    scale: str
    params: _Count
    language: str
    tokens: _Number
    low: _Number
    high: _Number
    status: _Status
    bound: _Bound
    gap: _Number
    gap_low: _Number
    gap_high: _Number
    gap_tokens: _Number
    phase: Literal["stable", "end"]
    init: str
    scratch_runs: int
    continued_runs: int
    scratch_tokens: float
    continued_tokens: float
    reason: Remark | None


class GapRow(TypedDict):
    """Loss from scratch minus that of continuing."""

    scale: str
    language: str
    tokens: float
    gap: _Number
    low: _Number
    high: _Number


class CrossoverResult(_Section):
    """Crossovers of stable curves, and of cooled ones; their power law in N, or why there is none."""

    table: list[CrossoverRow] = []
    cooled: list[CrossoverRow] = []
    gaps: list[GapRow] = []
    law: _Row | None = None
    error: str = ""


class ComparedRow(TypedDict):
    """A mixture, its loss, and by how many nats it is worse than the first."""

    mixture: str
    parameters: float
    loss: _Number
    low: NotRequired[_Number]
    high: NotRequired[_Number]
    worse_by: NotRequired[_Number]
    worse_low: NotRequired[_Number]
    worse_high: NotRequired[_Number]


class MixtureAdvice(_Section):
    """The law's best mixture for all languages at `flops`, or why there is none.

    parameters: N of that mixture. better: whether it is surely better than the usual ones. rates: largest first.
    """

    reason: str = ""
    flops: _Number = None
    parameters: _Number = None
    better: bool = False
    rates: dict[str, float] = {}
    compared: list[ComparedRow] = []


class Results(_Section):
    """laws.json. fits: the fitted laws (`Fit.to_json`). truth: that of a generated corpus."""

    format: int
    level: float
    seed: int
    study: StudySummary
    loss_curves: list[LossRow]
    laws: dict[str, LawResult]
    fits: dict[str, str]
    fit_points: list[PointRow]
    heldout: list[HeldOutRow]
    transfer: TransferResult
    capacity: CapacityResult
    crossover: CrossoverResult
    mixture: MixtureAdvice
    notes: list[Remark]
    exclusions: list[Remark]
    truth: dict[str, Any] | None


def as_results(sections: dict[str, Any]) -> Results:
    """The results of these sections; NaN and infinite numbers become None."""
    return msgspec.convert(to_json_value(sections), Results)


def write_results(results: Results, path: str | Path) -> None:
    """Writes the results as JSON, atomically."""
    atomic_write(path, msgspec.json.format(msgspec.json.encode(results).decode(), indent=2) + "\n")


def read_results(source: str | Path) -> Results:
    """Reads the results that `mscale fit` wrote: `source` is the JSON file, or a folder with laws.json in it.

    Raises:
      MscaleError: no such file, another kind of file, or results of another version of mscale.
    """
    source = Path(source)
    path = source / "laws.json" if source.is_dir() else source
    if path.exists() and path.suffix != ".json":
        raise MscaleError(
            f"{path}: expected the laws.json that `mscale fit` writes, found a {path.suffix or 'nameless'} file; run "
            f"`mscale fit {path}` first"
        )
    found = read_json(path, what="results of mscale fit")
    version = found.get("format") if isinstance(found, dict) else None
    if version != RESULTS_FORMAT:
        raise MscaleError(
            f"{path}: not results of this mscale (format {version}, expected {RESULTS_FORMAT}): run `mscale fit` again"
        )
    try:
        return msgspec.convert(found, Results)
    except msgspec.ValidationError as error:
        raise MscaleError(f"{path}: not what `mscale fit` writes ({error}): run it again") from error


def saved_fit(results: Results, law: str) -> Fit | None:
    """The fitted law of that name, or None where these results have none."""
    text = results.fits.get(law)
    return None if text is None else from_json(text)


def required_fit(results: Results, law: str, what: str) -> Fit:
    """The fitted law of that name; raises MscaleError that says which fit `what` needs and why it is missing."""
    found = saved_fit(results, law)
    if found is None:
        title = {"atlas": "ATLAS", "capacity": "capacity", "chinchilla": "Chinchilla"}[law]
        raise MscaleError(f"{what} needs the {title} law, which is not fitted: {results.laws[law].reason}")
    return found


def params_range(study: StudySummary) -> tuple[float, float]:
    """The smallest and the largest N of a study."""
    sizes = [scale["params"] for scale in study.scales]
    return float(min(sizes)), float(max(sizes))


def main_matrix(results: Results) -> list[ScoreRow]:
    """The cells of the transfer matrix at the scale that the report shows."""
    return [row for row in results.transfer.matrix if row["scale"] == results.transfer.scale]
