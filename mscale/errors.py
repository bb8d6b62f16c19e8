"""The exception for errors that users can correct."""

from collections.abc import Iterable


class MscaleError(Exception):
    """An error that the user can correct.

    The message names the file and field, the value found, the value expected and what to do. The command line prints
    it without a traceback and exits with status 1.
    """


def nearest(name: str, candidates: Iterable[object]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the closest candidate, or ``""`` if none is close."""
    import difflib

    matches = difflib.get_close_matches(str(name), [str(candidate) for candidate in candidates], n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
