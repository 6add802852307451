"""Texts come chunk by chunk, the same whatever they come from, and rows without one are counted."""

from __future__ import annotations

import csv
import gc
import json
import logging
import tracemalloc

import datasets
import numpy as np
import pytest

from plait.data import Examples, open_texts, read_examples
from plait.data.texts import keep_texts
from plait.errors import DataError

ROWS = [{"text": f"text number {i}", "label": i % 3} for i in range(23)]


def write(path, rows):
    """Writes rows as whatever the name of the file says."""
    kind = path.suffix
    if kind == ".txt":
        path.write_text("\n".join(row["text"] or "" for row in rows) + "\n", encoding="utf-8")
    elif kind == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    elif kind == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind in {".csv", ".tsv"}:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), dialect="excel-tab" if kind == ".tsv" else "excel")
            writer.writeheader()
            writer.writerows(rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


def all_texts(texts):
    return [text for examples in texts.chunks() for text in examples.texts]


KINDS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".json")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_its_texts_in_chunks_again_and_again(kind, tmp_path):
    texts = open_texts(write(tmp_path / f"rows{kind}", ROWS), chunk=5)
    for _ in range(2):
        chunks = list(texts.chunks())
        assert [len(chunk) for chunk in chunks] == [5, 5, 5, 5, 3]
        assert [t for chunk in chunks for t in chunk.texts] == [row["text"] for row in ROWS]
        assert all(chunk.labels is None and chunk.pairs is None for chunk in chunks)
    assert (texts.count(), texts.skipped, texts.source) == (23, 0, str(tmp_path / f"rows{kind}"))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_text_are_counted_and_chunks_stay_full(kind, tmp_path, caplog):
    rows = [dict(row) for row in ROWS]
    for i in (0, 6, 7, 22):
        rows[i]["text"] = "  " if i == 6 or kind == ".csv" else ""
    if kind in {".jsonl", ".json", ".parquet"}:
        rows[7]["text"] = None
    texts = open_texts(write(tmp_path / f"rows{kind}", rows), chunk=5)
    with caplog.at_level(logging.WARNING, "plait"):
        assert [len(chunk) for chunk in texts.chunks()] == [5, 5, 5, 4]
        assert (texts.count(), texts.skipped) == (19, 4)
        list(texts.chunks())
    assert [r.getMessage() for r in caplog.records] == [
        f"{texts.source}: 4 rows of 23 without a text, skipped"
    ]


@pytest.mark.parametrize("size", [1, 4, 23, 100])
def test_another_size_of_chunk_gives_the_same_texts(size, tmp_path):
    texts = open_texts(write(tmp_path / "rows.jsonl", ROWS), chunk=5)
    chunks = [chunk.texts for chunk in texts.chunks(size)]
    assert [text for chunk in chunks for text in chunk] == [row["text"] for row in ROWS]
    assert {len(chunk) for chunk in chunks[:-1]} <= {size}


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv", ".parquet", ".json"])
@pytest.mark.parametrize(
    "labels", [[0, 1, 2], ["a", "b", "1"], [0.5, 1.0, 2.25]], ids=["whole", "words", "numbers"]
)
def test_labels_are_read_when_named_and_as_by_read_examples(kind, labels, tmp_path):
    rows = [{"text": f"t{i}", "label": labels[i % 3]} for i in range(12)]
    path = write(tmp_path / f"rows{kind}", rows)
    found = [label for chunk in open_texts(path, label="label", chunk=1).chunks() for label in chunk.labels]
    assert found == list(read_examples(path).labels)
    assert [type(label) for label in found] == [type(label) for label in read_examples(path).labels]


def test_numbers_in_a_label_column_of_any_name(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,topic\na,2\nb,10\n", encoding="utf-8")
    (chunk,) = open_texts(path, label="topic").chunks()
    assert chunk.labels == (2, 10)


@pytest.mark.parametrize("how", ["parquet", "dataset", "examples"])
def test_declared_names_are_kept_and_a_row_without_a_label_has_none(how, tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, -1, 0]}, features=features)
    if how == "parquet":
        data.to_parquet(str(tmp_path / "rows.parquet"))
        data = tmp_path / "rows.parquet"
    if how == "examples":
        data = Examples(("a", "b", "c"), labels=(1, None, 0), label_names=("no", "yes"))
    (unread,) = open_texts(data).chunks()
    assert (unread.labels, unread.label_names) == (None, ("no", "yes"))
    (read,) = open_texts(data, label="label").chunks()
    assert (read.labels, read.label_names) == ((1, None, 0), ("no", "yes"))


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_pairs_are_kept_and_both_must_be_there(kind, tmp_path):
    rows = [{"premise": f"p{i}", "hypothesis": f"h{i}"} for i in range(5)]
    rows[3]["hypothesis"] = " "
    (chunk,) = open_texts(write(tmp_path / f"pairs{kind}", rows)).chunks()
    assert chunk.texts == ("p0", "p1", "p2", "p4")
    assert chunk.pairs == ("h0", "h1", "h2", "h4")
    alone = open_texts(tmp_path / f"pairs{kind}", text="premise")
    assert (alone.count(), next(alone.chunks()).pairs) == (5, None)


def test_all_that_is_in_memory_is_sliced(tmp_path):
    texts = [row["text"] for row in ROWS]
    folder = tmp_path / "folder"
    folder.mkdir()
    path = write(folder / "train.jsonl", ROWS)
    sources = (
        texts, ROWS, {"text": texts}, (texts, list(range(23))), datasets.Dataset.from_list(ROWS),
        Examples(tuple(texts)), folder, {"path": path}, {"path": path, "text": "text"}, f"{folder}@train",
    )  # fmt: skip
    for data in sources:
        assert all_texts(open_texts(data, chunk=4)) == texts


def test_a_row_may_lack_the_column_and_lines_may_be_blank(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n\n{"other": 1}\n   \n{"text": "b"}\n', encoding="utf-8")
    texts = open_texts(file, chunk=1)
    assert (all_texts(texts), texts.skipped) == (["a", "b"], 1)


def test_a_windows_file_with_a_mark_at_its_front(tmp_path):
    (tmp_path / "rows.txt").write_bytes("\ufeffone\r\ntwo\r\n\r\nthree".encode())
    texts = open_texts(tmp_path / "rows.txt")
    assert (all_texts(texts), texts.skipped) == (["one", "two", "three"], 1)


def complaint(data, **options):
    with pytest.raises(DataError) as error:
        open_texts(data, **options).count()
    assert "\n" not in str(error.value)
    return str(error.value)


class TestBadInput:
    @pytest.mark.parametrize("kind", KINDS)
    def test_no_text_at_all(self, kind, tmp_path):
        path = write(tmp_path / f"rows{kind}", [{"text": " ", "label": 1}] * 3)
        assert complaint(path) == (f"{path}: no text in 3 rows; expected at least one text in column 'text'")

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_empty_file(self, kind, tmp_path):
        path = tmp_path / f"rows{kind}"
        path.write_bytes(b"")
        assert str(path) in complaint(path)

    @pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
    def test_no_column_of_texts(self, kind, tmp_path):
        path = write(tmp_path / f"rows{kind}", [{"title": "a", "number": 1}])
        assert complaint(path).startswith(
            f"{path}: no text column; found columns title, number; expected one of text"
        )

    def test_an_unknown_column(self, tmp_path):
        path = write(tmp_path / "rows.csv", ROWS)
        assert "no column text='txt' (did you mean 'text'?" in complaint(path, text="txt")
        assert "no column label='lable'" in complaint(path, label="lable")
        assert "unknown entry 'txt'" in complaint({"path": path, "txt": "text"})

    def test_something_else_than_text(self, tmp_path):
        rows = [*ROWS, {"text": 5}, {"text": ["a"]}]
        path = write(tmp_path / "rows.jsonl", rows)
        assert complaint(path, chunk=7) == (
            f"{path}: column 'text' must hold text; found something else in row 23 (int 5); row 24 (list ['a'])"
        )

    def test_no_file(self, tmp_path):
        assert "no such file or folder" in complaint(tmp_path / "rows.jsonl")

    def test_a_line_that_is_no_json(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
        assert complaint(path).startswith(f"{path}: cannot be read as jsonl: line 2: Expecting value")

    def test_a_row_that_is_no_row(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"text": "a"}\n[1]\n', encoding="utf-8")
        assert "is a list; expected" in complaint(path)

    def test_a_ragged_row(self, tmp_path):
        path = tmp_path / "rows.csv"
        for content, line in (("text,label\na,1\nb\n", 3), ("text,label\na", 2)):
            path.write_text(content, encoding="utf-8")
            said = f"{path}: cannot be read as csv: 1 row does not have 2 columns, first near line {line}"
            assert complaint(path) == said

    def test_not_in_utf8(self, tmp_path):
        path = tmp_path / "rows.txt"
        path.write_bytes("f\u00fcr".encode("latin-1"))
        assert complaint(path) == (
            f"{path}: cannot be read as txt: byte 0xfc in line 1 is not UTF-8; save the file as UTF-8"
        )

    def test_chunks_of_nothing(self):
        assert complaint(["a"], chunk=0) == "chunk is 0; expected 1 or more texts at a time"


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".parquet"])
def test_memory_does_not_grow_with_the_file(kind, tmp_path):
    peaks = []
    for count in (2_000, 40_000):
        path = write(
            tmp_path / f"{count}{kind}", [{"text": f"line {i} " + "word " * 20} for i in range(count)]
        )
        texts = open_texts(path, chunk=500)
        tracemalloc.start()
        assert texts.count() == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 200_000, peaks


@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_are_kept_are_those_of_the_file(kind, tmp_path):
    rows = [{**row, "topic": f"topic {row['label']}"} for row in ROWS]
    file = write(tmp_path / f"rows{kind}", rows)
    options = {} if kind == ".txt" else {"label": "label"}
    read, kept = open_texts(file, chunk=5, **options), open_texts(file, chunk=5, once=True, **options)
    file.unlink()
    assert (kept.count(), kept.skipped, kept.source) == (23, 0, str(file))
    write(file, rows)
    assert list(kept.chunks()) == list(read.chunks())
    for size in (2, 7, 100):
        assert list(kept.chunks(size)) == list(read.chunks(size))
        both = zip(kept.hashed(size), read.hashed(size), strict=True)
        assert all(a == b and np.array_equal(one(), two()) for (a, one), (b, two) in both)
    assert kept.fingerprint == read.fingerprint
    assert keep_texts(kept) is kept


def test_kept_texts_have_pairs_names_and_rows_without_a_label(tmp_path, caplog):
    features = datasets.Features({
        "text": datasets.Value("string"), "text_pair": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["no", "yes"]),
    })  # fmt: skip
    rows = [{"text": f"t{i}", "text_pair": "" if i == 3 else f"p{i}", "label": i % 3 - 1} for i in range(9)]
    data = datasets.Dataset.from_list(rows, features=features)
    with caplog.at_level(logging.WARNING, "plait"):
        kept = open_texts(data, label="label", once=True)
        assert (kept.count(), kept.skipped) == (8, 1)
    assert caplog.text.count("without a text, skipped") == 1
    assert list(kept.chunks(4)) == list(open_texts(data, label="label").chunks(4))
    assert kept.label_names == ("no", "yes")
    assert (kept.count(), kept.skipped) == (8, 1)


def test_the_file_of_kept_texts_goes_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = open_texts(["one", "two"], once=True)
    assert len(list(tmp_path.glob("plait-texts-*"))) == 1
    del kept
    gc.collect()
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="half a character"):
        open_texts(["one", "\ud800"], once=True)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("plait.data.texts.write_texts", no_room)
    with pytest.raises(DataError, match=r"cannot be kept in .*No space left.*TMPDIR"):
        open_texts(["one", "two"], once=True)
    assert not list(tmp_path.iterdir())


def no_room(*_):
    raise OSError(28, "No space left on device")


def test_missing_texts_of_a_list_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    found = open_texts(["the film", None, "a book"])
    assert (found.count(), found.skipped) == (2, 1)
    assert "1 row of 3 without a text" in caplog.text
