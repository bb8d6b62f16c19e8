"""Which questions a study answers: final losses for the laws, transfer scores, pretrain or continue, seed noise.

Whether these losses identify a law is computed by ``analysis.planning.identification``, on the laws themselves.
"""

from typing import Any

from sweeps.study import Study

_CROSSOVER_LAW_SCALES = 3


def final_losses(study: Study) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Final losses that the study will have, of runs from scratch on languages of their own mixture.

    Returns:
      Rows of observations (run, step, params, language, target_tokens, target_unique), and of exposure (run, step,
      language, tokens, unique_tokens).
    """
    observations: dict[tuple[str, str], dict[str, Any]] = {}
    exposure: dict[tuple[str, str], dict[str, Any]] = {}
    for cell, ends in zip(study.cells, study.ends, strict=True):
        if cell.init is not None:
            continue
        rates = {language: rate for language, rate in study.mixtures[cell.mixture].items() if rate > 0}
        unique = {**study.unique, **dict(cell.unique_tokens)}
        for tokens, end in zip(cell.tokens, ends, strict=True):
            run = study.by_id[end]
            place = {"run": end, "step": run.steps}
            for language, rate in rates.items():
                seen = {"language": language, "tokens": rate * tokens, "unique_tokens": unique[language]}
                exposure[end, language] = {**place, **seen}
            for language in run.bindings["EVAL_LANGUAGES"]:
                if language in rates:
                    target = {"target_tokens": rates[language] * tokens, "target_unique": unique[language]}
                    observations[end, language] = {
                        **place,
                        "params": run.params,
                        "language": language,
                        **target,
                    }
    return list(observations.values()), list(exposure.values())


def question_lines(study: Study) -> list[str]:
    """One line for each question that needs no law: whether the study answers it."""
    return [_transfer_line(study), _crossover_line(study), _noise_line(study)]


def _transfer_line(study: Study) -> str:
    """A transfer score needs its target language alone and in a 50/50 pair, at one scale."""
    monolingual = {
        (str(cell.scale), language)
        for cell in study.cells
        for language in study.mixtures[cell.mixture]
        if cell.init is None and len(study.mixtures[cell.mixture]) == 1
    }
    scores = 0
    for pair in {cell.training: cell for cell in study.cells}.values():
        rates = study.mixtures[pair.mixture]
        if pair.init is not None or len(rates) != 2 or len(set(rates.values())) != 1:
            continue
        for target in rates:
            scores += (str(pair.scale), target) in monolingual
    if not scores:
        return "Does not identify transfer scores: no 50/50 pair with its target alone at the same scale."
    return f"Identifies transfer scores of {scores} ordered pairs, at references up to half of the pairs' tokens."


def _crossover_line(study: Study) -> str:
    """Pretrain or continue needs one language both ways at one scale; its power law in N needs three scales."""
    scratch = {
        (str(cell.scale), cell.mixture)
        for cell in study.cells
        if cell.init is None and len(study.mixtures[cell.mixture]) == 1
    }
    both = {
        (str(cell.scale), cell.mixture)
        for cell in study.cells
        if cell.init is not None and (str(cell.scale), cell.mixture) in scratch
    }
    sizes = {scale for scale, _ in both}
    if len(sizes) >= _CROSSOVER_LAW_SCALES:
        return (
            f"Covers pretrain-or-continue at {len(sizes)} scales, {len(both)} pairs of runs; its power law in N is "
            "identified where the curves cross within the budgets."
        )
    if both:
        return (
            f"Covers pretrain-or-continue at scale {', '.join(sorted(sizes))} for {len(both)} languages; does not "
            f"identify its power law in N, which needs {_CROSSOVER_LAW_SCALES} scales."
        )
    return "Does not cover pretrain-or-continue: no language both from scratch and continued at one scale."


def _noise_line(study: Study) -> str:
    seeds: dict[tuple, set[int]] = {}
    for cell in study.cells:
        seeds.setdefault((str(cell.scale), cell.mixture, cell.unique_tokens, cell.init), set()).add(cell.seed)
    most = max(map(len, seeds.values()), default=0)
    if most > 1:
        return f"Measures the noise between seeds: {sum(len(one) > 1 for one in seeds.values())} trainings have {most}."
    return "Does not measure the noise between seeds: every training has one."
