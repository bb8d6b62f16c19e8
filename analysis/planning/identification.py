"""Which laws a design identifies: rank and conditioning of the Fisher information at assumed parameters.

A law is fitted to the final losses of a study's runs, after learning-rate decay. The Jacobian J of the predicted
losses at assumed parameters shows, before any run is trained, whether the runs identify the law: the information JᵀJ
must have full rank, and its inverse gives the standard errors for a loss noise of `noise` nats. Positive parameters
enter as their logarithms, so that an error of 0.1 is 10%.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws import Law, Parameter, registry

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
_SHARED = {  # law to the parameters that its languages share
    "chinchilla": ("alpha", "beta"),
    "atlas": ("alpha", "beta", "lambda"),
    "capacity": ("E", "A", "alpha", "phi", "B", "beta", "psi"),
}
_EXPONENTS = ("alpha", "beta", "lambda", "phi", "psi")


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
        return self.rows > 0 and self.rank == len(self.names)


def fisher_information(
    observations: Sequence[Mapping[str, Any]] | pd.DataFrame,
    exposure: Sequence[Mapping[str, Any]] | pd.DataFrame,
    noise: float = 0.01,
) -> dict[str, Identification]:
    """Fisher information of the Chinchilla, ATLAS and capacity laws, with α, β and λ shared by all languages.

    Args:
      observations: final losses of the design: run, step, params, language, target_tokens, target_unique.
      exposure: run, step, language, tokens, unique_tokens of every language trained on.
      noise: standard deviation of a final loss, in nats.
    """
    table, exposure = pd.DataFrame(observations), pd.DataFrame(exposure)
    if table.empty:
        return {
            name: _identification(name, shared, np.zeros((0, 0)), noise) for name, shared in _SHARED.items()
        }
    trained = exposure.groupby("run")["tokens"]
    repeated = exposure["run"][exposure["tokens"] > exposure["unique_tokens"]]
    once = ~table["run"].isin(repeated)
    table["languages_trained"] = table["run"].map(trained.size())
    alone = table["languages_trained"] == 1
    scales = table[alone].groupby("language")["params"].nunique()
    rows = {
        "chinchilla": alone & once & table["language"].isin(scales.index[scales > 1]),
        "atlas": table["run"].notna(),
        "capacity": once & table["run"].map(trained.agg(lambda tokens: tokens.round().nunique() == 1)),
    }
    assumed = NANO_PARAMETERS if table["params"].max() < 2e6 else HOFFMANN_PARAMETERS
    found = {}
    for name, shared in _SHARED.items():
        law, columns, _ = registry.prepare_law(name, table, exposure=exposure)
        names, jacobian = _jacobian(law, columns[rows[name]], shared, assumed)
        found[name] = _identification(name, names, jacobian, noise)
    return found


def _jacobian(
    law: Law, table: pd.DataFrame, shared: Sequence[str], assumed: Mapping[str, float]
) -> tuple[list[str], np.ndarray]:
    """Names of the law's parameters on these rows, and derivatives of the losses by them, (rows, parameters)."""
    x = SimpleNamespace(**{name: table[column].to_numpy(float) for name, column in law.columns.items()})
    values = {q.name: assumed.get(q.name, ASSUMED_TAU) for q in law.parameters}

    def losses(name: str, value: float) -> np.ndarray:
        return law.predict(SimpleNamespace(**{**values, name: value}), x)

    names, columns = [], []
    language = table["language"].to_numpy(str)
    for q in sorted(law.parameters, key=lambda q: q.name not in shared):
        value = values[q.name]
        scale = value if q.bounds[0] >= 0 else 1.0  # positive parameters by their logarithm
        step = 1e-5 * scale
        slope = (losses(q.name, value + step) - losses(q.name, value - step)) / (2 * step) * scale
        if q.name in shared:
            names.append(q.name)
            columns.append(slope)
            continue
        for level in np.unique(language):
            here = np.where(language == level, slope, 0.0)
            if here.any():
                names.append(_name(q, level))
                columns.append(here)
    return names, np.array(columns).reshape(len(names), len(table)).T


def _name(parameter: Parameter, level: str) -> str:
    if parameter.labels is None:
        return f"{parameter.name}[{level}]"
    return f"{parameter.name.partition('_')[0]}[{parameter.labels[level]}]"  # tau_2 of en is tau[en,fr]


def _identification(law: str, names: Sequence[str], jacobian: np.ndarray, noise: float) -> Identification:
    if not len(jacobian):
        return Identification(law, 0, tuple(names), 0, float("inf"), dict.fromkeys(names, float("inf")))
    rows = len(jacobian)
    if rows > len(names):  # R has the same singular values and right singular vectors, and fewer rows
        jacobian = np.linalg.qr(jacobian).R
    _, singular, directions = np.linalg.svd(jacobian, full_matrices=True)
    singular = np.concatenate([singular, np.zeros(len(names) - len(singular))])
    kept = singular > 1e-6 * singular[0]
    condition = float((singular[0] / singular[-1]) ** 2) if singular[-1] > 0 else np.inf
    errors = {}
    for column, name in enumerate(names):
        unidentified = np.abs(directions[~kept, column]).max(initial=0.0) > 1e-3
        variance = np.sum((directions[kept, column] / singular[kept]) ** 2)
        errors[name] = float("inf") if unidentified else noise * float(np.sqrt(variance))
    return Identification(law, rows, tuple(names), int(kept.sum()), condition, errors)


def identification_lines(
    observations: Sequence[Mapping[str, Any]], exposure: Sequence[Mapping[str, Any]], noise: float = 0.01
) -> list[str]:
    """One line for each law: whether the design identifies it, and how well. Arguments as `fisher_information`."""
    lines = []
    for name, found in fisher_information(observations, exposure, noise).items():
        rank = f"rank {found.rank} of {len(found.names)} from {found.rows:,} losses"
        if found.identified:
            errors = ", ".join(f"{one} ±{found.errors[one]:.2g}" for one in _EXPONENTS if one in found.errors)
            lines.append(
                f"Identifies the {name} law: {rank}, condition {found.condition:.1e}; at a noise of {noise:g} nats "
                f"{errors} (α, β, λ as a fraction)."
            )
            continue
        undetermined = [one for one, error in found.errors.items() if not np.isfinite(error)]
        shown = ", ".join(undetermined[:6])
        shown += f" and {len(undetermined) - 6} more" if len(undetermined) > 6 else ""
        lines.append(f"Does not identify the {name} law: {rank}; undetermined: {shown or 'all of it'}.")
    return lines
