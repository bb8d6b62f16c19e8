"""How well laws predict rows that they were not fitted to; simulated studies; statistical power.

What other folders import from here:

- `splits`: train and test rows.
- `held_out`: predictions of held-out rows.
- `compare`: held-out R² of several laws on the same rows.
- `power`: how many runs a study needs to tell a quantity from its null value.
- `simulate`: designs, and observations drawn from a law.
- `planted_study`: a multilingual study drawn from a known ATLAS law.
"""

__all__ = ["compare", "held_out", "planted_study", "power", "simulate", "splits"]
