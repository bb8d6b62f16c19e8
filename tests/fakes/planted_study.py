"""The planted study of `analysis.validation.planted_study`, importable by the tests as `planted_study`."""

from analysis.validation.planted_study import (
    LANGUAGES,
    PARAMS,
    TRUE_ALPHA,
    TRUE_BETA,
    TRUE_LAMBDA,
    loss,
    make_study,
    planted_tau,
)

__all__ = [
    "TRUE_ALPHA",
    "TRUE_BETA",
    "TRUE_LAMBDA",
    "LANGUAGES",
    "PARAMS",
    "loss",
    "make_study",
    "planted_tau",
]
