"""New ensembles: from one encoder with new heads, or from checkpoints that become its members."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.compatibility import config_differences, shape_differences, titles, unproved_order
from plait.ensembles.configuration import EnsembleConfig, HeadKind
from plait.ensembles.folding import configuration, labelled, projection
from plait.ensembles.heads import last_linear
from plait.ensembles.modeling import ENSEMBLES, Ensemble
from plait.ensembles.sharing import original
from plait.errors import MergeError, RecipeError, did_you_mean, listed
from plait.training.heads import quiet

Shared = Mapping[str, Tensor] | Callable[[str], Tensor | None]
"""Merged tensors by their name in the bare encoder; what is not there is averaged over the sources."""


def new_ensemble(
    base: Checkpoint,
    *,
    members: int,
    labels: Sequence[str] | None,
    kind: str = "sequence_classification",
    problem_type: str | None = None,
    shared_layers: int | Literal["all"] = "all",
    head: HeadKind = "linear",
    classifier_dropout: float | None = None,
    seed: int = 0,
) -> Ensemble:
    """Returns an ensemble whose members all start as `base`, each with a new head.

    Args:
        base: An encoder, bare or with any head.
        members: M.
        labels: The names of the outputs; None for a regression.
        kind: `sequence_classification` or `token_classification`.
        problem_type: What the outputs mean, as transformers says it.
        shared_layers: How many layers from the bottom are everybody's.
        head: The form of the heads.
        classifier_dropout: Their dropout; the encoder's own by default.
        seed: Decides the heads, and what `base` lacks.

    Raises:
        RecipeError: When the options contradict each other or the encoder.
    """
    names = tuple(labels or ("LABEL_0",))
    config = EnsembleConfig(
        encoder=base.config, members=members, shared_layers=shared_layers, head=head,
        classifier_dropout=classifier_dropout, problem_type=problem_type if labels else "regression",
        id2label=dict(enumerate(names)), architectures=[_class(kind).__name__],
    )  # fmt: skip
    with _seeded(seed), quiet():
        own = _class(kind).own_classes.from_pretrained(
            **base.weights(), config=labelled(config), dtype=torch.float32, local_files_only=True,
            ignore_mismatched_sizes=True, trust_remote_code=False,
        )  # fmt: skip
        model = _class(kind)(config)
    _copy(model, own.state_dict(), None)
    with torch.no_grad():
        # What reaches the encoder goes through the mean of the heads, and that of M drawn apart is √M smaller than
        # one head: they start √M larger, or the encoder would learn later than that of a single model.
        model.get_parameter("heads.out.weight").mul_(members**0.5)
    model.eval()
    return model


def from_checkpoints(
    sources: Sequence[Checkpoint],
    *,
    shared_layers: int | Literal["all"] = "all",
    shared: Shared | None = None,
    head: HeadKind = "linear",
    classifier_dropout: float | None = None,
    problem_type: str | None = None,
    labels: Sequence[str] | None = None,
) -> Ensemble:
    """Returns an ensemble of fine-tuned checkpoints: one shared bottom, every top and head its own.

    The heads fit as they are: linear heads are the last layers, tanh heads projection and last layer. Where all layers
    are shared, what lies between encoder and last layer is shared too with linear heads, and averaged.

    Args:
        sources: Classifiers of one architecture and with the same labels, in any order.
        shared_layers: How many layers from the bottom become everybody's.
        shared: What they become, such as merged tensors; their average by default.
        head: The form of the heads; tanh where the family's own head has it.
        classifier_dropout: Their dropout; the encoder's own by default.
        problem_type: What the outputs mean, where the sources do not say.
        labels: The order of the labels; that of the first source by default.

    Raises:
        MergeError: When the sources cannot be members of one ensemble: everything that stands against it.
        RecipeError: When an option does not fit them.
    """
    check_sources(sources)
    first = sources[0]
    order = first.labels if labels is None else tuple(labels)
    names = order or ("LABEL_0",)
    config = EnsembleConfig(
        encoder=first.config, members=len(sources), shared_layers=shared_layers, head=head,
        classifier_dropout=classifier_dropout, problem_type=problem_type or first.problem_type,
        id2label=dict(enumerate(names)),
        architectures=[_class(first.kind).__name__],
    )  # fmt: skip
    model = _class(first.kind)(config)
    if head == "tanh":
        projection(config, model.per_token)
    for member, source in enumerate(sources):
        own = source.model(dtype=torch.float32)
        state = own.state_dict()
        _copy(model, state, member)
        _take_head(model, own, state, member, _rows(order, source))
    _put_shared(model, shared, first.prefix)
    model.eval()
    return model


def _class(kind: str) -> type[Ensemble]:
    if kind not in ENSEMBLES:
        raise RecipeError(f"an ensemble cannot be of kind {kind!r}{did_you_mean(kind, ENSEMBLES)}")
    return ENSEMBLES[kind]


@torch.no_grad()
def _copy(model: Ensemble, state: Mapping[str, Tensor], member: int | None) -> None:
    """Copies an ordinary model's weights: to its member, or to all for None; what is shared becomes the mean so far."""
    prefix = "" if model.config.head == "linear" else f"{_prefix(model)}."
    for name, target in model.encoder.state_dict().items():
        plain, owner = original(name, model.config.encoder)
        value = state[prefix + plain]
        if owner is None and member:
            # Exact where all are equal, unlike a sum of shares.
            target.add_((value - target) / (member + 1))
        elif owner is None or member in (None, owner):
            target.copy_(value)


def _prefix(model: Ensemble) -> str:
    return str(model.encoder.base_model_prefix)


@torch.no_grad()
def _take_head(
    model: Ensemble, own: PreTrainedModel, state: Mapping[str, Tensor], member: int, rows: list[int]
) -> None:
    heads: Any = model.heads
    place = last_linear(own)[0]
    heads.out.weight[member] = state[f"{place}.weight"][rows]
    heads.out.bias[member] = state[f"{place}.bias"][rows]
    if model.config.head == "tanh":
        place = projection(configuration(model), model.per_token)
        heads.dense.weight[member] = state[f"{place}.weight"]
        heads.dense.bias[member] = state[f"{place}.bias"]


@torch.no_grad()
def _put_shared(model: Ensemble, shared: Shared | None, prefix: str) -> None:
    if shared is None:
        return
    for name, target in model.encoder.state_dict().items():
        plain, owner = original(name, model.config.encoder)
        body = plain.removeprefix(f"{prefix}.") if model.config.head == "linear" else plain
        found = shared(body) if callable(shared) else shared.get(body)
        if owner is None and found is not None:
            target.copy_(found)


def _rows(order: Sequence[str] | None, source: Checkpoint) -> list[int]:
    """Returns where each label stands in a source's head."""
    if order is None or source.labels is None:
        return [0]
    return [source.labels.index(label) for label in order]


def check_sources(sources: Sequence[Checkpoint]) -> None:
    """Checks that fine-tuned checkpoints can be members of one ensemble.

    Raises:
        MergeError: Everything that stands against it: other architectures, shapes, labels, or no head.
        RecipeError: There are none.
    """
    if not sources:
        raise RecipeError("members is 0; expected 1 or more checkpoints")
    named = list(zip(titles(sources), sources, strict=True))
    problems = [
        f"{name} has no head of a task (kind {s.kind})" for name, s in named if s.kind not in ENSEMBLES
    ]
    for other in named[1:]:
        problems += _differences(named[0], other)
    if not problems:
        # One class computes all heads, with the settings of the first.
        problems = [*config_differences(sources, heads=True), *shape_differences(sources)]
    if problems:
        raise MergeError(f"these checkpoints cannot be members of one ensemble: {listed(problems)}")


def _differences(one: tuple[str, Checkpoint], two: tuple[str, Checkpoint]) -> Iterator[str]:
    (mine_is, first), (theirs_is, other) = one, two
    facts = (
        ("architecture", first.architecture, other.architecture),
        ("problem_type", first.problem_type, other.problem_type),
    )
    for what, mine, theirs in facts:
        if mine != theirs:
            yield f"{what} differs ({mine_is}: {mine}, {theirs_is}: {theirs})"
    if set(first.labels or ()) != set(other.labels or ()):
        said = f"{mine_is}: {', '.join(first.labels or ())}; {theirs_is}: {', '.join(other.labels or ())}"
        yield f"labels differ ({said}); expected the same names in any order"
    elif unproved_order(first, other):
        yield (
            f"{mine_is} and {theirs_is} both call their labels {', '.join(first.labels or ())}, which does not "
            "say that they have them in one order; write the real names into id2label of both, or give labelled "
            "data (--data, --validation) on which the two are mostly right"
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
