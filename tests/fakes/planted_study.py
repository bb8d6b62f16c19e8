"""The planted study of `analysis.validation.planted_study`, by the name that the tests know it by."""

from analysis.validation.planted_study import ALPHA, BETA, LAMBDA, LANGUAGES, PARAMS, loss, relatedness, study

__all__ = ["ALPHA", "BETA", "LAMBDA", "LANGUAGES", "PARAMS", "loss", "relatedness", "study"]
