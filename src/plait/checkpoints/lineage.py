"""Where a checkpoint comes from, as model hubs want to know it: its Hub id and its licence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.boundary import parse_yaml, read_text
from plait.checkpoints.headers import read_json
from plait.errors import SourceError

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)


def lineage(origin: str | Path, folder: Path, recorded: str | None = None) -> dict[str, str]:
    """Returns what is known of a checkpoint: `hub`, an id that others can open, and `license`.

    The id is its own, or that of the model it was made from where it is a folder. Both are left out where nothing says
    them.

    Args:
        origin: as it was named.
        folder: where it lies.
        recorded: the base that it records.
    """
    front = front_of(folder / "README.md")
    bases = front.get("base_model")
    told = [str(origin), recorded, *(bases if isinstance(bases, list) else [bases])]
    ids = [name for name in told if isinstance(name, str) and is_hub_id(name)]
    licence = front.get("license_name") if front.get("license") == "other" else front.get("license")
    found = {"hub": ids[0] if ids else None, "license": licence or licence_in_config(folder)}
    return {name: value for name, value in found.items() if isinstance(value, str) and value}


def is_hub_id(name: str) -> bool:
    """Says whether a name is that of a repository rather than of a folder here."""
    return HUB_ID.fullmatch(name) is not None and not name.startswith(".") and not Path(name).exists()


def licence_in_config(folder: Path) -> str | None:
    """Returns the licence that a config says, which few do."""
    try:
        found = read_json(folder / "config.json").get("license") if (folder / "config.json").is_file() else None
    except SourceError:  # damaged: whoever opens the model says so
        return None
    return found if isinstance(found, str) else None


def front_of(card: Path) -> Mapping[str, Any]:
    """Returns the front matter of a model card; nothing where there is none that can be read."""
    if not card.is_file():
        return {}
    try:
        found = FRONT.match(read_text(card))
        content = parse_yaml(found.group(1), card) if found else None
    except SourceError:
        return {}
    return content if isinstance(content, Mapping) else {}
