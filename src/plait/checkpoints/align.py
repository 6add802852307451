"""Whether checkpoints can become one, and how; otherwise all that stands against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from plait.checkpoints.beside import beside_problems, warn_of_what_lies_beside
from plait.checkpoints.compare import config_differences, shape_differences
from plait.checkpoints.heads import group_tasks, label_rows
from plait.checkpoints.kinship import base_problems, warn_of_bases
from plait.checkpoints.language import language_owners, language_problems, warn_of_losses
from plait.checkpoints.source import Checkpoint
from plait.checkpoints.tokenizers import has_tokenizer
from plait.checkpoints.topology import pooler_parameters
from plait.checkpoints.vocabulary import tokenizer_problems
from plait.errors import MergeError, listed


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
        return next((checkpoint for checkpoint in everyone if has_tokenizer(checkpoint.folder)), None)

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
) -> Alignment:
    """Returns what merges and what stays per task; `tasks` names a source's task (default: its own name).

    A pooler reads the first token for the head alone, so each task keeps its own unless `merge_pooler` is set.

    Raises:
        MergeError: everything that keeps the sources (and the base) from becoming one model, in one line.
        RecipeError: `tasks` names a source that does not exist.
    """
    _check_names(sources)
    groups = group_tasks(sources, tasks or {})
    everyone = [*sources, base] if base is not None else list(sources)
    _check_families(everyone)
    rows, disagreements = label_rows(sources, groups)
    problems = [
        *config_differences(everyone),
        *shape_differences(everyone),
        *tokenizer_problems(everyone),
        *language_problems(sources),
        *beside_problems(sources),
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
