"""Scaling laws fitted to observations, with honest intervals: on any table, with nothing of a training host.

Where to find what, from the question asked to the arithmetic:

- A study as a whole: `answers` (everything the report says), `report`, `tables` (reading and checking), `records`.
- One law on a table: `fitting`, `results` (`Fit`), `laws`, `lawfits` (those of a report), `prediction`, `optimum`,
  `charts`, `sufficiency`, `identification`, `quantities`, `priors`, `saved`.
- How well laws predict: `heldout`, `splits`, `folds`, `unseen`, `refits`, `parts`.
- How a fit is found: `checks`, `drafting`, `build`, `problem`, `members`, `objective`, `derivatives`,
  `scatter`, `losses`, `search`, `engine`, `reduction`.
- How sure it is: `uncertainty` (noise), `profiles`, `closing` (intervals), `resampling` (bootstraps), `draws`,
  `sensitivity` (of decisions).
- Transfer: `transfer` (the score), `transfer_scores`, `study_curves`, `curves`, `smoothing`, `monotone`, `spikes`,
  `units`, `adaptation`, `dyads` (symmetry and kinship), `inventory` (what is known of languages), `predictor` and
  `likeness` (pairs not run), `selection` (which to run next), `transfer_answers`, `transfer_table`.
- The curse and the crossover: `capacity`, `growth_plan`, `crossover`, `crossover_plan`, `crossover_process`.
- Decisions: `planner`, `co_training`, `mixture_plan`, `allocation`, `next_runs`, `power`.
- The page: `findings`, `transfer_findings` (sentences), `pages`, `transfer_pages`, `wording`, `plots`, `law_figures`,
  `transfer_figures`, `planning_figures`.
- Planted and published truth: `planted`, `simulate`, `reference`.
"""

from analysis.fitting import fit, from_json
from analysis.laws import LAWS, Law, Parameter
from analysis.results import Fit

__all__ = ["LAWS", "Fit", "Law", "Parameter", "fit", "from_json"]
