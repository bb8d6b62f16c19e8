"""What this folder needs of a fitted law; `analysis.fitting.result.Fit` is one."""

from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar

import numpy as np

from analysis.estimation.problem import Problem
from analysis.estimation.variance_components import GroupNoise
from analysis.laws.law import Law

_Value = TypeVar("_Value")


class FittedLaw(Protocol):
    """A law at its optimum: theta (P,) in the fitted scale, the problem it minimises, and the noise.

    method: "profile" for least squares, "bootstrap" for Huber's loss. once: caches make() under a key.
    """

    @property
    def law(self) -> Law: ...

    @property
    def problem(self) -> Problem: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def theta(self) -> np.ndarray: ...

    @property
    def method(self) -> str: ...

    @property
    def noise(self) -> GroupNoise: ...

    def once(self, key: Hashable, make: Callable[[], _Value]) -> _Value: ...
