"""The head that data asks for, and an encoder opened with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from plait.boundary import reading
from plait.checkpoints.answering import answering
from plait.checkpoints.checkpoint import quiet_loading, read_config
from plait.checkpoints.headers import read_headers
from plait.checkpoints.parameter_names import check_size
from plait.checkpoints.tokenizers import Opened, misfit, open_tokenizer
from plait.data import Examples, ProblemType
from plait.data.batching import without_padding
from plait.data.labels import check_complete, names_in, what_was_taken
from plait.encoders.heads import HEADS, Head, model_class
from plait.errors import DataError, SourceError
from plait.hub import locate


def check_labelled(examples: Examples, purpose: str) -> None:
    """Raises `DataError` when there are no examples, or they have no labels to train or validate on."""
    if examples.labels is None:
        raise DataError(examples.lacks_labels(f"expected a label column to {purpose} on"))
    if not len(examples):
        raise DataError(f"{examples.source}: no examples; expected at least one to {purpose} on")
    check_complete(examples)


def head_for(examples: Examples, labels: Sequence[str] | None, problem_type: ProblemType | None) -> Head:
    """Returns the head to train on these examples.

    Raises:
        DataError: When there are no examples, they have no labels, or nothing is to be told apart.
    """
    check_labelled(examples, "train")
    if examples.kind != "sequence_classification":
        return Head(examples.kind, tuple(labels) if labels else names_in(examples), None)
    problem = problem_type or examples.problem_type
    names = None if problem == "regression" else tuple(labels) if labels else names_in(examples, problem)
    found = set(examples.labels or ())
    if problem == "single_label_classification" and len(names or ()) < 2 and len(found) == 1:
        raise DataError(f"{examples.source}: all labels are {found.pop()!r}; a classifier needs two or more")
    if problem_type is None and labels is None and (taken := what_was_taken(examples, names)) is not None:
        logging.getLogger("plait").info("%s: %s", examples.source, taken)
    return Head(examples.kind, names, problem)


@dataclass(frozen=True)
class Encoder:
    """An encoder to start from, as far as it can be known without weights."""

    folder: Path
    config: PreTrainedConfig
    tokenizer: Opened


def check_openable(base: str | Path, revision: str | None, trust_remote_code: bool) -> Encoder:
    """Returns what lies there to start from; reads no weights.

    Raises:
        SourceError: there is no configuration, tokenizer or weights.
    """
    folder = locate(base, revision, trust_remote_code)
    config = read_config(folder, trust_remote_code)
    if not any(file.suffix in {".safetensors", ".bin"} for file in folder.iterdir()):
        raise SourceError(f"{base}: no weights in {folder} (expected model.safetensors)")
    return Encoder(folder, config, Opened.of(_open_tokenizer(base, folder, config, trust_remote_code)))


def _encoder(base: str | Path, revision: str | None, trust_remote_code: bool) -> Encoder:
    folder = locate(base, revision, trust_remote_code)
    config = read_config(folder, trust_remote_code)
    return Encoder(folder, config, Opened.of(_open_tokenizer(base, folder, config, trust_remote_code)))


def _open_tokenizer(
    base: str | Path, folder: Path, config: PreTrainedConfig, trust_remote_code: bool, **options: Any
) -> PreTrainedTokenizerBase:
    """Returns the tokenizer saved with a base whose embeddings have a row for each of its ids."""
    found = open_tokenizer(folder, str(base), config=config, trust_remote_code=trust_remote_code, **options)
    if problem := misfit(found, config):
        raise SourceError(f"{base}: its tokenizer {problem}")
    return found


def open_with(
    base: str | Path,
    head: Head,
    trust_remote_code: bool,
    revision: str | None = None,
    known: Encoder | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns the encoder of `base` with the head, and its tokenizer; `known` is what a check has opened already.

    Raises:
        SourceError: When there is no model or tokenizer that can be opened.
    """
    encoder = known or _encoder(base, revision, trust_remote_code)
    folder, old = encoder.folder, encoder.config
    trust = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    tokenizer = encoder.tokenizer.as_opened()
    if head.kind == "token_classification" and getattr(tokenizer, "add_prefix_space", None) is False:
        # Words that come one by one are not continuations of the word before.
        tokenizer = _open_tokenizer(base, folder, old, trust_remote_code, add_prefix_space=True)
    loading = {"dtype": torch.float32, "ignore_mismatched_sizes": True, **trust}
    with quiet(), reading(base, "cannot be opened as a model to fine-tune"):
        config = AutoConfig.from_pretrained(folder, **trust, **head.settings())
        if not trust_remote_code:
            cls = model_class("", head.kind, config, folder, False)
            check_size(cls, config, read_headers(folder), str(folder), shapes=False)
        model = HEADS[head.kind].from_pretrained(folder, config=config, **loading)
    model.config.return_dict = True
    _give_padding(base, model, tokenizer, head)
    with torch.inference_mode(), answering(model):  # what contradicts itself shows before hours of work
        model(tokenizer("a", return_tensors="pt")["input_ids"])
    return (_renewed(model) if head.differs(old, model) else model), tokenizer


def _give_padding(
    base: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, head: Head
) -> None:
    """Records the tokenizer's pad token with a model that has none and will look for it behind every text."""
    if head.kind != "sequence_classification" or not hasattr(model, "score") or not without_padding(model.config):
        return
    if tokenizer.pad_token_id is None:
        raise SourceError(
            f"{base}: neither its config nor its tokenizer has a pad token, by which a decoder's head finds the last "
            "token of a text; set pad_token_id in config.json (that of the end-of-text token will do)"
        )
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _renewed(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the model with a newly drawn head: an old one of equal shape would be for other labels."""
    fresh: PreTrainedModel = type(model)(model.config).float()
    fresh.base_model.load_state_dict(model.base_model.state_dict())
    return fresh


@contextmanager
def quiet() -> Iterator[None]:
    """Silences bars, and the table of new parameters: a new head is what fine-tuning asks for."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with quiet_loading():
            yield
    finally:
        log.setLevel(level)
