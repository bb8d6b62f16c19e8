"""Scaling laws fitted to observations, with honest intervals. Runs on any table; needs nothing of a training host."""

from analysis.fitting import fit
from analysis.laws import LAWS, Law, Parameter
from analysis.results import Fit

__all__ = ["LAWS", "Fit", "Law", "Parameter", "fit"]
