"""A merge in forward order, from a plan: apart from writing.py because it alone needs models and texts in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plait.api.planning import Plan
from plait.checkpoints.source import Checkpoint
from plait.data import collate, encode, plan
from plait.merging import parts
from plait.merging.forward import ForwardMerge


def merge_forward(job: Plan, state: Path) -> dict[str, Tensor]:
    """Returns the merged parameters of the encoder, in float32; finished layers are kept in `state`.

    Raises:
        MergeError: an encoder without a single forward order, or a result that is not finite.
    """
    weights = job.recipe.weights()
    merge = ForwardMerge(
        [parts.body(source) for source in job.sources],
        job.rule,
        torch.ones(len(job.sources)) if weights is None else torch.tensor(weights),
        job.method.options,
        [batches_of(job, source) for source in job.sources],
        state / "layers",
    )
    body = job.sources[0].model(dtype=torch.float32).base_model
    donor = copy.deepcopy(body) if merge.calibrating else None
    return merge.run(cast(PreTrainedModel, body), cast("PreTrainedModel | None", donor))


def batches_of(job: Plan, source: Checkpoint) -> list[dict[str, Tensor]]:
    """Returns a source's texts as inputs of its encoder, similar lengths together."""
    examples = job.inputs.examples[source.name].unlabelled()
    encoded = encode(
        examples, source.tokenizer(), max_length=job.method.max_length, config=source.config, labels=False
    )
    return [
        collate([encoded.features[row] for row in rows], encoded.padding)
        for rows in plan(encoded, job.method.batch_size)
    ]
