"""Forward-mode automatic differentiation: exact first and second derivatives of a law written in plain NumPy.

A law is an ordinary function of its parameters. Called with `Jet`s instead of arrays it returns the prediction with
its derivatives in every parameter that it used. Only derivatives that are not zero are stored, so a sum of power laws
costs little more than derivatives written by hand. NumPy rather than JAX: importing JAX takes 1.7 s and compiling each
law and shape some 1.4 s, and a report fits some fifteen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any


class Jet:
    """A value with its gradient {i: ∂f/∂θ_i} and Hessian {(i, j), i <= j: ∂²f/∂θ_i∂θ_j} (None: not wanted).

    All entries broadcast against each other. Supports + - * / ** and np.exp, log, sqrt, log1p, expm1,
    tanh, minimum, maximum and where (through `where`); anything else raises TypeError.
    """

    __slots__ = ("value", "grad", "hess")
    __array_priority__ = 100

    def __init__(self, value: Array, grad: dict[int, Array], hess: dict[tuple[int, int], Array] | None):
        self.value = value
        self.grad = grad
        self.hess = hess

    @classmethod
    def variable(cls, value: Array, index: int, order: int = 2) -> Jet:
        """The parameter of this index itself, at a value; order 1: gradients only, 2: Hessians too."""
        return cls(value, {index: 1.0}, {} if order > 1 else None)

    def map(self, value: Array, first: Array, second: Array) -> Jet:
        """The chain rule for f(self), f' = first and f'' = second."""
        grad = {i: first * g for i, g in self.grad.items()}
        if self.hess is None:
            return Jet(value, grad, None)
        hess = {key: first * h for key, h in self.hess.items()}
        for i, g in self.grad.items():
            curved = second * g
            for j, other in self.grad.items():
                if i <= j:
                    _add(hess, (i, j), curved * other)
        return Jet(value, grad, hess)

    def __add__(self, other: Any) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.value + other, self.grad, self.hess)
        grad = dict(self.grad)
        for i, g in other.grad.items():
            _add(grad, i, g)
        hess = None
        if self.hess is not None and other.hess is not None:
            hess = dict(self.hess)
            for key, h in other.hess.items():
                _add(hess, key, h)
        return Jet(self.value + other.value, grad, hess)

    __radd__ = __add__

    def __neg__(self) -> Jet:
        return self * -1.0

    def __pos__(self) -> Jet:
        return self

    def __sub__(self, other: Any) -> Jet:
        return self + (-other)

    def __rsub__(self, other: Any) -> Jet:
        return (-self) + other

    def __mul__(self, other: Any) -> Jet:
        if not isinstance(other, Jet):
            hess = None if self.hess is None else {key: h * other for key, h in self.hess.items()}
            return Jet(self.value * other, {i: _times(other, g) for i, g in self.grad.items()}, hess)
        grad = {i: g * other.value for i, g in self.grad.items()}
        for i, g in other.grad.items():
            _add(grad, i, self.value * g)
        if self.hess is None or other.hess is None:
            return Jet(self.value * other.value, grad, None)
        hess = {key: h * other.value for key, h in self.hess.items()}
        for key, h in other.hess.items():
            _add(hess, key, self.value * h)
        for i, f in self.grad.items():
            for j, g in other.grad.items():
                product = f * g
                _add(hess, (min(i, j), max(i, j)), 2.0 * product if i == j else product)
        return Jet(self.value * other.value, grad, hess)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Jet:
        return self * (reciprocal(other) if isinstance(other, Jet) else 1.0 / other)

    def __rtruediv__(self, other: Any) -> Jet:
        return reciprocal(self) * other

    def __pow__(self, power: Any) -> Jet:
        if isinstance(power, Jet):
            return exp(power * log(self))
        value = self.value**power
        return self.map(
            value, power * self.value ** (power - 1), power * (power - 1) * self.value ** (power - 2)
        )

    def __rpow__(self, base: Any) -> Jet:
        return exp(self * np.log(base))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs or ufunc.__name__ not in _UFUNCS:
            raise TypeError(f"a law may not use np.{ufunc.__name__}; it may use {', '.join(sorted(_UFUNCS))}")
        return _UFUNCS[ufunc.__name__](*inputs)

    # Comparisons compare values, so that `where(D > U, ...)` reads as in the paper.
    def __lt__(self, other: Any) -> Array:
        return self.value < value_of(other)

    def __le__(self, other: Any) -> Array:
        return self.value <= value_of(other)

    def __gt__(self, other: Any) -> Array:
        return self.value > value_of(other)

    def __ge__(self, other: Any) -> Array:
        return self.value >= value_of(other)


def _times(value: Array, factor: Array) -> Array:
    return value if isinstance(factor, float) and factor == 1.0 else value * factor


def value_of(x: Any) -> Array:
    """The value of a jet, or x itself."""
    return x.value if isinstance(x, Jet) else x


def dense_gradient(x: Any, indices: Sequence[int] | np.ndarray, shape: tuple[int, int]) -> Array:
    """∂x/∂θ_i for each i of the indices, dense: (B, indices, n) for a shape (B, n); zeros where x is no jet."""
    found = np.zeros((shape[0], len(indices), shape[1]))
    for place, index in enumerate(indices):
        if isinstance(x, Jet) and int(index) in x.grad:
            found[:, place] = x.grad[int(index)]
    return found


def _add(entries: dict, key: Any, value: Array) -> None:
    entries[key] = entries[key] + value if key in entries else value


def exp(x: Any) -> Any:
    """np.exp for jets and arrays."""
    if not isinstance(x, Jet):
        return np.exp(x)
    value = np.exp(x.value)
    return x.map(value, value, value)


def log(x: Any) -> Any:
    """np.log for jets and arrays."""
    if not isinstance(x, Jet):
        return np.log(x)
    inverse = 1.0 / x.value
    return x.map(np.log(x.value), inverse, -inverse * inverse)


def reciprocal(x: Any) -> Any:
    """1/x for jets and arrays."""
    if not isinstance(x, Jet):
        return 1.0 / x
    value = 1.0 / x.value
    return x.map(value, -value * value, 2.0 * value**3)


def where(condition: Array, yes: Any, no: Any) -> Any:
    """np.where for jets and arrays. A branch may be infinite or NaN where it is not chosen."""
    if not isinstance(yes, Jet) and not isinstance(no, Jet):
        return np.where(condition, yes, no)
    if isinstance(yes, Jet) and np.all(condition):
        return yes
    order = 1 if any(isinstance(x, Jet) and x.hess is None for x in (yes, no)) else 2
    empty = Jet(0.0, {}, {} if order > 1 else None)
    yes = yes if isinstance(yes, Jet) else Jet(yes, empty.grad, empty.hess)
    no = no if isinstance(no, Jet) else Jet(no, empty.grad, empty.hess)

    def choose(a: dict, b: dict) -> dict:
        return {key: np.where(condition, a.get(key, 0.0), b.get(key, 0.0)) for key in {**a, **b}}

    hess = choose(yes.hess, no.hess) if yes.hess is not None and no.hess is not None else None
    return Jet(np.where(condition, yes.value, no.value), choose(yes.grad, no.grad), hess)


def _log1p(x: Jet) -> Jet:
    inverse = 1.0 / (1.0 + x.value)
    return x.map(np.log1p(x.value), inverse, -inverse * inverse)


def _expm1(x: Jet) -> Jet:
    value = np.exp(x.value)
    return x.map(np.expm1(x.value), value, value)


def _sqrt(x: Jet) -> Jet:
    value = np.sqrt(x.value)
    return x.map(value, 0.5 / value, -0.25 / value**3)


def _tanh(x: Jet) -> Jet:
    value = np.tanh(x.value)
    slope = 1.0 - value * value
    return x.map(value, slope, -2.0 * value * slope)


_UFUNCS: dict[str, Any] = {
    "exp": exp,
    "log": log,
    "log10": lambda x: log(x) * (1.0 / np.log(10.0)),
    "log1p": _log1p,
    "expm1": _expm1,
    "sqrt": _sqrt,
    "tanh": _tanh,
    "reciprocal": reciprocal,
    "negative": lambda x: -x,
    "square": lambda x: x * x,
    "add": lambda a, b: b + a if isinstance(b, Jet) else a + b,
    "subtract": lambda a, b: -(b - a) if isinstance(b, Jet) else a - b,
    "multiply": lambda a, b: b * a if isinstance(b, Jet) else a * b,
    "true_divide": lambda a, b: a / b if isinstance(a, Jet) else reciprocal(b) * a,
    "divide": lambda a, b: a / b if isinstance(a, Jet) else reciprocal(b) * a,
    "power": lambda a, b: a**b if isinstance(a, Jet) else exp(b * np.log(a)),
    "minimum": lambda a, b: where(value_of(a) <= value_of(b), a, b),
    "maximum": lambda a, b: where(value_of(a) >= value_of(b), a, b),
    "less": lambda a, b: value_of(a) < value_of(b),
    "less_equal": lambda a, b: value_of(a) <= value_of(b),
    "greater": lambda a, b: value_of(a) > value_of(b),
    "greater_equal": lambda a, b: value_of(a) >= value_of(b),
}
