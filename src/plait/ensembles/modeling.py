"""Ensembles as transformers models: ordinary outputs from the mean of the members' logits, the members' on request."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.models.auto import modeling_auto as auto
from transformers.utils.generic import ModelOutput

from plait import autoclasses
from plait.data.labels import IGNORED
from plait.encoders.layers import Inputs, PartialForward, again, filled, layers_of, repeated, routed
from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.heads import (
    LinearHeads,
    StackedLinear,
    TanhHeads,
    drop_pooler,
    freeze_pooler,
    without_last_linear,
)
from plait.ensembles.shapes import MemberLogits
from plait.ensembles.sharing import ActiveMembers, share

States = Float[Tensor, "M B T H"]
Perturb = Callable[[States, Callable[[States], MemberLogits]], States]
"""From the members' hidden states, and from what becomes of any such states, to perturbed ones."""


class Ensemble(PreTrainedModel):
    """M members over one encoder; the two classes below say what for.

    `encoder` is the encoder's own class, without its last linear layer (linear heads) or without its head (tanh).
    """

    config_class = EnsembleConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    per_token: ClassVar[bool]
    own_classes: ClassVar[Any]
    output_class: ClassVar[type[ModelOutput]]

    def __init__(self, config: EnsembleConfig) -> None:
        """Makes the modules of a configuration; a member starts with the encoder's weights and a head of its own."""
        super().__init__(config)
        self.num_labels = labels = int(config.num_labels or 0)
        self.roster = ActiveMembers(config.members)
        encoder = self.own_classes.from_config(copy.deepcopy(config.encoder), trust_remote_code=False)
        encoder.config.return_dict = True  # a config may ask for tuples, we ask by name
        if config.head == "linear":
            width = without_last_linear(encoder, config.classifier_dropout)
            self.heads: nn.Module = LinearHeads(config.members, width, labels)
        else:
            encoder, width = encoder.base_model, config.hidden_size
            self.heads = TanhHeads(config.members, width, labels, config.dropout)
            if config.shared_layers < config.num_hidden_layers:
                drop_pooler(encoder)
        share(encoder, config.shared_layers, self.roster)
        self.encoder = encoder
        self.layers = layers_of(encoder.base_model)
        self.post_init()
        freeze_pooler(encoder)

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Returns a saved ensemble; see transformers."""
        loaded: Any = super().from_pretrained(*args, **options)
        # Loading makes every parameter trainable; one without a gradient stops training in several processes.
        freeze_pooler((loaded[0] if isinstance(loaded, tuple) else loaded).encoder)
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, StackedLinear):
            initialization.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            initialization.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """Returns the token embeddings."""
        embeddings: nn.Module = self.encoder.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embeddings."""
        self.encoder.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **options: Any) -> Any:
        """Returns the token embeddings with another number of rows; see transformers."""
        embeddings = super().resize_token_embeddings(*args, **options)
        self.encoder.config.vocab_size = self.config.vocab_size
        return embeddings

    def forward(  # noqa: PLR0917 (transformers' order)
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        output_members: bool = False,
        replicate_at: int | None = None,
        perturb: Perturb | None = None,
        replay: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Returns mean logits, with labels the mean of the members' losses, on request each member's logits.

        Args:
            input_ids: As every encoder takes them, the next four too.
            attention_mask: 1 for tokens, 0 for padding.
            token_type_ids: Where the encoder knows token types.
            position_ids: Where they are not 0, 1, ….
            inputs_embeds: Instead of `input_ids`.
            labels: Classes, numbers or rows of zeros and ones, by the problem type; -100 for tokens left out.
            output_members: Return an `EnsembleOutput`.
            replicate_at: The layer from which on each member has rows of its own, so that dropout and `perturb`
                differ by member: from 0, before the embeddings, to `shared_layers`, the cheapest. By default
                that in evaluation and 0 in training.
            perturb: Changes the members' hidden states as they enter layer `replicate_at`.
            replay: Forget the members' activations and compute them again, member by member, for their
                gradients: a third more time above the replication, the memory of one member.
            return_dict: False for a tuple.
            **kwargs: `output_hidden_states` and `output_attentions`, where nothing is replicated.
        """
        tensors: dict[str, Tensor | None] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        inputs = filled(tensors)
        depth, kwargs = self._depth(replicate_at), told(kwargs, self.config)
        extra: dict[str, Any] = {}
        if replay:
            members = self._replayed(inputs, depth, perturb)
        elif perturb is None and self._one_pass(depth):
            members, extra = self._plain(inputs, kwargs)
        else:
            members = self._replicated(inputs, depth, perturb)
        refuse_unkept(kwargs, extra)
        logits = members.mean(0)
        loss = None if labels is None else self._loss(members, labels)
        output: ModelOutput = (
            EnsembleOutput(loss=loss, logits=logits, member_logits=members, **extra)
            if output_members
            else self.output_class(loss=loss, logits=logits, **extra)
        )
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    def embed(self, inputs: Inputs, depth: int = 0) -> Tensor:
        """Returns the states [B, T, H] at a depth: 0, what the embeddings give, to L, what the last layer gives."""
        # What follows the last layer runs on states that nobody looks at; one member's is enough.
        with self._active([0]), routed(PartialForward(self.layers, stop=depth)) as passage:
            self.encoder.base_model(**inputs)
        assert passage.reached is not None
        return passage.reached

    def _depth(self, replicate_at: int | None) -> int:
        shared: int = self.config.shared_layers
        if replicate_at is None:
            return 0 if self.training else shared
        if not 0 <= replicate_at <= shared:
            raise ValueError(f"replicate_at is {replicate_at}; expected 0 to {shared}, the shared layers")
        return replicate_at

    def _one_pass(self, depth: int) -> bool:
        """Says whether the members differ by nothing but their heads, and draw nothing of their own below them."""
        alone: bool = self.config.members == 1
        return alone or (depth == self.layers.depth and (not self.training or self.config.head == "tanh"))

    def _plain(self, inputs: Inputs, options: dict[str, Any]) -> tuple[MemberLogits, dict[str, Any]]:
        outputs = self.encoder(**inputs, **options, return_dict=True)
        features = self._features(outputs)
        extra = {name: outputs.get(name) for name in ("hidden_states", "attentions")}
        logits: Tensor = self.heads(features.expand(self.config.members, *features.shape))
        return logits, extra

    def _features(self, outputs: Any) -> Tensor:
        """Returns what the heads look at, a row per example or token."""
        if self.config.head == "linear":
            rows: Tensor = outputs.logits  # of a class whose last linear layer has been taken out
            return rows
        states: Tensor = outputs.last_hidden_state
        return states if self.per_token else states[:, 0]

    def _replicated(self, inputs: Inputs, depth: int, perturb: Perturb | None) -> MemberLogits:
        everyone = range(self.config.members)
        if depth == 0 and perturb is None:
            return self._from_inputs(inputs, everyone)
        hidden = self._entering(inputs, depth, everyone)
        if perturb is not None:
            hidden = perturb(hidden, partial(self._from_states, inputs, depth, everyone))
        return self._from_states(inputs, depth, everyone, hidden)

    def _replayed(self, inputs: Inputs, depth: int, perturb: Perturb | None) -> MemberLogits:
        """Returns the same logits, each member's from a segment that autograd computes again when its turn comes."""
        if depth == 0 and perturb is None:
            return torch.cat([again(self._from_inputs, inputs, [m]) for m in range(self.config.members)])
        shared = None if depth == 0 else self.embed(inputs, depth).unsqueeze(0)
        logits = []
        for member in range(self.config.members):
            hidden = self._entering(inputs, 0, [member]) if shared is None else shared
            if perturb is not None:
                # Outside the segment: what a perturbation looks for with gradients of its own is not looked for twice.
                hidden = perturb(hidden, partial(self._from_states, inputs, depth, [member]))
            logits.append(again(self._from_states, inputs, depth, [member], hidden))
        return torch.cat(logits)

    def _entering(self, inputs: Inputs, depth: int, members: Sequence[int]) -> States:
        """Returns the members' states at a depth; at 0 each has been through the embeddings by itself."""
        if depth == 0:
            states = self.embed(repeated(inputs, len(members)))
            return states.reshape(len(members), -1, *states.shape[1:])
        hidden = self.embed(inputs, depth)
        return hidden.expand(len(members), *hidden.shape)

    def _from_inputs(self, inputs: Inputs, members: Sequence[int]) -> MemberLogits:
        with self._active(members):
            outputs = self.encoder(**repeated(inputs, len(members)), return_dict=True)
        return self._logits(outputs, members)

    def _from_states(
        self, inputs: Inputs, depth: int, members: Sequence[int], hidden: States
    ) -> MemberLogits:
        passage = PartialForward(self.layers, start=depth, hidden=hidden.flatten(0, 1))
        with self._active(members), routed(passage):
            outputs = self.encoder(**repeated(inputs, len(members)), return_dict=True)
        return self._logits(outputs, members)

    def _logits(self, outputs: Any, members: Sequence[int]) -> MemberLogits:
        logits: Tensor = self.heads(self._features(outputs).unflatten(0, (len(members), -1)), members)
        return logits

    @contextmanager
    def _active(self, members: Sequence[int]) -> Iterator[None]:
        before, self.roster.active = self.roster.active, tuple(members)
        try:
            yield
        finally:
            self.roster.active = before

    def _loss(self, members: MemberLogits, labels: Tensor) -> Tensor:
        problem = "single_label_classification" if self.per_token else self._problem(labels)
        return task_loss(members, labels, problem)

    def _problem(self, labels: Tensor) -> str:
        """Returns what the labels mean: as configured, else as transformers reads it from them."""
        if self.config.problem_type is None:
            if self.num_labels == 1:
                self.config.problem_type = "regression"
            elif labels.is_floating_point():
                self.config.problem_type = "multi_label_classification"
            else:
                self.config.problem_type = "single_label_classification"
        problem: str = self.config.problem_type
        return problem


class EnsembleForSequenceClassification(Ensemble):
    """An ensemble of sequence classifiers, or of regressions."""

    per_token = False
    own_classes = auto.AutoModelForSequenceClassification
    output_class = SequenceClassifierOutput


class EnsembleForTokenClassification(Ensemble):
    """An ensemble of taggers."""

    per_token = True
    own_classes = auto.AutoModelForTokenClassification
    output_class = TokenClassifierOutput


ENSEMBLES: Mapping[str, type[Ensemble]] = {
    "sequence_classification": EnsembleForSequenceClassification,
    "token_classification": EnsembleForTokenClassification,
}

autoclasses.register_models(auto)

EXTRAS = ("output_hidden_states", "output_attentions")
"""What a call or a configuration may ask for beside logits."""


@dataclass
class EnsembleOutput(ModelOutput):
    """What an ensemble says: the mean logits, and `member_logits`, [M, B, C] or [M, B, T, C]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    member_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def task_loss(members: MemberLogits, labels: Tensor, problem: str) -> Tensor:
    """Returns (1/M) Σ_j task(z_j, y): cross-entropy, binary cross-entropy or squared error, as transformers' heads.

    Each member is a batch of the same size with the same labels, so the mean over all rows is the mean over members.
    """
    expected = labels.expand(len(members), *labels.shape)
    if problem == "regression":
        return F.mse_loss(members.reshape(len(members), -1), expected.reshape(len(members), -1).to(members))
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(members, expected.to(members))
    table, classes = members.flatten(0, -2), expected.flatten()
    # Not the mean of nothing, NaN, where no token has a label.
    return F.cross_entropy(table, classes, reduction="sum") / (classes != IGNORED).sum().clamp(min=1)


def told(options: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Returns the options of a call, with what the configuration asks for where the call does not say."""
    always = {name: True for name in EXTRAS if getattr(config, name, False)}
    return {**always, **{name: value for name, value in options.items() if value is not None}}


def refuse_unkept(options: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Raises when hidden states or attentions are asked of members that have some of their own."""
    wanted = [name for name in EXTRAS if options.get(name) and not extra]
    if wanted:
        raise ValueError(
            f"{' and '.join(wanted)}: the members have layers of their own or draw for themselves; expected a model in "
            "evaluation whose layers are all shared"
        )
