"""Plain sentences from the results: what was found, what to do, and how sure it is.

A sentence is {"text", "sure", "because"}. `sure` is one of SURE: it follows from intervals, not from taste.
"""

import re
from typing import Any

SURE = ("clear", "likely", "unclear", "not identified")


def count(value: float | None, unit: str = "") -> str:
    """A count for people: 72k, 2.4M, 41.9B; scientific from 10¹⁵ on."""
    if value is None:
        return "–"
    if abs(value) >= 1e15:
        mantissa, power = f"{value:.1e}".split("e")
        text = f"{mantissa}·10{''.join('⁰¹²³⁴⁵⁶⁷⁸⁹'[int(digit)] for digit in str(int(power)))}"
    else:
        text = ""
        for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= limit * 0.9995:
                text = f"{value / limit:.3g}{suffix}"
                break
        text = text or f"{value:.3g}"
    return f"{text} {unit}".strip()


def signed(value: float | None, digits: int = 2) -> str:
    """A signed number with a true minus: +0.31, −0.12."""
    if value is None:
        return "–"
    text = f"{abs(value):.{digits}f}"
    return f"{'−' if value < 0 else '+'}{text}" if float(text) else text


def minus(value: float, digits: int = 3) -> str:
    """A number with so many decimals and a true minus."""
    return f"{value:.{digits}f}".replace("-", "−")


def brief(reason: str) -> str:
    """A refusal of `analysis.fit` without its list of parameters and its ways round."""
    return re.sub(r" \([^()]*\[.*?\)", "", reason).split(". ")[0]


def span(low: float | None, high: float | None, show=signed) -> str:
    """An interval; an open side is shown as such."""
    if low is None and high is None:
        return "open on both sides"
    if low is None:
        return f"below {show(high)}"
    if high is None:
        return f"above {show(low)}"
    return f"{show(low)} to {show(high)}"


def parameter(results: dict, law: str, name: str) -> dict | None:
    """The record of one parameter of a fitted law, or None."""
    for entry in results["laws"].get(law, {}).get("parameters", ()):
        if entry["name"] == name:
            return entry
    return None


def main_matrix(results: dict) -> list[dict]:
    """The cells of the matrix at the scale that the report shows."""
    return [row for row in results["transfer"]["matrix"] if row["scale"] == results["transfer"]["scale"]]


def headlines(results: dict) -> list[dict]:
    """The findings, most useful first."""
    found = [*_law_headline(results), *_transfer_headline(results), *_planted_headline(results)]
    return [*found, *_capacity_headline(results), *_crossover_headline(results)]


def _sentence(text: str, sure: str, because: str = "", title: str = "") -> dict:
    assert sure in SURE
    return {"text": text, "sure": sure, "because": because, "title": title}


def _law_headline(results: dict) -> list[dict]:
    output = []
    scores = {(row["law"], row["split"]): row for row in results["heldout"] if row["r2"] is not None}
    law = "atlas" if results["laws"]["atlas"]["fitted"] else "chinchilla"
    alpha, beta = parameter(results, law, "alpha"), parameter(results, law, "beta")
    if alpha and beta:
        name = "ATLAS" if law == "atlas" else "Chinchilla"
        pieces = []
        for symbol, entry in (("α", alpha), ("β", beta), ("λ", parameter(results, law, "lambda"))):
            if entry and _usable(entry):
                pieces.append(
                    f"{symbol} = {entry['estimate']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})"
                )
            elif entry:
                pieces.append(f"{symbol} is not identified")
        sure = "clear" if all(_usable(entry) for entry in (alpha, beta)) else "not identified"
        share = scores.get(("ATLAS, + K_t" if law == "atlas" else "Chinchilla", "R2"))
        tail = f" R² {share['r2']:.3f} on held-out runs." if share and share["r2"] > 0 else ""
        output.append(
            _sentence(
                f"Loss follows {name}: {', '.join(pieces)}.{tail}",
                sure,
                f"{results['laws'][law]['points']} cooled losses of {results['laws'][law]['groups']} trunks",
                "The law",
            )
        )
    plain = scores.get(("Chinchilla", "R2"))
    best = scores.get(("ATLAS, + K_t", "R2")) or scores.get(("ATLAS, + D_other", "R2"))
    if best and plain and best["difference"] is not None:
        low, high = best["difference_low"], best["difference_high"]
        better, worse = low > 0, high < 0
        verb = "helps to predict" if better else "does not help to predict"
        verb = verb if better or worse else "makes no difference beyond noise in predicting"
        output.append(
            _sentence(
                f"Counting the other languages' data {verb} held-out runs: R² {minus(best['r2'])} with ATLAS, "
                f"{minus(plain['r2'])} with Chinchilla.",
                "clear" if better or worse else "unclear",
                "the same cooled rows, a random fifth of trunks held out, R² within languages",
                "Which law",
            )
        )
    return output


def _usable(entry: dict | None) -> bool:
    """Identified, and its interval does not span more than a factor of four or cross zero by much."""
    if not entry or not entry["identified"] or entry["low"] is None or entry["high"] is None:
        return False
    return entry["low"] > 0 and entry["high"] < 4 * entry["low"]


def _transfer_headline(results: dict) -> list[dict]:
    cells = [row for row in main_matrix(results) if row["status"] == "measured"]
    bounds = [row for row in main_matrix(results) if row["status"] == "bound"]
    if not cells:
        return [
            _sentence(
                "Transfer between languages could not be read from this study.",
                "not identified",
                results["transfer"].get("error") or "no pair has both curves at the same schedule phase",
                "Transfer",
            )
        ]
    helps = [row for row in cells if row["low"] is not None and row["low"] > 0]
    hurts = [row for row in cells if row["high"] is not None and row["high"] < 0]
    best = max(cells, key=lambda row: row["score"])
    below = sum(row["bound"] == "at most" and (row["high"] or 0) < 0 for row in bounds)
    more = f" {len(bounds)} more pairs are bounds, {below} of them interference for sure." if bounds else ""
    text = (
        f"Of {len(cells)} measured source→target pairs {len(helps)} help and {len(hurts)} interfere beyond "
        f"noise; {len(cells) - len(helps) - len(hurts)} cannot be told from no transfer. The strongest is "
        f"{best['source']}→{best['target']}: {signed(best['score'])} ({span(best['low'], best['high'])}).{more}"
    )
    return [
        _sentence(
            text,
            "clear"
            if len(helps) + len(hurts) >= len(cells) / 3
            else "likely"
            if helps or hurts
            else "unclear",
            f"scale {results['transfer']['scale']}, d = {count(results['transfer']['d'], 'tokens')}, stable "
            "against stable",
            "Transfer",
        )
    ]


def _planted_headline(results: dict) -> list[dict]:
    agreement = results["transfer"].get("agreement")
    if not agreement or agreement["spearman"] is None:
        return []
    p, floor = agreement["p"], agreement["smallest_p"]
    sure = "clear" if p < 0.05 else "likely" if p <= max(0.1, 1.5 * floor) else "unclear"
    limit = ", the least that so few languages can give" if p <= 1.2 * floor and p > 0.01 else ""
    return [
        _sentence(
            f"Measured transfer ranks the pairs as planted: Spearman {signed(agreement['spearman'])} over "
            f"{agreement['pairs']} pairs (p = {p:.3f}{limit}).",
            sure,
            "p by permuting whole languages, since pairs share them",
            "Planted truth",
        )
    ]


def _capacity_headline(results: dict) -> list[dict]:
    answer = results["capacity"]
    if not answer["multipliers"] or not answer["identified"]:
        return [
            _sentence(
                "What more languages cost is not identified by this study.",
                "not identified",
                answer["reason"],
                "The curse",
            )
        ]
    row = answer["multipliers"][0]

    def times(name: str) -> str:
        return f"×{row[name]:.2f} ({row[name + '_low']:.2f} to {row[name + '_high']:.2f})"

    narrow = row["C_high"] / row["C_low"] < 1.5
    return [
        _sentence(
            f"Twice the languages at unchanged loss cost {times('N')} parameters and {times('D_tot')} tokens in "
            f"all, {times('C')} compute. The paper has ×1.18, ×1.66 and ×1.96.",
            "clear" if narrow else "likely",
            "eq. 7 with exponents common to the languages, from cooled uniform mixtures",
            "The curse",
        )
    ]


def _crossover_headline(results: dict) -> list[dict]:
    rows = [row for row in results["crossover"]["table"] if row["status"] != "missing"]
    if not rows:
        reason = "no run continues a checkpoint on a language that was also trained from scratch"
        text = "Whether to start from a checkpoint was not studied."
        return [_sentence(text, "not identified", reason, "Scratch or checkpoint")]
    measured = [row for row in rows if row["status"] == "measured"]
    pieces = [
        f"{row['language']} after {count(row['tokens'])} ({span(row['low'], row['high'], count)})"
        for row in sorted(measured, key=lambda row: row["tokens"])[:4]
    ]
    later = [row for row in rows if row["bound"] == "at least"]
    sooner = [row for row in rows if row["bound"] == "at most"]
    text = ""
    if pieces:
        more = f" and {len(measured) - 4} more" if len(measured) > 4 else ""
        text = (
            f"A model from scratch overtakes the continued checkpoint on {', '.join(pieces)} tokens{more}. "
        )
    if later:
        names = _listed([row["language"] for row in later])
        last = count(min(row["tokens"] for row in later))
        text += (
            f"On {names} continuing is still ahead at {last} tokens: that crossover is not within the data. "
        )
    if sooner:
        names = _listed([row["language"] for row in sooner])
        text += f"On {names} scratch is ahead from the first tokens compared."
    sharp = [row for row in measured if row["low"] and row["high"] and row["high"] < 3 * row["low"]]
    sure = "clear" if measured and len(sharp) == len(measured) and not later else "likely"
    return [_sentence(text.strip(), sure, "stable phase against stable phase", "Scratch or checkpoint")]


def recommendations(results: dict) -> list[dict]:
    """What to do: partners of each language, scratch or checkpoint, growth, and the runs to make next."""
    output = [*_partners(results), *_start(results), *_growth(results)]
    return [*output, *_next_runs(results)]


def _partners(results: dict) -> list[dict]:
    cells = [row for row in main_matrix(results) if row["status"] == "measured"]
    known = [row for row in main_matrix(results) if row["status"] != "missing"]
    output = []
    best_first = sorted({row["target"] for row in cells})
    if len(best_first) > 12:  # a long list starts with what can be acted on
        gain = {name: max(row["low"] or -9 for row in cells if row["target"] == name) for name in best_first}
        best_first.sort(key=lambda name: -gain[name])
    for target in best_first:
        mine = [row for row in cells if row["target"] == target]
        helps = sorted(
            (row for row in mine if row["low"] is not None and row["low"] > 0), key=lambda row: -row["score"]
        )
        # A bound counts as interference where even its upper end lies below zero.
        hurts = [
            row for row in known if row["target"] == target and row["high"] is not None and row["high"] < 0
        ]
        if helps:
            shown = ", ".join(f"{row['source']} ({span(row['low'], row['high'])})" for row in helps[:3])
            text = f"{target}: train it with {shown}."
            sure = "clear" if helps[0]["low"] > 0.1 else "likely"
        else:
            best = max(mine, key=lambda row: row["score"])
            text = f"{target}: no partner helps beyond noise; the best guess is {best['source']}."
            sure = "unclear"
        if hurts:
            worst = sorted(hurts, key=lambda row: row["score"])
            names = [row["source"] for row in worst[:3]] + (
                [f"{len(worst) - 3} more"] if len(worst) > 3 else []
            )
            text += f" Keep it apart from {_listed(names)}."
        output.append({**_sentence(text, sure, "", "Train together"), "group": "Which languages together"})
    return output


def _start(results: dict) -> list[dict]:
    output = []
    for row in results["crossover"]["table"]:
        language = row["language"]
        if row["status"] == "measured":
            low, high = row["low"] or row["tokens"] / 2, row["high"] or row["tokens"] * 2
            text = (
                f"{language} at {count(row['params'])} parameters: continue the checkpoint below {count(low)} "
                f"tokens, train from scratch above {count(high)}; between the two the call is close."
            )
            sure = "clear" if high < 3 * low else "likely"
        elif row["bound"] == "at least":
            gap = f"{signed(row['gap'], 3)} nats ({span(row['gap_low'], row['gap_high'], lambda v: signed(v, 3))})"
            text = (
                f"{language} at {count(row['params'])} parameters: continue the checkpoint up to "
                f"{count(row['tokens'])} tokens at least; it is ahead by {gap} there."
            )
            sure = "clear" if (row["gap_low"] or -1) > 0 else "unclear"
        elif row["bound"] == "at most":
            text = f"{language} at {count(row['params'])} parameters: train from scratch."
            sure = "clear" if (row["gap_high"] or 1) < 0 else "unclear"
        else:
            continue
        output.append({**_sentence(text, sure), "group": "Scratch or checkpoint"})
    return output


def _growth(results: dict) -> list[dict]:
    answer = results["capacity"]
    group = "More languages"
    if not answer["identified"]:
        first = answer["published"][0]
        text = (
            f"Your own growth factors are not identified ({answer['reason']}). The published ones, for twice the "
            f"languages: ×{first['N']:.2f} parameters, ×{first['D_tot']:.2f} tokens (interval not published)."
        )
        return [{**_sentence(text, "not identified"), "group": group}]
    output = []
    for row in answer["multipliers"][:2]:
        text = (
            f"For {row['ratio']}× the languages plan ×{row['N']:.2f} parameters and ×{row['D_tot']:.2f} tokens: "
            f"×{row['C']:.2f} compute ({row['C_low']:.2f} to {row['C_high']:.2f})."
        )
        sure = "clear" if row["C_high"] < 1.5 * row["C_low"] else "likely"
        output.append({**_sentence(text, sure), "group": group})
    return output


def _next_runs(results: dict) -> list[dict]:
    group = "What to run next"
    output: list[dict[str, Any]] = []

    def add(text: str, because: str) -> None:
        output.append({**_sentence(text, "likely", because), "group": group})

    noise = results["transfer"].get("noise", {}).get("stable")
    if noise and noise["repeated_runs"] < 3:
        add(
            "Repeat two or three trunks at the middle scale with another seed.",
            f"the noise of runs rests on {noise['repeated_runs']} repeated run(s); every interval here uses it",
        )
    cells = main_matrix(results)
    late = [row for row in cells if row["status"] == "bound" and row["bound"] == "at most"]
    if late:
        names = _listed([f"{row['target']}+{row['source']}" for row in late][:4])
        add(f"Train longer: {names}.", "these bilingual runs never reached the monolingual loss: only bounds")
    missing = [row for row in cells if row["status"] == "missing"]
    if missing:
        names = _listed([f"{row['source']}→{row['target']}" for row in missing][:4])
        add(f"Measure {len(missing)} missing pairs, such as {names}.", missing[0]["reason"])
    straddle = [
        row
        for row in cells
        if row["status"] == "measured" and row["low"] is not None and row["high"] is not None
        if row["low"] < 0 < row["high"]
    ]
    if straddle:
        widest = max(straddle, key=lambda row: row["high"] - row["low"])
        add(
            f"Repeat {widest['target']}+{widest['source']} with another seed.",
            f"its score, {span(widest['low'], widest['high'])}, is the widest that could have either sign",
        )
    beyond = [row for row in results["crossover"]["table"] if row["bound"] == "at least"]
    if beyond:
        names = _listed([row["language"] for row in beyond])
        add(
            f"Train {names} longer, from scratch and from the checkpoint.",
            "their crossover is beyond the data",
        )
    if results["crossover"]["error"] and results["crossover"]["table"]:
        add("Continue the checkpoint at two more sizes.", results["crossover"]["error"].split(":")[0])
    for name, title in (("chinchilla", "Chinchilla"), ("atlas", "ATLAS"), ("capacity", "the capacity law")):
        law = results["laws"][name]
        if not law["fitted"]:
            add(f"Run what {title} lacks.", brief(law["reason"]))
    return output


def _listed(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}" if unique else ""
