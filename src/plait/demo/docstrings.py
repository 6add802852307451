"""Real English with labels, found on any machine that runs Plait: the docstrings of installed packages."""

from __future__ import annotations

import ast
import importlib.util
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from plait.errors import DataError

TOPICS = {
    "distribution": ("torch", "distributed"),
    "sharing": ("huggingface_hub", ""),
    "tables": ("pandas", "core"),
    "physics": ("sympy", "physics"),
    "polynomials": ("sympy", "polys"),
    "statistics": ("scipy", "stats"),
}
"""Per topic the library and the folder whose docstrings are about it: programming first, then mathematics."""
SUBJECTS = {"programming": tuple(TOPICS)[:3], "mathematics": tuple(TOPICS)[3:]}
"""What two people who each know half of the topics would be asked about."""
KINDS = ("class", "function", "method", "property")
FILES_PER_TOPIC = 150
NAMES = re.compile(
    r"(py)?torch|transformers?|num-?py|sci-?py|scikit-learn|sk-?learn|pandas|sym-?py|hugging[ _]?face(_hub)?"
    r"|\b(np|pd|sp)\.",
    re.IGNORECASE,
)
MARKUP = re.compile(
    r":\w+(?::\w+)*:`~?([^`<]*)(?:<[^>]*>)?`|`{1,2}([^`]*)`{1,2}|\[`?([^\]`]+)`?\](?:\([^)]*\))?"
)


@dataclass(frozen=True)
class Docstring:
    """The summary of one documented object."""

    text: str
    name: str
    kind: str
    topic: str
    file: str


def harvest(seed: int = 0) -> list[Docstring]:
    """Returns the summaries of documented objects in installed libraries, cleaned, each text once, shuffled.

    Raises:
        DataError: a library is not installed with its sources.
    """
    places = {topic: folder for topic in TOPICS if (folder := topic_folder(topic)) is not None}
    if lacking := [topic for topic in TOPICS if topic not in places]:
        wanted = ", ".join(sorted({TOPICS[topic][0] for topic in lacking}))
        raise DataError(f"the demo reads docstrings of {wanted}, which are not installed with their sources")
    seen: set[str] = set()
    found: list[Docstring] = []
    for topic, place in places.items():
        for docstring in topic_docstrings(topic, place, seed):
            key = docstring.text.lower()
            if key not in seen:
                seen.add(key)
                found.append(docstring)
    random.Random(seed).shuffle(found)
    return found


def topic_folder(topic: str) -> Path | None:
    """Returns the folder with the sources of a topic, without importing its library."""
    library, below = TOPICS[topic]
    package = package_folder(library)
    return None if package is None or not (package / below).is_dir() else package / below


def package_folder(name: str) -> Path | None:
    """Returns the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def topic_docstrings(topic: str, folder: Path, seed: int) -> Iterator[Docstring]:
    """Yields the documented objects in a random subset of a topic's files."""
    files = sorted(f for f in folder.rglob("*.py") if "test" not in f.relative_to(folder).as_posix())
    random.Random(seed).shuffle(files)
    for file in files[:FILES_PER_TOPIC]:
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        relative = f"{topic}/{file.relative_to(folder).as_posix()}"
        for kind, name, text in documented(tree, inside_class=False):
            summary = clean(text)
            if summary is not None:
                yield Docstring(summary, name, kind, topic, relative)


def documented(node: ast.AST, *, inside_class: bool) -> Iterator[tuple[str, str, str]]:
    """Yields kind, name and docstring of the public classes, functions, methods and properties below a node."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(child)
        if text and not child.name.startswith("_"):
            yield kind_of(child, inside_class=inside_class), child.name, text
        if isinstance(child, ast.ClassDef):
            yield from documented(child, inside_class=True)


def kind_of(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, *, inside_class: bool) -> str:
    """Returns what kind of object a definition makes."""
    if isinstance(node, ast.ClassDef):
        return "class"
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    if decorators & {"property", "cached_property", "setter", "cache_readonly"}:
        return "property"
    return "method" if inside_class else "function"


def clean(docstring: str) -> str | None:
    """Returns the first paragraph as plain text without library names, or None when that is not a sentence."""
    paragraph = docstring.strip().split("\n\n")[0]
    text = MARKUP.sub(lambda m: next(group for group in m.groups() if group is not None), paragraph)
    text = " ".join(NAMES.sub("", text).replace("`", "").split())
    words = text.split()
    # Signatures, tables and shouting are not English; very short summaries say nothing about their topic.
    odd = sum(not (c.isalpha() or c in " .,'-()") for c in text) > 0.1 * len(text)
    if not len(words) >= 5 or odd or not text.isascii() or text.isupper():
        return None
    return " ".join(words[:48])


def words_of(name: str) -> str:
    """Returns an identifier as words: `getTokenizer_config` -> `get tokenizer config`."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return " ".join(parts).lower()


Table = dict[str, list[str]]


def unused(found: Sequence[Docstring], used: Table, seed: int = 0) -> list[str]:
    """Returns the texts of files for training that a task does not use: nothing but text."""
    taken = set(used["text"])
    held_back = held_back_files(found, seed)
    return [d.text for d in found if d.file not in held_back and d.text not in taken]


def held_back_files(found: Sequence[Docstring], seed: int) -> set[str]:
    """Returns the files whose docstrings are for tests: of each topic as many as hold a quarter of them."""
    draw, held = random.Random(seed), set()
    for topic in TOPICS:
        sizes = Counter(d.file for d in found if d.topic == topic)
        files, count = sorted(sizes), 0
        draw.shuffle(files)
        for file in files:
            if count + sizes[file] <= sizes.total() / 3 and count < sizes.total() / 4:
                held.add(file)
                count += sizes[file]
    return held


def tasks(found: Sequence[Docstring], train: int, test: int, seed: int = 0) -> dict[str, tuple[Table, Table]]:
    """Returns per task a training and a test table, balanced over classes; no file serves both.

    Raises:
        DataError: too few docstrings for that many rows.
    """
    held_back = held_back_files(found, seed)
    parts = ([d for d in found if d.file not in held_back], [d for d in found if d.file in held_back])
    return {
        name: (make(parts[0], train, seed), make(parts[1], test, seed + 1))
        for name, make in (("topic", by_topic), ("kind", by_kind), ("fits", name_fits))
    }


def balanced(
    found: Sequence[Docstring], attribute: str, classes: Sequence[str], rows: int, seed: int
) -> list[Docstring]:
    """Returns equally many docstrings of each class: fewer rows than asked for where a class is scarce.

    Raises:
        DataError: a class is so scarce that not half of the rows are left.
    """
    members = {value: [d for d in found if getattr(d, attribute) == value] for value in classes}
    scarcest = min(classes, key=lambda value: len(members[value]))
    each = min(rows // len(classes), len(members[scarcest]))
    if each * len(classes) < rows / 2:
        raise DataError(
            f"only {each} docstrings of {attribute} {scarcest} for {rows} rows: ask for fewer examples"
        )
    chosen = [docstring for value in classes for docstring in members[value][:each]]
    random.Random(seed).shuffle(chosen)
    return chosen


def by_topic(found: Sequence[Docstring], rows: int, seed: int) -> Table:
    """Returns the task: what is a summary about?"""
    chosen = balanced(found, "topic", tuple(TOPICS), rows, seed)
    return {"text": [d.text for d in chosen], "label": [d.topic for d in chosen]}


def by_kind(found: Sequence[Docstring], rows: int, seed: int) -> Table:
    """Returns the task: what kind of object does a summary describe?"""
    chosen = balanced(found, "kind", KINDS, rows, seed)
    return {"text": [d.text for d in chosen], "label": [d.kind for d in chosen]}


def name_fits(found: Sequence[Docstring], rows: int, seed: int) -> Table:
    """Returns the task on pairs: is this the name of what the summary describes?

    A wrong name is that of another object of the same topic, so that the topic alone tells nothing.
    """
    pool = [d for d in found if len(words_of(d.name)) > 3]
    if len(pool) < rows:
        raise DataError(f"only {len(pool)} docstrings, {rows} are needed: ask for fewer examples")
    rest = {topic: [d.name for d in pool[rows:] if d.topic == topic] for topic in TOPICS}
    draw = random.Random(seed)
    table: Table = {"text": [], "text_pair": [], "label": []}
    for number, docstring in enumerate(pool[:rows]):
        fits = number % 2 == 0
        others = [n for n in rest[docstring.topic] if n != docstring.name]
        name = docstring.name if fits or not others else draw.choice(others)
        table["text"].append(words_of(name))
        table["text_pair"].append(docstring.text)
        table["label"].append("fits" if fits or not others else "other")
    return table
