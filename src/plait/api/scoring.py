"""The expensive stage of an amalgamation: what every teacher says of every text."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.api.corpus import open_corpus, warn_of_places, with_columns
from plait.api.inputs import is_file
from plait.api.teachers import AmalgamationPlan, amalgamation_recipe, open_teachers
from plait.checkpoints.places import check_apart
from plait.checkpoints.source import Checkpoint
from plait.data.texts import Texts
from plait.errors import DataError, RecipeError, did_you_mean, listed
from plait.statistics.posteriors import Settings, Store, score_texts
from plait.statistics.posteriors.ability import check_able
from plait.statistics.posteriors.files import check_place
from plait.statistics.posteriors.record import FILE, OtherStoreError, check_same, read_record
from plait.statistics.posteriors.score import text_facts
from plait.statistics.posteriors.teacher import teacher_of

logger = logging.getLogger("plait")


def posteriors(
    teachers: Mapping[str, Any],
    *,
    texts: Any,
    out: str | Path,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    limit: int | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    **settings: Any,
) -> Store:
    """Returns the store that `amalgamate(…, store=out)` makes as its first stage; a stopped run goes on where it was.

    Args:
        teachers: name -> classifier (folder or Hub id), in order.
        texts: unlabelled texts: a file, a `datasets.Dataset`, a list of texts.
        out: the folder of the store.
        overwrite: whether a store of other teachers, texts or settings is replaced.
        trust_remote_code: whether a teacher may run its own code.
        limit: a random subset of this size.
        text: column of the texts, where its name is not a usual one.
        text_pair: column of their pairs.
        settings: `passes` (16), `seed`, `last_layers`, `dropout`, `keep` (features unless none or layers),
            `stop`, `batch_size`, `max_length`.

    Raises:
        PlaitError: anything a user can mend.
    """
    job = scoring_of(
        teachers, texts=texts, out=out, trust_remote_code=trust_remote_code, limit=limit, text=text,
        text_pair=text_pair, **settings,
    )  # fmt: skip
    store = score_texts(Path(out), job.texts, job.teachers, job.settings, overwrite=overwrite)
    logger.info("%d texts scored by %s", store.count, ", ".join(t.name for t in store.teachers))
    return store


@dataclass(frozen=True)
class Scoring:
    """What `posteriors` was asked for, opened and checked."""

    texts: Texts
    teachers: tuple[Checkpoint, ...]
    settings: Settings


def scoring_of(
    teachers: Mapping[str, Any],
    *,
    texts: Any,
    out: str | Path,
    trust_remote_code: bool = False,
    limit: int | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    **settings: Any,
) -> Scoring:
    """Returns what the arguments of `posteriors` spell.

    Raises:
        PlaitError: anything a user can mend.
    """
    texts = with_columns(texts, text=text, text_pair=text_pair)
    recipe = amalgamation_recipe(
        teachers, out=out, texts=texts, student=None, validation=None,
        options={
            "trust_remote_code": trust_remote_code, "limit": limit, "seed": settings.get("seed", 0),
            "store": str(out),
        },
    )  # fmt: skip
    known = [f.name for f in fields(Settings)]
    if unknown := [name for name in settings if name not in known]:
        raise RecipeError(f"posteriors: unknown option {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    check_apart(out, *(teacher.model for teacher in recipe.sources.values()), recipe.text)
    chosen = Settings(**{"max_length": recipe.max_length, "keep": "features", **settings})
    opened, _ = open_corpus(recipe, None if is_file(texts) else texts)
    return Scoring(opened, open_teachers(recipe), chosen)


def posteriors_plan(
    teachers: Mapping[str, Any], *, out: str | Path, overwrite: bool = False, **asked: Any
) -> dict[str, Any]:
    """Returns what `posteriors` would do with the same arguments, as plain data; scores nothing.

    Raises:
        PlaitError: anything that would stop it before its first computation.
    """
    job, folder = scoring_of(teachers, out=out, **asked), Path(out)
    check_able(job.teachers, job.settings)
    check_place(folder, FILE)
    if (folder / FILE).is_file() and not overwrite:
        wanted = tuple(teacher_of(teacher) for teacher in job.teachers)
        check_same(folder, read_record(folder), text_facts(job.texts), wanted, job.settings)
    there = frozenset() if overwrite else finished(folder)
    return {
        "texts": job.texts.count(),
        "skipped": job.texts.skipped,
        "settings": asdict(job.settings),
        "teachers": {
            t.name: {"model": t.origin, "labels": list(t.labels or ()), "finished": t.digest in there}
            for t in job.teachers
        },
        "output": str(out),
    }


def score(job: AmalgamationPlan, folder: Path, *, overwrite: bool) -> tuple[Store, float]:
    """Returns the teachers' posteriors, and the forward passes per text of the teachers that the store lacked.

    A store beside the output belongs to it: with `overwrite`, one of other texts or settings is made anew.
    """
    make, before = partial(score_texts, folder, job.texts, job.teachers, job.settings), finished(folder)
    try:
        store = make()
    except OtherStoreError as error:
        if not overwrite:
            raise
        logger.info("%s; it is made anew", error.found)
        store, before = make(overwrite=True), frozenset()
    warn_of_twins(store)
    return store, sum(store.cost.teachers[t.name] for t in store.teachers if t.digest not in before)


def warn_of_twins(store: Store) -> None:
    """Warns of teachers with equal weights: neither is ever ahead of the other."""
    names: dict[str, list[str]] = {}
    for teacher in store.teachers:
        names.setdefault(teacher.digest, []).append(teacher.name)
    for same in names.values():
        if len(same) > 1:
            logger.warning(
                "teachers %s have the same weights: leave all but one of them out", ", ".join(same)
            )


def finished(folder: Path) -> frozenset[str]:
    """Returns the digests of the teachers that a store has heard to the end; none where there is no store."""
    try:
        record = read_record(folder)
    except DataError:
        return frozenset()
    return frozenset(teacher.digest for teacher in record.teachers if teacher.name in record.forwards)


def true_labels(job: AmalgamationPlan) -> Tensor | None:
    """Returns the texts' own labels as positions in the union, −1 for others, where their column is named.

    Names are matched whatever their casing, as those of validation data are; a text may have no label. Numbers that
    are no names are places in the union, as in validation data.
    """
    names = job.space.names
    exact = {name: at for at, name in enumerate(names)}
    folded = Counter(name.casefold() for name in names)
    loose = {name.casefold(): at for name, at in exact.items() if folded[name.casefold()] == 1}
    found: list[int] = []
    strange: Counter[str] = Counter()
    numbered = any(name.strip().isdigit() for name in names)
    for chunk in job.texts.chunks():
        if chunk.labels is None:
            return None
        for label in chunk.labels:
            name = _named(
                label, chunk.label_names or (names if isinstance(label, int) and not numbered else None)
            )
            at = -1 if name is None else exact.get(name, loose.get(name.casefold(), -1))
            strange.update([name] if name is not None and at < 0 else [])
            found.append(at)
    if max(found) < 0:
        raise DataError(f"{job.texts.source}: none of its labels is one of the union ({listed(names)})")
    if not numbered:
        warn_of_places(job.texts.source, next(job.texts.chunks()), names)
    if strange:
        logger.warning(
            "%s: %d texts have labels that no teacher knows (%s); they have no part in the routing accuracy",
            *(job.texts.source, strange.total(), listed(sorted(strange), 5)),
        )
    return torch.tensor(found)


def _named(label: Any, names: Sequence[str] | None) -> str | None:
    """Returns a label's name; None where the text has none."""
    if label is None:
        return None
    return names[label] if names and isinstance(label, int) and 0 <= label < len(names) else str(label)
