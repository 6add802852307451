"""Names of labels that say nothing: placeholders for positions, told apart from real names in one way everywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence


def placeholders(names: Sequence[str] | None) -> bool:
    """Says whether label names are placeholders: none at all, `LABEL_0`, `LABEL_1`, … in any order, or `0`, `1`, ….

    Numbers that do not count from 0, such as `1` to `5`, are names: they may be ratings.
    """
    if names is None:
        return True
    plain = [name.strip() for name in names]
    return all(map(numbered, plain)) or plain == [str(at) for at in range(len(plain))]


def told(names: str) -> tuple[str, ...]:
    """Returns the names in `negative,positive`, in order."""
    return tuple(name.strip() for name in names.split(","))


def numbered(name: str) -> bool:
    """Says whether one name is of the kind that transformers makes up: `LABEL_0`."""
    return re.fullmatch(r"LABEL_\d+", name.strip(), re.IGNORECASE) is not None
