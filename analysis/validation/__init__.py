"""How well laws predict what they were not fitted to; planted studies; power.

What other folders import from here:

- `splits`: how rows are held out.
- `held_out`: predictions of held-out rows.
- `compare`: laws side by side on the same rows.
- `power`: how many runs a question needs.
- `simulate`: tables drawn from a law.
- `planted_study`: whole studies with a known truth.
"""

__all__ = ["compare", "held_out", "planted_study", "power", "simulate", "splits"]
