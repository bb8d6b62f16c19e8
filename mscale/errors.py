"""The one exception meant for users."""


class MscaleError(Exception):
    """Something the user can mend.

    The message names the file and field, what was found, what was expected and what to do.
    The command line prints it without a traceback and exits with status 1.
    """


def nearest(name: str, candidates) -> str:
    """Returns ``"; did you mean 'x'?"`` for the closest candidate, or ``""`` where none is close."""
    import difflib

    matches = difflib.get_close_matches(str(name), [str(candidate) for candidate in candidates], n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
