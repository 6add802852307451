"""Embedding models: an encoder, and what makes one vector of its tokens', as sentence-transformers computes it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""How a text's token vectors become one, in the order in which several are joined."""
PAIR = "pair_"
"""What precedes the names of a pair's second inputs."""


@dataclass(frozen=True)
class Reading:
    """How an embedding model reads a text: what is put before it, and at how many tokens it is cut."""

    prompt: str = ""
    lower: bool = False
    max_length: int | None = None

    def of(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Returns texts as the tokenizer is given them."""
        return tuple(self.prompt + (text.lower() if self.lower else text) for text in texts)


class Pooling(nn.Module):
    """One vector per text, [b, modes × d], of its tokens' [b, t, d]; `skipped` tokens of a prompt may not count."""

    def __init__(self, modes: Sequence[str] = ("mean",), *, with_prompt: bool = True, skipped: int = 0) -> None:
        """Keeps what is known in advance."""
        super().__init__()
        self.modes, self.with_prompt, self.skipped = tuple(modes), with_prompt, skipped

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Returns the vectors; `mask` marks real tokens, which begin at the first place."""
        kept = mask.clone()
        kept[:, : 0 if self.with_prompt else self.skipped] = 0
        weights = kept.unsqueeze(-1).to(states.dtype)
        return torch.cat([_pooled(mode, states, kept, weights) for mode in self.modes], dim=-1)


def _pooled(mode: str, states: Tensor, kept: Tensor, weights: Tensor) -> Tensor:
    rows = torch.arange(len(states), device=states.device)
    if mode == "cls":
        return states[rows, kept.int().argmax(1)]
    if mode == "lasttoken":
        places = torch.arange(kept.shape[1], device=kept.device)
        return states[rows, (kept * places).argmax(1)]
    if mode == "max":
        return states.masked_fill(weights == 0, -torch.inf).amax(1)
    if mode == "weightedmean":
        places = torch.arange(1, kept.shape[1] + 1, device=kept.device, dtype=states.dtype)
        weights = weights * places.unsqueeze(-1)
    total = weights.sum(1).clamp(min=1e-9)
    return (states * weights).sum(1) / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)


class Dense(nn.Module):
    """A linear layer behind the pooling, perhaps with its input added."""

    def __init__(self, linear: nn.Linear, activation: nn.Module, residual: nn.Module | None) -> None:
        """Keeps the layers."""
        super().__init__()
        self.linear, self.activation, self.residual = linear, activation, residual

    def forward(self, x: Tensor) -> Tensor:
        """Returns σ(W x + b), and the input's share where there is one."""
        found: Tensor = self.activation(self.linear(x))
        return found if self.residual is None else found + self.residual(x)


class Normalize(nn.Module):
    """Unit length."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x / ‖x‖₂."""
        return F.normalize(x, p=2, dim=-1)


class Embedder(PreTrainedModel):
    """An encoder with pooling and layers behind it: embeddings of texts, cosines of pairs, as `logits`.

    One text alone is the mean of a Gaussian of variance 1 around its embedding: the Fisher information of that is the
    curvature of the cosine distance to what the model itself says. A pair is the mean of one around the cosine.
    """

    base_model_prefix = "backbone"
    # Attention is the encoder's own, which has chosen it.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(
        self, encoder: PreTrainedModel, pooling: Pooling, behind: Sequence[nn.Module], reading: Reading
    ) -> None:
        """Puts the parts together; the encoder is not copied."""
        config = copy.deepcopy(encoder.config)
        config.problem_type = "regression"
        super().__init__(config)
        self.backbone, self.pooling, self.behind, self.reading = encoder, pooling, nn.ModuleList(behind), reading
        self.eval()

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the embeddings of tokenised texts, [b, d]."""
        states = self.backbone(**inputs).last_hidden_state
        vectors: Tensor = self.pooling(states, inputs["attention_mask"])
        for module in self.behind:
            vectors = module(vectors)
        return vectors

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> SequenceClassifierOutput:
        """Returns embeddings [b, d], or cosines [b, 1] where inputs of a second text are there."""
        firsts = {name: value for name, value in inputs.items() if not name.startswith(PAIR)}
        seconds = {name.removeprefix(PAIR): value for name, value in inputs.items() if name.startswith(PAIR)}
        logits = self.embed(firsts)
        if seconds:
            logits = F.cosine_similarity(logits, self.embed(seconds)).unsqueeze(-1)
        loss = None if labels is None else (logits - labels.reshape(logits.shape)).square().mean() / 2
        return SequenceClassifierOutput(loss=loss, logits=logits)
