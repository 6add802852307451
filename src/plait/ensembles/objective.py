"""The objective of an ensemble: each member's own loss and what the method adds, on perturbed members."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from plait.data import ProblemType
from plait.data.labels import IGNORED
from plait.encoders.layers import Inputs
from plait.encoders.modes import unwrapped
from plait.ensembles.divergences import SINGLE, at_least_float32
from plait.ensembles.method import Choice, Terms
from plait.ensembles.modeling import task_loss
from plait.ensembles.perturbation import PERTURBATIONS, Place, check, member_generators, perturber, place
from plait.ensembles.perturbations.dropout import dropping
from plait.ensembles.perturbations.word_dropout import blanked, droppable_words
from plait.errors import RecipeError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Perturb = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


@dataclass(frozen=True)
class PerturbationChoice:
    """A perturbation with its options, and the layer from which on members have states of their own.

    Attributes:
        name: In `PERTURBATIONS`.
        options: Of the perturbation.
        replicate_at: The layer; by default 0 for dropout and what acts on embeddings, else the highest shared.
    """

    name: str = "dropout"
    options: Mapping[str, Any] = field(default_factory=dict)
    replicate_at: int | None = None

    def __post_init__(self) -> None:
        """Checks the name and every option.

        Raises:
            RecipeError: an unknown perturbation or option, or one out of its limits.
        """
        check(self.name, **self.options)

    @property
    def place(self) -> Place:
        """Returns where it acts."""
        return place(self.name, self.options)

    def depth(self, shared_layers: int) -> int:
        """Returns the layer from which on each member has rows of its own.

        Raises:
            RecipeError: the layer asked for is private, or the perturbation acts below it.
        """
        chosen = self.replicate_at
        if chosen is None:
            return 0 if self.place in (Place.DROPOUT, Place.EMBEDDINGS) else shared_layers
        if not 0 <= chosen <= shared_layers:
            raise RecipeError(
                f"replicate_at is {chosen}; {shared_layers} layers are shared: expected 0 to {shared_layers}"
            )
        if chosen and self.place is Place.EMBEDDINGS:
            raise RecipeError(
                f"replicate_at is {chosen}, and perturbation {self.name} acts on embeddings: expected 0"
            )
        return chosen

    def extra_cost(self) -> float:
        """Returns the forward passes that a step costs for the search of a perturbation: K up and down, one clean."""
        if "prediction" not in PERTURBATIONS[self.name].inputs:
            return 0.0
        steps = PERTURBATIONS[self.name].options["steps"].default
        return 1.0 + 2.0 * float(self.options.get("steps", steps))


@dataclass(frozen=True)
class Words:
    """What word dropout has to know of a tokenizer: ids that stay, and the id that takes a word's place."""

    special: tuple[int, ...] = ()
    unknown: int = 0


def words_of(tokenizer: PreTrainedTokenizerBase) -> Words:
    """Returns a tokenizer's special ids, and its mask (else its unknown word)."""
    chosen = (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id, 0)
    unknown: Any = next(i for i in chosen if i is not None)
    return Words(tuple(sorted(set(tokenizer.all_special_ids))), int(unknown))


@dataclass(frozen=True)
class Ensembling:
    """The objective of the one training loop for every method.

    Attributes:
        choice: The method.
        noise: What tells the members apart.
        depth: The layer from which on they have rows of their own.
        problem: What the logits mean.
        per_token: Whether labels belong to tokens.
        words: For word dropout.
        replay: Whether activations are made again, member by member.
    """

    choice: Choice
    noise: PerturbationChoice
    depth: int
    problem: ProblemType = SINGLE
    per_token: bool = False
    words: Words = Words()
    replay: bool = False

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Terms:
        """Returns the terms of one batch."""
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        labels = batch["labels"]
        mask = labels != IGNORED if self.per_token else None
        asked: dict[str, Any] = {"output_members": True, "replicate_at": self.depth}
        if self.replay:
            asked["replay"] = True
        if self.noise.place in (Place.HIDDEN, Place.EMBEDDINGS):
            asked["perturb"] = self._bound(unwrapped(model), inputs, mask)
        logits = at_least_float32(model(**inputs, **asked).member_logits)
        return self.choice.terms(task_loss(logits, labels, self.problem), logits, labels, self.problem, mask)

    def _bound(self, model: nn.Module, inputs: Inputs, counted: Tensor | None) -> Perturb:
        """Returns the perturbation with what this batch is, and fresh generators."""
        ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
        given: dict[str, Any] = {"mask": real, "problem": self.problem, "counted": counted}
        if "droppable" in PERTURBATIONS[self.noise.name].inputs:
            given["droppable"] = droppable_words(ids, real, self.words.special)
            given["blank"] = _blank(model, inputs, given["droppable"], self.words.unknown)
        members = model.config.members  # type: ignore[union-attr]
        generators = member_generators(int(members), ids.device)  # type: ignore[arg-type]
        return perturber(self.noise.name, self.noise.options, generators, **given)


def _blank(model: nn.Module, inputs: Inputs, droppable: Tensor, unknown: int) -> Tensor:
    """Returns what the embeddings give where every word is the unknown one."""
    embed: Any = model.embed
    with torch.no_grad():
        found: Tensor = embed({**inputs, "input_ids": blanked(inputs["input_ids"], droppable, unknown)})
    return found


@contextmanager
def perturbing(model: nn.Module, noise: PerturbationChoice) -> Iterator[None]:
    """Sets a model's dropout rates for as long as it is trained, where dropout is what tells members apart."""
    if noise.place is not Place.DROPOUT:
        yield
        return
    with dropping(model, noise.options.get("rate")):
        yield
