"""How strongly what fine-tuning changed in a teacher answers to each text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plait import progress
from plait.checkpoints.checkpoint import Checkpoint
from plait.data import Examples, Texts, collate, encode, length_limit, plan
from plait.errors import SourceError
from plait.teachers.extras import Beside, Reader, encoder, kept_beside
from plait.teachers.store import Store

TINY = 1e-12
STRANGE = 1.0
"""How far weights are from those of another encoder, in shares of their length; fine-tuning moves them much less."""
PASSES = 2
"""Forward passes that it costs: one through the base, and as many products again with what has changed."""


def update_response(  # noqa: PLR0917 - as `base_states`, and the teacher
    store: Store, texts: Texts, teacher: Checkpoint, base: Checkpoint, max_length: int, batch_size: int = 64
) -> Beside:
    """Returns per text and linear layer of the encoder how much of a layer's output fine-tuning has changed, [n, l].

    r_l(x) = mean_t log(‖(W_l − W_l,0) a_t‖² / ‖W_l,0 a_t‖²),  a_t what the layer reads at token t in the base

    Layers that fine-tuning left alone are left out. One pass of the base, and one product more in each layer.

    Args:
        store: of these texts; the responses stay in it.
        texts: the texts.
        teacher: a fine-tuned encoder.
        base: what it was fine-tuned from.
        max_length: tokens that are read of each text.
        batch_size: texts at a time.

    Raises:
        DataError: a damaged shard, or texts that have changed.
        SourceError: the two are not of one kind, or no layer has changed.
    """
    facts = {"teacher": teacher.digest, "base": base.digest, "max_length": max_length}

    @contextmanager
    def opened() -> Iterator[Reader]:
        model, tokenizer = encoder(base), teacher.tokenizer()
        updates = _updates(model, teacher, base)
        limit = length_limit(tokenizer, model.config, max_length)

        def read(examples: Examples, tick: progress.Tick) -> Tensor:
            encoded = encode(examples, tokenizer, max_length=limit, config=model.config, labels=False)
            found: dict[int, Tensor] = {}
            with torch.inference_mode(), _watched(model, updates) as seen:
                for rows in plan(encoded, batch_size):
                    batch = collate([encoded.features[row] for row in rows], encoded.padding)
                    inputs = {name: value.to(model.device) for name, value in batch.items()}
                    seen.begin(inputs["attention_mask"])
                    model(**inputs)
                    found.update(zip(rows, seen.values.cpu(), strict=True))
                    tick(len(rows))
            return torch.stack([found[row] for row in range(len(encoded))])

        yield read

    return kept_beside(store, texts, f"update/{teacher.digest[:16]}", facts, opened)


def _updates(model: nn.Module, teacher: Checkpoint, base: Checkpoint) -> dict[str, Tensor]:
    """Returns W − W_0 of each linear layer of the encoder that fine-tuning has changed."""
    found, sizes = {}, []
    for path, module in model.named_modules():
        stored = teacher.body.get(f"{path}.weight")
        if not isinstance(module, nn.Linear) or stored is None:
            continue
        if teacher.header(stored).shape != tuple(module.weight.shape):
            raise SourceError(f"{teacher.name}: {path} has another shape than in {base.origin}: that is not its base")
        update = teacher.read(stored).to(module.weight) - module.weight.detach()
        if bool(update.any()):
            found[path] = update
            sizes.append(float(update.norm() / module.weight.detach().norm().clamp(min=TINY)))
    if not found:
        raise SourceError(f"{teacher.name}: no linear layer differs from {base.origin}; name its base with --base")
    if sorted(sizes)[len(sizes) // 2] > STRANGE:
        raise SourceError(f"{teacher.name}: was not fine-tuned from {base.origin}; name its base with --base")
    return found


@dataclass
class _Seen:
    """What the layers have read of one batch."""

    mask: Tensor = field(default_factory=lambda: torch.empty(0))
    layers: dict[str, Tensor] = field(default_factory=dict)

    def begin(self, mask: Tensor) -> None:
        """Forgets the batch before."""
        self.mask, self.layers = mask, {}

    @property
    def values(self) -> Tensor:
        """Returns the mean over each text's tokens, one column a layer.

        Of a layer that is applied several times the logarithms are added.
        """
        weights = self.mask / self.mask.sum(-1, keepdim=True)
        return torch.stack([(ratio * weights).sum(-1) for ratio in self.layers.values()], -1)


@contextmanager
def _watched(model: nn.Module, updates: Mapping[str, Tensor]) -> Iterator[_Seen]:
    seen = _Seen()
    with ExitStack() as stack:
        for path, update in updates.items():
            hook = _hook(seen, path, update)
            handle = model.get_submodule(path).register_forward_hook(hook)
            stack.callback(handle.remove)
        yield seen


def _hook(seen: _Seen, path: str, update: Tensor) -> Any:
    def measure(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # What reads no token by token (a pooler, tables of positions) has nothing to say of a text's words.
        if inputs[0].shape[:-1] != seen.mask.shape:
            return
        before = output if module.bias is None else output - module.bias
        changed = nn.functional.linear(inputs[0], update)
        ratio = changed.square().sum(-1).clamp(min=TINY) / before.square().sum(-1).clamp(min=TINY)
        seen.layers[path] = seen.layers[path] + ratio.log() if path in seen.layers else ratio.log()

    return measure
