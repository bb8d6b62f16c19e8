"""Which laws a study identifies: rank and conditioning of the Fisher information at planted parameters.

A law is fitted to the final losses of a study's runs, after learning-rate decay. The Jacobian J of the predicted
losses at assumed parameters shows, before any run is trained, whether the runs identify the law: the information JᵀJ
must have full rank, and its inverse gives the standard errors for a loss noise of ``noise`` nats. Positive
parameters enter as their logarithms, so that an error of 0.1 is 10%.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sweeps.study import Study

# Typical of nano models on bytes: E and the two terms of the Chinchilla law at 80k parameters and 80k tokens.
NANO_PARAMETERS = {
    "E": 0.9,
    "A": 26.0,
    "alpha": 0.35,
    "B": 31.0,
    "beta": 0.35,
    "lambda": 0.5,
    "phi": 0.11,
    "psi": -0.04,
}
# Typical of models of millions to billions of parameters: Hoffmann et al. 2022, equation 10.
HOFFMANN_PARAMETERS = {**NANO_PARAMETERS, "E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
ASSUMED_TAU = 0.3
_TRANSFER_LANGUAGES = 3  # size of K_t: languages with a τ of their own


@dataclass(frozen=True)
class DesignPoint:
    """One final loss of the design: N, the language evaluated, and D and U of every language trained on."""

    params: int
    language: str
    tokens: dict[str, float]
    unique: dict[str, float]


@dataclass(frozen=True)
class Identification:
    """How well a study identifies a law's parameters.

    Attributes:
      rows: losses used; names: parameters; rank: of the information matrix.
      condition: condition number of the information matrix, for positive parameters in their logarithms.
      errors: standard error of each parameter at the assumed noise; infinite where it is not identified.
    """

    law: str
    rows: int
    names: tuple[str, ...]
    rank: int
    condition: float
    errors: dict[str, float]

    @property
    def identified(self) -> bool:
        """Whether the information matrix has full rank."""
        return self.rank == len(self.names)


def design_points(study: Study) -> list[DesignPoint]:
    """Final losses that the study will have, of runs from scratch on languages of their own mixture."""
    rows: dict[tuple[str, str], DesignPoint] = {}
    for cell, ends in zip(study.cells, study.ends, strict=True):
        if cell.init is not None:
            continue
        rates = study.mixtures[cell.mixture]
        limits = {**study.unique, **dict(cell.unique_tokens)}
        for tokens, end in zip(cell.tokens, ends, strict=True):
            run = study.by_id[end]
            for language in run.bindings["EVAL_LANGUAGES"]:
                if rates.get(language, 0) > 0:
                    seen = {name: rate * tokens for name, rate in rates.items() if rate > 0}
                    rows[end, language] = DesignPoint(
                        run.params, language, seen, {name: limits[name] for name in seen}
                    )
    return list(rows.values())


def tokens_after_repetition(tokens: float, unique: float, lambda_: float) -> float:
    """Effective data S(D; U) of ATLAS: D up to U, then U·[1 + (1 − exp(−λ(D/U − 1)))/λ]."""
    if tokens <= unique:
        return tokens
    return unique * (1 - np.expm1(-lambda_ * (tokens / unique - 1)) / lambda_)


def fisher_information(
    study: Study, noise: float = 0.01, planted: Mapping[str, float] | None = None
) -> dict[str, Identification]:
    """Fisher information of the Chinchilla, ATLAS and capacity laws, α, β and λ shared by all languages.

    Args:
      noise: standard deviation of a final loss, in nats.
      planted: parameters to assume; by default typical ones of nano models or of large models, by the study's scales.
    """
    rows = design_points(study)
    if planted is None:
        planted = (
            NANO_PARAMETERS if max((row.params for row in rows), default=0) < 2e6 else HOFFMANN_PARAMETERS
        )
    monolingual = [row for row in rows if len(row.tokens) == 1]
    scales_of: dict[str, set[int]] = {}
    for row in monolingual:
        scales_of.setdefault(row.language, set()).add(row.params)
    anchored = [row for row in monolingual if len(scales_of[row.language]) > 1 and not _repeats(row)]
    uniform = [row for row in rows if not _repeats(row) and len({round(v) for v in row.tokens.values()}) == 1]
    return {
        "chinchilla": _fisher(
            "chinchilla", anchored, _chinchilla_names(anchored), _chinchilla, noise, planted
        ),
        "atlas": _fisher("atlas", rows, _atlas_names(rows), _Atlas(rows), noise, planted),
        "capacity": _fisher(
            "capacity", uniform, ["E", "A", "alpha", "phi", "B", "beta", "psi"], _capacity, noise, planted
        ),
    }


def _repeats(row: DesignPoint) -> bool:
    return any(row.tokens[name] > row.unique[name] for name in row.tokens)


def _chinchilla_names(rows: Sequence[DesignPoint]) -> list[str]:
    languages = sorted({row.language for row in rows})
    return ["alpha", "beta", *(f"{name}[{language}]" for language in languages for name in "EAB")]


def _chinchilla(row: DesignPoint, p: dict[str, float]) -> float:
    t = row.language
    size = p[f"A[{t}]"] * row.params ** -p["alpha"]
    return p[f"E[{t}]"] + size + p[f"B[{t}]"] * row.tokens[t] ** -p["beta"]


def _capacity(row: DesignPoint, p: dict[str, float]) -> float:
    count = len(row.tokens)
    size = p["A"] * count ** p["phi"] * row.params ** -p["alpha"]
    return p["E"] + size + p["B"] * count ** p["psi"] * row.tokens[row.language] ** -p["beta"]


def most_cosampled(rows: Sequence[DesignPoint]) -> dict[str, list[str]]:
    """K_t: for each target language the languages with most tokens in its mixtures, over all runs."""
    together: dict[str, dict[str, float]] = {}
    for row in rows:
        sums = together.setdefault(row.language, {})
        for name, tokens in row.tokens.items():
            if name != row.language:
                sums[name] = sums.get(name, 0.0) + tokens
    return {
        t: sorted(sums, key=lambda name: (-sums[name], name))[:_TRANSFER_LANGUAGES]
        for t, sums in together.items()
    }


def _atlas_names(rows: Sequence[DesignPoint]) -> list[str]:
    names = ["alpha", "beta", "lambda"]
    sources = most_cosampled(rows)
    for t in sorted(sources):
        names += [f"{name}[{t}]" for name in "EAB"] + [f"tau[{t},{source}]" for source in sources[t]]
        if any(set(row.tokens) - {t, *sources[t]} for row in rows if row.language == t):
            names.append(f"tau[{t},other]")
    return names


class _Atlas:
    """Predicted losses of the ATLAS law, with the K_t of one study."""

    def __init__(self, rows: Sequence[DesignPoint]):
        self.sources = most_cosampled(rows)
        # Name of τ, tokens and unique tokens of each transfer term; the "other" languages of a row are summed once.
        self.terms = {id(row): self._terms(row) for row in rows}

    def _terms(self, row: DesignPoint) -> list[tuple[str, float, float]]:
        t, other, unique, terms = row.language, 0.0, 0.0, []
        for name, tokens in row.tokens.items():
            if name in self.sources[t]:
                terms.append((f"tau[{t},{name}]", tokens, row.unique[name]))
            elif name != t:
                other, unique = other + tokens, unique + row.unique[name]
        return [*terms, (f"tau[{t},other]", other, unique)] if other else terms

    def __call__(self, row: DesignPoint, p: dict[str, float]) -> float:
        t = row.language
        effective = tokens_after_repetition(row.tokens[t], row.unique[t], p["lambda"])
        for name, tokens, unique in self.terms[id(row)]:
            effective += p[name] * tokens_after_repetition(tokens, unique, p["lambda"])
        size = p[f"A[{t}]"] * row.params ** -p["alpha"]
        return p[f"E[{t}]"] + size + p[f"B[{t}]"] * effective ** -p["beta"]


def _fisher(
    law: str,
    rows: Sequence[DesignPoint],
    names: Sequence[str],
    predict: Callable[[DesignPoint, dict[str, float]], float],
    noise: float,
    values: Mapping[str, float],
) -> Identification:
    if not rows:
        return Identification(law, 0, tuple(names), 0, float("inf"), dict.fromkeys(names, float("inf")))
    planted = {
        name: ASSUMED_TAU if name.startswith("tau") else values[name.partition("[")[0]] for name in names
    }
    # E[t] and tau[t,s] change the losses of language t alone.
    of_language: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        of_language.setdefault(row.language, []).append(index)
    jacobian = np.zeros((len(rows), len(names)))
    for column, name in enumerate(names):
        # τ, φ and ψ may have either sign; the others are positive, and the derivative is by their logarithm.
        additive = name.startswith(("tau", "phi", "psi"))
        step = 1e-5 if additive else 1e-5 * planted[name]
        scale = 1.0 if additive else planted[name]
        up, down = {**planted, name: planted[name] + step}, {**planted, name: planted[name] - step}
        owner = name.partition("[")[2].rstrip("]").partition(",")[0]
        for index in of_language[owner] if owner else range(len(rows)):
            row = rows[index]
            jacobian[index, column] = (predict(row, up) - predict(row, down)) / (2 * step) * scale
    if len(rows) > len(names):  # R has the same singular values and right singular vectors, and fewer rows
        jacobian = np.linalg.qr(jacobian).R
    _, singular, directions = np.linalg.svd(jacobian, full_matrices=True)
    singular = np.concatenate([singular, np.zeros(len(names) - len(singular))])
    largest = singular.max(initial=0.0)
    kept = singular > 1e-6 * largest
    condition = float((largest / singular.min()) ** 2) if len(singular) and singular.min() > 0 else np.inf
    errors = {}
    for column, name in enumerate(names):
        unidentified = np.abs(directions[~kept, column]).max(initial=0.0) > 1e-3
        variance = np.sum((directions[kept, column] / singular[kept]) ** 2)
        errors[name] = float("inf") if unidentified else noise * float(np.sqrt(variance))
    return Identification(law, len(rows), tuple(names), int(kept.sum()), condition, errors)


# ---------------------------------------------------------------------------------------------------------
# Sentences of the plan

_CROSSOVER_LAW_SCALES = 3


def identification_lines(study: Study, noise: float = 0.01) -> list[str]:
    """One line for each law and each other question: whether the study answers it, and how well."""
    lines = []
    for name, found in fisher_information(study, noise).items():
        rank = f"rank {found.rank} of {len(found.names)} from {found.rows:,} losses"
        exponents = [one for one in ("alpha", "beta", "lambda", "phi", "psi") if one in found.errors]
        if found.identified and found.rows:
            errors = ", ".join(f"{one} ±{found.errors[one]:.2g}" for one in exponents)
            lines.append(
                f"Identifies the {name} law: {rank}, condition {found.condition:.1e}; at a noise of {noise:g} nats "
                f"{errors} (α, β, λ as a fraction)."
            )
        else:
            undetermined = [one for one, error in found.errors.items() if not np.isfinite(error)]
            shown = ", ".join(undetermined[:6]) + (
                f" and {len(undetermined) - 6} more" if len(undetermined) > 6 else ""
            )
            lines.append(f"Does not identify the {name} law: {rank}; undetermined: {shown or 'all of it'}.")
    return lines + [_transfer_line(study), _crossover_line(study), _noise_line(study)]


def answers_lost(study: Study, missing: Collection[str], noise: float = 0.01) -> list[str]:
    """Lines about questions that the whole study answers, and the study without the runs ``missing`` does not."""
    cells, ends = [], []
    for cell, ids in zip(study.cells, study.ends, strict=True):
        kept = [
            (tokens, one) for tokens, one in zip(cell.tokens, ids, strict=True) if one not in set(missing)
        ]
        if kept:
            cells.append(replace(cell, tokens=tuple(tokens for tokens, _ in kept)))
            ends.append(tuple(one for _, one in kept))
    remaining = replace(study, cells=tuple(cells), ends=tuple(ends))
    return [
        after
        for before, after in zip(
            identification_lines(study, noise), identification_lines(remaining, noise), strict=True
        )
        if after.startswith("Does not") and not before.startswith("Does not")
    ]


def _transfer_line(study: Study) -> str:
    """A transfer score needs its target language alone and in a 50/50 pair, at one scale."""
    monolingual = {
        (str(cell.scale), language)
        for cell in study.cells
        for language in study.mixtures[cell.mixture]
        if cell.init is None and len(study.mixtures[cell.mixture]) == 1
    }
    scores = 0
    for pair in {cell.training: cell for cell in study.cells}.values():
        rates = study.mixtures[pair.mixture]
        if pair.init is not None or len(rates) != 2 or len(set(rates.values())) != 1:
            continue
        for target in rates:
            scores += (str(pair.scale), target) in monolingual
    if not scores:
        return "Does not identify transfer scores: no 50/50 pair with its target alone at the same scale."
    return f"Identifies transfer scores of {scores} ordered pairs, at references up to half of the pairs' tokens."


def _crossover_line(study: Study) -> str:
    """Pretrain or continue needs one language both ways at one scale; its power law in N needs three scales."""
    scratch = {
        (str(cell.scale), cell.mixture)
        for cell in study.cells
        if cell.init is None and len(study.mixtures[cell.mixture]) == 1
    }
    both = {
        (str(cell.scale), cell.mixture)
        for cell in study.cells
        if cell.init is not None and (str(cell.scale), cell.mixture) in scratch
    }
    sizes = {scale for scale, _ in both}
    if len(sizes) >= _CROSSOVER_LAW_SCALES:
        return (
            f"Covers pretrain-or-continue at {len(sizes)} scales, {len(both)} pairs of runs; its power law in N is "
            "identified where the curves cross within the budgets."
        )
    if both:
        return (
            f"Covers pretrain-or-continue at scale {', '.join(sorted(sizes))} for {len(both)} languages; does not "
            f"identify its power law in N, which needs {_CROSSOVER_LAW_SCALES} scales."
        )
    return "Does not cover pretrain-or-continue: no language both from scratch and continued at one scale."


def _noise_line(study: Study) -> str:
    seeds: dict[tuple, set[int]] = {}
    for cell in study.cells:
        seeds.setdefault((str(cell.scale), cell.mixture, cell.unique_tokens, cell.init), set()).add(cell.seed)
    most = max(map(len, seeds.values()), default=0)
    if most > 1:
        return f"Measures the noise between seeds: {sum(len(one) > 1 for one in seeds.values())} trainings have {most}."
    return "Does not measure the noise between seeds: every training has one."
