"""How sure a fit is: profile likelihood, bootstrap, delta method, draws.

What other folders import from here:

- `profile`: profile-likelihood intervals.
- `bootstrap`: groups resampled.
- `delta_method`: intervals of functions of parameters.
- `posterior`: draws of parameters within the data.
- `identifiability`: which parameters the data determine.
"""

__all__ = ["bootstrap", "delta_method", "identifiability", "posterior", "profile"]
