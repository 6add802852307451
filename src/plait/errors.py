"""Errors that a user can act on: each message says what was found, where, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlaitError(Exception):
    """A problem the user can fix; the command line prints it as one `error:` line and exits with 2."""


class SourceError(PlaitError):
    """A checkpoint that is missing, corrupt, unsafe or not understood."""


class DataError(PlaitError):
    """Texts or labels that are missing, empty, misnamed or outside the head's range."""


class MergeError(PlaitError):
    """Checkpoints that cannot become one: other shapes, vocabularies, tokenizers, labels or bases."""


class RecipeError(PlaitError):
    """A recipe, option, method or task name that is unknown or contradictory."""


class OutputError(PlaitError):
    """An output that exists, or cannot be written."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Returns a sentence tail such as ` (did you mean 'fisher'? known: average, fisher)`."""
    known = sorted(options)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f" ({hint}known: {', '.join(known) or 'none'})"


def listed(problems: Iterable[str], limit: int = 20) -> str:
    """Returns all problems joined by `; ` on one line, saying how many were left out above `limit`."""
    every = list(problems)
    shown = "; ".join(every[:limit])
    return shown + (f"; and {len(every) - limit} more" if len(every) > limit else "")
