"""ATLAS: the loss on a target language from its own tokens and weighted tokens of other languages.

L(N, D_eff) = E + A/N^α + B/D_eff^β,  D_eff = S(D_t) + Σ_i τ_i·S(D_i) + τ_other·S(D_other), where S(D; U)
saturates once data repeat (Longpre et al. 2026, arXiv 2510.22037, eqs. 1-3). Negative τ can make D_eff negative in
mixtures of several languages, so D_eff > 0.01·S(D_t) is a constraint on every fitted row; predictions that violate
it are NaN.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.chinchilla import ALPHA, BETA, A, B, E, size_and_data_terms
from analysis.laws.law import Law, Parameter
from analysis.laws.mixing import exposure_of_rows
from analysis.tables.checks import from_scratch
from mscale.errors import MscaleError, nearest

VARIANTS = ("D_t", "D_other", "K_t")
EFFECTIVE_DATA_FLOOR = 0.01
_TIE = 0.05  # share of the largest weight within which co-sampled sources count as tied
LAMBDA = Parameter(
    "lambda", (0.05, 5.0), (1e-3, 1e3), log=True, unit="1/epoch", meaning="how fast repeated data lose worth"
)
SHARED_PARAMETERS = ("alpha", "beta", "lambda")


def saturated_tokens(D: Any, U: Any, lambda_: Any) -> Any:
    """S(D; U): effective tokens after D tokens of which U are unique (arrays in tokens), eq. 2 of ATLAS.

    S = D up to one epoch, then U·(1 + (1 − exp(−λ·(D/U − 1)))/λ).
    """
    repeats = np.maximum(D / np.where(U > 0, U, 1.0) - 1.0, 0.0)
    fresh = np.minimum(D, U)
    return fresh - U * np.expm1(-lambda_ * repeats) / lambda_ if np.any(repeats > 0) else fresh


def effective_data(p: Any, x: Any, sources: int, other: bool) -> Any:
    """(S(D_t), D_eff) in tokens of the target language.

    Args:
      p, x: parameters and variables of the law, by attribute.
      sources: languages with a τ of their own: variables D_1, U_1, … other: whether D_other, U_other count too.
    """
    lambda_ = getattr(p, "lambda")
    own = saturated_tokens(x.D_t, x.U_t, lambda_)
    total = own
    for k in range(1, sources + 1):
        total = total + getattr(p, f"tau_{k}") * saturated_tokens(
            getattr(x, f"D_{k}"), getattr(x, f"U_{k}"), lambda_
        )
    if other:
        total = total + p.tau_other * saturated_tokens(x.D_other, x.U_other, lambda_)
    return own, total


def atlas_law(variant: str, sources: Mapping[str, Sequence[str]]) -> Law:
    """The law of a variant.

    Args:
      variant: "D_t" (target tokens only), "D_other" (and all other languages with one τ) or "K_t" (and sources with
        a τ each).
      sources: {target: source languages with a τ of their own}; used by "K_t".

    Raises:
      MscaleError: no such variant.
    """
    if variant not in VARIANTS:
        raise MscaleError(f"ATLAS variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    count = max((len(found) for found in sources.values()), default=0) if variant == "K_t" else 0
    other = variant != "D_t"

    def tau(k: int) -> Parameter:
        labels = {target: f"{target},{found[k - 1]}" for target, found in sources.items() if len(found) >= k}
        return Parameter(
            f"tau_{k}", (0.0, 0.5), (-3.0, 5.0), meaning="worth of a source token", labels=labels
        )

    parameters = [E, A, ALPHA, dataclasses.replace(B, reference=(("beta", "D_t", -1.0),)), BETA, LAMBDA]
    parameters += [tau(k) for k in range(1, count + 1)]
    if other:
        parameters.append(
            Parameter("tau_other", (0.0, 0.5), (-3.0, 5.0), meaning="worth of another language's token")
        )

    def predict(p: Any, x: Any) -> Any:
        own, total = effective_data(p, x, count, other)
        if other:
            total = np.maximum(total, EFFECTIVE_DATA_FLOOR * own)
        return p.E + p.A * x.N**-p.alpha + p.B * total**-p.beta

    def above_floor(p: Any, x: Any) -> Any:
        own, total = effective_data(p, x, count, other)
        return total / own - EFFECTIVE_DATA_FLOOR

    columns = {"N": "params", "D_t": "target_tokens", "U_t": "target_unique"}
    for k in range(1, count + 1):
        columns |= {f"D_{k}": f"D_{k}", f"U_{k}": f"U_{k}"}
    if other:
        columns |= {"D_other": "D_other", "U_other": "U_other"}
    return Law(
        name="atlas",
        equation="L = E + A/N^alpha + B/D_eff^beta, D_eff = S(D_t) + sum tau_i S(D_i) + tau_other S(D_other)",
        source="Longpre et al. 2026 (ATLAS), eqs. 1-3",
        columns=columns,
        parameters=tuple(parameters),
        predict=predict,
        may_be_zero=tuple(name for name in columns if name not in ("N", "D_t", "U_t")),
        constraint=above_floor if other else None,
        parameters_per="language",
        share=SHARED_PARAMETERS,
        optimum=("N", "D_t"),
        trade=size_and_data_terms,
    )


def co_sampled_sources(
    observations: pd.DataFrame, exposure: pd.DataFrame, scores: pd.DataFrame | None = None, count: int = 3
) -> dict[str, list[str]]:
    """K_t of every language that is trained on: the `count` languages most co-sampled with it, as in the paper.

    A source weighs the tokens of it, by the exposure at a run's last step, summed over the runs from scratch that train
    on the target as well: what a mixture was planned to hold is not always what a run saw, and a continued run's
    checkpoint has seen other languages too. Sources within 5% of the largest are tied, since shares of a schedule are
    never exactly equal, and a study that pairs every language with every other says nothing else about them: the higher
    measured transfer score comes first (in the paper τ starts from the scores), then the name.

    Args:
      observations: of these `run` and `init` are read (without `init`, every run is from scratch).
      exposure: run, step, language, tokens.
      scores: `analysis.transfer.matrix.transfer_matrix`: target, source, status, score. None: ties go by name.
    """
    tokens = exposure.groupby(["run", "language"])["tokens"].max().unstack().fillna(0.0)
    tokens = tokens[tokens.index.isin(observations.loc[from_scratch(observations), "run"])]
    score_of: dict[tuple[str, str], float] = {}
    if scores is not None and len(scores):
        measured = scores[scores["status"] == "measured"]
        means = measured.groupby(["target", "source"], as_index=False)["score"].mean()
        score_of = {(target, source): score for target, source, score in means.itertuples(index=False)}
    chosen: dict[str, list[str]] = {}
    for target in tokens.columns[(tokens > 0).any()]:
        weight = tokens[tokens[target] > 0].drop(columns=target).sum()
        weight = weight[weight > 0]
        chosen[target] = []
        while len(weight) and len(chosen[target]) < count:
            tied = weight.index[weight >= (1 - _TIE) * weight.max()]
            best = min(tied, key=lambda source: (-score_of.get((target, source), -np.inf), source))
            chosen[target].append(best)
            weight = weight.drop(best)
    return chosen


def prepare_atlas(
    observations: pd.DataFrame,
    exposure: pd.DataFrame | None = None,
    *,
    targets: Sequence[str] | None = None,
    variant: str = "K_t",
    sources: Mapping[str, Sequence[str]] | None = None,
    scores: pd.DataFrame | None = None,
    count: int = 3,
) -> tuple[Law, pd.DataFrame, dict]:
    """The ATLAS law for a table: chooses K_t and joins the exposure to the observations.

    Args:
      observations, exposure: tables of the contract; `exposure` has run, step, language, tokens, unique_tokens.
      targets: languages in the observations, or None for all of them.
      variant: "D_t", "D_other" or "K_t".
      sources: {target: source languages}; None chooses `count` of each target by `co_sampled_sources`, with `scores`.

    Returns: the law, the observations of the targets with D_1, U_1, …, D_other, U_other added, and
    {"sources": …, "variant": …}.

    Raises:
      MscaleError: no languages, no exposure where the variant needs one, or evaluated steps without exposure.
    """
    if "language" not in observations:
        raise MscaleError("column 'language' is missing: ATLAS is fitted per target language")
    if targets is None:
        targets = sorted(map(str, observations["language"].dropna().unique()))
    table = observations[observations["language"].isin(targets)].copy()
    if variant == "D_t":
        return atlas_law(variant, {}), table, {"variant": variant, "sources": {}}
    wide_already = {"D_other", "U_other"} <= set(table.columns)
    if exposure is None:
        if wide_already and sources is not None:
            return atlas_law(variant, sources), table, {"variant": variant, "sources": dict(sources)}
        raise MscaleError(
            "ATLAS needs to know what else a run was trained on: pass exposure=, a table with the columns run, "
            "step, language, tokens, unique_tokens; or fit variant='D_t', which needs only the target's tokens"
        )
    for column in ("run", "step", "language", "tokens", "unique_tokens"):
        if column not in exposure:
            raise MscaleError(
                f"exposure: column {column!r} is missing; found {', '.join(map(str, exposure.columns))}"
                + nearest(column, exposure.columns)
            )
    if variant == "K_t" and sources is None:
        sources = co_sampled_sources(observations, exposure, scores, count)
    own = sources if variant == "K_t" and sources is not None else {}
    chosen = {name: list(own.get(name, ())) for name in targets}
    return (
        atlas_law(variant, chosen),
        _join_exposure(table, exposure, chosen, max(map(len, chosen.values()), default=0)),
        {"variant": variant, "sources": chosen},
    )


def _join_exposure(table: pd.DataFrame, exposure: pd.DataFrame, sources: Mapping, count: int) -> pd.DataFrame:
    """Adds tokens D_k and unique tokens U_k of each target's k-th source, and of all other languages together."""
    result = {f"{kind}_{k}": np.zeros(len(table)) for k in (*range(1, count + 1), "other") for kind in "DU"}
    for kind, column in (("D", "tokens"), ("U", "unique_tokens")):
        seen = exposure_of_rows(table, exposure, column)
        for target, found in sources.items():
            at = (table["language"].astype(str) == target).to_numpy()
            own = seen[at]
            for k, name in enumerate(found, start=1):
                if name in own:
                    result[f"{kind}_{k}"][at] = own[name]
            result[f"{kind}_other"][at] = own.drop(columns=[target, *found], errors="ignore").sum(axis=1)
    return table.assign(**result)
