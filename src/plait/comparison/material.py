"""What a comparison is made of: sources opened, their data and texts read, rows to test on; no weights are used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from plait.amalgamation.label_space import LabelSpace, union
from plait.checkpoints.checkpoint import Checkpoint, Wanted, open_models
from plait.checkpoints.compatibility import group_tasks
from plait.comparison.held_out import CUT, GIVEN, TestSet, check_names, cut, keys, leaked, of_task, over_all
from plait.data import Examples
from plait.data.reading import read
from plait.errors import DataError, RecipeError, did_you_mean, listed
from plait.label_names import placeholders
from plait.recipe import CompareRecipe

logger = logging.getLogger("plait")


@dataclass(frozen=True)
class Material:
    """Sources and rows.

    Attributes:
        sources: opened, in order.
        tasks: of a merge, with the places of their sources; one where all have the same labels.
        data: rows that candidates are made of, by source; without any that are tested on.
        whole: sources whose data are a file of the recipe, all of it.
        texts: without labels, that students learn from.
        told: whether texts were given, rather than taken from the data.
        tests: rows to score on.
        space: all labels together; None where a source is no classifier of single labels.
        notes: what a reader of the answer should know.
    """

    sources: tuple[Checkpoint, ...]
    tasks: Mapping[str, tuple[int, ...]]
    data: Mapping[str, Examples]
    whole: frozenset[str]
    texts: Examples | None
    told: bool
    tests: tuple[TestSet, ...]
    space: LabelSpace | None
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Returns the names of the sources."""
        return [source.name for source in self.sources]

    @property
    def alike(self) -> bool:
        """Says whether all sources answer one task with the same labels."""
        return len(self.sources) > 1 and len(self.tasks) == 1

    def task_of(self, source: str) -> str:
        """Returns the task of a source."""
        place = self.names.index(source)
        return next(task for task, members in self.tasks.items() if place in members)


@dataclass(frozen=True)
class InMemory:
    """What a comparison is given in memory instead of in files."""

    data: Mapping[str, Any]
    test: Mapping[str, Any]
    texts: Any = None


NOTHING = InMemory({}, {})


def gather(recipe: CompareRecipe, given: InMemory = NOTHING) -> Material:
    """Returns what a comparison is made of.

    Raises:
        SourceError: a checkpoint that is missing, corrupt or unsafe, or without a head.
        RecipeError: rows of nobody.
        DataError: rows that cannot be read, labels that a head does not have, or nothing to test on.
    """
    sources = open_sources(recipe)
    tasks = tasks_of(recipe, sources)
    space = space_of(sources)
    data = read_data(recipe, sources, given)
    tests, data, notes = read_tests(recipe, sources, tasks, space, data, given)
    cut_from = {test.name for test in tests if test.origin == CUT}
    whole = frozenset(n for n, s in recipe.sources.items() if s.data is not None and n not in cut_from)
    texts, told = read_texts(recipe, data, given)
    used = [*data.values(), *([texts] if texts is not None else [])]
    tests = [replace(test, overlap=leaked(test.rows, used)) for test in tests]
    notes += [note for test in tests if (note := leak_note(test))]
    for note in notes:
        logger.warning("%s", note)
    found = Material(sources, tasks, data, whole, texts, told, tuple(tests), space, tuple(notes))
    check_scorable(found)
    return found


def open_sources(recipe: CompareRecipe) -> tuple[Checkpoint, ...]:
    """Returns the opened sources in order.

    Raises:
        SourceError: one that cannot be opened.
        RecipeError: one without a head, which answers nothing that could be compared.
    """
    wanted = [Wanted(s.model, name, s.revision, s.labels) for name, s in recipe.sources.items()]
    found = open_models(wanted, trust_remote_code=recipe.trust_remote_code)
    if bare := [f"{s.name} is a {s.architecture}" for s in found if s.kind == "body"]:
        raise RecipeError(
            f"{listed(bare)}: has no head, so that nothing it answers can be scored; expected classifiers, taggers or "
            "question answerers (plait merge takes bare encoders)"
        )
    return found


def tasks_of(recipe: CompareRecipe, sources: tuple[Checkpoint, ...]) -> dict[str, tuple[int, ...]]:
    """Returns the tasks with the places of their sources: as told, else one where all labels are the same."""
    given = {name: spec.task for name, spec in recipe.sources.items() if spec.task is not None}
    if not given and len(sources) > 1 and same_labels(sources):
        given = {source.name: "all" if "all" not in recipe.sources else "every" for source in sources}
    return group_tasks(sources, given)


def same_labels(sources: tuple[Checkpoint, ...]) -> bool:
    """Says whether all heads are of one kind and their labels have the same names; placeholders prove nothing."""
    kinds = {(source.kind, source.problem_type) for source in sources}
    labels = [source.labels or () for source in sources]
    return len(kinds) == 1 and len({frozenset(own) for own in labels}) == 1 and not placeholders(labels[0])


def space_of(sources: tuple[Checkpoint, ...]) -> LabelSpace | None:
    """Returns all labels together; None where a source is no classifier of single labels, or there is one label set."""
    single = all(s.problem_type == "single_label_classification" and s.labels for s in sources)
    if not single or len(sources) < 2:
        return None
    return union({source.name: source.labels or () for source in sources})


def read_data(
    recipe: CompareRecipe, sources: tuple[Checkpoint, ...], given: InMemory
) -> dict[str, Examples]:
    """Returns the rows of each source that has some.

    Raises:
        RecipeError: data of nobody.
    """
    names = [source.name for source in sources]
    if strangers := [name for name in given.data if name not in names]:
        raise RecipeError(listed(f"data of no source {n!r}{did_you_mean(str(n), names)}" for n in strangers))
    entries = {name: given.data.get(name, recipe.sources[name].data) for name in names}
    return {name: read(entry) for name, entry in entries.items() if entry is not None}


def read_tests(  # noqa: PLR0917 - what decides the rows
    recipe: CompareRecipe,
    sources: tuple[Checkpoint, ...],
    tasks: Mapping[str, tuple[int, ...]],
    space: LabelSpace | None,
    data: Mapping[str, Examples],
    given: InMemory,
) -> tuple[list[TestSet], dict[str, Examples], list[str]]:
    """Returns the rows to test on, the data without rows that were cut off for that, and what to say about it."""
    entries = {**recipe.test, **given.test}
    alike = len(tasks) == 1
    check_names(entries, sources, tasks, free=alike or space is not None)
    limit: dict[str, Any] = {"limit": recipe.limit, "seed": recipe.seed}
    tests = [test_of(name, read(entry, **limit), sources, tasks, space) for name, entry in entries.items()]
    kept, notes = dict(data), []
    covered = {place for test in tests for place in test.members} if tests else set()
    for place, source in enumerate(sources):
        if place in covered:
            continue
        test, rest, note = test_from_data(recipe, sources, tasks, place, data.get(source.name))
        tests += [test] if test is not None else []
        kept |= {source.name: rest} if rest is not None else {}
        notes += [note] if note else []
    return tests, kept, notes


def test_of(
    name: str,
    rows: Examples,
    sources: tuple[Checkpoint, ...],
    tasks: Mapping[str, tuple[int, ...]],
    space: LabelSpace | None,
) -> TestSet:
    """Returns given rows as those of a source, of a task, or, under a name of their own, over all labels."""
    names = [source.name for source in sources]
    if name in names:
        place = names.index(name)
        task = next(task for task, members in tasks.items() if place in members)
        return of_task(name, rows, task, [place], sources, GIVEN)
    if name in tasks or len(tasks) == 1:
        task = name if name in tasks else next(iter(tasks))
        return of_task(name, rows, task, tasks[task], sources, GIVEN)
    assert space is not None  # names are free only where there is one
    try:
        return over_all(name, rows, space)
    except DataError as error:
        hint = did_you_mean(name, [*names, *tasks])
        raise DataError(f"test {name!r} names no source{hint}, so it is read over all labels: {error}") from None


def test_from_data(
    recipe: CompareRecipe,
    sources: tuple[Checkpoint, ...],
    tasks: Mapping[str, tuple[int, ...]],
    place: int,
    rows: Examples | None,
) -> tuple[TestSet | None, Examples | None, str]:
    """Returns rows of a source's data cut off to test on, the rest, and a note; or a note why there are none."""
    name = sources[place].name
    if rows is None or rows.labels is None:
        what = "no data" if rows is None else "data without labels"
        return None, None, (
            f"{name}: {what} and no test rows, so it is combined with the others but not scored; how much of it is "
            f"kept is not known (--test {name}=FILE)"
        )  # fmt: skip
    rest, held = cut(rows, recipe.test_share, recipe.seed)
    held = held.sample(recipe.limit, recipe.seed)
    task = next(task for task, members in tasks.items() if place in members)
    test = of_task(name, held, task, [place], sources, CUT)
    return test, rest, (
        f"{name}: no test rows are given, so {len(held)} of the {len(rows)} rows of {rows.source} are kept apart to "
        "test on and take no part in anything else"
    )  # fmt: skip


def read_texts(
    recipe: CompareRecipe, data: Mapping[str, Examples], given: InMemory
) -> tuple[Examples | None, bool]:
    """Returns the texts that students learn from, and whether they were given: else those of the data, each once."""
    entry = given.texts if given.texts is not None else recipe.text
    if entry is not None:
        return read(entry).unlabelled(), True
    rows = [examples.unlabelled() for examples in data.values()]
    kinds = {(examples.kind, examples.pairs is None) for examples in rows}
    if len(kinds) != 1:
        return None, False
    first, second = zip(*dict.fromkeys(key for examples in rows for key in keys(examples)), strict=True)
    pairs = None if rows[0].pairs is None else second
    return replace(rows[0], texts=first, pairs=pairs, source="texts of all data", columns=()), False


def leak_note(test: TestSet) -> str:
    """Returns a warning about test rows that also stand in the data; empty where none do."""
    if not test.overlap:
        return ""
    return (
        f"{test.name}: {test.overlap} of the {len(test.rows)} test rows also stand in the data that candidates are "
        "made of: their scores are too good by an unknown amount; take these rows out of one of the files"
    )


def check_scorable(material: Material) -> None:
    """Raises `PlaitError` where nothing can be scored."""
    if len(material.sources) < 2:
        raise RecipeError(f"{material.names[0]} alone: there is nothing to combine; give two sources or more")
    if not material.tests:
        raise DataError(
            f"no labelled rows for {', '.join(material.names)}: nothing can be scored (--test NAME=FILE, or --data "
            "NAME=FILE with labels, which is then cut into data and test)"
        )
