"""Where foreign text comes in: what libraries raise over a file becomes one line with the file and what is wrong in it.

Every loader of JSON, YAML and of what transformers makes of a folder goes through `reading`. Nothing else catches the
exceptions of libraries in order to name a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from plait.errors import PlaitError, SourceError, first_line, listed, one_line, printable

if TYPE_CHECKING:
    import yaml
    from pydantic import BaseModel, ValidationError

LARGEST = 32 * 2**20
"""Bytes of a JSON file that is read at all: the index of a model of 10⁵ tensors has a third of it."""
DEEPEST = 64
"""Levels of nesting; beyond a few hundred, what walks a document recursively gives up."""
WIDEST = 100_000
"""Values in a YAML document once its aliases are written out: nine lines of them can stand for a billion."""
WHOLE = 2**63
"""Whole numbers below it fit where tensors keep theirs."""
UNLIMITED = int(1e30)
"""What transformers writes as the length limit of a tokenizer that has none."""
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(IB|B)?\s*", re.IGNORECASE)
M = TypeVar("M", bound="BaseModel")
T = TypeVar("T")


@contextmanager
def reading(
    where: object, what: str, *, error: type[PlaitError] = SourceError, advice: str = ""
) -> Iterator[None]:
    """Turns whatever a library raises inside over a file into one error of ours; our own pass as they are.

    A damaged file makes libraries raise what they please: parsers in C give up with `RecursionError`, tensors with
    `OverflowError`, tokenizers with a bare `Exception`, code in Rust with a panic, which is no `Exception` at all.

    Args:
        where: the file or folder.
        what: what is wrong with it, such as `not readable as JSON`.
        error: the class that is raised.
        advice: what to do.
    """
    try:
        yield
    except PlaitError:
        raise
    except BaseException as problem:
        if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
            raise  # Ctrl-C and its like
        raise error(_sentence(where, what, f"({_said(problem)})", advice)) from problem


def _sentence(where: object, what: str, why: str, advice: str) -> str:
    """Returns one line: where, what is wrong, why, what to do."""
    colon, tail = "" if what.startswith("is ") else ":", f"; {advice}" if advice else ""
    return f"{where}{colon} {what} {why}{tail}"


def _said(problem: BaseException) -> str:
    """Returns what a library complains of; a bare key or number says nothing without the kind of complaint."""
    kinds = (RecursionError, OverflowError, MemoryError, LookupError)
    said = first_line(problem)
    if said.endswith(":"):  # what follows is the complaint
        said = one_line(problem)
    return f"{type(problem).__name__}: {said}" if isinstance(problem, kinds) else said


def read_text(path: Path, *, error: type[PlaitError] = SourceError, largest: int = LARGEST) -> str:
    """Returns the text of a small file; one of another encoding or of gigabytes is refused."""
    if path.is_file() and (size := path.stat().st_size) > largest:
        raise error(f"{path}: has {size:,} bytes, expected at most {largest:,}")
    with reading(path, "not readable as text", error=error):
        return path.read_text(encoding="utf-8")


def parse_json(
    text: str, where: object, *, what: str = "is damaged", error: type[PlaitError] = SourceError, advice: str = ""
) -> Any:
    """Returns what JSON of ours says: each key once, numbers that are numbers, of a sane depth.

    Raises:
        PlaitError: of the class `error`.
    """
    with reading(where, what, error=error, advice=advice):
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        check_plain(found)
    return found


def byte_count(text: str | int) -> int | None:
    """Returns the bytes of a size such as `5GB`, `200 MB`, `1GiB` or `1.5K`; None for what is no size.

    huggingface_hub's `parse_size_to_int` knows neither plain numbers nor GiB, and takes `-1GB` and `nanGB`.
    """
    found = SIZE.fullmatch(str(text))
    if found is None:
        return None
    number, unit, suffix = found.groups()
    base = 1024 if (suffix or "").upper() == "IB" else 1000
    return int(float(number) * base ** UNITS[unit.upper()])


def load_json(path: Path, kind: type[T], *, error: type[PlaitError] = SourceError, advice: str = "") -> T:
    """Returns what a JSON file of ours holds, which is of one kind, such as `dict`.

    Raises:
        PlaitError: of the class `error`: one that is too large, damaged, or of another kind.
    """
    content = parse_json(read_text(path, error=error), path, error=error, advice=advice)
    if not isinstance(content, kind):
        why = f"(it holds a {type(content).__name__}, expected a {kind.__name__})"
        raise error(_sentence(path, "is damaged", why, advice))
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in found if names.count(name) > 1})
        raise ValueError(f"{listed(map(repr, twice))} given twice in one object")
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number that JSON knows")


def check_plain(value: Any) -> None:
    """Raises `ValueError` over nesting or whole numbers that nothing we write has and that later steps trip over."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Mapping):
                inner += [*one.values(), *one]
            elif isinstance(one, list | tuple):
                inner += one
            elif isinstance(one, int) and abs(one) >= WHOLE and one != UNLIMITED:
                raise ValueError(f"a whole number of {one.bit_length()} bits, expected at most 63")
        if not inner:
            return
        level = inner
    raise ValueError(f"nested more than {DEEPEST} deep")


def validated(
    model: type[M],
    content: Any,
    where: object,
    *,
    what: str = "is damaged",
    error: type[PlaitError] = SourceError,
    advice: str = "",
) -> M:
    """Returns content as a schema describes it; one error names every field that is not.

    Raises:
        PlaitError: of the class `error`.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(content)
    except ValidationError as problem:
        raise error(_sentence(where, what, f"({_fields(problem)})", advice)) from None


def _fields(problem: ValidationError) -> str:
    """Returns which fields are wrong and how, in a few words each."""
    said = []
    for one in problem.errors(include_url=False):
        where = ".".join(str(part) for part in one["loc"] if part != "[key]") or "the document"
        missing = one["type"] == "missing"
        message = f"{one['msg'][:1].lower()}{one['msg'][1:]}".removeprefix("value error, ")
        said.append(f"{where} is missing" if missing else f"{where} is {_short(one['input'])} ({message})")
    return listed(said, 5)


def _short(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def parse_yaml(text: str, where: object, *, error: type[PlaitError] = SourceError, advice: str = "") -> Any:
    """Returns what YAML says: each key once, dates as the text they are, aliases as long as they stay few.

    Raises:
        PlaitError: of the class `error`.
    """
    import yaml

    with reading(where, "is not YAML", error=error, advice=advice):
        loader = _loader()(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _weigh(node, {}, 0)
            found = loader.construct_document(node)
        except yaml.YAMLError as problem:
            raise ValueError(" ".join(str(problem).split())) from None
        finally:
            loader.dispose()
        check_plain(found)
        return found


def _loader() -> type[yaml.SafeLoader]:
    import yaml

    class Plain(yaml.SafeLoader):
        """YAML without dates (a name may look like one, and 30 February raises), each key once."""

        yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML declares it
            first: [(tag, pattern) for tag, pattern in known if not tag.endswith("timestamp")]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            names = [repr(key) for key in keys]
            if len(set(names)) < len(names):
                twice = sorted({str(key) for key, name in zip(keys, names, strict=True) if names.count(name) > 1})
                line = node.start_mark.line + 1
                raise ValueError(f"{', '.join(twice)} is given twice in the mapping at line {line}")
            return super().construct_mapping(node, deep)

    return Plain


def _weigh(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Returns how many values a node stands for with its aliases written out."""
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if id(node) in known:
        total = known[id(node)]
        if not total:
            raise ValueError("an alias stands for what it is part of")
        return total
    known[id(node)] = 0
    value = node.value if isinstance(node.value, list) else []
    inner = [part for one in value for part in (one if isinstance(one, tuple) else (one,))]
    total = 1 + sum(_weigh(one, known, depth + 1) for one in inner)
    if total > WIDEST:
        raise ValueError(f"stands for more than {WIDEST:,} values, written out")
    known[id(node)] = total
    return total


_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def usable_name(text: str) -> bool:
    """Says whether a text can name a file at all: no null byte, no control character, no half of a character."""
    return not _UNSAFE.search(text) and len(text.encode()) < 4096


__all__ = [
    "check_plain",
    "parse_json",
    "parse_yaml",
    "printable",
    "read_text",
    "reading",
    "usable_name",
    "validated",
]
