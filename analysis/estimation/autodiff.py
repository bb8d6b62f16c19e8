"""Forward-mode automatic differentiation: exact first and second derivatives of a law written in plain NumPy.

A law is an ordinary function of its parameters. Called with `Jet`s instead of arrays it returns the prediction with
its derivatives in every parameter that it used. Only derivatives that are not zero are stored, so a sum of power laws
costs little more than derivatives written by hand. NumPy rather than JAX: importing JAX takes 1.7 s and compiling each
law and shape some 1.4 s, and a report fits some fifteen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

Array = Any


class Jet(NDArrayOperatorsMixin):
    """A value with its gradient {i: ∂f/∂θ_i} and Hessian {(i, j), i <= j: ∂²f/∂θ_i∂θ_j} (None: not wanted).

    All entries broadcast against each other. Supports the operators and functions of `_RULES`; anything else raises
    TypeError. Comparisons compare values, so that `D > U` reads as in the paper.
    """

    __slots__ = ("value", "grad", "hess")

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
                    _add_entry(hess, (i, j), curved * other)
        return Jet(value, grad, hess)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs or ufunc.__name__ not in _RULES:
            raise TypeError(f"a law may not use np.{ufunc.__name__}; it may use {', '.join(sorted(_RULES))}")
        return _RULES[ufunc.__name__](*inputs)


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


def _add_entry(entries: dict, key: Any, value: Array) -> None:
    entries[key] = entries[key] + value if key in entries else value


def _add(a: Any, b: Any) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        return Jet(a.value + b, a.grad, a.hess)
    grad = dict(a.grad)
    for index, g in b.grad.items():
        _add_entry(grad, index, g)
    if a.hess is None or b.hess is None:
        return Jet(a.value + b.value, grad, None)
    hess = dict(a.hess)
    for key, h in b.hess.items():
        _add_entry(hess, key, h)
    return Jet(a.value + b.value, grad, hess)


def _multiply(a: Any, b: Any) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        hess = None if a.hess is None else {key: h * b for key, h in a.hess.items()}
        return Jet(a.value * b, {i: g * b for i, g in a.grad.items()}, hess)
    grad = {i: g * b.value for i, g in a.grad.items()}
    for i, g in b.grad.items():
        _add_entry(grad, i, a.value * g)
    if a.hess is None or b.hess is None:
        return Jet(a.value * b.value, grad, None)
    hess = {key: h * b.value for key, h in a.hess.items()}
    for key, h in b.hess.items():
        _add_entry(hess, key, a.value * h)
    for i, f in a.grad.items():
        for j, g in b.grad.items():
            product = f * g
            _add_entry(hess, (min(i, j), max(i, j)), 2.0 * product if i == j else product)
    return Jet(a.value * b.value, grad, hess)


def _power(base: Any, power: Any) -> Jet:
    if isinstance(power, Jet):
        return np.exp(power * np.log(base))
    v = base.value
    return base.map(v**power, power * v ** (power - 1), power * (power - 1) * v ** (power - 2))


def _choose(condition: Array, yes: Any, no: Any) -> Jet:
    """np.where. A branch may be infinite or NaN where it is not chosen."""
    if isinstance(yes, Jet) and np.all(condition):
        return yes
    order = 1 if any(isinstance(x, Jet) and x.hess is None for x in (yes, no)) else 2
    yes, no = (x if isinstance(x, Jet) else Jet(x, {}, {} if order > 1 else None) for x in (yes, no))

    def choose(a: dict, b: dict) -> dict:
        return {key: np.where(condition, a.get(key, 0.0), b.get(key, 0.0)) for key in {**a, **b}}

    hess = choose(yes.hess, no.hess) if order > 1 else None
    return Jet(np.where(condition, yes.value, no.value), choose(yes.grad, no.grad), hess)


def _of_value(derivatives: Callable[[Array], tuple[Array, Array, Array]]) -> Callable[[Jet], Jet]:
    """The rule of a function f, from its value, f' and f''."""
    return lambda x: x.map(*derivatives(x.value))


def _of_values(compare: Callable[[Array, Array], Array]) -> Callable[[Any, Any], Array]:
    return lambda a, b: compare(value_of(a), value_of(b))


_RULES: dict[str, Callable[..., Any]] = {
    "add": _add,
    "subtract": lambda a, b: _add(a, -b),
    "multiply": _multiply,
    "divide": lambda a, b: _multiply(a, 1.0 / b if not isinstance(b, Jet) else np.reciprocal(b)),
    "power": _power,
    "positive": lambda x: x,
    "negative": lambda x: _multiply(x, -1.0),
    "square": lambda x: _multiply(x, x),
    "minimum": lambda a, b: _choose(value_of(a) <= value_of(b), a, b),
    "maximum": lambda a, b: _choose(value_of(a) >= value_of(b), a, b),
    "exp": _of_value(lambda v: (f := np.exp(v), f, f)),
    "expm1": _of_value(lambda v: (np.expm1(v), f := np.exp(v), f)),
    "log": _of_value(lambda v: (np.log(v), f := 1.0 / v, -f * f)),
    "log1p": _of_value(lambda v: (np.log1p(v), f := 1.0 / (1.0 + v), -f * f)),
    "log10": lambda x: np.log(x) * (1.0 / np.log(10.0)),
    "sqrt": _of_value(lambda v: (f := np.sqrt(v), 0.5 / f, -0.25 / f**3)),
    "tanh": _of_value(lambda v: (f := np.tanh(v), slope := 1.0 - f * f, -2.0 * f * slope)),
    "reciprocal": _of_value(lambda v: (f := 1.0 / v, -f * f, 2.0 * f**3)),
    "less": _of_values(np.less),
    "less_equal": _of_values(np.less_equal),
    "greater": _of_values(np.greater),
    "greater_equal": _of_values(np.greater_equal),
}
