"""Files that say whether they are what was written: tensors, and whole folders, with checksums."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plait.boundary import load_json, parse_json
from plait.checkpoints.output import sync_file, sync_folder, whole_file, write_whole
from plait.errors import PlaitError, first_line
from plait.tensors import checksum

logger = logging.getLogger("plait")
METADATA = "plait"
SEAL = "sealed.json"
"""The file of a sealed folder that says what the others are."""
BLOCK = 2**22


def write_sealed(file: Path, tensors: Mapping[str, Tensor], facts: Any = None) -> None:
    """Writes tensors, and facts as JSON, with a checksum; the file is there whole or not at all."""
    whole, seen = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        # The format has no two names for one piece of memory.
        whole[name] = value.clone() if value.untyped_storage().data_ptr() in seen else value
        seen.add(value.untyped_storage().data_ptr())
    told = json.dumps(facts)
    record = {"facts": told, "checksum": checksum(whole), "facts_checksum": xxhash.xxh3_128_hexdigest(told.encode())}
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        save_file(whole, partial, {METADATA: json.dumps(record)})


def read_sealed(file: Path) -> tuple[dict[str, Tensor], Any] | None:
    """Returns what `write_sealed` wrote; None where there is no such file, or a damaged one, of which it warns."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as handle:
            record = parse_json((handle.metadata() or {})[METADATA], file)
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
        whole = record["checksum"] == checksum(tensors)
        told = record["facts"]
        if whole and record["facts_checksum"] == xxhash.xxh3_128_hexdigest(told.encode()):
            return tensors, json.loads(told)
        why = "its content is not what was written"
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, PlaitError) as error:
        why = first_line(error)
    logger.warning("%s is damaged (%s): what it holds is computed again", file, why)
    return None


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes into a folder what its files are; from now on it counts as whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:
        sync_file(path)
    record = {"files": {str(path.relative_to(folder)): digest(path) for path in files}, "facts": dict(facts)}
    content = json.dumps(record, sort_keys=True)
    write_whole(folder / SEAL, json.dumps({"record": content, "checksum": _of_text(content)}).encode())
    sync_folder(folder.parent)


def sealed_facts(folder: Path) -> dict[str, Any]:
    """Returns the facts of a folder that was sealed.

    Raises:
        ValueError: it was not, or it is not any more what it was then; says which file.
    """
    try:
        if not (folder / SEAL).exists():
            raise ValueError(f"it has no {SEAL}: a run was stopped while it was saved")
        sealed = load_json(folder / SEAL, dict)
        content = sealed["record"]
        if sealed["checksum"] != _of_text(content):
            raise ValueError(f"{SEAL} is not what was written")
        record = parse_json(content, folder / SEAL)
    except (OSError, KeyError, TypeError, AttributeError, PlaitError) as error:
        raise ValueError(f"{SEAL} cannot be read: {first_line(error)}") from None
    for name, wanted in record["files"].items():
        path = folder / name
        if not path.is_file() or digest(path) != wanted:
            raise ValueError(f"{name} is {'not what was written' if path.exists() else 'missing'}")
    return dict(record["facts"])


def digest(path: Path) -> str:
    """Returns a hash over the bytes of a file."""
    total = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total.update(block)
    return total.hexdigest()


def _of_text(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())
