"""Loss spikes are found; noise and offsets between curves are not taken for spikes."""

import numpy as np
import one_billion
import pandas as pd
import pytest

from analysis.curves.loss_spikes import find_spikes, spike_mask
from analysis.tables.observations import validate_observations
from analysis.transfer import matrix


def curve(rng, noise, count=40, run="r", language="en"):
    evenly = rng.random() < 0.5
    tokens = np.linspace(1e9, 4e10, count) if evenly else np.geomspace(1e9, 4e10, count)
    loss = 1.6 + 900 / tokens**0.32 + noise * rng.standard_normal(count)
    return pd.DataFrame(
        {
            "run": run,
            "language": language,
            "phase": "stable",
            "tokens": tokens,
            "loss": loss,
            "target_tokens": tokens,
        }
    )


def test_noise_alone_has_no_spikes():
    rng = np.random.default_rng(0)
    rows = pd.concat(curve(rng, rng.choice([0.0, 0.002, 0.02]), run=f"r{n}") for n in range(300))
    assert spike_mask(rows).sum() <= 1


@pytest.mark.parametrize("at", [[5], [20], [38, 39], [39], [10, 11], [10, 12]])
def test_planted_spikes_are_found_except_at_the_start(at):
    for seed in range(5):
        rows = curve(np.random.default_rng(seed), 0.005)
        rows.loc[at, "loss"] += 0.3
        shuffled = rows.sample(frac=1, random_state=seed)
        assert list(shuffled.index[spike_mask(shuffled)].sort_values()) == at


def test_curves_are_independent_and_short_ones_have_no_spikes():
    rng = np.random.default_rng(1)
    high = curve(rng, 0.005, language="sw").assign(loss=lambda t: t["loss"] + 2)
    assert not spike_mask(pd.concat([curve(rng, 0.005), high])).any()
    short = curve(rng, 0.005, count=7)
    short.loc[4, "loss"] += 1
    assert not spike_mask(short).any() and len(spike_mask(short.head(0))) == 0


def test_spikes_are_left_out_of_curves_and_counted():
    """With one spike in a hundred evaluations the checkpoint noise would be estimated several times too large."""
    table, _ = one_billion.curves(5)
    rng = np.random.default_rng(9)
    hit = rng.random(len(table)) < 0.01
    spiky = table.assign(
        loss=table["loss"] + np.where(hit, 0.2 + rng.exponential(0.4, len(table)), 0), phase="stable"
    )
    rows, _, _ = validate_observations(spiky)
    found, exclusions = find_spikes(rows)
    kept = rows[~found]
    assert 0.7 * hit.sum() <= exclusions[0].rows <= hit.sum() and len(kept) + exclusions[0].rows == len(rows)
    cells = matrix.transfer_cells(rows)
    assert cells.noise["stable"].checkpoint < 0.015
    assert any("a loss spike, far above" in note for note in cells.left_out)
