"""Numbers, lists and durations as text, for messages and for the report."""

import re

_SUPERSCRIPT = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")


def chance(p: float) -> str:
    """A probability as printed: 0.072, or < 0.001."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def few(names: list[str], most: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def listed(names: list[str]) -> str:
    """Names in a row: a, b and c."""
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}" if unique else ""


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


def number(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits, plain where it can be."""
    if value is None:
        return "–"
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}·10{str(int(power)).translate(_SUPERSCRIPT)}".replace("-", "−")
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 3 min 51 s."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
