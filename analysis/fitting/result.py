"""`Fit`: a fitted law with its estimates, intervals and predictions."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.estimation import variance_components
from analysis.estimation.problem import Problem
from analysis.estimation.quantities import Derived, Linear, Quantity
from analysis.estimation.specify import Spec
from analysis.fitting import compute_optimal as optimum
from analysis.fitting import predict as prediction
from analysis.laws.law import Law
from analysis.uncertainty import bootstrap, identifiability, profile
from mscale.errors import MscaleError

if TYPE_CHECKING:  # Altair takes 0.4 s to import
    import altair as alt

_Value = TypeVar("_Value")
BOOTSTRAP_DRAWS = 1000
FIT_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law. Made by `analysis.fit`.

    Attributes:
      theta: their values in the fitted scale, (P,): logarithms for positive parameters, and for a parameter with a
        reference (A, B) the logarithm of its contribution at the geometric means.
      problem: the rows as arrays, and the objective. group_names: names of the groups in problem.group.
      per: the column whose levels have parameters of their own. level: its value in each row, (n,).
      columns: {variable: the column that it was read from}. agreement: starts, and how many reached the optimum.
      objective: its minimum (a sum over rows). notes: rows left out and warnings, as sentences.
      spec: the model that was fitted: what is shared, fixed and tied, and the law's own options.
    """

    problem: Problem
    theta: np.ndarray
    group_names: tuple[str, ...]
    level: np.ndarray
    per: str | None
    columns: Mapping[str, str]
    notes: tuple[str, ...]
    agreement: Mapping[str, Any]
    spec: Spec
    _cache: dict = dataclasses.field(default_factory=dict, repr=False)

    @property
    def law(self) -> Law:
        """The law as it was fitted."""
        return self.problem.law

    @property
    def names(self) -> tuple[str, ...]:
        """The P fitted parameters; "A[sw]" is A of level sw."""
        return self.problem.names

    @property
    def objective(self) -> float:
        """The minimum of the objective, a sum over rows."""
        return float(self.problem.objective(self.theta[None])[0])

    # Values ------------------------------------------------------------------------------------------------

    @property
    def params(self) -> pd.Series:
        """Estimates in the paper's units; contributions at the geometric means as "A_mean"."""
        return pd.Series(self.natural(self.theta[None])[0], index=self._natural_names())

    @functools.cached_property
    def _places(self) -> list[tuple[int, int]]:
        """Of every fitted parameter, the first cell that has it, and which of the law's parameters it is there."""
        selections = np.stack([cell.selection for cell in self.problem.cells])
        alone = (selections == 1.0) & (np.count_nonzero(selections, axis=2) == 1)[:, :, None]
        first = alone.reshape(-1, len(self.theta)).argmax(axis=0)
        return [divmod(int(at), selections.shape[1]) for at in first]

    @functools.cached_property
    def _with_reference(self) -> np.ndarray:
        """Indices of the fitted parameters that have a reference point."""
        return np.flatnonzero([bool(q.reference) for q in self.problem.fitted_parameters])

    def _natural_names(self) -> list[str]:
        return [*self.names, *(_with_mean(self.names[index]) for index in self._with_reference)]

    def natural(self, theta: np.ndarray) -> np.ndarray:
        """Parameter vectors theta (B, P) of the fitted scale in the units and order of `params`, (B, len(params))."""
        cells = [self.problem.natural(cell.values(theta)) for cell in self.problem.cells]
        contributions = theta[:, self._with_reference]
        logs = [self.problem.fitted_parameters[index].log for index in self._with_reference]
        contributions = np.where(logs, np.exp(contributions), contributions)
        values = np.stack([cells[number][:, local] for number, local in self._places], axis=1)
        return np.concatenate([values, contributions], axis=1)

    # Uncertainty -------------------------------------------------------------------------------------------

    @property
    def method(self) -> str:
        """ "bootstrap" (groups resampled) for Huber's loss, "profile" for least squares."""
        return "profile" if self.problem.delta is None else "bootstrap"

    @property
    def noise(self) -> variance_components.GroupNoise:
        """Variance components of a least-squares fit (a batch of one): of a row, and of what its group shares."""
        return self.once("noise", lambda: variance_components.estimate_noise(self.problem, self.theta[None]))

    def draws(self, count: int = BOOTSTRAP_DRAWS, seed: int = 0) -> np.ndarray:
        """(count, P): bootstrap estimates in the fitted scale, of a fit with Huber's loss.

        Raises:
          MscaleError: a least-squares fit, whose intervals are profiles; use `interval_of`.
        """
        if self.method != "bootstrap":
            raise MscaleError(
                "a least-squares fit has profile intervals and no draws: use interval_of(lambda p: …) for what "
                "follows from the parameters, or fit with loss='huber'"
            )
        return self.once(
            ("draws", count, seed), lambda: bootstrap.bootstrap(self.problem, self.theta, count, seed)
        )

    def ends(self, wanted: Sequence[Quantity], level: float | None) -> tuple[np.ndarray, ...]:
        """Estimate, low and high, (m,) each, of m scalars; ∓inf where the data set no limit; NaN if level is None."""
        estimate = np.concatenate([self.problem.quantity_values(q, self.theta[None])[0] for q in wanted])
        if level is None:
            return estimate, np.full(len(estimate), np.nan), np.full(len(estimate), np.nan)
        if not 0 < level < 1:
            raise MscaleError(f"level={level!r}: expected a probability such as 0.9")
        if self.method == "profile":
            low, high = profile.intervals(self.problem, self.theta[None], self.noise, wanted, level)
            return estimate, low[0], high[0]
        draws = np.concatenate([self.problem.quantity_values(q, self.draws()) for q in wanted], axis=1)
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return estimate, low, high

    def interval(self, level: float = 0.9) -> pd.DataFrame:
        """A row for each parameter: estimate, low, high, identified, reason, unit.

        A limit that the data do not set is infinite (0 for a positive parameter), and the parameter is not identified.
        Rows "A_mean" are contributions at the geometric means, rows "A" the paper's constants.
        """
        low, high = self._limits(level)
        reasons, fitted, references = (
            self.identification(level),
            self.problem.fitted_parameters,
            self._with_reference,
        )
        P = len(fitted)
        limit = np.arange(P)
        limit[references] = P + np.arange(len(references))
        records = {}
        rows = zip(self.params.items(), [*range(P), *references], [*limit, *references], strict=True)
        for (name, value), index, at in rows:
            q, reason = fitted[index], reasons.get(self.names[index], "")
            ends = np.array([low[at], high[at]])
            ends = np.exp(ends) if q.log else ends
            ends[0] = max(ends[0], 0.0) if q.bounds[0] == 0 else ends[0]
            records[name] = (value, *ends.tolist(), reason == "", reason, q.unit if at < P else "")
        columns = ["estimate", "low", "high", "identified", "reason", "unit"]
        return pd.DataFrame.from_dict(records, orient="index", columns=columns)

    def interval_of(self, function: Callable[[Any], Any], level: float = 0.9) -> pd.DataFrame:
        """A function of the parameters, a row for each level of the fit: estimate, low, high.

        function: p -> scalar, of a level's parameters in the paper's units, such as
        `lambda p: p.beta / (p.alpha + p.beta)`; it may use the operations that a law may use (docs/laws.md).
        """
        wanted = [Derived(cell, lambda p, x: function(p), {}, 1) for cell in range(len(self.problem.cells))]
        index = pd.Index(self.levels, name=self.per)
        return pd.DataFrame(
            dict(zip(("estimate", "low", "high"), self.ends(wanted, level), strict=True)), index
        )

    def _limits(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Low and high in the fitted scale, in the order of `parameters_and_constants`."""

        def make() -> tuple[np.ndarray, np.ndarray]:
            _, low, high = self.ends([self.parameters_and_constants()], level)
            if self.method == "bootstrap":
                P, problem = len(self.names), self.problem
                edge = 1e-6 * (problem.upper - problem.lower)
                low[:P][low[:P] <= problem.lower + edge] = -np.inf
                high[:P][high[:P] >= problem.upper - edge] = np.inf
            return low, high

        return self.once(("limits", level), make)

    def parameters_and_constants(self) -> Linear:
        """The P parameters in the fitted scale, then log A in the paper's units of every A that has a reference."""
        rows, offset = [*np.eye(len(self.names))], [0.0] * len(self.names)
        for index in self._with_reference:
            number, local = self._places[index]
            cell, shift = self.problem.cells[number], self.problem.shift[local]
            rows.append(cell.selection[local] + shift @ cell.selection)
            offset.append(cell.offset[local] + shift @ cell.offset)
        return Linear(np.array(rows), np.array(offset))

    def identification(self, level: float = 0.9) -> dict[str, str]:
        """{parameter: reason}, of the parameters that the data do not determine."""
        return self.once(
            ("identification", level), lambda: identifiability.identification(self, *self._limits(level))
        )

    def once(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """make(), computed once for this fit and cached under `key`."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    # Predictions -------------------------------------------------------------------------------------------

    def predict(
        self,
        table: pd.DataFrame | Mapping[str, Any],
        level: float | None = None,
        exposure: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """Columns prediction, in_range and (with `level`) low and high, a row for each row of `table`.

        in_range: whether all variables lie within the range of the fitted rows. `table` needs the fitted columns or the
        law's variable names. Rows that violate the law's constraint are NaN.
        """
        return prediction.predict_rows(self, table, level, exposure)

    def evaluate(self, theta: np.ndarray, cell: int, x: Mapping[str, np.ndarray]) -> np.ndarray:
        """The law at x, {variable: (n,)}, with the parameters of level number `cell`, for theta (B, P): (B, n)."""
        size = len(next(iter(x.values())))
        value = self.problem.quantity_values(Derived(cell, self.law.predict, x, size), theta).copy()
        if self.law.constraint is not None:
            inside = self.problem.quantity_values(Derived(cell, self.law.constraint, x, size), theta)
            value[inside <= 0] = np.nan
        return value

    @property
    def levels(self) -> list[str]:
        """The values of the column `per`, sorted; one empty name without it."""
        return [str(name) for name in np.unique(self.level)]

    @property
    def r2(self) -> float:
        """1 − Σ(residual²)/Σ((y − mean)²) on the fitted rows, in the response's units."""
        predicted = self.problem.predict(self.theta[None])[0]
        y = self.problem.y
        return float(1 - np.sum((y - predicted) ** 2) / np.sum((y - y.mean()) ** 2))

    def compute_optimal(self, C: ArrayLike, level: float | None = None, **at: float) -> pd.DataFrame:
        """N and D of the lowest predicted loss at C = 6·N·D FLOPs, for each C and each level of the fit.

        `at` sets the law's other variables (K=4). No data are repeated; for ATLAS D is the target's own tokens.
        """
        return optimum.compute_optimal(self, C, level, at)

    def compute_optimal_exponent(self, level: float = 0.9) -> pd.DataFrame:
        """β/(α+β), the exponent of C in the compute-optimal N, a row for each level of the fit: estimate, low, high."""
        return optimum.compute_optimal_exponent(self, level)

    # Showing and keeping -----------------------------------------------------------------------------------

    def summary(self, level: float = 0.9) -> str:
        """Estimates, intervals and notes as text."""
        constants = [self.names[index] for index in self._with_reference]  # shown at the geometric means only
        frame = self.interval(level).drop(index=constants)
        lines = [
            f"{self.law.name}: {self.law.equation}",
            f"{len(self.problem.y)} points, {len(self.group_names)} groups",
        ]
        width = max(len(name) for name in frame.index)
        for name, row in frame.iterrows():
            shown = f"not identified: {row['reason']}"
            if row["identified"]:
                shown = f"{row['estimate']:.4g}  [{row['low']:.4g}, {row['high']:.4g}]"
            lines.append(f"  {str(name):<{width}}  {shown}  {row['unit']}".rstrip())
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The fit as JSON, its data included; `from_json` gives the same fit back."""
        x = {name: values.tolist() for name, values in self.problem.x.items()}
        return json.dumps(
            {
                "format": FIT_FORMAT,
                "law": self.law.name,
                "equation": self.law.equation,
                "source": self.law.source,
                "params": {name: float(value) for name, value in self.params.items()},
                "objective": self.objective,
                "names": list(self.names),
                "theta": self.theta.tolist(),
                "per": self.per,
                "columns": dict(self.columns),
                "notes": list(self.notes),
                "agreement": dict(self.agreement),
                "ratio": self.problem.ratio,
                "barrier": self.problem.barrier,
                "prior": None if self.problem.prior is None else [v.tolist() for v in self.problem.prior],
                "spec": dataclasses.asdict(self.spec),
                "means": self.problem.log_means,
                "data": {
                    "x": x,
                    "y": self.problem.y.tolist(),
                    "weight": self.problem.weight.tolist(),
                    "level": self.level.tolist(),
                    "group": self.problem.group.tolist(),
                    "groups": list(self.group_names),
                },
            }
        )

    def plot(self) -> alt.TopLevelMixin:
        """An Altair chart of the points and the fitted curves."""
        from analysis.fitting.chart import fit_chart

        return fit_chart(self)


def _with_mean(name: str) -> str:
    """`A[sw]` as `A_mean[sw]`: the contribution at the geometric means."""
    base, bracket, rest = name.partition("[")
    return f"{base}_mean{bracket}{rest}"
