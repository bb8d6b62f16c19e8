"""What is asked of a fitted law to say how sure it is; `analysis.fitting.result.Fit` is one."""

from typing import Any, Protocol

import numpy as np

from analysis.estimation.problem import Problem
from analysis.estimation.variance_components import GroupNoise
from analysis.laws.law import Law


class FittedLaw(Protocol):
    """A law at its optimum: theta (P,) in the fitted scale, the problem it minimises, and the noise."""

    @property
    def law(self) -> Law: ...

    @property
    def problem(self) -> Problem: ...

    @property
    def theta(self) -> np.ndarray: ...

    @property
    def method(self) -> str: ...

    @property
    def noise(self) -> GroupNoise: ...

    def once(self, key: Any, make: Any) -> Any: ...
