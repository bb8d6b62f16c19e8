"""What intervals, predictions, optima and charts need of a fitted law; `analysis.fitting.result.Fit` is one."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd

from analysis.estimation.problem import Problem
from analysis.estimation.quantities import Quantity
from analysis.estimation.specify import Spec
from analysis.estimation.variance_components import GroupNoise
from analysis.laws.law import Law

_Value = TypeVar("_Value")


class FittedLaw(Protocol):
    """A law at its optimum; the attributes and methods are described at `Fit`."""

    @property
    def law(self) -> Law: ...

    @property
    def problem(self) -> Problem: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def theta(self) -> np.ndarray: ...

    @property
    def level(self) -> np.ndarray: ...

    @property
    def per(self) -> str | None: ...

    @property
    def columns(self) -> Mapping[str, str]: ...

    @property
    def spec(self) -> Spec: ...

    @property
    def levels(self) -> list[str]: ...

    @property
    def method(self) -> str: ...

    @property
    def noise(self) -> GroupNoise: ...

    def once(self, key: Hashable, make: Callable[[], _Value]) -> _Value: ...

    def evaluate(self, theta: np.ndarray, cell: int, x: Mapping[str, np.ndarray]) -> np.ndarray: ...

    def ends(self, wanted: Sequence[Quantity], level: float | None) -> tuple[np.ndarray, ...]: ...

    def interval_of(self, function: Callable[[Any], Any], level: float) -> pd.DataFrame: ...
