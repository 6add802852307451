"""Errors that a user can act on: each message says what was found, where, what was expected, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


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


class RecipeProblems(RecipeError):  # noqa: N818 - it is several
    """Everything that is wrong with a file of others; the command line prints one line for each."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        """Takes the file and its problems."""
        super().__init__(f"{where}: {'; '.join(problems)}")
        self.lines = tuple(f"{where}: {problem}" for problem in problems)


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


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns an error's message on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def first_line(error: BaseException, limit: int = 300) -> str:
    """Returns the first line of an error's message, up to where an explanation or advice begins."""
    line = str(error).strip().partition("\n")[0].strip()
    said = re.split(r"(?<=[^.])\.\s(?=[A-Z])", line)[0].rstrip(".") or type(error).__name__
    return said if len(said) <= limit else said[: limit - 1] + "…"


LONGEST = 600
"""Characters of an error line that are printed: a file can hold a name of a megabyte."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Returns text that a terminal shows and does not obey.

    Control characters, and those that turn the direction of writing, are spelled out as JSON does; tabs and ends of
    lines stay.
    """
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def as_line(message: str) -> str:
    """Returns a message as one line of sane length: its beginning and its end, which says what to do."""
    text = printable(" ".join(message.split()))
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST - 153]} … {text[-150:]}"
