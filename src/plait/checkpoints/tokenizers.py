"""The tokenizer that lies in a folder: whether there is one, opening it, and whether the embeddings have its ids."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from plait.boundary import reading
from plait.checkpoints.origin import VOCABULARIES
from plait.errors import SourceError


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def open_tokenizer(
    folder: Path, name: str, *, trust_remote_code: bool = False, **options: Any
) -> PreTrainedTokenizerBase:
    """Returns the tokenizer saved in a folder.

    Args:
        folder: of a checkpoint.
        name: what messages call the checkpoint.
        trust_remote_code: whether code that the checkpoint carries may run.
        options: go to `from_pretrained`.

    Raises:
        SourceError: there is none, or a damaged one.
    """
    if not has_tokenizer(folder):
        # transformers would make up an empty vocabulary here
        raise SourceError(f"{name}: no tokenizer in {folder}; expected tokenizer.json or a vocabulary")
    with reading(name, f"tokenizer in {folder} does not load"):
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True, **options
        )
        _try(found)
    return found


def _try(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ValueError`, or what the library raises, for a tokenizer that opens but does not work."""
    longest: Any = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not 1 <= longest < math.inf:
        raise ValueError(f"model_max_length is {longest!r}, expected a whole number above 0")
    tokenizer.model_max_length = int(longest)
    json.dumps(tokenizer.init_kwargs, ensure_ascii=False, default=str).encode()  # half a character cannot be saved
    tokenizer("a \u4e00", "\U0001f642")  # it may lack the token for what it does not know


def misfit(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> str | None:
    """Returns how the tokenizer's ids exceed the embeddings, or None where each id has a row."""
    highest, rows = max(tokenizer.get_vocab().values(), default=-1), getattr(config, "vocab_size", None)
    if rows is None or highest < rows:
        return None
    return f"has ids up to {highest}, its embeddings only {rows} rows"
