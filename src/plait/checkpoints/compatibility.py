"""Whether checkpoints can become one model: shapes, configurations, heads, a shared base."""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from plait.checkpoints.beside import beside_problems, warn_of_what_lies_beside
from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.language import language_owners, language_problems, warn_of_losses
from plait.checkpoints.processors import processor_problems
from plait.checkpoints.tokenizer_differences import own_tokenizer, tokenizer_problems
from plait.checkpoints.tokenizers import has_tokenizer
from plait.encoders.topology import pooler_parameters
from plait.errors import MergeError, RecipeError, did_you_mean, listed
from plait.label_names import placeholders


@dataclass(frozen=True)
class Alignment:
    """Checkpoints that can become one.

    Attributes:
        sources: the checkpoints, in the order given.
        base: what they were fine-tuned from, if given.
        family: their common model type.
        owners: for each body parameter the indices of the sources that have it: all, or (a pooler) only those
            whose task uses it; such a parameter is merged among its owners and serves their tasks.
        tasks: for each task the indices of its sources.
        head_rows: for each source the rows of its head in the order of its task's first source; None as is.
        poolers: the body parameters that each task also keeps for itself, because only its head reads them.
        language: for each parameter of language models' heads the indices of the sources that have it; they are merged
            like the body, and lie beside it.
    """

    sources: tuple[Checkpoint, ...]
    base: Checkpoint | None
    family: str
    owners: Mapping[str, tuple[int, ...]]
    tasks: Mapping[str, tuple[int, ...]]
    head_rows: Mapping[str, tuple[int, ...] | None]
    poolers: tuple[str, ...] = ()
    language: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def own(self, source: Checkpoint) -> dict[str, str]:
        """Returns what a source's task keeps beside the encoder: head and pooler, full name -> stored name."""
        if source.kind == "body":
            return {}
        kept = {f"{source.prefix}.{name}": source.body[name] for name in self.poolers if name in source.body}
        return {**kept, **source.head}

    @property
    def shared(self) -> tuple[str, ...]:
        """Returns the body parameters that every source has."""
        return tuple(name for name, owners in self.owners.items() if len(owners) == len(self.sources))

    @property
    def tokenizer_source(self) -> Checkpoint | None:
        """Returns the first checkpoint saved with a tokenizer, which all share; None where there is none."""
        everyone = (*self.sources, *((self.base,) if self.base else ()))
        return next((checkpoint for checkpoint in everyone if has_tokenizer(checkpoint.tokenizer_folder)), None)

    def own_tokenizer(self, task: str) -> Checkpoint | None:
        """Returns the source whose tokenizer a task keeps for itself; None where the shared one serves it."""
        return own_tokenizer(self.tokenizer_source, [self.sources[i] for i in self.tasks[task]])

    def task_of(self, source: int) -> str:
        """Returns the task of a source by index."""
        return next(task for task, members in self.tasks.items() if source in members)

    def parameters(self, task: str) -> tuple[str, ...]:
        """Returns the body parameters that a task's model has."""
        members = self.tasks[task]
        return tuple(name for name, owners in self.owners.items() if not set(members).isdisjoint(owners))


def align(
    sources: Sequence[Checkpoint],
    *,
    base: Checkpoint | None = None,
    tasks: Mapping[str, str] | None = None,
    merge_pooler: bool = False,
    orders: Mapping[str, Rows] | None = None,
) -> Alignment:
    """Returns what merges and what stays per task; `tasks` names a source's task (default: its own name).

    A pooler reads the first token for the head alone, so each task keeps its own unless `merge_pooler` is set.
    `orders` has by source the rows of heads with placeholder labels in the order of their task's first source, as far
    as data have proved it.

    Raises:
        MergeError: everything that keeps the sources (and the base) from becoming one model, in one line.
        RecipeError: `tasks` names a source that does not exist.
    """
    _check_names(sources)
    groups = group_tasks(sources, tasks or {})
    everyone = [*sources, base] if base is not None else list(sources)
    _check_families(everyone)
    rows, disagreements = label_rows(sources, groups, orders or {})
    problems = [
        *config_differences(everyone),
        *shape_differences(everyone),
        *tokenizer_problems(everyone, by_task=True),
        *language_problems(sources),
        *beside_problems(sources),
        *processor_problems(sources),
        *disagreements,
    ]
    problems = problems or base_problems(sources, base)
    if problems:
        raise MergeError(f"cannot merge {_names(sources)}: {listed(problems, limit=len(problems))}")
    warn_of_bases(sources, base)
    warn_of_losses(sources)
    warn_of_what_lies_beside(sources)
    return Alignment(
        sources=tuple(sources),
        base=base,
        family=sources[0].config.model_type,
        owners=MappingProxyType(_owners(sources)),
        tasks=MappingProxyType(groups),
        head_rows=MappingProxyType(rows),
        poolers=() if merge_pooler else pooler_parameters(sources[0].config, _owners(sources)),
        language=MappingProxyType(language_owners(sources)),
    )


def _names(sources: Sequence[Checkpoint]) -> str:
    return ", ".join(source.name for source in sources)


def _check_names(sources: Sequence[Checkpoint]) -> None:
    if not sources:
        raise MergeError("no sources given: name at least one checkpoint")
    twice = sorted(name for name, count in Counter(source.name for source in sources).items() if count > 1)
    if twice:
        raise MergeError(
            f"several sources are called {listed(twice)}: give each a name of its own (name=folder)"
        )


def _check_families(everyone: Sequence[Checkpoint]) -> None:
    families = {checkpoint.config.model_type for checkpoint in everyone}
    if len(families) > 1:
        kinds = listed((f"{c.name} is {c.config.model_type}" for c in everyone), limit=len(everyone))
        raise MergeError(
            f"different architectures cannot be merged: {kinds}; merge sources of one base model"
        )


def _owners(sources: Sequence[Checkpoint]) -> dict[str, tuple[int, ...]]:
    names = dict.fromkeys(name for source in sources for name in source.body)
    return {name: tuple(i for i, source in enumerate(sources) if name in source.body) for name in names}


_OF_TRAINING = re.compile(
    r"dropout|initializer|_drop$|^use_cache$|^gradient_|^deterministic_|^reference_compile$"
)
_OF_CLASSIFIERS = re.compile(r"^classifier_|^summary_|^pooler_")
_OF_LANGUAGE_MODELS = re.compile(r"^decoder_|^sparse_|^tie_|^is_decoder$|^legacy$")
_OF_TEXTS = re.compile(r"^(bos|eos|cls|sep|unk|mask)_token_id$|^vocab_size$|^add_cross_attention$")
_UNDECLARED = {  # DeBERTa reads these though its configuration class does not declare them
    "share_att_key", "position_buckets", "norm_rel_ebd", "conv_kernel_size", "conv_act", "conv_groups",
    "attention_head_size", "embedding_size",
}  # fmt: skip


def body_settings(config: PretrainedConfig, *, heads: bool = False) -> dict[str, Any]:
    """Returns the settings on which the encoder's output depends, and with `heads` also what classifiers make of it.

    Those of training and records do not count. The vocabulary's size shows in the shapes.
    """
    ignored = (_OF_TRAINING, _OF_TEXTS, _OF_LANGUAGE_MODELS, *(() if heads else (_OF_CLASSIFIERS,)))
    declared = set(type(config)().to_dict()) - set(PretrainedConfig().to_dict())
    found = config.to_dict()
    return {
        name: found[name]
        for name in found
        if (name in declared or name in _UNDECLARED) and not any(p.search(name) for p in ignored)
    }


def config_differences(everyone: Sequence[Checkpoint], *, heads: bool = False) -> list[str]:
    """Returns each setting of the encoder that is not the same everywhere, with the value of each checkpoint.

    With `heads`, those of its heads are compared too.
    """
    settings = [body_settings(checkpoint.config, heads=heads) for checkpoint in everyone]
    names = dict.fromkeys(name for found in settings for name in found)
    differing = (name for name in names if any(s.get(name) != settings[0].get(name) for s in settings[1:]))
    return [f"{name} differs ({_said(everyone, [s.get(name) for s in settings])})" for name in differing]


def titles(everyone: Sequence[Checkpoint]) -> list[str]:
    """Returns what messages call checkpoints: their names, or where they come from if folders share a name."""
    names = [checkpoint.name for checkpoint in everyone]
    return names if len(set(names)) == len(names) else [checkpoint.origin for checkpoint in everyone]


def _said(everyone: Sequence[Checkpoint], values: Iterable[Any]) -> str:
    return ", ".join(f"{who}: {value}" for who, value in zip(titles(everyone), values, strict=True))


def shape_differences(everyone: Sequence[Checkpoint]) -> list[str]:
    """Returns each body parameter whose shape is not the same everywhere; equal complaints of layers share a line."""
    names = dict.fromkeys(name for checkpoint in everyone for name in checkpoint.body)
    layers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        shapes = [
            (who, list(c.header(c.body[name]).shape))
            for who, c in zip(titles(everyone), everyone, strict=True)
            if name in c.body
        ]
        if len({tuple(shape) for _, shape in shapes}) > 1:
            said = ", ".join(f"{who}: {shape}" for who, shape in shapes)
            layers[re.sub(r"\d+", "#", name), said].append(name)
    return [
        f"shape of {_range(same)} differs ({said}){_hint(everyone, same)}"
        for (_, said), same in layers.items()
    ]


def _range(names: Sequence[str]) -> str:
    """Returns one name for names that differ in one number: `encoder.layer.{0,1,2}.output.dense.weight`."""
    parts = [re.split(r"(\d+)", name) for name in names]
    columns = (list(dict.fromkeys(column)) for column in zip(*parts, strict=True))
    return "".join(column[0] if len(column) == 1 else "{" + ",".join(column) + "}" for column in columns)


def _hint(everyone: Sequence[Checkpoint], names: Sequence[str]) -> str:
    rows = {
        c.config.vocab_size: c.header(c.body[name]).shape[0]
        for c in everyone
        for name in names
        if name in c.body
    }
    words = all(size == length for size, length in rows.items()) and len(rows) > 1
    return ": the vocabularies differ; resize_token_embeddings can undo padding" if words else ""


Rows = tuple[int, ...] | None
ALIKE = 0.9
"""Cosine above which rows of two heads began as one: those of heads drawn apart are near 0."""


def group_tasks(sources: Sequence[Checkpoint], tasks: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Returns the indices of each task's sources; a source without a named task is a task of its own name."""
    names = [source.name for source in sources]
    strangers = [name for name in tasks if name not in names]
    if strangers:
        raise RecipeError(listed(f"task for unknown source {n!r}{did_you_mean(n, names)}" for n in strangers))
    chosen = [tasks.get(name, name) for name in names]
    return {
        task: tuple(i for i, found in enumerate(chosen) if found == task) for task in dict.fromkeys(chosen)
    }


def label_rows(
    sources: Sequence[Checkpoint], tasks: Mapping[str, tuple[int, ...]], orders: Mapping[str, Rows]
) -> tuple[dict[str, Rows], list[str]]:
    """Returns by source the rows that put its labels in its task's order, and what keeps heads from being merged."""
    rows: dict[str, Rows] = {}
    problems: list[str] = []
    for task, members in tasks.items():
        first, *others = (sources[i] for i in members)
        rows[first.name] = None
        for other in others:
            if other.name in orders:
                rows[other.name] = orders[other.name]
                problems += [f"task {task}: {problem}" for problem in _head_shapes(first, other)]
                continue
            found = _head_differences(first, other)
            problems += [f"task {task}: {problem}" for problem in found]
            rows[other.name] = None if found else _permutation(first.labels, other.labels)
    return rows, problems


def _permutation(wanted: tuple[str, ...] | None, given: tuple[str, ...] | None) -> Rows:
    """Returns where each wanted label is among those given, None if every one is in its place."""
    if wanted is None or given is None or wanted == given:
        return None
    return tuple(given.index(label) for label in wanted)


def _head_differences(first: Checkpoint, other: Checkpoint) -> list[str]:
    facts = (("head", first.kind, other.kind), ("problem_type", first.problem_type, other.problem_type))
    unlike = [
        f"{what} differs ({first.name}: {mine}, {other.name}: {theirs}); give them tasks of their own"
        for what, mine, theirs in facts
        if mine != theirs
    ]
    return unlike or _label_differences(first, other) or _head_shapes(first, other)


def _label_differences(first: Checkpoint, other: Checkpoint) -> list[str]:
    mine, theirs = first.labels or (), other.labels or ()
    if set(mine) == set(theirs):
        return unproved_order(first, other)
    names = f"{first.name}: {', '.join(mine)}; {other.name}: {', '.join(theirs)}"
    if len(mine) == len(theirs) and placeholders(mine) != placeholders(theirs):
        return [f"labels have no common names ({names}); say the real ones with labels (--labels)"]
    return [f"labels differ ({names}); give them tasks of their own, or make the names agree with labels (--labels)"]


def unproved_order(first: Checkpoint, other: Checkpoint) -> list[str]:
    """Returns why two heads whose labels are placeholders may mean different things by one row.

    Placeholders prove nothing. Heads that began as one do: their rows are still alike.
    """
    mine, theirs = first.labels or (), other.labels or ()
    if not mine or not placeholders(mine) or not placeholders(theirs) or (first.order_known and other.order_known):
        return []
    if _rows_alike(first, other):
        return []
    return [
        f"{first.name} and {other.name} both call their labels {', '.join(mine)}, which does not say that they have "
        f"them in one order; say it by --labels {first.name}=…,… --labels {other.name}=…,… (or write the "
        "names into id2label), or give labelled data of the task on which the two are mostly right"
    ]


def _rows_alike(first: Checkpoint, other: Checkpoint) -> bool:
    """Says whether each row of one head is nearly parallel to that of the other, as after one initialisation."""
    if first.head.keys() != other.head.keys() or first.label_parameters != other.label_parameters:
        return False
    names = [name for name in first.label_parameters if len(first.header(first.head[name]).shape) == 2]
    for name in names:
        a, b = (c.read(c.head[name]).double() for c in (first, other))
        if a.shape != b.shape or bool((torch.cosine_similarity(a, b) < ALIKE).any()):
            return False
    return bool(names)


def _head_shapes(first: Checkpoint, other: Checkpoint) -> list[str]:
    mine, theirs = ({k: list(c.header(v).shape) for k, v in c.head.items()} for c in (first, other))
    differing = [name for name in dict.fromkeys((*mine, *theirs)) if mine.get(name) != theirs.get(name)]
    return [
        f"head parameter {name} differs ({first.name}: {mine.get(name)}, {other.name}: {theirs.get(name)})"
        for name in differing
    ]


logger = logging.getLogger("plait")
KIN = 0.5
"""Cosine below which embeddings have no common origin: fine-tuning leaves it near 1, another pretraining near 0."""
_ROWS = 64


def warn_of_bases(sources: Sequence[Checkpoint], base: Checkpoint | None) -> None:
    """Warns when the recorded bases differ; people rename folders, so a record alone stops nobody."""
    recorded = {s.name: s.recorded_base for s in sources if s.recorded_base}
    if len({_tail(name) for name in recorded.values()}) > 1:
        said = ", ".join(f"{name}: {found}" for name, found in recorded.items())
        logger.warning(
            "the sources record different bases (%s); merging them anyway, their weights are akin", said
        )
    elif (
        recorded
        and base is not None
        and _tail(base.origin) not in {_tail(name) for name in recorded.values()}
    ):
        logger.warning(
            "the base given is %s, the sources record %s", base.origin, next(iter(recorded.values()))
        )


def _tail(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()


def base_problems(sources: Sequence[Checkpoint], base: Checkpoint | None) -> list[str]:
    """Returns the pairs whose word embeddings have no common origin, from a sample of rows."""
    everyone = [*sources, base] if base is not None else list(sources)
    samples = {c.name: sample for c in everyone if (sample := _sample(c)) is not None}
    return [
        f"{a} and {b} do not come from one base (cosine of their word embeddings {cosine:.2f}, expected above {KIN}"
        f"{_records(everyone, a, b)}); merge models fine-tuned from the same base"
        for a, b in itertools.combinations(samples, 2)
        if (cosine := _cosine(samples[a], samples[b])) < KIN
    ]


def _records(everyone: Sequence[Checkpoint], a: str, b: str) -> str:
    found = {c.name: c.recorded_base for c in everyone if c.name in {a, b} and c.recorded_base}
    return "".join(f"; {name} records {base}" for name, base in found.items())


def _sample(checkpoint: Checkpoint) -> Tensor | None:
    """Returns some rows of the word embeddings: the parameter with one row per word of the vocabulary."""
    rows = getattr(checkpoint.config, "vocab_size", None)
    for stored in checkpoint.body.values():
        shape = checkpoint.header(stored).shape
        if len(shape) == 2 and shape[0] == rows:
            picked = torch.linspace(0, shape[0] - 1, min(_ROWS, shape[0])).long()
            return checkpoint.read(stored)[picked].to(torch.float64).flatten()
    return None


def _cosine(a: Tensor, b: Tensor) -> float:
    """Returns the cosine; not-a-number (which the engine reports by parameter) and zero vectors count as kin."""
    if a.shape != b.shape or not (a.any() and b.any()):
        return 1.0
    value = float(a @ b / (a.norm() * b.norm()))
    return 1.0 if value != value else value  # noqa: PLR0124
