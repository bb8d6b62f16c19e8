"""Smoothing curves together equals smoothing each alone, keeps lines and removes noise."""

import numpy as np

from analysis.curves.smoothing import smoother


def test_curves_smoothed_together_are_those_smoothed_alone():
    rng = np.random.default_rng(0)
    x, repeats = np.sort(rng.uniform(8, 14, 25)), rng.integers(1, 4, 25).astype(float)
    losses = 2 + 30 * np.exp(-0.4 * x) + rng.normal(0, [[0.001], [0.01], [0.1]], (3, 25))
    together = smoother(x, repeats, losses)
    smooth = together(losses[:, None])[:, 0]
    for loss, found, freedom in zip(losses, smooth, together.freedom, strict=True):
        alone = smoother(x, repeats, loss[None])
        assert np.allclose(alone(loss[None, None])[0, 0], found) and np.isclose(alone.freedom[0], freedom)
        # weights() gives the average of the smoothed losses from the raw ones.
        assert np.isclose(alone.weights(np.full(25, 1 / 25))[0] @ loss, found.mean())


def test_lines_in_log_tokens_are_kept_and_noise_is_reduced():
    rng = np.random.default_rng(1)
    x, repeats = np.linspace(8, 14, 40), np.ones(40)
    line = 4 - 0.2 * x
    noisy = line + rng.normal(0, 0.01, (50, 40))
    smooth = smoother(x, repeats, noisy)
    assert np.allclose(smooth(np.tile(line, (50, 1, 1))), line)
    assert np.std(smooth(noisy[:, None])[:, 0] - line) < 0.5 * 0.01
    # Residuals over their degrees of freedom estimate the noise.
    residual = noisy - smooth(noisy[:, None])[:, 0]
    assert np.isclose(np.sqrt(np.sum(residual**2) / smooth.freedom.sum()), 0.01, rtol=0.05)
