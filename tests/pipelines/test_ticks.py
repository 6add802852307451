"""Every tick of the documentation's table of families, on a tiny model; what has none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import plait
from plait.encoders.decoder_families import DECODERS
from plait.encoders.families import FAMILIES
from plait.encoders.vision_families import VISION
from plait.errors import PlaitError
from plait.merging.abilities import WITHOUT_TABLE, Ability, abilities, families, table, works
from plait.merging.rule import RULES
from tests.languages import SIZES, is_seq2seq, save_language, write_texts
from tests.models import save, texts, tiny
from tests.vision import class_folders, save_tower

LANGUAGE = {SIZES[name][0]: name for name in reversed(SIZES)} | {WITHOUT_TABLE: "opt"}
QUICK = {"average", "ties", "tsv"}
ELSEWHERE = {*FAMILIES} - {"bert", "albert"}
"""Families that other fast tests merge by every importance."""


class World:
    """Two models of a family, their base, and data of each."""

    def __init__(self, family: str, folder: Path) -> None:
        if family in DECODERS or family == WITHOUT_TABLE:
            name = LANGUAGE[family]
            self.base = save_language(name, folder / "base", drift=0.0)
            self.sources = {n: save_language(name, folder / n, seed=i) for i, n in enumerate("ab", 1)}
            targets = ["bad", "news", "the a"] if is_seq2seq(name) else None
            self.data: dict[str, Any] = {
                n: write_texts(folder / f"{n}.jsonl", [f"{n} good film", "the film was great", "a sport"], targets)
                for n in self.sources
            }
        elif family in VISION:
            self.base = save_tower(family, folder / "base", 0, drift=0.0, head=False)
            self.sources = {n: save_tower(family, folder / n, i) for i, n in enumerate("ab", 1)}
            images = str(class_folders(folder / "images", 3))
            words = {n: texts(3, seed=i) for i, n in enumerate(self.sources)}
            self.data = {n: words[n] if family == "clip_text_model" else images for n in self.sources}
        else:
            self.base = str(save(tiny(family, "body", drift=0.0), folder / "base"))
            self.sources = {n: str(save(tiny(family, seed=i), folder / n)) for i, n in enumerate("ab", 1)}
            self.data = {
                n: {"text": texts(3, seed=i), "label": [0, 1, 2]} for i, n in enumerate(self.sources)
            }
        self.out = folder / "out"

    def merge(self, ability: Ability) -> Any:
        inputs = set(RULES[ability.method].inputs)
        settings: dict[str, Any] = {"importance": ability.importance} if ability.importance else {}
        settings |= {"forward": True} if ability.forward else {}
        settings |= {"base": self.base} if "base" in inputs else {}
        data = self.data if inputs & {"grams", "importances"} else None
        return plait.merge(self.sources, data=data, method=ability.method, out=self.out, overwrite=True, **settings)


def tried(family: str, folder: Path, chosen: list[Ability]) -> None:
    world = World(family, folder)
    for ability in chosen:
        if works(ability, family):
            assert world.merge(ability).method == ability.method
        elif ability.importance or ability.forward:
            with pytest.raises(PlaitError):
                world.merge(ability)


def test_the_table_has_every_family_and_every_rule() -> None:
    assert set(families()) >= {*FAMILIES, *DECODERS, *VISION, WITHOUT_TABLE}
    assert {ability.method for ability in abilities()} == set(RULES)
    assert all(len(row) == 1 + len(abilities()) for row in table())
    assert {row[0]: row[1] for row in table()}["mixtral"] == "–"


@pytest.mark.parametrize("family", [f for f in (*FAMILIES, *DECODERS, *VISION, WITHOUT_TABLE) if f not in ELSEWHERE])
def test_ticks(family: str, tmp_path: Path) -> None:
    some = [a for a in abilities() if a.method in QUICK or {"grams", "importances"} & set(RULES[a.method].inputs)]
    tried(family, tmp_path, some)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, *DECODERS, *VISION, WITHOUT_TABLE])
def test_all_ticks(family: str, tmp_path: Path) -> None:
    tried(family, tmp_path, list(abilities()))
