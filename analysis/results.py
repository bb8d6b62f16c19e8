"""`Fit`: a fitted law, what it predicts, and how sure it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from analysis import checks, laws, uncertainty
from analysis.laws.law import Law, Parameter
from analysis.problem import Problem
from mscale.errors import MscaleError

DRAWS = 1000
FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law. Made by `analysis.fit`.

    Attributes:
      names: fitted parameters, (P,); "A[sw]" is A of level sw. theta (P,): their values in the fitted scale,
        where a parameter with a reference is the logarithm of its contribution at the geometric means.
      problem: the rows as arrays, and the numerical problem. group_names: of problem.group.
      level (n,), per: the column whose levels have parameters of their own, and its values.
      columns: {variable: column it was read from}. agreement: how many independent starts met, and so on.
      objective: the minimum (sum over rows). notes: what was left out or looked odd, for people.
      spec: what was asked for, as plain data.
    """

    law: Law
    problem: Problem
    names: tuple[str, ...]
    theta: np.ndarray
    group_names: tuple[str, ...]
    level: np.ndarray
    per: str | None
    columns: Mapping[str, str]
    notes: tuple[str, ...]
    agreement: Mapping[str, Any]
    spec: Mapping[str, Any]
    _cache: dict = dataclasses.field(default_factory=dict, repr=False)

    @property
    def objective(self) -> float:
        return float(self.problem.objective(self.theta[None])[0])

    # Values ------------------------------------------------------------------------------------------------

    @property
    def params(self) -> pd.Series:
        """Estimates in the units of the paper, and contributions at the geometric means as "A_mean"."""
        return pd.Series(self.natural(self.theta[None])[0], index=self._natural_names())

    def _places(self) -> list[tuple[int, int, int]]:
        """(parameter, cell, local index) of every fitted parameter, at its first appearance."""
        found: dict[int, tuple[int, int, int]] = {}
        for number, cell in enumerate(self.problem.cells):
            for local in range(len(cell.select)):
                (at,) = np.nonzero(cell.select[local]) if cell.select[local].any() else (np.empty(0, int),)
                if len(at) == 1 and cell.select[local, at[0]] == 1.0 and int(at[0]) not in found:
                    found[int(at[0])] = (int(at[0]), number, local)
        return [found[index] for index in sorted(found)]

    def _natural_names(self) -> list[str]:
        plain = [self.names[index] for index, _, _ in self._places()]
        which = self.problem.held["parameters"]
        means = [with_mean(name) for name, q in zip(self.names, which, strict=True) if q.reference]
        return plain + means

    def natural(self, theta: np.ndarray) -> np.ndarray:
        """(B, len(params)): draws in the fitted scale, in the units and order of `params`."""
        columns = []
        for _, number, local in self._places():
            values = self.problem.natural(self.problem.locals(theta, self.problem.cells[number]))
            columns.append(values[:, local])
        for index, q in enumerate(self.problem.held["parameters"]):
            if q.reference:
                columns.append(np.exp(theta[:, index]) if q.log else theta[:, index])
        return np.stack(columns, axis=1)

    # Uncertainty -------------------------------------------------------------------------------------------

    @property
    def method(self) -> str:
        """ "bootstrap" (groups resampled) for Huber's loss, "profile" for least squares."""
        return "profile" if self.problem.delta is None else "bootstrap"

    @property
    def noise(self) -> uncertainty.Noise:
        """Of a least-squares fit: the standard deviation of a row and what groups share."""
        return self._once("noise", lambda: uncertainty.noise(self.problem, self.theta))

    def draws(self, count: int = DRAWS, seed: int = 0) -> np.ndarray:
        """(count, P) in the fitted scale: bootstraps, or draws about the least-squares optimum."""

        def make() -> np.ndarray:
            if self.method == "bootstrap":
                return uncertainty.bootstrap(self.problem, self.theta, count, seed)
            return uncertainty.laplace_draws(self.problem, self.theta, self.noise, count, seed)

        return self._once(("draws", count, seed), make)

    def interval(self, level: float = 0.9) -> pd.DataFrame:
        """A row a parameter: estimate, low, high, identified, reason, unit.

        An end that the data do not bound is infinite (0 for a positive parameter), and the parameter not
        identified. Rows "A_mean" are contributions at the geometric means; "A" itself is the paper's constant.
        """
        if not 0 < level < 1:
            raise MscaleError(f"level={level!r}: expected a probability such as 0.9")
        low, high = self._limits(level)
        reasons = self.identification()
        which: tuple[Parameter, ...] = self.problem.held["parameters"]
        natural = self.natural(self.draws())
        tails = np.quantile(natural, [(1 - level) / 2, (1 + level) / 2], axis=0)
        records = {}
        for position, (name, value) in enumerate(self.params.items()):
            base = without_mean(str(name))
            index = self.names.index(base)
            q = which[index]
            if q.reference and base == name:
                ends, unit = (tails[0, position], tails[1, position]), ""
            else:
                ends = (low[index], high[index])
                ends = (float(np.exp(ends[0])), float(np.exp(ends[1]))) if q.log else ends
                ends = (max(ends[0], 0.0), ends[1]) if q.bounds[0] == 0 else ends
                unit = q.unit
            reason = reasons.get(base, "")
            records[name] = (value, *ends, reason == "", reason, unit)
        columns = ["estimate", "low", "high", "identified", "reason", "unit"]
        return pd.DataFrame.from_dict(records, orient="index", columns=columns)

    def _limits(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        def make() -> tuple[np.ndarray, np.ndarray]:
            if self.method == "profile":
                return uncertainty.profile_intervals(self.problem, self.theta, self.noise, level)
            low, high = np.quantile(self.draws(), [(1 - level) / 2, (1 + level) / 2], axis=0)
            edge = 1e-6 * (self.problem.upper - self.problem.lower)
            low = np.where(low <= self.problem.lower + edge, -np.inf, low)
            return low, np.where(high >= self.problem.upper - edge, np.inf, high)

        return self._once(("limits", level), make)

    def identification(self, level: float = 0.9) -> dict[str, str]:
        """{parameter: why the data do not determine it}, for those that they do not."""
        return self._once(("identification", level), lambda: _identification(self, level))

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    # Predictions -------------------------------------------------------------------------------------------

    def predict(
        self, table: Any, level: float | None = None, exposure: pd.DataFrame | None = None
    ) -> pd.DataFrame:
        """prediction (and low, high at `level`) for each row; in_range says whether the data reach that far.

        `table` needs the fitted columns, or the law's variable names. Rows at a constraint are NaN.
        """
        table = pd.DataFrame(table)
        x, cells = self._inputs(table, exposure)
        columns = np.full((len(table), 1 if level is None else 3), np.nan)
        for number in np.unique(cells):
            at = np.flatnonzero(cells == number)
            part = {name: values[at] for name, values in x.items()}
            columns[at, 0] = self.evaluate(self.theta[None], number, part)[0]
            if level is not None:
                tails = [(1 - level) / 2, (1 + level) / 2]
                columns[at, 1:] = np.quantile(self.evaluate(self.draws(), number, part), tails, axis=0).T
        result = pd.DataFrame(columns, table.index, ["prediction", "low", "high"][: columns.shape[1]])
        result["in_range"] = self._in_range(x)
        return result

    def evaluate(self, theta: np.ndarray, cell: int, x: Mapping[str, np.ndarray]) -> np.ndarray:
        local = self.problem.locals(theta, self.problem.cells[cell])
        p = self.problem.jets(local, np.zeros(0, bool), 0)
        space = SimpleNamespace(**x)
        size = len(next(iter(x.values())))
        value = np.broadcast_to(self.law.predict(p, space), (len(theta), size)).copy()
        if self.law.constraint is not None:
            value[np.broadcast_to(self.law.constraint(p, space), value.shape) <= 0] = np.nan
        return value

    def _in_range(self, x: Mapping[str, np.ndarray]) -> np.ndarray:
        inside = np.ones(len(next(iter(x.values()))), bool)
        for name, values in x.items():
            seen = self.problem.x[name]
            inside &= (values >= seen.min() * 0.999) & (values <= seen.max() * 1.001)
        return inside

    def _inputs(self, table: pd.DataFrame, exposure: pd.DataFrame | None) -> tuple[dict, np.ndarray]:
        if self.law.name == "atlas" and exposure is not None:
            _, table, _ = laws.prepare(
                "atlas", table, exposure=exposure, **_only(self.spec["options"], ("variant", "sources"))
            )
        elif self.law.name == "capacity":
            _, table, _ = laws.prepare("capacity", table)
        x = {}
        for variable, default in self.law.columns.items():
            name = self.columns.get(variable, default)
            name = name if name in table else variable
            if name not in table and variable in self.law.may_be_zero:
                x[variable] = np.zeros(len(table))
                continue
            name = checks.column_for(table, self.law, variable, name, {})
            x[variable] = pd.to_numeric(table[name]).to_numpy(float)
        return x, self._cells(table)

    def _cells(self, table: pd.DataFrame) -> np.ndarray:
        levels = self.levels
        if self.per is None:
            return np.zeros(len(table), int)
        if self.per not in table:
            if len(levels) == 1:
                return np.zeros(len(table), int)
            raise MscaleError(f"predict: column {self.per!r} is missing; the fit has {', '.join(levels)}")
        place = {name: number for number, name in enumerate(levels)}
        wanted = table[self.per].astype(str)
        unknown = sorted(set(wanted) - set(place))
        if unknown:
            raise MscaleError(
                f"predict: {self.per} {', '.join(unknown)} not in the fit, which has {', '.join(levels)}"
            )
        return wanted.map(place).to_numpy(int)

    @property
    def levels(self) -> list[str]:
        return [str(name) for name in np.unique(self.level)]

    @property
    def r2(self) -> float:
        """1 − Σ(residual²)/Σ((y − mean)²) on the fitted rows, in the response's units."""
        predicted = self.problem.predict(self.theta[None])[0]
        y = self.problem.y
        return float(1 - np.sum((y - predicted) ** 2) / np.sum((y - y.mean()) ** 2))

    def compute_optimal(self, C: Any, level: float | None = None, **at: Any) -> pd.DataFrame:
        """The N and D that minimise the predicted loss at C = 6·N·D FLOPs, for each C and each level.

        `at` sets the other variables (K=4). For ATLAS D is the target's own tokens, none repeated.
        """
        if self.law.optimum is None:
            raise MscaleError(f"law {self.law.name!r} has no N and D to trade")
        n_name, d_name = self.law.optimum
        budgets = np.atleast_1d(np.asarray(C, float))
        if not (np.isfinite(budgets) & (budgets > 0)).all():
            raise MscaleError("compute_optimal: C must be positive, in FLOPs")
        others = [
            v for v in self.law.columns if v not in (n_name, d_name, "U_t") and v not in self.law.may_be_zero
        ]
        missing = [name for name in others if name not in at]
        if missing:
            raise MscaleError(f"compute_optimal: give {', '.join(f'{name}=' for name in missing)} too")
        theta = self.theta[None] if level is None else np.concatenate([self.theta[None], self.draws()])
        records = []
        for number, name in enumerate(self.levels):
            for budget in budgets:
                log_n = _minimum(
                    lambda q, b=budget, c=number: self._at_compute(theta, c, q, b, at), budget, len(theta)
                )
                N = np.exp(log_n)
                record: dict[str, Any] = {self.per: name} if self.per else {}
                record |= {"C": budget, "N": N[0], "D": budget / 6 / N[0]}
                record["loss"] = float(
                    self._at_compute(self.theta[None], number, log_n[:1, None], budget, at)[0, 0]
                )
                if level is not None:
                    tails = [(1 - level) / 2, (1 + level) / 2]
                    record["N_low"], record["N_high"] = np.quantile(N[1:], tails)
                    record["D_low"], record["D_high"] = np.quantile(budget / 6 / N[1:], tails)
                seen_n, seen_d = self.problem.x[n_name], self.problem.x[d_name]
                record["in_range"] = bool(
                    seen_n.min() <= N[0] <= seen_n.max() and seen_d.min() <= record["D"] <= seen_d.max()
                )
                records.append(record)
        return pd.DataFrame(records)

    def _at_compute(
        self, theta: np.ndarray, cell: int, log_n: np.ndarray, budget: float, at: Mapping
    ) -> np.ndarray:
        """Loss (B, m) at log N (B, m)."""
        n_name, d_name = self.law.optimum  # type: ignore[misc]
        N = np.exp(log_n)
        x = {v: np.zeros_like(N) for v in self.law.columns}
        x |= {name: np.full_like(N, float(value)) for name, value in at.items()}
        x[n_name], x[d_name] = N, budget / 6 / N
        if "U_t" in x:
            x["U_t"] = x[d_name]
        p = self.problem.jets(self.problem.locals(theta, self.problem.cells[cell]), np.zeros(0, bool), 0)
        return np.broadcast_to(self.law.predict(p, SimpleNamespace(**x)), N.shape)

    # Showing and keeping -----------------------------------------------------------------------------------

    def summary(self, level: float = 0.9) -> str:
        """A table for the terminal."""
        frame = self.interval(level)
        which = dict(zip(self.names, self.problem.held["parameters"], strict=True))
        lines = [
            f"{self.law.name}: {self.law.equation}",
            f"{len(self.problem.y)} points, {len(self.group_names)} groups",
        ]
        width = max(len(name) for name in frame.index)
        for name, row in frame.iterrows():
            base = without_mean(str(name))
            if base == name and which[base].reference:
                continue
            shown = (
                f"{row['estimate']:.4g}  [{row['low']:.4g}, {row['high']:.4g}]"
                if row["identified"]
                else f"not identified: {row['reason']}"
            )
            lines.append(f"  {str(name):<{width}}  {shown}  {row['unit']}".rstrip())
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Everything, as JSON: `from_json` gives the same fit back. The data are part of it."""
        x = {name: values.tolist() for name, values in self.problem.x.items()}
        return json.dumps(
            {
                "format": FORMAT,
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
                "spec": dict(self.spec),
                "means": self.problem.held["log_means"],
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

    def plot(self) -> Any:
        """An Altair chart: the points and the fitted curves."""
        from analysis.charts import fit_chart

        return fit_chart(self)


def with_mean(name: str) -> str:
    base, bracket, rest = name.partition("[")
    return f"{base}_mean{bracket}{rest}"


def without_mean(name: str) -> str:
    return name.replace("_mean[", "[").removesuffix("_mean")


def _only(options: Mapping, keys: Sequence[str]) -> dict:
    return {key: options[key] for key in keys if key in options}


def _minimum(loss: Any, budget: float, batch: int) -> np.ndarray:
    """argmin over log N of loss (B, m), by a grid refined four times: (B,)."""
    low = np.full(batch, 0.0)
    high = np.full(batch, np.log(budget / 6))
    for _ in range(12):
        grid = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 17)
        best = np.argmin(loss(grid), axis=1)
        rows = np.arange(batch)
        low, high = grid[rows, np.maximum(best - 1, 0)], grid[rows, np.minimum(best + 1, 16)]
    return 0.5 * (low + high)


def _identification(fit: Fit, level: float) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for name in fit.problem.held["inactive"]:
        reasons[name] = "no row depends on it"
    J = fit.problem.jacobian(fit.theta)
    norms = np.linalg.norm(J, axis=0)
    _, singular, rows = np.linalg.svd(J / np.where(norms > 0, norms, 1.0), full_matrices=True)
    singular = np.concatenate([singular, np.zeros(len(rows) - len(singular))])
    for value, direction in zip(singular, rows, strict=True):
        if value > 1e-7 * singular[0]:
            continue
        involved = [fit.names[i] for i in np.flatnonzero(np.abs(direction) > 0.05)]
        for name in involved:
            rest = ", ".join(other for other in involved if other != name)
            reasons[name] = f"cannot be told apart from {rest}" if rest else "the data do not depend on it"
    low, high = fit._limits(level)
    for index, (name, q) in enumerate(zip(fit.names, fit.problem.held["parameters"], strict=True)):
        if name in reasons or np.isfinite([low[index], high[index]]).all():
            continue
        known = ""
        if np.isfinite(high[index]):
            known = f" (at most {np.exp(high[index]) if q.log else high[index]:.3g})"
        elif np.isfinite(low[index]):
            known = f" (at least {np.exp(low[index]) if q.log else low[index]:.3g})"
        sides = [
            side for side, end in (("below", low[index]), ("above", high[index])) if not np.isfinite(end)
        ]
        reasons[name] = f"the data do not bound it {' or '.join(sides)}{known}"
    return reasons
