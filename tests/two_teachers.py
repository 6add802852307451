"""Two teachers of one base with labels of their own, which the tests of amalgamations share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.models import save, tiny

Paths = dict[str, str]
QUICK: dict[str, Any] = {"epochs": 1, "max_length": 32}
NAMES = {"news": ("World", "Business"), "sports": ("Sports", "Tech")}
"""The labels of each teacher."""


def named(model: Any, names: tuple[str, ...]) -> Any:
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: at for at, name in enumerate(names)}
    return model


def save_teachers(folder: Path) -> Path:
    """Writes both teachers and their base, and returns the folder."""
    for seed, (name, labels) in enumerate(NAMES.items(), 1):
        save(named(tiny("bert", "sequence", seed=seed, labels=2), labels), folder / name)
    save(tiny("bert", "body"), folder / "base")
    return folder
