"""Formats numbers, lists and durations as text, for messages and for the report."""

import re
from collections.abc import Callable

_SUPERSCRIPT = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")


def p_value(p: float) -> str:
    """A p-value with three decimals, or "< 0.001"."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def first_few(names: list[str], limit: int = 4) -> str:
    """The first `limit` names of a list, and how many more there are: a, b and 3 more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def join_names(names: list[str]) -> str:
    """The distinct names joined as in a sentence: a, b and c."""
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}" if unique else ""


def count(value: float | None, unit: str = "") -> str:
    """A count with three digits and a suffix: 72k, 2.4M, 41.9B; in scientific notation from 10¹⁵ on."""
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
    """A number with its sign and the minus sign U+2212: +0.31, −0.12."""
    if value is None:
        return "–"
    text = f"{abs(value):.{digits}f}"
    return f"{'−' if value < 0 else '+'}{text}" if float(text) else text


def minus(value: float, digits: int = 3) -> str:
    """A number with `digits` decimals and the minus sign U+2212."""
    return f"{value:.{digits}f}".replace("-", "−")


def short_reason(reason: str) -> str:
    """The first sentence of an error of `analysis.fit`, without the list of parameters in brackets."""
    return re.sub(r" \([^()]*\[.*?\)", "", reason).split(". ")[0]


def span(low: float | None, high: float | None, show: Callable[[float], str] = signed) -> str:
    """An interval, its ends formatted by `show`; None is an open end."""
    if low is None:
        return "open on both sides" if high is None else f"below {show(high)}"
    if high is None:
        return f"above {show(low)}"
    return f"{show(low)} to {show(high)}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits; in scientific notation only below 10⁻³ and from 10⁵ on."""
    if value is None:
        return "–"
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}·10{str(int(power)).translate(_SUPERSCRIPT)}".replace("-", "−")
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds: 3 min 51 s."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
