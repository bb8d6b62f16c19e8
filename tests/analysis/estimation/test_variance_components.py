"""Variance components: the noise of groups and rows is recovered, and flat directions have large variances."""

import numpy as np
import pytest
from planted_chinchilla import study

import analysis
from analysis.estimation import variance_components
from mscale.errors import MscaleError


def test_the_variance_ratio_is_recovered():
    found = analysis.fit("chinchilla", study(20, 0))
    noise = found.noise
    assert noise.ratio[noise.best[0]] == pytest.approx(9.0, rel=0.6)
    assert np.sqrt(noise.at_best(noise.sigma2)[0]) == pytest.approx(0.001, rel=0.2)
    independent = analysis.fit("chinchilla", study(20, 0, trunk=0.0))
    assert abs(independent.problem.ratio) < 0.2


def test_no_variance_ratio_is_estimated_from_too_few_groups():
    table = study(1, 3)
    with pytest.raises(MscaleError, match="are needed before an interval"):
        analysis.fit("chinchilla", table)
    found = analysis.fit("chinchilla", table, few_groups=True)
    assert found.problem.ratio == 0.0
    assert any("5 groups cannot tell noise that they share" in note for note in found.notes)


def test_flat_directions_get_large_variances():
    J = np.random.default_rng(1).normal(size=(3, 30, 6)) * [1, 10, 1e3, 1, 1e-2, 1]
    information = J.swapaxes(1, 2) @ J
    inverse, log_determinant = variance_components.pseudo_inverse(information)
    np.testing.assert_allclose(inverse, np.linalg.inv(information), rtol=1e-8)
    np.testing.assert_allclose(log_determinant, np.linalg.slogdet(information)[1], rtol=1e-8)
    J[1, :, 5] = J[1, :, 3]
    flat = J.swapaxes(1, 2) @ J
    assert variance_components.pseudo_inverse(flat)[0][1, 5, 5] > 1e8
