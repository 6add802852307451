"""A folder or a Hub id becomes a local folder; only the files that are needed are downloaded."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plait.boundary import reading, usable_name
from plait.errors import SourceError, did_you_mean, first_line

PATIENCE = 5.0
"""Seconds to wait for an answer."""


@contextmanager
def reach_hub() -> Iterator[str | None]:
    """Yields why the Hub cannot be reached, None if it can.

    Inside, the libraries look into their caches alone where it cannot, and their retries are not logged.
    """
    from huggingface_hub import constants

    reason = _obstacle()
    log = logging.getLogger("huggingface_hub")
    level = log.level
    places: list[Any] = [constants]
    if "datasets" in sys.modules:
        places.append(sys.modules["datasets"].config)
    before = [place.HF_HUB_OFFLINE for place in places]
    log.setLevel(logging.ERROR)
    try:
        for place in places if reason else ():
            place.HF_HUB_OFFLINE = True
        yield reason
    finally:
        log.setLevel(level)
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _obstacle() -> str | None:
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # whatever the client of the day raises
        return str(error).partition("\n")[0].strip() or type(error).__name__
    return None


def cache_home() -> Path:
    """Returns where Plait keeps what it has made: `PLAIT_CACHE`, else plait/ in the user's cache folder."""
    if place := os.environ.get("PLAIT_CACHE"):
        return Path(place)
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(home or Path.home() / ".cache") / "plait"
    except RuntimeError:  # a user without a folder: nothing is kept from one boot to the next
        return Path(tempfile.gettempdir()) / f"plait-{os.getuid()}"


VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "spm.model", "tokenizer.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
"""Files that hold a vocabulary: with one of them a folder has a tokenizer."""
TOKENIZER_FILES = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""All files that decide how a tokenizer reads a text."""
_EMBEDDING_FILES = (
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "config_setfit.json",
    "[0-9]_*/config.json", "[0-9]_*/model.safetensors",
)  # fmt: skip
"""What embedding models have beside their encoder."""
_SMALL_FILES = (
    "config.json", "plait.json", "README.md", "adapter_config.json", "generation_config.json", "chat_template.jinja",
    "preprocessor_config.json",
    *TOKENIZER_FILES, *_EMBEDDING_FILES,
)  # fmt: skip


def _weights(name: str) -> list[str]:
    stem, suffix = name.split(".")
    return [name, f"{stem}-*.{suffix}", f"{name}.index.json"]


def locate(
    origin: str | Path, revision: str | None = None, trust_remote_code: bool = False, *, ask_hub: bool = True
) -> Path:
    """Returns the local folder of a checkpoint: the folder itself, or the snapshot of a Hub repository.

    Without `ask_hub`, only a snapshot that was downloaded before.
    """
    if not usable_name(str(origin)):
        raise SourceError(f"{str(origin)[:80]!r}: no name of a folder or Hub id")
    with reading(origin, "no name of a folder or Hub id"):
        path = Path(origin).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix in {".gguf", ".onnx"}):
        return path
    if path.exists():
        raise SourceError(f"{origin}: is a file, expected a checkpoint folder or a Hub id")
    if _looks_local(origin, path):
        raise SourceError(f"{origin}: no such folder{_neighbours(path)}")
    return _download(str(origin), revision, trust_remote_code) if ask_hub else _kept(str(origin), revision)


def _looks_local(origin: str | Path, path: Path) -> bool:
    """Tells paths from Hub ids: these are a `name` or `owner/name` whose owner is no folder here."""
    text = str(origin)
    return (
        isinstance(origin, Path)
        or text.startswith((".", "~", "/"))
        or (os.sep != "/" and os.sep in text)
        or len(path.parts) > 2
        or (len(path.parts) == 2 and path.parent.is_dir())
    )  # fmt: skip


def _neighbours(path: Path) -> str:
    parent = path.parent
    folders = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    return did_you_mean(path.name, folders) if folders else f"; {parent} does not exist either"


def _kept(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    advice = "a record names it, nobody asked for it: download it to have it used"
    with reading(repository, "not here", advice=advice):
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))


def _download(repository: str, revision: str | None, trust_remote_code: bool) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    where = f"{repository} at revision {revision}" if revision else repository
    with reach_hub() as obstacle:
        try:
            return _snapshot(repository, revision, trust_remote_code)
        except HFValidationError:
            raise SourceError(
                f"{repository!r}: neither a folder here nor a Hub id (owner/name); check its spelling"
            ) from None
        except (HfHubHTTPError, OSError, ValueError) as error:
            if obstacle:
                raise SourceError(
                    f"{where}: no such folder here, and the Hub cannot be reached ({obstacle})"
                ) from None
            raise SourceError(
                f"{where}: no such folder here, and the Hub did not give it ({first_line(error)}); "
                "check the name and, for private models, `hf auth login`"
            ) from None


def _snapshot(repository: str, revision: str | None, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download

    code = ["*.py"] if trust_remote_code else []
    wanted = [*_SMALL_FILES, *_weights(SAFETENSORS), "adapter_model.safetensors", *code]
    folder = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    if not any(folder.glob("*.safetensors")):
        # Only then is the pickle worth its bytes.
        pickles = [*_weights(PICKLE), "adapter_model.bin"]
        snapshot_download(repository, revision=revision, allow_patterns=pickles)
    return folder


SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
