"""Planted studies of the Chinchilla law, for the tests of estimation and of intervals."""

import numpy as np

from analysis.validation import simulate

TRUE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}


def study(seeds, seed, trunk=0.003, checkpoint=0.001):
    """Five sizes by three budgets, `seeds` runs of each; noise of runs (trunk) and of rows (checkpoint)."""
    design = simulate.monolingual_design(np.geomspace(2e4, 4e5, 5), (2e6, 4e6, 8e6), seeds=seeds)
    return simulate.draw_observations(
        "chinchilla", design, TRUE, trunk=trunk, checkpoint=checkpoint, seed=seed
    )
