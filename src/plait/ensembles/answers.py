"""Members' logits on examples, and the predictions that they become."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.checkpoints.tokenizers import reading_up_to
from plait.data import Examples, ProblemType, length_limit
from plait.data.reading import one_text, to_predict
from plait.ensembles.distillation import columns
from plait.ensembles.divergences import means
from plait.ensembles.fit import Joint
from plait.ensembles.modeling import Ensemble
from plait.ensembles.perturbations.dropout import dropping
from plait.evaluation import predict_logits
from plait.evaluation.scores import recorded_logits
from plait.reports.record import models_from, report_of

if TYPE_CHECKING:
    from plait.ensembles.saved import SavedEnsemble


def answers(saved: SavedEnsemble, texts: Any, *, batch_size: int) -> list[Any]:
    """Returns per text a label with its probability, several, a value, or a label for each word."""
    tokens = saved.kind == "token_classification"
    table = as_columns([one_text(texts)] if isinstance(texts, str) else texts, tokens=tokens)
    examples = replace(to_predict(table).unlabelled(), kind=saved.kind)  # type: ignore[arg-type]
    logits = saved_logits(saved, examples, batch_size=batch_size, max_length=None)
    say = DECODERS["token" if tokens else saved.problem]
    return [without_members(say(row, saved.labels or ()), saved) for row in logits]


def without_members(said: Any, saved: SavedEnsemble) -> Any:
    """Returns what is said of a text without what one ordinary model cannot tell: how far members agree."""
    if not saved.plain or not isinstance(said, dict):
        return said
    return {name: value for name, value in said.items() if name not in ("agreement", "spread")}


def as_columns(texts: Any, *, tokens: bool) -> Any:
    """Returns a list of texts as columns, of words where those are wanted, or of texts and their pairs."""
    if not isinstance(texts, list | tuple):
        return texts
    if tokens:
        return {"tokens": [row.split() if isinstance(row, str) else list(row) for row in texts]}
    if texts and all(isinstance(row, list | tuple) and len(row) == 2 for row in texts):
        return {"text": [row[0] for row in texts], "text_pair": [row[1] for row in texts]}
    return texts


def _class(row: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    best = row.mean(0).softmax(-1).max(-1)
    agree = float((row.argmax(-1) == best.indices).double().mean())
    return {"label": labels[int(best.indices)], "score": float(best.values), "agreement": agree}


def _several(row: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    chances = row.mean(0).sigmoid().tolist()
    return {
        "labels": [name for name, p in zip(labels, chances, strict=True) if p > 0.5],
        "scores": dict(zip(labels, chances, strict=True)),
    }


def _value(row: Tensor, _: Sequence[str]) -> dict[str, Any]:
    return {"value": float(row.mean()), "spread": float(row.std(correction=0))}


def _words(row: Tensor, labels: Sequence[str]) -> list[dict[str, Any] | None]:
    """Returns what each word is; None for one that the length limit cut off."""
    lost = row[0].isneginf().all(-1)
    return [None if lost[word] else _class(row[:, word], labels) for word in range(row.shape[1])]


DECODERS: Mapping[str, Callable[[Tensor, Sequence[str]], Any]] = {
    "single_label_classification": _class,
    "multi_label_classification": _several,
    "regression": _value,
    "token": _words,
}


def member_answers(
    folder: Path, examples: Examples, names: Sequence[str] | None, *, batch_size: int, max_length: int | None
) -> dict[str, Tensor]:
    """Returns the logits [N, C] of the members that taught a model, where they were kept, in the order of its labels.

    Members that are gone or have changed are left out, with a warning; nothing where no members taught it.
    """
    told = models_from(folder, report_of(folder).get("teachers", {}))
    found: dict[str, Tensor] = {}
    for name, about in told.items():
        if about.get("origin") is not None:
            rows = recorded_logits(name, about, examples, batch_size, max_length, False)
            if rows is not None:
                found[name] = rows[:, columns(name, about.get("labels") or None, names)]
    return found


Logits = Sequence[Tensor]
"""Per example the logits of all members: [M, C], or [M, words, C]."""


class Members(nn.Module):
    """Seen as one model whose logits are those of all members, [B, M·C] or [B, T, M·C]: one pass a batch."""

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        asked: Mapping[str, Any] | None = None,
        passes: int | None = None,
        rate: float | None = None,
    ) -> None:
        """Takes a model that gives `member_logits`.

        Args:
            model: The model.
            config: Its encoder's configuration: how long a text may be.
            asked: What its forward pass is told.
            passes: Passes with dropout, each a member.
            rate: Their dropout rate; the model's own by default.
        """
        super().__init__()
        self.model, self.config, self.asked, self.passes, self.rate = model, config, asked or {}, passes, rate

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Returns the logits, members side by side."""
        if self.passes is None:
            members: Tensor = self._once(inputs)
        else:
            self.model.train()
            members = torch.cat([self._once(inputs) for _ in range(self.passes)])
        return {"logits": members.movedim(0, -2).flatten(-2)}

    def _once(self, inputs: dict[str, Tensor]) -> Tensor:
        if not isinstance(self.model, Ensemble | Joint):  # an ordinary model is its only member
            alone: Tensor = self.model(**inputs).logits.unsqueeze(0)
            return alone
        found: Tensor = self.model(**inputs, output_members=True, **self.asked).member_logits
        return found


def member_logits(
    speakers: Iterable[Members],
    tokenizer: Any,
    examples: Examples,
    *,
    labels: int,
    batch_size: int = 32,
    max_length: int | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Returns per example the logits of all members of all models, in order."""
    tables: list[list[Tensor]] = []
    for speaker in speakers:
        drops = nullcontext() if speaker.passes is None else dropping(speaker.model, speaker.rate)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), drops:
            torch.manual_seed(seed)
            told: Any = speaker
            tables.append(
                predict_logits(told, tokenizer, examples, batch_size=batch_size, max_length=max_length)
            )
    split = [[row.unflatten(-1, (-1, labels)).movedim(-2, 0) for row in table] for table in tables]
    return [torch.cat(row) for row in zip(*split, strict=True)]


def member_views(saved: SavedEnsemble) -> Iterable[Members]:
    """Yields a saved ensemble's models, ready to be asked: the one in memory, or several one after another."""
    recipe = saved.report.get("recipe", {})
    rate = recipe.get("perturbation", {}).get("rate")
    for model in saved.models() if len(saved.folders) > 1 else (saved.model,):
        yield Members(model, saved.encoder, passes=saved.passes, rate=rate)


def saved_logits(
    saved: SavedEnsemble, examples: Examples, *, batch_size: int, max_length: int | None
) -> Logits:
    """Returns per example what each member of a saved ensemble says; as long a text as it was trained with."""
    tokenizer = copy.deepcopy(saved.tokenizer)
    trained = saved.report.get("recipe", {}).get("max_length")
    asked = max_length
    if asked is None and trained is not None:
        max_length = length_limit(tokenizer, saved.encoder, trained)
    with reading_up_to(tokenizer, asked):
        return member_logits(
            member_views(saved), tokenizer, examples, labels=saved.outputs,
            batch_size=batch_size, max_length=max_length,
        )  # fmt: skip


def as_logits(table: Tensor, problem: ProblemType) -> Tensor:
    """Returns logits of the mean of what members say: of their probabilities, or of their numbers."""
    if problem == "regression":
        return table.mean(0)
    mean = means(table.double(), problem).mean(0)
    return mean.logit() if problem == "multi_label_classification" else mean.log()
