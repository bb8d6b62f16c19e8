"""Variance components: the noise of groups and rows is recovered, and its numerical shortcuts are exact."""

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


def test_fits_by_cholesky_agree_with_those_by_eigenvalues_where_ratios_are_probable(monkeypatch):
    found = analysis.fit("chinchilla", study(6, 5))
    theta = np.stack([found.theta, found.theta + 0.05])
    y = found.problem.y * np.exp(np.random.default_rng(0).normal(0, 0.002, (2, len(found.problem.y))))
    by_eigenvalues = variance_components.estimate_noise(found.problem, theta, y)
    monkeypatch.setattr(variance_components, "LARGE_PROBLEM", 0)
    by_cholesky = variance_components.estimate_noise(found.problem, theta, y)
    np.testing.assert_allclose(by_cholesky.probability, by_eigenvalues.probability, rtol=1e-6, atol=1e-9)
    probable = by_eigenvalues.probability > 1e-9
    assert probable.sum() < probable.size
    np.testing.assert_allclose(by_cholesky.theta[probable], by_eigenvalues.theta[probable], rtol=1e-4)
    np.testing.assert_allclose(by_cholesky.inverse[probable], by_eigenvalues.inverse[probable], rtol=1e-3)


def test_inverses_by_cholesky_agree_and_flat_directions_get_large_variances(monkeypatch):
    J = np.random.default_rng(1).normal(size=(3, 30, 6)) * [1, 10, 1e3, 1, 1e-2, 1]
    information = J.swapaxes(1, 2) @ J
    expected = variance_components.pseudo_inverse(information)
    monkeypatch.setattr(variance_components, "LARGE_PROBLEM", 0)
    for ours, other in zip(variance_components.pseudo_inverse(information), expected, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-8)
    J[1, :, 5] = J[1, :, 3]
    flat = J.swapaxes(1, 2) @ J
    assert variance_components.pseudo_inverse(flat)[0][1, 5, 5] > 1e8
