"""Predictions of a merged checkpoint: one encoder pass over the texts, then every task's head."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.checkpoints.answering import answering, check_answers
from plait.data import Examples, collate, encode, length_limit, plan
from plait.data.answers import best_answers
from plait.data.batching import UNKNOWN, padding_for, without_padding
from plait.data.pictures import Picture, picture
from plait.data.reading import one_text
from plait.errors import DataError
from plait.evaluation.embedding import embeddings
from plait.progress import track
from plait.reports.record import Task

if TYPE_CHECKING:
    from plait.merging.merged import Merged

logger = logging.getLogger("plait")
Prediction = Any
Logits = tuple[Tensor, ...]


def predict(
    merged: Merged,
    texts: Any,
    *,
    task: str | None,
    batch_size: int,
    max_length: int | None,
    unanswerable: bool = False,
) -> Any:
    """Returns predictions in the order of the texts; see `Merged.predict`."""
    if merged.reads_images:
        return of_images(merged, task, texts, batch_size)
    firsts, seconds = split_pairs([one_text(texts)] if isinstance(texts, str) else texts)
    if merged.embeds:
        return embedded(merged, task, firsts, seconds, batch_size=batch_size, max_length=max_length)
    names = answerable(merged, task, paired=seconds is not None)
    results: dict[str, list[Prediction]] = {}
    for together in read_alike(merged, names):
        options: dict[str, Any] = {"max_length": max_length, "unanswerable": unanswerable}
        results |= predict_together(merged, together, firsts, seconds, batch_size=batch_size, **options)
    return {name: results[name] for name in names} if task is None else results[task]


def embedded(
    merged: Merged, task: str | None, texts: list[str], seconds: list[str] | None, **settings: Any
) -> Any:
    """Returns the embeddings of texts as an array, which are the same for all tasks.

    Raises:
        DataError: pairs, of which each text has an embedding of its own.
    """
    names = merged.tasks if task is None else (merged.about(task).name,)
    if seconds is not None:
        raise DataError("pairs: an embedding model reads single texts; give the texts of a pair one after the other")
    found = embeddings(merged.embedder, merged.tokenizer, texts, **settings).numpy()
    return dict.fromkeys(names, found) if task is None else found


def of_images(merged: Merged, task: str | None, images: Any, batch_size: int) -> Any:
    """Returns predictions for images: files, bytes or pictures in memory, one or several.

    Raises:
        DataError: something that is no image, or a task without a head.
    """
    alone = isinstance(images, str | Path | Picture) or not isinstance(images, Iterable)
    given = [images] if alone else list(images)
    pictures = [picture(one) for one in given]
    odd = [f"image {at} is {given[at]!r:.60}" for at, one in enumerate(pictures) if one is None]
    if odd or not pictures:
        said = odd[0] if odd else "no image to predict on"
        raise DataError(f"{said}: expected files such as cat.png, or PIL images")
    names = answerable(merged, task, paired=False)
    table = encode(Examples(tuple(pictures), kind="image_classification"), merged.tokenizer, labels=False)
    results: dict[str, list[Prediction]] = {name: [] for name in names}
    for rows in track(plan(table, batch_size), "predict"):
        with torch.inference_mode():
            outputs = forward(merged, names, table.collate([table.features[row] for row in rows]))
        for name in names:
            about = merged.about(name)
            results[name] += DECODERS[about.kind](about, outputs[name], None)
    return results if task is None else results[task]


def read_alike(merged: Merged, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the tasks in groups that read texts with one tokenizer, so that one encoder pass serves each group."""
    groups: dict[int, tuple[str, ...]] = {}
    for name in names:
        key = id(merged.tokenizer_of(name))
        groups[key] = (*groups.get(key, ()), name)
    return list(groups.values())


def predict_together(
    merged: Merged,
    names: tuple[str, ...],
    firsts: list[str],
    seconds: list[str] | None,
    *,
    batch_size: int,
    max_length: int | None,
    unanswerable: bool,
) -> dict[str, list[Prediction]]:
    """Returns the predictions of tasks that read texts alike."""
    asked = tuple(name for name in names if merged.about(name).kind == "question_answering")
    tokenizer = merged.tokenizer_of(names[0])
    questions = Questions(merged, tokenizer, asked, firsts, seconds, max_length) if asked and seconds else None
    results: dict[str, list[Prediction]] = {name: [None] * len(firsts) for name in names}
    # Questions alone need no pass beside that over their windows.
    passes = encoded(merged, tokenizer, firsts, seconds, batch_size, max_length) if names != asked else ()
    for rows, encoding in track(passes, "predict"):
        with torch.inference_mode():
            outputs = forward(merged, names, encoding.tensors)
        for name in names:
            about = merged.about(name)
            if questions is not None and name in asked:
                questions.note(name, rows, outputs[name], encoding)
                continue
            for row, prediction in zip(
                rows, DECODERS[about.kind](about, outputs[name], encoding), strict=True
            ):
                results[name][row] = prediction
    if questions is not None:
        results |= questions.answers(batch_size, unanswerable=unanswerable)
    return results


def split_pairs(texts: Sequence[Any]) -> tuple[list[str], list[str] | None]:
    """Returns texts and their pairs (None when there are none).

    Raises:
        DataError: no text, something that is neither a text nor a pair, or a mixture.
    """
    every = list(texts)
    if not every:
        raise DataError("no text to predict on: expected a text, a list of texts or of (text, text_pair)")
    if all(isinstance(t, str) for t in every):
        return every, None
    if all(isinstance(t, tuple | list) and len(t) == 2 and all(isinstance(p, str) for p in t) for t in every):
        return [t[0] for t in every], [t[1] for t in every]
    odd = next(i for i, t in enumerate(every) if not isinstance(t, str))
    raise DataError(f"text {odd} is {every[odd]!r}: expected all texts, or all (text, text_pair)")


def answerable(merged: Merged, task: str | None, *, paired: bool) -> tuple[str, ...]:
    """Returns the tasks to compute: the one asked for, else all that these texts can be asked.

    Raises:
        DataError: a question-answering task asked about single texts, or a task without a head.
    """
    if merged.language is not None:
        auto = "AutoModelForCausalLM" if merged.language == "causal" else "AutoModelForSeq2SeqLM"
        raise DataError(
            f"{merged.folder} is a language model, which writes texts instead of labelling them: open it by "
            f"transformers.{auto}.from_pretrained and use its generate"
        )
    names = merged.tasks if task is None else (task,)
    kinds = {name: merged.about(name).kind for name in names}
    refused = {n: k for n, k in kinds.items() if k == "body" or (k == "question_answering" and not paired)}
    for name, kind in refused.items():
        why = "has no head" if kind == "body" else "needs pairs (question, context)"
        if task is not None:
            raise DataError(f"task {name!r} {why}, so it cannot predict on these texts")
        logger.warning("task %s %s: left out", name, why)
    if len(refused) == len(names):
        raise DataError(f"none of the tasks {', '.join(names)} can predict on these texts")
    return tuple(name for name in names if name not in refused)


class Encoded:
    """One tokenised batch: tensors for the model, and the tokenizer's own view for words and offsets."""

    def __init__(
        self, encoding: Any, texts: Sequence[str], pairs: Sequence[str] | None, tensors: dict[str, Tensor]
    ) -> None:
        """Keeps the encoding beside the texts it came from."""
        self.encoding = encoding
        self.texts = texts
        self.pairs = pairs
        self.tensors: dict[str, Tensor] = tensors


def encoded(  # noqa: PLR0917 - the texts, and how they are read
    merged: Merged,
    tokenizer: Any,
    texts: list[str],
    pairs: list[str] | None,
    batch_size: int,
    max_length: int | None,
) -> Iterator[tuple[list[int], Encoded]]:
    """Yields row numbers and their tokenised batch, similar lengths together so that little is padding."""
    config = merged.encoder.config
    longest = length_limit(tokenizer, config, max_length)
    padding = padding_for(tokenizer, config)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]) + (len(pairs[i]) if pairs else 0))
    # Where nothing can pad, texts go one by one: what is said of one does not depend on its company.
    size = 1 if without_padding(config) or padding["input_ids"] == UNKNOWN else batch_size
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        firsts = [texts[i] for i in rows]
        seconds = [pairs[i] for i in rows] if pairs else None
        table = tokenizer(firsts, seconds, truncation=True, max_length=longest)
        names = [name for name in table if name in padding]
        features = [dict(zip(names, row, strict=True)) for row in zip(*(table[n] for n in names), strict=True)]
        yield rows, Encoded(table, firsts, seconds, collate(features, padding))


class Questions:
    """Questions about contexts, which may need several windows, with the logits found so far."""

    def __init__(  # noqa: PLR0917 - the texts, and how they are read
        self,
        merged: Merged,
        tokenizer: Any,
        names: tuple[str, ...],
        questions: Sequence[str],
        contexts: Sequence[str],
        max_length: int | None,
    ) -> None:
        """Tokenises as for training and evaluation: the context in windows that overlap."""
        self.merged = merged
        self.names = names
        self.examples = Examples(tuple(questions), tuple(contexts), kind="question_answering")
        self.windows = encode(self.examples, tokenizer, max_length=max_length, config=merged.encoder.config)
        self.logits: dict[str, dict[int, Logits]] = {name: {} for name in names}

    def note(self, name: str, rows: Sequence[int], output: Any, encoding: Encoded) -> None:
        """Keeps a task's logits of contexts that are one window, in a pass that all tasks share."""
        for at, row in enumerate(rows):
            window = bisect_left(self.windows.rows, row)
            ids = self.windows.features[window]["input_ids"]
            if encoding.tensors["attention_mask"][at].sum() == len(ids) and (
                encoding.tensors["input_ids"][at, : len(ids)].tolist() == ids
                and self.windows.rows.count(row) == 1
            ):
                self.logits[name][window] = logits_of(output, at, len(ids))

    def answers(self, batch_size: int, *, unanswerable: bool) -> dict[str, list[Prediction]]:
        """Returns each task's answers, after a pass over the windows that are left."""
        left = {w for w in range(len(self.windows)) if any(w not in self.logits[n] for n in self.names)}
        batches = [[w for w in rows if w in left] for rows in plan(self.windows, batch_size)]
        for rows in track([rows for rows in batches if rows], "predict"):
            self._fill(rows)
        results = {}
        for name, found in self.logits.items():
            table = [found[window] for window in range(len(self.windows))]
            outputs = {"start_logits": [row[0] for row in table], "end_logits": [row[1] for row in table]}
            best = best_answers(self.examples, self.windows, outputs, unanswerable=unanswerable)
            results[name] = [
                {"answer": a.text, "start": a.start, "end": a.end, "score": a.score} for a in best
            ]
        return results

    def _fill(self, windows: Sequence[int]) -> None:
        features = [self.windows.features[window] for window in windows]
        with torch.inference_mode():
            outputs = forward(self.merged, self.names, self.windows.collate(features))
        for name in self.names:
            for at, window in enumerate(windows):
                length = len(features[at]["input_ids"])
                self.logits[name][window] = logits_of(outputs[name], at, length)


def logits_of(output: Any, row: int, length: int) -> Logits:
    """Returns one row's start and end logits without those of the padding."""
    return tuple(table[row, :length].float().cpu() for table in (output.start_logits, output.end_logits))


def forward(merged: Merged, names: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns each task's output; with several tasks the encoder runs once."""
    device = merged.encoder.device
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    with answering(merged.encoder):
        if len(names) == 1:
            found = {names[0]: nn.Module.to(merged.task(names[0]), device)(**tensors)}
        else:
            models = merged.replayed(merged.encoder(**tensors))
            found = {name: nn.Module.to(models[name], device)(**tensors) for name in names}
    for outputs in found.values():
        check_answers(merged.encoder, {name: outputs[name] for name in outputs if name.endswith("logits")})
    return found


def decode_sequence(about: Task, output: Any, _: Encoded | None) -> list[Prediction]:
    """Returns one prediction a text for a sequence classification head."""
    logits: Tensor = output.logits.float()
    if about.problem_type == "regression" or about.labels is None:
        values = logits.squeeze(-1).tolist()
        return [{"value": value} for value in values]
    labels = about.labels
    if about.problem_type == "multi_label_classification":
        every = logits.sigmoid().tolist()
        return [
            {
                "labels": [label for label, p in zip(labels, row, strict=True) if p > 0.5],
                "scores": dict(zip(labels, row, strict=True)),
            }
            for row in every
        ]
    return [best(labels, row) for row in logits.softmax(-1).tolist()]


def best(labels: Sequence[str], row: Sequence[float]) -> dict[str, Any]:
    """Returns the likeliest label with its probability, and all probabilities."""
    winner = max(range(len(row)), key=row.__getitem__)
    return {"label": labels[winner], "score": row[winner], "scores": dict(zip(labels, row, strict=True))}


def decode_tokens(about: Task, output: Any, encoded: Encoded) -> list[Prediction]:
    """Returns a list of words with labels for each text: a word takes the label of its first token."""
    probabilities = output.logits.float().softmax(-1).tolist()
    labels = about.labels or ()
    results = []
    for row, text in enumerate(encoded.texts):
        words: list[dict[str, Any]] = []
        seen: set[int] = set()
        for position, word in enumerate(encoded.encoding.word_ids(row)):
            if word is None or word in seen or encoded.encoding.sequence_ids(row)[position] != 0:
                continue
            seen.add(word)
            # Some tokenizers count the space before a word as part of it.
            span = encoded.encoding.word_to_chars(row, word, 0)
            found = best(labels, probabilities[row][position])
            words.append(
                {
                    "word": text[span.start : span.end].strip(),
                    "label": found["label"],
                    "score": found["score"],
                }
            )
        results.append(words)
    return results


DECODERS: dict[str, Callable[[Task, Any, Any], list[Prediction]]] = {
    "sequence_classification": decode_sequence,
    "token_classification": decode_tokens,
    "image_classification": decode_sequence,
}
