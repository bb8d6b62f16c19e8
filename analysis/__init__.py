"""Scaling laws fitted to observations, with honest intervals: on any table, with nothing of a training host."""

from analysis.fitting.fit import fit, from_json
from analysis.fitting.result import Fit
from analysis.laws import LAWS, Law, Parameter

__all__ = ["LAWS", "Fit", "Law", "Parameter", "fit", "from_json"]
