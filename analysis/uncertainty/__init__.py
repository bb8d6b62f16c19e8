"""The uncertainty of a fit: profile likelihood, bootstrap, delta method and draws.

What other folders import from here:

- `profile`: profile-likelihood intervals.
- `bootstrap`: refits on resampled groups.
- `delta_method`: intervals of functions of the parameters.
- `posterior`: draws of the parameters from a truncated normal approximation.
- `identifiability`: which parameters the data determine.
- `fitted`: what these need of a fitted law.
"""

__all__ = ["bootstrap", "delta_method", "fitted", "identifiability", "posterior", "profile"]
