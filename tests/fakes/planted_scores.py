"""Transfer scores of fourteen languages in four families, planted; and pairs of them hidden."""

import numpy as np

from analysis.tables import languages as inventory

FAMILIES = "aaaabbbbccccdd"


LANGUAGES = tuple(f"{family}{index}" for index, family in enumerate(FAMILIES))


KNOWN = {name: {"family": name[0], "script": "Latin"} for name in LANGUAGES}


def planted(seed, kin=0.5, noise=0.05, effects=0.1):
    """Scores of 14 languages: kinship, how each fares as target and as source, and noise."""
    rng = np.random.default_rng(seed)
    size = len(LANGUAGES)
    family = inventory.shared_trait(LANGUAGES, KNOWN, "family")
    scores = kin * family + effects * (rng.normal(size=(size, 1)) + rng.normal(size=(1, size)))
    truth = scores.copy()
    scores = scores + noise * rng.normal(size=scores.shape)
    np.fill_diagonal(scores, np.nan)
    return scores, truth


def hide(scores, share, seed):
    """The scores without a share of the pairs, both directions of each."""
    rng = np.random.default_rng(seed)
    upper = np.argwhere(np.triu(np.ones_like(scores), 1) > 0)
    gone = upper[rng.permutation(len(upper))[: round(share * len(upper))]]
    part = scores.copy()
    part[tuple(gone.T)] = part[tuple(gone.T[::-1])] = np.nan
    return part, np.isnan(part) & np.isfinite(scores)
