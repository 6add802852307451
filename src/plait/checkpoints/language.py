"""Heads of language models: merged like the body, or refused by name; apart, as classifiers' heads stay per task."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from plait.checkpoints.checkpoint import Checkpoint
from plait.encoders.heads import bare_class_name
from plait.errors import listed

logger = logging.getLogger("plait")


def language_owners(sources: Sequence[Checkpoint]) -> dict[str, tuple[int, ...]]:
    """Returns for each parameter of a language model's head the indices of the sources that have it."""
    having = {i: source.head for i, source in enumerate(sources) if source.kind == "body"}
    names = dict.fromkeys(name for head in having.values() for name in head)
    return {name: tuple(i for i, head in having.items() if name in head) for name in names}


def language_problems(sources: Sequence[Checkpoint]) -> list[str]:
    """Returns heads of language models that would be lost, or that cannot become one."""
    models = [source for source in sources if source.kind == "body" and source.language_class is not None]
    lost = [source for source in sources if _loses(source)]
    problems = [
        f"the head of {s.name} ({s.architecture}: {listed(s.left_out, 5)}) cannot be carried: save the bare "
        f"{bare_class_name(s.config)} where only the encoder matters"
        for s in lost
    ]
    tied = {source.name: bool(source.config.get_text_config().tie_word_embeddings) for source in models}
    if len(set(tied.values())) > 1:
        said = ", ".join(f"{name}: {value}" for name, value in tied.items())
        problems.append(f"tie_word_embeddings differs ({said}), so their heads cannot be merged")
    shapes = {
        name: {source.name: source.header(source.head[name]).shape for source in models if name in source.head}
        for name in dict.fromkeys(name for source in models for name in source.head)
    }
    for name, found in shapes.items():
        if len(set(found.values())) > 1:
            said = ", ".join(f"{who}: {list(shape)}" for who, shape in found.items())
            problems.append(f"shape of {name} differs ({said})")
    return problems


def _loses(source: Checkpoint) -> bool:
    reduced = source.kind == "body" and source.carried_as != source.architecture
    return reduced and bool(source.left_out)


def warn_of_losses(sources: Sequence[Checkpoint]) -> None:
    """Names the tensors that lie in a source's files and are no part of its model."""
    for source in sources:
        if source.left_out:
            logger.warning(
                "%s: %s are no part of a %s: left out", source.name, listed(source.left_out, 5), source.architecture
            )
