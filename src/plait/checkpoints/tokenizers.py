"""The tokenizer that lies in a folder: whether there is one, opening it, and whether the embeddings have its ids."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from plait.boundary import reading
from plait.checkpoints.headers import read_json
from plait.errors import SourceError
from plait.hub import TOKENIZER_FILES, VOCABULARIES

PREPROCESSOR = "preprocessor_config.json"
FILES = (
    *TOKENIZER_FILES, "chat_template.jinja", "chat_template.json", "vocab.bpe", "bpe.codes", "dict.txt", "source.spm",
    "target.spm", "spm_char.model", PREPROCESSOR,
)  # fmt: skip
"""What a tokenizer may consist of, and the settings of an image processor."""
_OF_LOADING = {
    "name_or_path", "local_files_only", "is_local", "trust_remote_code", "_from_auto", "backend", "model_max_length",
}  # fmt: skip


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def tokenizer_files(folder: Path) -> list[Path]:
    """Returns the files of a folder's tokenizer."""
    return [folder / name for name in FILES if (folder / name).is_file()]


def copy_tokenizer(origin: Path, folder: Path) -> None:
    """Copies a tokenizer byte for byte: what opened it before opens it again, whatever its version."""
    for file in tokenizer_files(origin):
        shutil.copyfile(file, folder / file.name)


def keep_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer into a folder, as the files it was opened from where it is what they hold.

    Another length limit is written over theirs.
    """
    origin = Path(tokenizer.name_or_path)
    found = _again(tokenizer, origin) if origin.is_dir() and has_tokenizer(origin) else None
    if found is None or _facts(tokenizer) != _facts(found):
        tokenizer.save_pretrained(folder)
        return
    copy_tokenizer(origin, folder)
    if tokenizer.model_max_length != found.model_max_length:
        file = folder / "tokenizer_config.json"
        content = read_json(file) if file.is_file() else {}
        content["model_max_length"] = tokenizer.model_max_length
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _again(tokenizer: PreTrainedTokenizerBase, origin: Path) -> PreTrainedTokenizerBase | None:
    try:
        found: PreTrainedTokenizerBase = type(tokenizer).from_pretrained(
            origin, local_files_only=True, trust_remote_code=False
        )
    except Exception:  # what cannot be opened like this, such as code of its own, is written anew
        return None
    return found


def _facts(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Returns what tells tokenizers apart; truncation and padding are set by each call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    stages = {} if backend is None else json.loads(backend.to_str())
    stages.pop("truncation", None)
    stages.pop("padding", None)
    said = {key: str(value) for key, value in tokenizer.init_kwargs.items() if key not in _OF_LOADING}
    specials = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    sides = (tokenizer.padding_side, tokenizer.truncation_side)
    return type(tokenizer), stages, said, specials, sides, tokenizer.get_vocab()


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


@dataclass(frozen=True)
class Opened:
    """A tokenizer that several use one after the other, with the settings of its files.

    Who encodes texts leaves truncation and padding behind in it, which would be saved with it.
    """

    tokenizer: PreTrainedTokenizerBase
    longest: int
    truncation: Mapping[str, Any] | None
    padding: Mapping[str, Any] | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Opened:
        """Returns a tokenizer just opened with the settings that it has now."""
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        truncation, padding = (getattr(backend, name, None) for name in ("truncation", "padding"))
        return cls(tokenizer, tokenizer.model_max_length, truncation, padding)

    def as_opened(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer with the settings of its files."""
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        self.tokenizer.model_max_length = self.longest
        if backend is None:
            return self.tokenizer
        backend.no_truncation() if self.truncation is None else backend.enable_truncation(**self.truncation)
        backend.no_padding() if self.padding is None else backend.enable_padding(**self.padding)
        return self.tokenizer


def prefix_space(tokenizer: PreTrainedTokenizerBase) -> bool | None:
    """Returns whether a tokenizer puts a space before a text's first word; None for one that has no such setting."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    stage = {} if backend is None else json.loads(backend.to_str())["pre_tokenizer"]
    return next((bool(part[_SPACE]) for part in _spacing(stage)), None)


def without_prefix_space(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Returns a copy of a tokenizer that puts no space before a text's first word."""
    copied: Any = copy.deepcopy(tokenizer)
    stages = json.loads(copied.backend_tokenizer.to_str())
    for part in _spacing([stages["pre_tokenizer"], stages["post_processor"]]):
        part[_SPACE] = False
    copied._tokenizer = type(copied.backend_tokenizer).from_str(json.dumps(stages))
    found: PreTrainedTokenizerBase = copied
    return found


_SPACE = "add_prefix_space"


def _spacing(stage: Any) -> Iterator[dict[str, Any]]:
    """Yields the parts of a stage that say whether a space comes first; stages may consist of others."""
    if isinstance(stage, dict):
        if _SPACE in stage:
            yield stage
        stage = list(stage.values())
    for part in stage if isinstance(stage, list) else ():
        yield from _spacing(part)


def misfit(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> str | None:
    """Returns how the tokenizer's ids exceed the embeddings, or None where each id has a row."""
    highest, rows = max(tokenizer.get_vocab().values(), default=-1), getattr(config, "vocab_size", None)
    if rows is None or highest < rows:
        return None
    return f"has ids up to {highest}, its embeddings only {rows} rows"


@contextmanager
def reading_up_to(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Iterator[None]:
    """Lets a tokenizer read texts of `max_length` tokens, though it records a shorter limit: that of its training."""
    recorded = getattr(tokenizer, "model_max_length", None)
    if recorded is None:  # an image processor
        yield
        return
    tokenizer.model_max_length = max(recorded, max_length or 0)
    try:
        yield
    finally:
        tokenizer.model_max_length = recorded


def limits(folders: Iterable[Path]) -> list[int]:
    """Returns the lengths that tokenizers record as their limits, where they do: a huge number stands for none."""
    files = [folder / "tokenizer_config.json" for folder in folders]
    found = [read_json(file).get("model_max_length") for file in files if file.is_file()]
    return [int(limit) for limit in found if isinstance(limit, int | float) and limit < 2**31]
