"""Distillation of members into one model: teachers, texts, their predictions, and the objective."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.checkpoints.checkpoint import Checkpoint, Wanted, open_checkpoint, open_models
from plait.checkpoints.compatibility import unproved_order
from plait.checkpoints.lineage import lineage
from plait.checkpoints.tokenizer_differences import tokenizer_problems
from plait.checkpoints.tokenizers import misfit
from plait.data import Examples, ProblemType, open_texts
from plait.data.labels import IGNORED
from plait.data.texts import Texts, keep_texts
from plait.encoders.modes import unwrapped
from plait.ensembles.build import check_sources
from plait.ensembles.divergences import SINGLE, at_least_float32
from plait.ensembles.folding import one_member
from plait.ensembles.method import Choice, Terms
from plait.ensembles.modeling import Ensemble, task_loss
from plait.ensembles.objective import INPUTS, PerturbationChoice
from plait.errors import DataError, MergeError, PlaitError, RecipeError, SourceError, listed
from plait.evaluation.head_order import in_one_order
from plait.label_names import placeholders
from plait.recipe import DataSpec, EnsembleRecipe
from plait.reports.record import origin_beside, path_beside
from plait.teachers import Settings, Store, score_texts
from plait.teachers.record import OtherStoreError
from plait.teachers.teacher import check_mc_dropout, check_teachers
from plait.training.corpus import Corpus, pack
from plait.training.heads import quiet
from plait.training.state import first, together

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from plait.ensembles.plan import EnsemblePlan

logger = logging.getLogger("plait")
Open = Callable[..., Checkpoint]


def open_teachers(recipe: EnsembleRecipe, labelled: Sequence[Any], *, dry: bool) -> tuple[Checkpoint, ...]:
    """Returns the models after `from`, opened, each under a name of its own; they may differ in all but their labels.

    Args:
        recipe: which models.
        labelled: data that may tell the order of placeholder labels.
        dry: whether no model is run for that.

    Raises:
        RecipeError: ensembles or merged checkpoints, which are several models.
        SourceError: models that cannot teach, all of them named.
        MergeError: models of other problems than the first, or whose placeholder labels may have other orders.
    """
    wanted = [Wanted(origin, revision=recipe.revision) for origin in recipe.sources or ()]
    found: list[Checkpoint] = []
    taken: set[str] = set()
    for checkpoint in open_models(wanted, trust_remote_code=recipe.trust_remote_code):
        name = _free(checkpoint.name, taken)
        taken.add(name)
        found.append(replace(checkpoint, name=name))
    check_teachers(found, logits_only=True)
    check_mc_dropout(found, Settings(passes=0))
    fits = {teacher.name: misfit(teacher.tokenizer(), teacher.config) for teacher in found}
    if problems := [f"the tokenizer of {name} {problem}" for name, problem in fits.items() if problem]:
        raise SourceError(listed(problems))
    kinds = {teacher.name: teacher.problem_type for teacher in found}
    if len(set(kinds.values())) > 1:
        said = listed(f"{name}: {kind}" for name, kind in kinds.items())
        raise MergeError(f"these models answer different questions ({said}); expected one problem type")
    teachers = in_one_order(found, labelled, dry=dry)
    check_order(teachers)
    return teachers


def check_order(teachers: Sequence[Checkpoint]) -> None:
    """Raises `MergeError` for placeholder labels that may have another order than the first teacher's."""
    first, names = teachers[0], teachers[0].labels or ()
    doubtful = [t.name for t in teachers[1:] if set(t.labels or ()) == set(names) and unproved_order(first, t)]
    if doubtful:
        raise MergeError(
            f"{first.name} and {listed(doubtful)} all call their labels {', '.join(names)}, which does not say that "
            "they have them in one order; write the real names into id2label, or give labelled data (--data, "
            "--validation) on which they are mostly right"
        )


def _free(name: str, taken: set[str]) -> str:
    """Returns a name, with a number behind it where it is taken."""
    candidates = (name if at == 1 else f"{name}-{at}" for at in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def open_start(recipe: EnsembleRecipe, teachers: Sequence[Checkpoint]) -> Checkpoint:
    """Returns where the student starts: the base given, else the one that all teachers record, else the first teacher.

    Raises:
        SourceError: a base that cannot be opened.
    """
    opened: Open = partial(
        open_checkpoint, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code
    )
    if recipe.base is not None:
        return opened(recipe.base)
    recorded = {teacher.recorded_base for teacher in teachers}
    if len(recorded) == 1 and (base := recorded.pop()) is not None:
        try:
            return open_checkpoint(base, trust_remote_code=recipe.trust_remote_code)
        except PlaitError as error:
            logger.warning("the recorded base %s cannot be opened: %s", base, error)
    logger.warning(
        "no base is given, and the models do not record one that is here: the student starts from %s; a base before "
        "--from (in Python and YAML base) chooses",
        teachers[0].origin,
    )
    return teachers[0]


def open_unlabelled(recipe: EnsembleRecipe, texts: Any) -> tuple[Texts, ...]:
    """Returns the texts without labels to teach on; none where none are given.

    Args:
        recipe: what to do.
        texts: in memory, instead of the recipe's files.

    Raises:
        DataError: a file that is missing, or without a text.
    """
    given = recipe.text if texts is None else _several(texts)
    told = ({"path": t.path, **t.columns()} if isinstance(t, DataSpec) else t for t in given or ())
    return tuple(keep_texts(t) if isinstance(t, Texts) else open_texts(t, once=True) for t in told)


def _several(texts: Any) -> Sequence[Any]:
    """Returns texts in memory as a sequence of things to open: a list of files is several, a list of texts one."""
    files = isinstance(texts, list | tuple) and all(isinstance(t, Path | Texts | Examples) for t in texts)
    return texts if files and texts else [texts]


def check_taught(recipe: EnsembleRecipe, job: EnsemblePlan) -> None:
    """Raises where a method that teaches is asked for what it cannot do.

    Raises:
        RecipeError: labels of tokens, or nothing to teach on.
        MergeError: teachers without a label of the student's, or with others.
        DataError: pairs of texts in some data and single texts in other.
    """
    if job.kind != "sequence_classification":
        raise RecipeError(
            f"method {job.choice.name} teaches what whole texts are; found data for {job.kind.replace('_', ' ')}: "
            "choose a method without a student, such as camero (plait methods)"
        )
    if job.examples is None and not job.texts:
        raise DataError("no data given: a student needs --data FILE with labels, --text FILE without, or both")
    if recipe.epochs == 0:
        raise RecipeError("epochs is 0; expected more: a student that is not trained knows nothing")
    if job.choice.from_soup and job.teachers:
        check_sources(job.teachers)
        if problems := tokenizer_problems(job.teachers):
            raise MergeError(f"these models have no mean to start from: {listed(problems)}; expected start base")
    for teacher in job.teachers:
        columns(teacher.name, teacher.labels, job.head.names)
    paired = {str(t.source): next(t.chunks()).pairs is not None for t in job.texts}
    if job.examples is not None:
        paired[job.examples.source] = job.examples.pairs is not None
    if len(set(paired.values())) > 1:
        said = listed(f"{name}: {'pairs' if two else 'single texts'}" for name, two in paired.items())
        raise DataError(f"some data hold pairs of texts and others do not ({said}); expected one kind")


def unlabelled(job: EnsemblePlan) -> int:
    """Returns how many texts without labels there are to teach on."""
    return sum(texts.count() for texts in job.texts)


def teacher_targets(
    job: EnsemblePlan,
    tokenizer: PreTrainedTokenizerBase,
    state: Path,
    overwrite: bool,
    members: Sequence[Ensemble],
) -> Corpus:
    """Returns the texts as the student reads them, with labels and with what each teacher says of them.

    Answers are computed once: they lie in a posterior store, in which a stopped run goes on where it was.

    Args:
        job: the plan.
        tokenizer: the student's, which is also that of members trained here.
        state: where members trained here lie while they teach.
        overwrite: whether a store beside the output is made anew where it is of something else.
        members: trained here; none where the plan has teachers.
    """
    teachers = job.teachers or written(members, tokenizer, state / "members")
    examples, known = gathered(job)
    if first():
        score(job, teachers, examples, store_folder(job, state), overwrite=overwrite)
    together()
    store = score(job, teachers, examples, store_folder(job, state), overwrite=False)
    if store.count != len(examples):
        raise DataError(f"{store.folder}: holds {store.count} texts of {len(examples)}; delete it")
    names, classes = job.head.names, int(job.config.num_labels or 1)
    answers = [
        store.posterior(t.name).logits[:, columns(t.name, t.labels, names)] for t in teachers
    ]
    return pack(
        open_texts(examples).chunks(), tokenizer, job.config.encoder, job.recipe.cut_at or 128,
        tables(examples, known, answers, job.problem, classes),
    )  # fmt: skip


def store_folder(job: EnsemblePlan, state: Path) -> Path:
    """Returns where answers lie: with the training's state where those who gave them are not kept either."""
    kept = job.teachers or job.recipe.keep_members or job.recipe.store is not None
    return job.recipe.store_folder() if kept else state / "posteriors"


def score(
    job: EnsemblePlan, teachers: Sequence[Checkpoint], examples: Examples, folder: Path, *, overwrite: bool
) -> Store:
    """Returns the store of all answers; one that belongs to the output is made anew where it is of something else."""
    settings = Settings(passes=0, max_length=job.recipe.cut_at)
    make = partial(score_texts, folder, open_texts(examples), teachers, settings, logits_only=True)
    try:
        return make()
    except OtherStoreError as error:
        if job.recipe.store is not None or not (overwrite or not job.teachers):
            raise
        logger.info("%s; it is made anew", error.found)
        return make(overwrite=True)


def written(
    members: Sequence[Ensemble], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> tuple[Checkpoint, ...]:
    """Returns members trained here as ordinary checkpoints, which are written to be asked."""
    for number, model in enumerate(members if first() else ()):
        with quiet():
            one_member(model, 0).save_pretrained(folder / str(number))
            tokenizer.save_pretrained(folder / str(number))
    together()
    places = (folder / str(number) for number in range(len(members)))
    return tuple(open_checkpoint(place, name=f"member-{place.name}") for place in places)


def gathered(job: EnsemblePlan) -> tuple[Examples, int]:
    """Returns all texts to teach on, those with labels first, and how many; rows without text are left out."""
    labelled = job.examples
    parts: list[Examples] = [] if labelled is None else [_with_text(labelled)]
    known = sum(map(len, parts))
    parts += [chunk for texts in job.texts for chunk in texts.chunks()]
    paired = parts[0].pairs is not None
    return (
        Examples(
            tuple(text for part in parts for text in part.texts),
            tuple(pair for part in parts for pair in part.pairs or ()) if paired else None,
            (parts[0].labels or ()) if known else None,
            source=listed(dict.fromkeys(part.source for part in parts)),
        ),
        known,
    )


def _with_text(examples: Examples) -> Examples:
    return examples.select(list(_told(examples)))


def _told(examples: Examples) -> Iterator[int]:
    """Yields the rows with a text, and both where there are two: others are skipped by whoever reads texts."""
    pairs = examples.pairs or examples.texts
    for row, (text, pair) in enumerate(zip(examples.texts, pairs, strict=True)):
        if text.strip() and pair.strip():
            yield row


def teachers_of(job: EnsemblePlan, state: Path) -> dict[str, dict[str, Any]]:
    """Returns who taught a student, for its record; members that were not kept have no origin."""
    if job.teachers:
        places = {t.name: origin_beside(t.origin, job.recipe.output) for t in job.teachers}
        return {teacher.name: _about(teacher, places[teacher.name]) for teacher in job.teachers}
    trained = [state / "members" / str(number) for number in range(job.members)]
    kept = path_beside(job.recipe.beside, job.recipe.output) if job.recipe.keep_members else None
    return {
        f"member-{place.name}": _about(open_checkpoint(place), None if kept is None else f"{kept}/{place.name}")
        for place in trained
    }


def _about(teacher: Checkpoint, origin: str | None) -> dict[str, Any]:
    return {
        "origin": origin,
        "revision": teacher.revision,
        "digest": teacher.digest,
        "architecture": teacher.architecture,
        "labels": list(teacher.labels or ()),
        **({} if origin is None else lineage(teacher.origin, teacher.folder, teacher.recorded_base)),
    }


UNPERTURBED = PerturbationChoice("none")


@dataclass(frozen=True)
class Teaching:
    """The objective of the one training loop for a student, or for the heads of a hydra.

    Attributes:
        choice: The method.
        problem: What the logits mean.
        noise: None: teachers tell members apart.
    """

    choice: Choice
    problem: ProblemType = SINGLE
    noise: PerturbationChoice = UNPERTURBED

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Terms:
        """Returns the terms of one batch; all heads see one pass of the encoder."""
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        shared: Any = unwrapped(model).config.shared_layers  # type: ignore[union-attr]
        found = model(**inputs, output_members=True, replicate_at=int(shared)).member_logits
        logits, labelled, labels = at_least_float32(found), batch["labelled"], batch["labels"]
        known = labelled.nonzero().flatten()
        task = task_loss(logits[:, known], labels[known], self.problem) if len(known) else logits.new_zeros(())
        teachers = batch["teachers"].movedim(0, 1)
        return self.choice.terms(task, logits, labels, self.problem, None, teachers, labelled)


def tables(
    examples: Examples, labelled: int, teachers: Sequence[Tensor], problem: ProblemType, classes: int
) -> dict[str, Tensor]:
    """Returns a row per text of its label, whether it has one, and what each teacher says: [N, K, C].

    Args:
        examples: The texts; the first ones have labels, as the head counts them.
        labelled: How many of them do.
        teachers: By teacher, its logits [N, C].
        problem: What they mean.
        classes: C.
    """
    known, rest = list((examples.labels or ())[:labelled]), len(examples) - labelled
    if problem == SINGLE:
        labels = torch.tensor([*known, *[IGNORED] * rest], dtype=torch.long)
    else:
        rows = [list(v) if isinstance(v, tuple) else [v] for v in known]
        wide = torch.tensor([*rows, *[[0.0] * classes] * rest], dtype=torch.float32).view(-1, classes)
        labels = wide.squeeze(-1) if problem == "regression" else wide
    return {
        "labels": labels,
        "labelled": torch.arange(len(examples)) < labelled,
        "teachers": torch.stack([at_least_float32(table) for table in teachers], 1),
    }


def columns(name: str, labels: Sequence[str] | None, wanted: Sequence[str] | None) -> list[int]:
    """Returns where a teacher has each label of the student: by name, whatever the casing; without names by place.

    Raises:
        MergeError: it lacks one, or has others.
    """
    if labels is None or wanted is None:
        return [0]
    unnamed = placeholders(labels) or placeholders(wanted)
    if len(labels) == len(wanted) and unnamed and set(labels) != set(wanted):
        return list(range(len(wanted)))
    exact = {label: at for at, label in enumerate(labels)}
    folded: dict[str, list[int]] = {}
    for at, label in enumerate(labels):
        folded.setdefault(label.casefold(), []).append(at)
    found = {w: exact.get(w, next(iter(folded.get(w.casefold(), ())), None)) for w in wanted}
    lacking = [w for w, at in found.items() if at is None]
    strange = [label for at, label in enumerate(labels) if at not in found.values()]
    if lacking or strange:
        said = [f"lacks {listed(lacking, 5)}"] if lacking else []
        said += [f"has {listed(strange, 5)} besides"] if strange else []
        raise MergeError(
            f"{name} {' and '.join(said)}; expected a model of the labels {listed(wanted, 20)}, in any order"
        )
    return [at for at in found.values() if at is not None]
