"""The declaration of a scaling law: equation, parameters, columns that it reads, source."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Predict = Callable[[Any, Any], Any]  # (parameters p, variables x) -> prediction, by attribute: p.alpha, x.N


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    Attributes:
      name: as in the paper.
      start: the range in which the search for the optimum starts (natural units); a grid is laid over it.
      bounds: hard limits (natural units). A parameter with a positive lower bound and `log` is fitted in logs.
      log: fitted as its logarithm, for positive parameters that span orders of magnitude.
      linear: the prediction is linear in it once the other parameters are given; it needs no starts then.
      reference: ((exponent, variable, sign), ...): the parameter is reported as its contribution
        value · Π geometric_mean(variable)^(sign · exponent), because A of A/N^α alone says nothing.
      unit, meaning: shown in summaries and reports.
      labels: for parameters whose meaning differs by level (τ of a target's k-th source): {level: label};
        where the level is missing the parameter does not exist and is held at `absent`.
    """

    name: str
    start: tuple[float, float]
    bounds: tuple[float, float]
    log: bool = False
    linear: bool = False
    reference: tuple[tuple[str, str, float], ...] = ()
    unit: str = ""
    meaning: str = ""
    labels: Mapping[str, str] | None = None
    absent: float = 0.0


@dataclass(frozen=True)
class Law:
    """A law: `predict(p, x)` is the equation in plain NumPy over parameters p.<name> and variables x.<name>.

    Attributes:
      columns: {variable: column of the observations that it is read from by default}.
      response: column of the fitted quantity. residual: "log" (log prediction − log observed) or "additive".
      may_be_zero: variables that may be 0; rows where another variable is 0 are excluded.
      constraint: (p, x) -> array that must stay positive on every row (None: no constraint).
      parameters_per: column whose levels have parameters of their own (`share` names the exceptions).
      share: parameters that are common to all levels unless the caller says otherwise.
      pretraining: the law is of runs from scratch, so rows of runs continued from a checkpoint are excluded.
      optimum: the variables (N, D) that are traded at C = 6·N·D by compute_optimal, or None.
      trade: (p, x) -> (a, alpha, b, beta): the loss is a·N^−alpha + b·D^−beta plus terms without N and D, as long as
        no data repeat; the compute-optimal size and its exponent follow from these four.
    """

    name: str
    equation: str
    source: str
    columns: Mapping[str, str]
    parameters: tuple[Parameter, ...]
    predict: Predict
    response: str = "loss"
    residual: str = "log"
    may_be_zero: tuple[str, ...] = ()
    constraint: Predict | None = None
    parameters_per: str | None = None
    share: tuple[str, ...] = ()
    pretraining: bool = True
    optimum: tuple[str, str] | None = None
    trade: Predict | None = None

    def parameter(self, name: str) -> Parameter:
        """The parameter of that name."""
        return next(parameter for parameter in self.parameters if parameter.name == name)
