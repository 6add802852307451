"""What the cells of a label column say: numbers, truth values, lists or names.

A file without types holds texts alone. What they mean is decided for a whole column, and never at the cost of the text:
`0111` and `1_1` stay names, and `1.0` remembers how it was written for a head that has it as a name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Reader = Callable[[Any], Any]

DECIMAL = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
ITEM = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^\s,'"\[\]]+))\s*(,|(?=\s|$|['"]))""")


class Number(float):
    """A number as a file without types has it: a float that knows how it was written."""

    text: str

    def __new__(cls, text: Any) -> Number:
        """Returns the number that a text is."""
        made = super().__new__(cls, text)
        made.text = str(text)
        return made


def missing(value: Any) -> bool:
    """Says whether a value stands for none: None, NaN, what pandas has instead, or an empty or blank text."""
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return True
    if isinstance(value, str):
        return not value or value.isspace()
    return isinstance(value, float) and math.isnan(value)


def label_reader(values: Iterable[Any], *, untyped: bool) -> Reader:
    """Returns what gives the labels of a column, read off all its values.

    Args:
        values: The column.
        untyped: Whether texts may be numbers. Where they cannot, because the file says what is a text, printed lists
            such as `['joy', 'anger']` are lists all the same: nothing else would be called so.
    """
    ways: list[Reader] = [_list, _truth, _whole, _decimal] if untyped else [_list]
    texts: set[str] = set()
    for value in values:
        if missing(value):
            continue
        if not isinstance(value, str):
            ways = []
            break
        texts.add(value)
    fitting = (way for way in ways if texts and all(_reads(way, text) for text in texts))
    way = next(fitting, str.strip if untyped else str)

    def read(value: Any) -> Any:
        if isinstance(value, str):
            return None if missing(value) else way(value)
        return as_label(value)

    return read


def as_label(value: Any) -> Any:
    """Returns a label as a plain Python value; None where there is none."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if missing(value):
        return None
    return tuple(as_label(v) for v in value) if isinstance(value, list | tuple) else value


def words_of(values: Sequence[Any]) -> list[Any]:
    """Returns a column of lists of words, which a file without types holds as printed lists."""
    return list(map(label_reader(values, untyped=False), values))


def _reads(way: Reader, value: str) -> bool:
    try:
        way(value)
    except ValueError:
        return False
    return True


def _whole(text: str) -> int:
    number = int(text)
    if str(number) != text.strip():
        raise ValueError(text)
    return number


def _decimal(text: str) -> Number:
    if DECIMAL.fullmatch(text.strip()) is None or not math.isfinite(float(text)):
        raise ValueError(text)
    return Number(text.strip())


def _truth(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.strip().lower()]
    except KeyError:
        raise ValueError(text) from None


def _list(text: str) -> tuple[Any, ...]:
    """Returns the items of a printed list, as Python, JSON and NumPy print them.

    Raises:
        ValueError: When it is none, such as a name in brackets.
    """
    bare = text.strip()
    if not (bare.startswith("[") and bare.endswith("]")):
        raise ValueError(text)
    inner, at, items = bare[1:-1], 0, []
    while inner[at:].strip():
        found = ITEM.match(inner, at)
        if found is None:
            raise ValueError(text)
        items.append(_item(found))
        at = found.end()
    return tuple(items)


def _item(found: re.Match[str]) -> Any:
    single, double, bare, _ = found.groups()
    quoted = single if single is not None else double
    if quoted is not None:
        return re.sub(r"\\(.)", r"\1", quoted)
    for way in (_truth, _whole, _decimal):
        if _reads(way, bare):
            return way(bare)
    raise ValueError(bare)
