"""Loss spikes are found, and nothing else is taken for one."""

import numpy as np
import one_billion
import pandas as pd
import pytest

from analysis.curves.loss_spikes import found_spikes, spikes
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


def test_noise_alone_makes_none():
    rng = np.random.default_rng(0)
    rows = pd.concat(curve(rng, rng.choice([0.0, 0.002, 0.02]), run=f"r{n}") for n in range(300))
    assert spikes(rows).sum() <= 1


@pytest.mark.parametrize("at", [[5], [20], [38, 39], [39], [10, 11], [10, 12]])
def test_planted_ones_are_found_wherever_they_are_but_at_the_start(at):
    for seed in range(5):
        rows = curve(np.random.default_rng(seed), 0.005)
        rows.loc[at, "loss"] += 0.3
        shuffled = rows.sample(frac=1, random_state=seed)
        assert list(shuffled.index[spikes(shuffled)].sort_values()) == at


def test_curves_are_judged_apart_and_short_ones_not_at_all():
    rng = np.random.default_rng(1)
    high = curve(rng, 0.005, language="sw").assign(loss=lambda t: t["loss"] + 2)
    assert not spikes(pd.concat([curve(rng, 0.005), high])).any()
    short = curve(rng, 0.005, count=7)
    short.loc[4, "loss"] += 1
    assert not spikes(short).any() and len(spikes(short.head(0))) == 0


def test_they_are_left_out_of_curves_and_said():
    """A spike in a hundred evaluations would make the noise of checkpoints look several times what it is."""
    table, _ = one_billion.curves(5)
    rng = np.random.default_rng(9)
    hit = rng.random(len(table)) < 0.01
    spiky = table.assign(
        loss=table["loss"] + np.where(hit, 0.2 + rng.exponential(0.4, len(table)), 0), phase="stable"
    )
    rows, _, _ = validate_observations(spiky)
    found, exclusions = found_spikes(rows)
    kept = rows[~found]
    assert 0.7 * hit.sum() <= exclusions[0]["rows"] <= hit.sum() and len(kept) + exclusions[0]["rows"] == len(
        rows
    )
    cells = matrix.transfer_cells(rows)
    assert cells.noise["stable"].checkpoint < 0.015
    assert any("a loss spike, far above" in note for note in cells.left_out)
