"""Which laws a planned study identifies, and which questions it answers."""

from analysis.planning import identification
from sweeps.cost.identification import final_losses, question_lines


def fisher_information(study):
    return identification.fisher_information(*final_losses(study))


def identification_lines(study):
    return [*identification.identification_lines(*final_losses(study)), *question_lines(study)]
