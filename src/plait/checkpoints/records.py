"""What a checkpoint records of the base it was fine-tuned from; a hint, never a proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plait.boundary import parse_yaml
from plait.checkpoints.files import read_json
from plait.errors import SourceError

FRONT = 100_000
"""Characters of a card in which its front matter must end."""


def recorded_base(folder: Path) -> str | None:
    """Returns the base named in `plait.json`, the model card or the config, in this order, else None."""
    return _from_provenance(folder) or _from_card(folder / "README.md") or _from_config(folder)


def _text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = next((value[key] for key in ("origin", "path", "name") if value.get(key)), None)
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    return value if isinstance(value, str) and value.strip() else None


def _from_provenance(folder: Path) -> str | None:
    path = folder / "plait.json"
    return _text(read_json(path).get("base")) if path.is_file() else None


def _from_config(folder: Path) -> str | None:
    """Returns `_name_or_path` of older transformers, unless it is the folder itself."""
    text = _text(read_json(folder / "config.json").get("_name_or_path"))
    return None if text is None or Path(text).resolve() == folder.resolve() else text


def _from_card(card: Path) -> str | None:
    """Returns `base_model` of the YAML block that model cards begin with."""
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as stream:
        head, _, rest = stream.read(FRONT).partition("---\n")
    try:
        front = parse_yaml(rest.partition("\n---")[0], card) if not head.strip() else None
    except SourceError:
        return None
    return _text(front.get("base_model")) if isinstance(front, dict) else None
