"""What the sources say of texts, computed once; and how far another model's answers are from theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from plait.data import Encoded, Examples, collate, encode, plan
from plait.encoders.modes import accelerated
from plait.merging.refinement.model import Head, MultiTask
from plait.progress import task as progress

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
On = Literal["logits", "hidden"]


class Form(StrEnum):
    """What kind of answer a head gives, which decides how two answers are compared."""

    CLASS = "one label of C per text: KL divergence of the labels"
    LABELS = "C independent labels per text: binary cross-entropy above its least"
    NUMBER = "a number per text: squared difference in variances of the source's numbers"
    TOKENS = "one label of C per token: mean KL divergence over real tokens"
    SPAN = "two ends of an answer: mean KL divergence of both over real tokens"
    HIDDEN = "the states that a head reads: squared difference in variances of the source's states"


@dataclass(frozen=True)
class SourceTexts:
    """A source and the texts that its task is refined on.

    Attributes:
        name: of the source.
        task: whose head it has.
        load: gives its model, in float32.
        tokenizer: gives its tokenizer.
        examples: texts, whose labels play no part.
        rows: the order of its labels in the task's head, None as they are.
        weight: λ.
    """

    name: str
    task: str
    load: Callable[[], PreTrainedModel]
    tokenizer: Callable[[], Any]
    examples: Examples
    rows: tuple[int, ...] | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Answers:
    """What a source says of its texts, one tensor each: [C], [d], [t, C], [t, 2] or [t, d]."""

    name: str
    form: Form
    encoded: Encoded
    said: Sequence[Tensor]
    weight: float = 1.0
    scale: float = field(default=1.0)

    def of(self, rows: Sequence[int], device: torch.device) -> Tensor:
        """Returns the answers on some of the texts, padded with zeros to the longest."""
        return pad_sequence([self.said[row] for row in rows], batch_first=True).to(device)


def form_of(model: PreTrainedModel, on: On) -> Form:
    """Returns the kind of answer that a model gives."""
    name = type(model).__name__
    if on == "hidden" or model.base_model is model:
        return Form.HIDDEN
    if name.endswith("QuestionAnswering"):
        return Form.SPAN
    if name.endswith("TokenClassification"):
        return Form.TOKENS
    problem = model.config.problem_type or ("regression" if model.config.num_labels == 1 else "")
    return {"regression": Form.NUMBER, "multi_label_classification": Form.LABELS}.get(problem, Form.CLASS)


def ask(source: SourceTexts, *, on: On, max_length: int | None, own_pooler: bool) -> Answers:
    """Returns a source's answers on its texts, from one pass of its model."""
    model = source.load().eval()
    texts = source.examples.unlabelled()
    encoded = encode(texts, source.tokenizer(), max_length=max_length, config=model.config, labels=False)
    network = MultiTask(
        model.base_model, [Head(model, own_pooler=own_pooler)], [0], own_pooler=own_pooler
    ).eval()
    form = form_of(model, on)
    said: list[Tensor] = [torch.empty(0)] * len(encoded)
    with (
        torch.inference_mode(),
        accelerated(network) as device,
        progress(f"asking {source.name}", len(encoded)) as tick,
    ):
        for rows, inputs in batched(encoded, device=device):
            [found] = network(source_of(rows, device), hidden=on == "hidden", **inputs).values()
            for row, values in zip(rows, found.cpu(), strict=True):
                said[row] = cut(values, form, len(encoded.features[row]["input_ids"])).clone()
            tick(len(rows))
    if source.rows is not None and form in (Form.CLASS, Form.LABELS, Form.TOKENS):
        said = [values[..., list(source.rows)] for values in said]
    return Answers(source.name, form, encoded, said, source.weight, variance(said, form))


def source_of(rows: Sequence[int], device: torch.device) -> Tensor:
    """Returns zeros: the only source there is."""
    return torch.zeros(len(rows), dtype=torch.long, device=device)


def batched(
    encoded: Encoded, rows: Sequence[int] | None = None, *, device: torch.device, batch_size: int = 32
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yields numbers of features and their inputs, similar lengths together."""
    chosen = list(range(len(encoded))) if rows is None else list(rows)
    part = Encoded(tuple(encoded.features[row] for row in chosen), tuple(chosen), encoded.padding)
    for places in plan(part, batch_size):
        features = [{k: v for k, v in part.features[i].items() if k in INPUTS} for i in places]
        inputs = {name: tensor.to(device) for name, tensor in collate(features, encoded.padding).items()}
        yield [chosen[i] for i in places], inputs


def cut(values: Tensor, form: Form, length: int) -> Tensor:
    """Returns an answer without what was said of padding: [t, …] has a row per token, [C] has none."""
    per_token = form in (Form.TOKENS, Form.SPAN) or (form is Form.HIDDEN and values.dim() == 2)
    return values[:length] if per_token else values


def variance(said: Sequence[Tensor], form: Form) -> float:
    """Returns the variance of answers that are measured in it, over all texts; 1 for the others."""
    if form not in (Form.NUMBER, Form.HIDDEN):
        return 1.0
    table = torch.cat([values.reshape(-1, values.shape[-1]) for values in said]).double()
    return max(float(table.var(0, correction=0).mean()), 1e-12)


def divergence(answers: Answers, said: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Returns for each text how far answers are from the source's, [b]; zero where they are equal.

    Args:
        answers: the source, for the form and scale of its answers.
        said: the answers of the model that learns.
        target: those of the source.
        mask: real tokens, [b, t].
    """
    match answers.form:
        case Form.CLASS:
            return _kl(said, target)
        case Form.LABELS:
            least = F.binary_cross_entropy_with_logits(target, target.sigmoid(), reduction="none")
            found = F.binary_cross_entropy_with_logits(said, target.sigmoid(), reduction="none")
            return (found - least).mean(-1)
        case Form.TOKENS:
            return _masked_mean(_kl(said, target), mask)
        case Form.SPAN:
            out = ~mask.unsqueeze(-1)
            ends = _kl(*(x.masked_fill(out, _NEVER).transpose(1, 2) for x in (said, target)))
            return ends.mean(-1)
    squared = (said - target).square().mean(-1) / answers.scale
    return squared if squared.dim() == 1 else _masked_mean(squared, mask)


def agreement(answers: Answers, said: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Returns for each text the share of its answers that are the source's, [b].

    Labels, tokens and ends of answers are equal or not; for a number it is 1 − the squared difference in variances of
    the source's numbers, at least 0; for states the cosine.
    """
    match answers.form:
        case Form.CLASS:
            return (said.argmax(-1) == target.argmax(-1)).float()
        case Form.LABELS:
            return ((said > 0) == (target > 0)).float().mean(-1)
        case Form.TOKENS:
            return _masked_mean((said.argmax(-1) == target.argmax(-1)).float(), mask)
        case Form.SPAN:
            out = ~mask.unsqueeze(-1)
            ends = [x.masked_fill(out, _NEVER).argmax(1) for x in (said, target)]
            return (ends[0] == ends[1]).float().mean(-1)
        case Form.NUMBER:
            return (1 - divergence(answers, said, target, mask)).clamp(min=0)
    cosine = F.cosine_similarity(said, target, dim=-1)
    return cosine if cosine.dim() == 1 else _masked_mean(cosine, mask)


_NEVER = -1e4


def _kl(said: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(said.log_softmax(-1), target.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(values.dtype)
    return (values * weights).sum(-1) / weights.sum(-1).clamp(min=1)
