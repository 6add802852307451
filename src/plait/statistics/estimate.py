"""Statistics of a model on batches: runs estimators; apart from cache.py, which decides whether to run them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from plait import processes
from plait.checkpoints.answering import answering
from plait.encoders.heads import language_kind
from plait.errors import DataError
from plait.progress import track
from plait.statistics.backward import Objective, Per, prepared
from plait.statistics.batch import read_batches
from plait.statistics.estimator import ESTIMATORS
from plait.statistics.first_token import skip_zero_gradients
from plait.statistics.importance import Statistics
from plait.statistics.likelihood import IGNORED, Cotangents, Labels


def estimate_statistics(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    estimator: str = "mask_nodes",
    labels: Labels = "given",
    per: Per = "example",
    passes: int = 16,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    total: int | None = None,
) -> Statistics:
    """Returns statistics of a model, averaged over the examples of the batches.

    They do not depend on how examples are batched, padded or ordered. The model is left as it was found: mode,
    `requires_grad`, `grad`, hooks.

    Args:
        model: a model with a task head (`gram` takes a bare body too).
        batches: ordinary inputs of the model with `attention_mask`, and with `labels` (or `start_positions` and
            `end_positions`) for labels `given`; −100 marks labels that do not count. Labels of a language model are
            its tokens themselves, in their places, as transformers takes them; without any, all real tokens count.
        estimator: a name in `ESTIMATORS`.
        labels: `given`, `sampled` from the model, or `exact`: the expectation over the model's distribution.
        per: `example`; or `batch` to square the gradient of each batch's mean loss and add over batches, as the
            authors of mask nodes do. The latter depends on the batch size.
        passes: exact labels take at most so many backward passes per text; beyond, one with random signs.
        seed: of sampled labels and random signs.
        provenance: what to record besides.
        total: how many batches to expect, for the progress bar.
    """
    entry = ESTIMATORS[estimator]
    objective = Objective(Cotangents(labels, passes), per)
    examples = 0
    with prepared(model), skip_zero_gradients(model), closing(entry.function(model, objective)) as running:
        whole = map(partial(with_decoder_inputs, model), track(batches, f"estimating {entry.name}", total))
        # All processes draw the seeds of all texts, and each computes some of the batches.
        for number, batch in enumerate(read_batches(whole, model.device, seed)):
            if number % processes.count() == processes.rank():
                with answering(model):
                    running.see(batch)
            examples += batch.count
        if not examples:
            raise DataError("no examples to estimate from: the data is empty")
        if processes.count() > 1:
            running.pool()
        # Published programs add over batches; an ordinary Fisher is a mean over examples.
        tensors = running.result(examples if per == "example" else 1)
    facts = {"labels": labels, "per": per, "passes": passes, "seed": seed, "examples": examples}
    record = {"estimator": entry.name, **facts, **_described(model), **(provenance or {})}
    return Statistics(entry.name, tensors, record)


def with_decoder_inputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns a batch with what a second stack reads: its labels, one place later, as the model itself does it.

    Raises:
        DataError: a model of targets given texts, and no targets.
    """
    if language_kind(model) != "seq2seq" or "decoder_input_ids" in batch:
        return batch
    if "labels" not in batch:
        raise DataError(f"{type(model).__name__} gives the likelihood of targets: give labels, token by token")
    labels = batch["labels"]
    shift: Any = model.prepare_decoder_input_ids_from_labels
    shifted = shift(labels)
    return {**batch, "decoder_input_ids": shifted, "decoder_attention_mask": (labels != IGNORED).long()}


def _described(model: PreTrainedModel) -> dict[str, Any]:
    """Returns what later steps need to know of the model without having it: see `DESCRIPTION`."""
    prefix = model.base_model_prefix if model.base_model is not model else ""
    start = f"{prefix}." if prefix else ""
    shapes = {name: list(value.shape) for name, value in model.named_parameters()}
    return {
        "architecture": type(model).__name__,
        "prefix": prefix,
        "shapes": {
            name.removeprefix(start): shape for name, shape in shapes.items() if name.startswith(start)
        },
        "head": [name for name in shapes if not name.startswith(start)],
        "config": {
            key: value
            for key, value in model.config.to_diff_dict().items()
            if key not in {"id2label", "label2id", "_name_or_path", "architectures"}
        },
    }
