"""Objects, as JSON and Python have them, as columns: a list of rows, a dict of columns, and the layouts in between."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plait.data.columns import KNOWN, WORDS, Table, shown
from plait.errors import DataError

logger = logging.getLogger("plait")


def from_rows(rows: Sequence[Any], source: str) -> Table:
    """Returns rows, texts or dictionaries, as columns.

    Raises:
        DataError: When a row is neither.
    """
    if all(isinstance(row, str) or shown(row) == "missing" for row in rows) and any(
        isinstance(row, str) for row in rows
    ):
        return Table({"text": list(rows)}, {}, source)
    bad = next((i for i, row in enumerate(rows) if not isinstance(row, Mapping)), None)
    if bad is not None:
        raise DataError(
            f"{source}: row {bad} is a {type(rows[bad]).__name__}; expected texts alone, or one dict a row"
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table({str(name): [row.get(name) for row in rows] for name in names}, {}, source)


def from_mapping(found: Mapping[Any, Any], source: str, *, row: bool = False) -> Table:
    """Returns an object as columns: a dict of columns, or one of the layouts that pandas and SQuAD write.

    Args:
        found: The object.
        source: Where it was found, for messages.
        row: Whether an object of single values is a row rather than a mistake.

    Raises:
        DataError: When it may be rows as well as columns, or neither.
    """
    known = any(str(name).lower() in KNOWN for name in found)
    if "data" in found and not known:
        return _wrapped(found, source, row=row)
    if found and all(isinstance(values, Mapping) for values in found.values()):
        return _oriented(found, source)
    if _is_row(found):
        lists = [name for name, values in found.items() if _is_rows(values)]
        if len(lists) == 1 and not known:
            logger.info("%s: reading the rows in %r", source, lists[0])
            return from_rows(found[lists[0]], source)
        if row:
            return from_rows([found], source)
    return from_columns(found, source)


def _wrapped(found: Mapping[Any, Any], source: str, *, row: bool) -> Table:
    """Returns what lies in an object's `data`: rows, rows of a table split from its columns, or SQuAD's articles."""
    data = found["data"]
    if isinstance(data, Mapping):
        return from_mapping(data, source, row=row)
    if _is_rows(data) and any("paragraphs" in article for article in data):
        return from_rows(_questions(data, source), source)
    names = found.get("columns")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        if any(len(row) != len(names) for row in data):
            raise DataError(f"{source}: rows of 'data' do not have the {len(names)} columns of 'columns'")
        return Table({str(name): [row[at] for row in data] for at, name in enumerate(names)}, {}, source)
    if _is_rows(data) or (row and isinstance(data, list) and not _beside(found)):
        return from_rows(data, source)
    return from_columns(found, source)


def _beside(found: Mapping[Any, Any]) -> bool:
    """Says whether there are lists as long as `data` beside it, which is a column like them then."""
    size = len(found["data"])
    return any(name != "data" and isinstance(them, list) and len(them) == size for name, them in found.items())


def _questions(articles: Sequence[Mapping[str, Any]], source: str) -> list[dict[str, Any]]:
    """Returns the questions of SQuAD's articles, a row each."""
    try:
        return [
            {
                "id": question.get("id"),
                "title": article.get("title"),
                "context": paragraph["context"],
                "question": question["question"],
                "answers": [] if question.get("is_impossible") else question.get("answers") or [],
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{source}: looks like SQuAD (data, paragraphs, qas) but lacks {error}; expected context and qas in each "
            "paragraph, and question in each of them"
        ) from error


def _oriented(found: Mapping[Any, Mapping[Any, Any]], source: str) -> Table:
    """Returns a dict of dicts, as pandas writes tables: column to rows, or row to columns."""
    inner = list(dict.fromkeys(name for values in found.values() for name in values))
    by_column = _known(found) or (_counts(inner) and not _counts(found))
    by_row = _known(inner) or (_counts(found) and not _counts(inner))
    if by_column == by_row:
        raise DataError(
            f"{source}: a dict of dicts, in which rows and columns cannot be told apart; write a list of rows, as "
            "DataFrame.to_json(orient='records') does"
        )
    if by_row:
        return from_rows(list(found.values()), source)
    inner = list(next(iter(found.values())))
    odd = next((name for name, values in found.items() if list(values) != inner), None)
    if odd is not None:
        raise DataError(f"{source}: column {odd!r} has other rows than the first; expected the same in all")
    return Table({str(name): list(values.values()) for name, values in found.items()}, {}, source)


def _known(names: Iterable[Any]) -> bool:
    return any(str(name).lower() in KNOWN for name in names)


def _counts(names: Iterable[Any]) -> bool:
    """Says whether names are numbers of rows."""
    return all(isinstance(name, int) or (isinstance(name, str) and name.isdecimal()) for name in names)


def _is_row(found: Mapping[Any, Any]) -> bool:
    """Says whether an object has single values, as a row has, or a sentence's words where sentences would be."""
    words = (values for name, values in found.items() if str(name).lower() in WORDS)
    if any(isinstance(values, list) and values and isinstance(values[0], str) for values in words):
        return True
    return any(isinstance(values, str | bytes | int | float) for values in found.values())


def _is_rows(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(row, Mapping) for row in values)


def from_columns(found: Mapping[Any, Any], source: str) -> Table:
    """Returns a dict of columns as a table, whatever they are called; None is no column.

    Raises:
        DataError: When a value is no column, or the columns differ in length.
    """
    lists = {
        str(name): as_list(values, f"{source}: column {name!r}")
        for name, values in found.items()
        if values is not None
    }
    sizes = {name: len(values) for name, values in lists.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(
            f"{source}: columns differ in length: {', '.join(f'{n} {s}' for n, s in sizes.items())}"
        )
    return Table(lists, {}, source)


def as_list(values: Any, what: str) -> list[Any]:
    """Returns a column, an array or whatever can be gone through in an order of its own as a list.

    Raises:
        DataError: When it is one value, or has no order.
    """
    if hasattr(values, "to_pylist"):
        return list(values.to_pylist())
    if hasattr(values, "tolist") and getattr(values, "ndim", None) != 0:
        return list(values.tolist())
    if isinstance(values, str | bytes):
        raise DataError(f"{what} is one text ({values!r:.40}); expected a list of them")
    if isinstance(values, Mapping):
        raise DataError(f"{what} is a dict; expected a list of values, one a row")
    if isinstance(values, set | frozenset):
        raise DataError(f"{what} is a set, which has no order; expected a list")
    if not isinstance(values, Iterable):
        raise DataError(f"{what} is one value ({shown(values)}); expected a list of values, one a row")
    return list(values)
