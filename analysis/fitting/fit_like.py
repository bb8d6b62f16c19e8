"""What predictions, optima and charts need of a fit; `analysis.fitting.result.Fit` is one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from analysis.estimation.problem import Problem
from analysis.estimation.quantities import Quantity
from analysis.laws.law import Law


class FitLike(Protocol):
    """A fitted law; the attributes and methods are documented at `Fit`."""

    @property
    def law(self) -> Law: ...

    @property
    def problem(self) -> Problem: ...

    @property
    def theta(self) -> np.ndarray: ...

    @property
    def level(self) -> np.ndarray: ...

    @property
    def levels(self) -> list[str]: ...

    @property
    def per(self) -> str | None: ...

    @property
    def columns(self) -> Mapping[str, str]: ...

    @property
    def spec(self) -> Mapping[str, Any]: ...

    def evaluate(self, theta: np.ndarray, cell: int, x: Mapping[str, np.ndarray]) -> np.ndarray: ...

    def ends(self, wanted: Sequence[Quantity], level: float | None) -> tuple[np.ndarray, ...]: ...

    def interval_of(self, function: Callable[[Any], Any], level: float) -> pd.DataFrame: ...
