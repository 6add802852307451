"""The page of a comparison: whole in one file, escaped, readable without eyes, and without a network."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from plait.errors import OutputError, SourceError
from plait.reports.charts import Point, best_so_far, spread
from plait.reports.comparison import checked, read_comparison
from plait.reports.page import write_page
from tests.unit.reports.browser import opened, without_browser
from tests.unit.reports.comparisons import RELATIVE, TASKS, comparison

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """What a page has: tags with their attributes and the text of each, and whether all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("comparison")
    write_page(place, comparison(TASKS[:3]))
    return place


@pytest.fixture(scope="module")
def page(folder: Path) -> Reader:
    return Reader((folder / "index.html").read_text())


def test_it_is_one_file_without_a_network(folder: Path, page: Reader) -> None:
    text = (folder / "index.html").read_text()
    assert len(text.encode()) < 3_000_000
    assert not page.having("script")
    addresses = [v for _, a in page.tags for k, v in a.items() if k in ("href", "src", "xlink:href") and v]
    assert all(v.startswith(("#", "data:")) for v in addresses)
    assert set(re.findall(r"https?://[^\"' )<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert re.search(r"default-src 'none'", text)
    assert re.search(r"prefers-color-scheme: dark", text)


def test_the_answer_comes_first(page: Reader) -> None:
    words = page.words
    answer = words.index("merge/default+refine")
    assert (
        words.index("Recommended for size")
        < answer
        < words.index("It keeps 98.1 %")
        < words.index("Candidates")
    )
    assert "candidates/merge-default+refine" in words
    assert "plait run recipes/merge/default+refine.yaml" in words


def test_what_failed_and_what_was_left_out_say_why(page: Reader) -> None:
    for said in (
        "layer.3.output.dense.weight of cola contains NaN or Inf", "beyond the budget of 10 min", "22 min", "2.10 GB",
        "the sources have different labels", "3 of 500 test rows also stand in the data",
        "The licence of sst2 is not known",
    ):  # fmt: skip
        assert said in page.words, said


def test_every_part_has_its_chart_and_every_chart_its_numbers(folder: Path, page: Reader) -> None:
    figures = [a["id"] for a in page.having("figure")]
    for part in ("ranking", "front-size", "front-speed", "front-making", "task-1", "task-3", "conflict-cosine",
                 "conflict-sign", "importance-1", "importance-3", "reliability-1", "training-1"):  # fmt: skip
        assert f"figure-{part}" in figures, part
        assert (folder / "figures" / f"{part}.svg").read_text().startswith("<?xml")
        assert (folder / "figures" / f"{part}.png").read_bytes().startswith(b"\x89PNG")
    assert any(str(name).startswith("figure-routing") for name in figures)
    drawings = [a for a in page.having("div") if a.get("class") == "drawing"]
    assert len(drawings) == len(figures)
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)
    assert len(page.having("details")) >= len(figures)
    assert all(f"{relative * 100:.1f} %" in page.words for relative in RELATIVE.values())


def test_names_are_unique_and_links_lead_somewhere(page: Reader) -> None:
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        link = attributes.get("href") or attributes.get("xlink:href") or ""
        assert not link.startswith("#") or link[1:] in ids, link
        assert all(name in ids for name in (attributes.get("aria-labelledby") or "").split())


def test_headings_and_tables_are_in_order(page: Reader) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(a.get("scope") in ("col", "row") for a in page.having("th"))
    assert len(page.having("caption")) == len(page.having("table"))
    assert all(
        a.get("tabindex") == "0" and a.get("aria-label")
        for a in page.having("div")
        if a.get("role") == "region"
    )


def test_the_recipe_can_be_copied(page: Reader, folder: Path) -> None:
    from plait.reports.comparison_page import as_yaml

    wanted = next(
        c["recipe"] for c in comparison(TASKS[:3])["candidates"] if c["id"] == "merge/default+refine"
    )
    assert " ".join(as_yaml(wanted).split()) in page.words
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert "comparison" in front["tags"]
    assert "![Mean relative score](figures/ranking.png)" in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0]) == wanted


EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
ODD = "\x1b[31m red\x07 \u202e backwards $x_1^{2$ \\frac 名 é\nnew"


def spoiled(value: Any, text: str) -> Any:
    """Returns a comparison in which every name and sentence is a text, but for those that must be one of a few."""
    if isinstance(value, dict):
        return {f"{k} {text}" if k in TASK_KEYS else k: v if k in ("status", "schema") else spoiled(v, text)
                for k, v in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [spoiled(one, text) for one in value]
    return f"{value} {text}" if isinstance(value, str) else value


TASK_KEYS = {"sst2", "trec", "cola", "mrpc", "ag_news", "reviews_music", "torch", "disagreement"}


@pytest.mark.parametrize("text", [EVIL, ODD])
def test_text_from_files_is_shown_and_not_obeyed(text: str, tmp_path: Path) -> None:
    few = comparison(TASKS[:1], ("separate", "amalgamate/auto"))
    write_page(tmp_path, spoiled(few, text))
    written = (tmp_path / "index.html").read_text()
    found = Reader(written)
    assert not found.having("script")
    assert not found.having("img")
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", written)
    assert ("alert(1)" if text is EVIL else "\\u001b[31m red") in found.words
    card = (tmp_path / "README.md").read_text()
    body = card.split("\n---\n", 1)[1].split("```")
    assert "<script>" not in body[0] + body[-1]
    assert "\x1b" not in card


def test_little_is_enough(tmp_path: Path) -> None:
    write_page(tmp_path, {"schema": 1})
    write_page(
        tmp_path, {"candidates": [{"id": "separate", "mean_relative": 1.0}], "recommended": {"id": "lost"}}
    )
    found = Reader((tmp_path / "index.html").read_text())
    assert "1 candidates measured" in found.words
    assert "Recommended" not in found.words


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"comparison.json is damaged \(candidates.0.id is missing\); run the comp"
    ):
        checked({"candidates": [{}]})
    with pytest.raises(SourceError, match="has schema 9, this Plait reads up to 1: update Plait"):
        checked({"schema": 9})
    with pytest.raises(SourceError, match=r"has no comparison.json; a comparison is made with plait compare"):
        read_comparison(tmp_path)
    (tmp_path / "comparison.json").write_text("[1]")
    with pytest.raises(SourceError, match="holds a list"):
        read_comparison(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(OutputError, match="cannot write figures to"):
        write_page(tmp_path, comparison(candidates=[]))


def test_the_front_and_names_beside_it() -> None:
    points = [
        Point(n, v, cost=c)
        for n, v, c in (("a", 0.9, 1.0), ("b", 0.8, 2.0), ("c", 0.95, 3.0), ("d", 0.7, 9.0))
    ]
    assert best_so_far(points) == [(1.0, 0.9), (3.0, 0.95), (9.0, 0.95)]
    places = spread([1.2, 0.99, 0.98, 0.5, 0.01, 0.0], 0.1)
    assert all(upper - lower >= 0.1 - 1e-9 for upper, lower in itertools.pairwise(places))
    assert min(places) >= -1e-9


@without_browser
def test_a_browser_shows_it_on_a_phone_and_on_a_desk(folder: Path, tmp_path: Path) -> None:
    found = opened(folder / "index.html", tmp_path, widths=(390, 1400))
    assert found.complaints == []
    for width in (390, 1400):
        assert found.inner[width] == width
        assert found.scroll[width] <= width
        assert found.cut[width] == [], "text that leaves the page"
