"""Whether a table has enough rows and groups for a law: errors before the fit, warnings after it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.estimation.problem import Problem
from mscale.errors import MscaleError

MIN_GROUPS_FOR_RESAMPLING = 40  # groups from which bootstrap intervals cover as stated
MIN_RESIDUAL_GROUPS = 3  # groups needed beyond the number of parameters


def require_enough_data(problem: Problem, few_groups: bool) -> None:
    """Checks that there are enough rows and groups to fit the parameters.

    few_groups: allow fewer groups than parameters + 3.

    Raises:
      MscaleError: there are too few; the message gives the number that is missing.
    """
    law, names, groups = problem.law, problem.names, problem.groups
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
    needed = size + MIN_RESIDUAL_GROUPS
    if groups < needed and not few_groups:
        raise MscaleError(
            f"{groups} groups (root runs) for {size} parameters ({listed}): {needed} are needed before an "
            f"interval means anything, so {needed - groups} more. Add runs, share or fix parameters, or "
            f"fit all the same with few_groups=True"
        )


def search_warnings(agreement: Mapping[str, Any], problem: Problem, theta: np.ndarray) -> list[str]:
    """Warnings about the optimum theta (P,): one start only, not converged, rows at the constraint."""
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


def few_groups_warning(problem: Problem) -> list[str]:
    """A warning where there are too few groups for the method that gives the intervals."""
    groups = problem.groups
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
        f"intervals resample {groups} groups: with fewer than {MIN_GROUPS_FOR_RESAMPLING} they are too narrow; "
        f"loss='squares' gives profile intervals, which are closer to nominal"
    ]
