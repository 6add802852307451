"""What an ensemble says of texts, for people: apart from its scores, with which it would not fit into one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from plait.api.ensemble_scores import saved_logits
from plait.api.ensembles import SavedEnsemble
from plait.data.reading import one_text, to_predict


def answers(saved: SavedEnsemble, texts: Any, *, batch_size: int) -> list[Any]:
    """Returns per text a label with its probability, several, a value, or a label for each word."""
    tokens = saved.kind == "token_classification"
    table = columns([one_text(texts)] if isinstance(texts, str) else texts, tokens=tokens)
    examples = replace(to_predict(table).unlabelled(), kind=saved.kind)  # type: ignore[arg-type]
    logits = saved_logits(saved, examples, batch_size=batch_size, max_length=None)
    say = SAYINGS["token" if tokens else saved.problem]
    return [without_members(say(row, saved.labels or ()), saved) for row in logits]


def without_members(said: Any, saved: SavedEnsemble) -> Any:
    """Returns what is said of a text without what one ordinary model cannot tell: how far members agree."""
    if not saved.plain or not isinstance(said, dict):
        return said
    return {name: value for name, value in said.items() if name not in ("agreement", "spread")}


def columns(texts: Any, *, tokens: bool) -> Any:
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


SAYINGS: Mapping[str, Callable[[Tensor, Sequence[str]], Any]] = {
    "single_label_classification": _class,
    "multi_label_classification": _several,
    "regression": _value,
    "token": _words,
}
