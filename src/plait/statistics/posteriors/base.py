"""What the encoder that was not fine-tuned makes of the texts of a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait import progress
from plait.checkpoints.source import Checkpoint
from plait.data import Examples, Texts, collate, encode, length_limit, plan
from plait.errors import SourceError
from plait.placement import accelerator
from plait.statistics.posteriors.beside import Beside, Reader, kept_beside
from plait.statistics.posteriors.scorer import half, means
from plait.statistics.posteriors.store import Store


def base_states(store: Store, texts: Texts, base: Checkpoint, max_length: int, batch_size: int = 64) -> Beside:
    """Returns per text the mean over the tokens of the base's last hidden state, in half precision.

    The mean, and not the first token: in an encoder without a task the first token stands for nothing.

    Args:
        store: of these texts; the states stay in it.
        texts: the texts.
        base: any encoder; a head that it may have is not asked.
        max_length: tokens that are read of each text.
        batch_size: texts at a time.

    Raises:
        DataError: a damaged shard, or texts that have changed.
        SourceError: states that are not finite.
    """
    facts = {"base": base.digest, "max_length": max_length}

    @contextmanager
    def opened() -> Iterator[Reader]:
        model, tokenizer = encoder(base), base.tokenizer()
        limit = length_limit(tokenizer, model.config, max_length)

        def read(examples: Examples, tick: progress.Tick) -> Tensor:
            encoded = encode(examples, tokenizer, max_length=limit, config=model.config, labels=False)
            found: dict[int, Tensor] = {}
            with torch.inference_mode():
                for rows in plan(encoded, batch_size):
                    batch = collate([encoded.features[row] for row in rows], encoded.padding)
                    inputs = {name: value.to(model.device) for name, value in batch.items()}
                    states = half(means([model(**inputs)[0]], inputs["attention_mask"])[:, 0]).cpu()
                    found.update(zip(rows, states, strict=True))
                    tick(len(rows))
            return _finite(torch.stack([found[row] for row in range(len(encoded))]), base)

        yield read

    return kept_beside(store, texts, f"base/{base.digest[:16]}", facts, opened)


def encoder(checkpoint: Checkpoint) -> PreTrainedModel:
    """Returns a checkpoint's encoder without its head, in memory, in float32, on the accelerator where there is one."""
    found: PreTrainedModel = checkpoint.model(dtype=torch.float32)
    body = found.base_model
    assert isinstance(body, PreTrainedModel)
    nn.Module.to(body, accelerator())
    return body


def _finite(states: Tensor, base: Checkpoint) -> Tensor:
    if not bool(states.isfinite().all()):
        raise SourceError(f"base {base.origin}: gives states that are NaN or Inf; name another with --base")
    return states
