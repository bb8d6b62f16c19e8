"""The planted study of `analysis.validation.planted_study`, importable by the tests as `planted_study`."""

from analysis.validation.planted_study import (
    ALPHA,
    BETA,
    LAMBDA,
    LANGUAGES,
    PARAMS,
    loss,
    make_study,
    planted_tau,
)

__all__ = ["ALPHA", "BETA", "LAMBDA", "LANGUAGES", "PARAMS", "loss", "make_study", "planted_tau"]
