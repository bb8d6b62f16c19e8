"""Scaling laws fitted to observations, with honest intervals: on any table, with nothing of a training host."""

from analysis.fitting import fit, from_json
from analysis.laws import LAWS, Law, Parameter
from analysis.results import Fit

__all__ = ["LAWS", "Fit", "Law", "Parameter", "fit", "from_json"]
