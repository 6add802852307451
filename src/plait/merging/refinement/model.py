"""One encoder under the heads of several tasks; a batch may hold texts of all of them and still costs one pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from plait.merging.merged import Replay, on_encoder, pooled

Inputs = Mapping[str, Tensor]


class Head(nn.Module):
    """A task's head on hidden states that were computed elsewhere; in evaluation mode whatever is trained."""

    def __init__(self, model: PreTrainedModel, *, own_pooler: bool) -> None:
        """Takes the head of a model, and its pooler where that belongs to the head."""
        super().__init__()
        self.bare = model.base_model is model
        self.body_pooler = _pooler(model.base_model) if own_pooler else None
        self.model = None if self.bare else on_encoder(model, Replay(model.config, None))

    def forward(self, states: Tensor, pooler_output: Tensor | None, inputs: Inputs) -> Any:
        """Returns the head's output for hidden states [b, t, d]; of a body without a head the states as they are."""
        output = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooler_output)
        if self.body_pooler is not None:
            output = pooled(self.body_pooler, None, output)
        if self.model is None:
            return output
        getattr(self.model, self.model.base_model_prefix).output = output
        return self.model(**inputs)

    def answer(self, states: Tensor, pooler_output: Tensor | None, inputs: Inputs) -> Tensor:
        """Returns the logits: [b, C], [b, t, C] for tokens, [b, t, 2] for the two ends of an answer."""
        output = self(states, pooler_output, inputs)
        if getattr(output, "start_logits", None) is not None:
            return torch.stack((output.start_logits, output.end_logits), -1).float()
        logits: Tensor = output.logits
        return logits.float()

    def features(self, states: Tensor, pooler_output: Tensor | None, inputs: Inputs) -> Tensor:
        """Returns what the head's first linear layer reads: [b, d], or [b, t, d] where it reads every token."""
        seen: list[Tensor] = []
        first = self.first_linear(states, pooler_output, inputs, seen)
        return (states if first is None else seen[0]).float()

    def first_linear(
        self, states: Tensor, pooler_output: Tensor | None, inputs: Inputs, seen: list[Tensor] | None = None
    ) -> nn.Linear | None:
        """Returns the linear layer that reads the encoder's states, None without one; `seen` receives its input."""
        called: list[nn.Linear] = []

        def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if not called and seen is not None:
                seen.append(arguments[0])
            called.append(module)  # type: ignore[arg-type]

        handles = [m.register_forward_pre_hook(note) for m in self.modules() if isinstance(m, nn.Linear)]
        try:
            self(states, pooler_output, inputs)
        finally:
            for handle in handles:
                handle.remove()
        return called[0] if called else None

    def train(self, mode: bool = True) -> Head:  # noqa: ARG002 (a head is never trained with dropout)
        """Stays in evaluation mode."""
        super().train(False)
        return self


class _PoolerOf(nn.Module):
    """A body's pooler and what is applied with it, without the body."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.pooler = body.pooler
        if getattr(body, "pooler_activation", None) is not None:
            self.pooler_activation = body.pooler_activation


def _pooler(body: nn.Module) -> nn.Module | None:
    return _PoolerOf(body) if getattr(body, "pooler", None) is not None else None


class MultiTask(nn.Module):
    """An encoder with a head per source; several sources may share one head.

    Attributes:
        encoder: what is trained.
        heads: the heads.
        places: for each source the index of its head.
    """

    def __init__(
        self, encoder: PreTrainedModel, heads: Sequence[Head], places: Sequence[int], *, own_pooler: bool
    ) -> None:
        """Keeps an encoder and heads, which are not copied."""
        super().__init__()
        self.encoder = without_pooler(encoder) if own_pooler else encoder
        self.heads = nn.ModuleList(heads)
        self.places = tuple(places)

    def forward(self, source: Tensor, hidden: bool = False, **inputs: Tensor) -> dict[int, Tensor]:
        """Returns for each source in a batch what its head says of its texts, from one pass of the encoder.

        Args:
            source: for each text the index of its source, [b].
            hidden: what the heads read, instead of logits.
            inputs: the encoder's inputs, [b, t].
        """
        output = self.encoder(**inputs)
        states, summary = output.last_hidden_state, getattr(output, "pooler_output", None)
        found = {}
        for index in source.unique().tolist():
            rows = source == index
            head: Any = self.heads[self.places[index]]
            say = head.features if hidden or head.bare else head.answer
            own = {name: tensor[rows] for name, tensor in inputs.items()}
            found[index] = say(states[rows], None if summary is None else summary[rows], own)
        return found


def has_own_pooler(model: PreTrainedModel, encoder: nn.Module) -> bool:
    """Returns whether a task's model keeps a pooler of its own beside an encoder that it shares."""
    pooler = getattr(model.base_model, "pooler", None)
    return pooler is not None and pooler is not getattr(encoder, "pooler", None)


def without_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """Returns a shallow copy of an encoder that leaves pooling to the heads."""
    if getattr(encoder, "pooler", None) is None:
        return encoder
    copied = copy.copy(encoder)
    copied._modules = {**encoder._modules, "pooler": None}
    return copied
