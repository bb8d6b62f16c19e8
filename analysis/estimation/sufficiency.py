"""Is there enough to fit a law to, and did the fit settle? Refusals before it, remarks after."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.estimation.problem import Problem
from analysis.laws.law import Law
from mscale.errors import MscaleError

MIN_GROUPS_FOR_RESAMPLING = 40  # groups from which resampling them holds
MIN_RESIDUAL_GROUPS = 3  # groups needed beyond the parameters


def require_enough_data(law: Law, problem: Problem, names: tuple[str, ...], groups: int, few: bool) -> None:
    """Raises MscaleError, with the number missing, where the rows or groups cannot carry the parameters."""
    for parameter in law.parameters:
        for exponent, variable, _ in parameter.reference:
            values = problem.x[variable]
            if np.ptp(values) == 0 and any(name.split("[")[0] == exponent for name in names):
                raise MscaleError(
                    f"{law.columns.get(variable, variable)} ({variable}) has one value only, {values[0]:g}: "
                    f"{exponent} and {parameter.name} cannot be told apart. Add runs at other values, fix the "
                    f"exponent (fixed={{{exponent!r}: …}}), or fit law 'power' in what does vary"
                )
    size = problem.size
    if size == 0:
        raise MscaleError("every parameter is fixed: there is nothing to fit")
    if np.ptp(problem.y) == 0:
        raise MscaleError(f"every {law.response} is {problem.y[0]:g}: there is nothing to fit")
    distinct = len({tuple(row) for row in zip(*problem.x.values(), problem.y, strict=True)})
    listed = ", ".join(names[:8]) + (", …" if size > 8 else "")
    if distinct < size:
        raise MscaleError(
            f"{distinct} distinct points for {size} parameters ({listed}): add runs, or share or fix parameters"
        )
    if groups < size + MIN_RESIDUAL_GROUPS and not few:
        raise MscaleError(
            f"{groups} groups (root runs) for {size} parameters ({listed}): {size + MIN_RESIDUAL_GROUPS} are needed before an "
            f"interval means anything, so {size + MIN_RESIDUAL_GROUPS - groups} more. Add runs, share or fix parameters, or "
            f"fit all the same with few_groups=True"
        )


def search_warnings(agreement: Mapping[str, Any], problem: Problem, theta: np.ndarray) -> list[str]:
    """What the search says about its optimum (P,), for people."""
    found = []
    if agreement["agreeing"] < 2 and agreement["starts"] > 1:
        found.append(f"only one of {agreement['starts']} starts reached the optimum: treat it as local")
    if not agreement["converged"]:
        found.append("the optimum did not settle: some direction is flat")
    if problem.law.constraint is not None:
        near = problem.constraint(theta[None])[0] < 1e-3
        if near.any():
            found.append(f"{near.sum()} rows lie at the law's constraint: it says nothing about them")
    return found


def few_groups_warning(problem: Problem, groups: int) -> list[str]:
    """A warning where there are too few groups for what intervals rest on."""
    if problem.delta is None:
        if groups >= problem.size + MIN_RESIDUAL_GROUPS:
            return []
        return [
            f"{groups} groups cannot tell noise that they share from {problem.size} parameters: rows are taken as "
            f"independent, and intervals are too narrow"
        ]
    if groups >= MIN_GROUPS_FOR_RESAMPLING:
        return []
    return [
        f"intervals resample {groups} groups: with fewer than {MIN_GROUPS_FOR_RESAMPLING} they are too narrow; loss='squares' gives "
        f"profile intervals, which are closer to nominal"
    ]
