"""Who taught what, text by text: the file that `--routing` writes agrees with the report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pyarrow import parquet

import plait
from plait.cli import invoke
from plait.errors import OutputError
from tests.models import save, texts, tiny

LABELS = {"news": ("World", "Business"), "sports": ("Sports", "Tech")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routing")
    for seed, (name, labels) in enumerate(LABELS.items()):
        model = tiny("bert", "sequence", seed=seed, labels=2)
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: at for at, label in enumerate(labels)}
        save(model, folder / name)
    save(tiny("bert", "body"), folder / "base")
    (folder / "texts.txt").write_text("\n".join([*texts(40), "", "more of it"]) + "\n", encoding="utf-8")
    return folder


def test_the_file_agrees_with_the_report(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Teachers without names, as a new user would type them.
    asked = ["amalgamate", str(place / "news"), str(place / "sports"), "--text", str(place / "texts.txt")]
    asked += ["--student", str(place / "base"), "--gate", "entropy", "--epochs", "2", "--max-length", "16"]
    asked += ["--routing", str(tmp_path / "who.parquet"), "-o", str(tmp_path / "s")]
    assert invoke(asked) == 0
    shown = capsys.readouterr().out
    assert "(kept)" in shown
    found = parquet.read_table(tmp_path / "who.parquet").to_pydict()
    assert list(found) == ["row", "text", "teacher", "label", "margin", "weight_news", "weight_sports"]
    assert found["text"][-1] == "more of it"
    report = plait.load(tmp_path / "s").report
    who = report["who_taught_what"]
    shares = Counter(found["teacher"])
    assert {n: about["share"] for n, about in who["teachers"].items()} == pytest.approx(
        {name: shares[name] / 41 for name in LABELS}
    )
    pairs = Counter(zip(found["label"], found["teacher"], strict=True))
    assert {(label, t): n for label, by in who["labels"].items() for t, n in by.items()} == dict(pairs)
    # A teacher teaches labels of its own alone.
    assert all(label in LABELS[teacher] for label, teacher in pairs)
    chosen = [max(LABELS, key=lambda n: found[f"weight_{n}"][at]) for at in range(41)]
    assert chosen == found["teacher"]
    kept = [epoch.get("kept", False) for epoch in report["epochs"]]
    best = max(range(2), key=lambda at: report["epochs"][at]["agreement"])
    assert kept == [at == best for at in range(2)]
    card = (tmp_path / "s" / "README.md").read_text()
    assert "| kept |" in card
    assert str(tmp_path) not in card
    assert str(place) not in card


def test_a_file_that_cannot_be_written_stops_before_any_work(place: Path, tmp_path: Path) -> None:
    told = {"texts": place / "texts.txt", "student": place / "base", "out": tmp_path / "s"}
    teachers = [place / "news", place / "sports"]
    with pytest.raises(OutputError, match=r"--routing .* expected one of .csv, .jsonl, .parquet"):
        plait.amalgamate(teachers, routing=tmp_path / "who.txt", **told)
    (tmp_path / "who.csv").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        plait.amalgamate(teachers, routing=tmp_path / "who.csv", **told)
    rows = tmp_path / "rows.csv"
    rows.write_text("text\n" + "\n".join(texts(6)) + "\n")
    with pytest.raises(OutputError, match="overlap"):
        plait.amalgamate(teachers, routing=rows, overwrite=True, **{**told, "texts": rows})
    assert not (tmp_path / "s").exists()
