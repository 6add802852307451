"""Small files with their right values, each read through both doors: whole, and chunk by chunk."""

from __future__ import annotations

import bz2
import gzip
import json
import logging

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from plait.data import open_texts, read_examples
from plait.data.delimited import column_names
from plait.errors import DataError

TEXTS = ("a good film", "007", "NA", 'say "no", twice')
LABELS = (1, 0, 1, 0)
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
FRAME = pd.DataFrame(ROWS)
COLUMNS = json.dumps({"text": list(TEXTS), "label": list(LABELS)})
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def both(data, label="label", **options):
    """Returns texts and labels as both doors give them, once they have been found to agree."""
    whole = read_examples(data, **options)
    names = {"label": label} if whole.labels is not None else {}
    parts = list(open_texts(data, chunk=2, **names, **options).chunks())
    texts = tuple(text for part in parts for text in part.texts)
    labels = tuple(label for part in parts for label in part.labels or ())
    assert texts == whole.texts
    if whole.labels is not None:
        assert labels == whole.labels
        assert list(map(type, labels)) == list(map(type, whole.labels))
    return whole.texts, whole.labels


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.json", LINES),
        ("rows.json", json.dumps(ROWS)),
        ("rows-indented.json", json.dumps(ROWS, indent=2)),
        ("columns.json", COLUMNS),
        ("pandas.json", FRAME.to_json()),
        ("index.json", FRAME.to_json(orient="index")),
        ("split.json", FRAME.to_json(orient="split")),
        ("records.json", FRAME.to_json(orient="records")),
        ("table.json", FRAME.to_json(orient="table")),
        ("named-rows.json", FRAME.set_axis(list("abcd")).to_json()),
        ("wrapped.json", json.dumps({"version": "1.0", "examples": ROWS})),
        ("data.json", json.dumps({"version": "1.0", "data": ROWS})),
        ("array.jsonl", json.dumps(ROWS)),
        ("array-indented.jsonl", json.dumps(ROWS, indent=1)),
        ("mark.jsonl", "\ufeff" + LINES),
        ("comma.csv", FRAME.to_csv(index=False)),
        ("index.csv", FRAME.to_csv()),
        ("semicolon.csv", FRAME.to_csv(index=False, sep=";")),
        ("excel.csv", "sep=;\n" + FRAME.to_csv(index=False, sep=";")),
        ("tabs.csv", FRAME.to_csv(index=False, sep="\t")),
        ("all-quoted.tsv", FRAME.to_csv(index=False, sep="\t", quoting=1)),
        ("tabs.tsv", FRAME.to_csv(index=False, sep="\t")),
        ("crlf.csv", FRAME.to_csv(index=False, lineterminator="\r\n")),
        ("spaces.csv", 'text, label\na good film, 1\n007, 0\nNA, 1\n"say ""no"", twice", 0\n'),
        ("blank-end.csv", 'text,label\na good film,1,\n007,0,,\n\nNA,1\n"say ""no"", twice",0\n'),
        ("escaped.csv", 'text,label\na good film,1\n007,0\nNA,1\n"say \\"no\\", twice",0\n'),
    ],
)
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_files_of_text_are_read_rightly(name, content, packing, tmp_path):
    path = tmp_path / f"{name}{packing}"
    path.write_bytes(gzip.compress(content.encode()) if packing else content.encode())
    assert both(path) == (TEXTS, LABELS)


def test_the_other_way_of_packing(tmp_path):
    (tmp_path / "rows.jsonl.bz2").write_bytes(bz2.compress(LINES.encode()))
    assert both(tmp_path / "rows.jsonl.bz2") == (TEXTS, LABELS)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(LINES.encode())[:-12])
    with pytest.raises(DataError, match=r"cut.jsonl.gz: cannot be read as jsonl: "):
        read_examples(tmp_path / "cut.jsonl.gz")


def saved_to_disk(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def arrow(folder):
    return next(saved_to_disk(folder).glob("*.arrow"))


def shards(folder):
    (folder / "ds" / "data").mkdir(parents=True)
    (folder / "ds" / "README.md").write_text("About the data")
    for at in (0, 1):
        part = datasets.Dataset.from_list(ROWS[2 * at : 2 * at + 2])
        part.to_parquet(folder / "ds" / "data" / f"train-0000{at}-of-00002.parquet")
    return folder / "ds"


def spark(folder):
    (folder / "out").mkdir()
    (folder / "out" / "_SUCCESS").touch()
    for at in (0, 1):
        datasets.Dataset.from_list(ROWS[2 * at : 2 * at + 2]).to_parquet(
            folder / "out" / f"part-0000{at}-1f.snappy.parquet"
        )
    return folder / "out"


def folders(folder):
    for split in ("test", "train"):
        (folder / "by" / split).mkdir(parents=True)
        (folder / "by" / split / "0.jsonl").write_text(LINES)
    return f"{folder}/by@train"


def maps(folder):
    kind = pa.map_(pa.string(), pa.string())
    table = pa.table({"text": TEXTS, "label": LABELS, "meta": pa.array([[("k", "v")]] * 4, kind)})
    parquet.write_table(table, folder / "maps.parquet")
    return folder / "maps.parquet"


@pytest.mark.parametrize(
    "make",
    [
        saved_to_disk, arrow, shards, spark, folders, maps,
        lambda folder: f"{shards(folder)}@train",
        lambda folder: shards(folder) / "data",
        lambda folder: f"{shards(folder)}/data@train",
        lambda folder: f"{shards(folder)}/data/*.parquet",
        lambda folder: f"{shards(folder)}/**/*.parquet@train",
    ],
)  # fmt: skip
def test_binary_files_and_folders_are_read_rightly(make, tmp_path):
    assert both(make(tmp_path)) == (TEXTS, LABELS)


def test_splits_lie_beside_each_other(tmp_path):
    folder = shards(tmp_path)
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"ds: has the splits test, train; say which one, such as .*ds@test"):
        read_examples(folder)
    assert both(f"{folder}@test") == (TEXTS[:1], LABELS[:1])
    assert both(f"{folder}@train") == (TEXTS, LABELS)


def test_a_part_that_is_not_there_is_said(tmp_path, caplog):
    folder = shards(tmp_path)
    (folder / "data" / "train-00001-of-00002.parquet").unlink()
    assert len(read_examples(folder)) == 2
    assert warnings(caplog) == [f"{folder}: only 1 of the 2 parts of train are there"]


def test_a_split_in_two_formats_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text\na\n")
    (tmp_path / "train.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"train is there in several formats \(train.csv; train.jsonl\)"):
        read_examples(tmp_path)


def test_folders_of_several_data_sets_are_refused(tmp_path):
    for name in ("sst2", "mnli"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"has the folders mnli; sst2; name one of them, such as .*mnli"):
        read_examples(tmp_path)


def test_one_file_has_no_splits(tmp_path):
    (tmp_path / "rows.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"rows.jsonl: is one file, without the split 'test'; leave out @test"):
        read_examples(f"{tmp_path}/rows.jsonl@test")


def generator():
    yield from ROWS


@pytest.mark.parametrize(
    "data",
    [
        FRAME.to_dict,
        lambda: FRAME.set_axis(list("abcd")).to_dict(),
        lambda: FRAME.to_dict("index"),
        lambda: FRAME,
        lambda: pa.table(FRAME),
        lambda: (FRAME["text"], FRAME["label"]),
        lambda: (np.array(TEXTS), np.array(LABELS)),
        lambda: {"text": np.array(TEXTS), "label": FRAME["label"]},
        lambda: datasets.Dataset.from_list(ROWS),
        lambda: datasets.Dataset.from_list(ROWS).with_format("arrow"),
        lambda: datasets.Dataset.from_list(ROWS).with_format("numpy"),
        lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
        lambda: datasets.Dataset.from_list(ROWS).filter(lambda row: True, load_from_cache_file=False),
    ],
)
def test_containers_are_read_rightly(data):
    assert both(data()) == (TEXTS, LABELS)


@pytest.mark.parametrize(
    "data",
    [
        lambda: FRAME["text"], lambda: np.array(TEXTS), lambda: list(TEXTS), lambda: iter(TEXTS), generator,
        lambda: np.array(TEXTS, dtype=object), lambda: dict.fromkeys(TEXTS).keys(),
    ],
)  # fmt: skip
def test_texts_come_in_many_forms(data):
    assert read_examples(data()).texts == TEXTS
    assert [t for part in open_texts(data(), chunk=3).chunks() for t in part.texts] == list(TEXTS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": "good film"}, r"data: column 'text' is one text \('good film'\); expected a list of them"),
        ({"text": ["a"], "label": "pos"}, r"column 'label' is one text \('pos'\)"),
        ({"text": ["a"], "label": 1}, r"column 'label' is one value \(int 1\)"),
        ({"text": {"good", "bad"}}, "column 'text' is a set, which has no order"),
        ({"good", "bad"}, "data is a set, which has no order"),
        ({"one": {"a": 1}, "two": {"a": 2}}, "rows and columns cannot be told apart"),
        ({"text": {0: "a", 1: "b"}, "label": {0: 1, 2: 0}}, "column 'label' has other rows than the first"),
        (b"good film", "data is a bytes; expected a path"),
    ],
)
def test_what_is_no_column_is_refused(data, message):
    for read in (read_examples, open_texts):
        with pytest.raises(DataError, match=message):
            read(data)


def test_one_object_is_one_row(tmp_path):
    path = tmp_path / "one.json"
    path.write_text('{"text": "good film", "label": 1}')
    assert both(path) == (("good film",), (1,))
    path.write_text('{"tokens": ["good", "film"], "tags": [0, 1]}')
    assert read_examples(path).texts == (("good", "film"),)


def test_the_layout_of_squad(tmp_path):
    answers = [{"text": "b", "answer_start": 2}]
    asked = [{"id": "1", "question": "what?", "answers": answers},
             {"id": "2", "question": "who?", "is_impossible": True, "answers": []}]  # fmt: skip
    article = {"title": "t", "paragraphs": [{"context": "a b c", "qas": asked}]}
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [article]}))
    found = read_examples(path)
    assert (found.kind, found.texts, found.pairs) == ("question_answering", ("what?", "who?"), ("a b c",) * 2)
    assert found.labels == ((("b", 2),), ())
    path.write_text(json.dumps({"data": [{"paragraphs": [{"qas": asked}]}]}))
    with pytest.raises(DataError, match=r"looks like SQuAD .* but lacks 'context'"):
        read_examples(path)


GLUE = 'sentence\tlabel\n"good film\t1\nbad film\t0\nawful film\t0\n"great film\t1\nbad\t0\n'


@pytest.mark.parametrize(
    ("name", "content", "texts", "labels"),
    [
        ("glue.tsv", GLUE, ('"good film', "bad film", "awful film", '"great film', "bad"), (1, 0, 0, 1, 0)),
        ("last.tsv", 'label\ttext\n1\tgood\n0\t"bad\n1\tgreat\n', ("good", '"bad', "great"), (1, 0, 1)),
        ("even.tsv", 'label\ttext\n1\t"good\n0\tbad\n1\tgreat"\n', ('"good', "bad", 'great"'), (1, 0, 1)),
        ("whole.tsv", 'text\tlabel\n"good film"\t1\nbad "film"\t0\n', ('"good film"', 'bad "film"'), (1, 0)),
        ("said.tsv", 'text\tlabel\n"good" they said\t1\nbad\t0\n', ('"good" they said', "bad"), (1, 0)),
        ("cut.tsv", 'text\tlabel\n"two\nlines"\t1\nbad\t0\n', ("two\nlines", "bad"), (1, 0)),
        ("tab.tsv", 'text\tlabel\n"a\ttab"\t1\nbad\t0\n', ("a\ttab", "bad"), (1, 0)),
        ("last.csv", 'label,text\n1,good\n0,"bad\n1,great\n', ("good", '"bad', "great"), (1, 0, 1)),
        ("said.csv", 'text,label\n"good" they said,1\nbad,0\n', ('"good" they said', "bad"), (1, 0)),
        ("cut.csv", 'text,label\n"two, or\nthree, lines",1\nbad,0\n', ("two, or\nthree, lines", "bad"), (1, 0)),
        ("inch.csv", 'text,label\n5" disk,1\nbad,0\n', ('5" disk', "bad"), (1, 0)),
    ],
)
def test_quotation_marks(name, content, texts, labels, tmp_path):
    (tmp_path / name).write_text(content)
    assert both(tmp_path / name) == (texts, labels)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('label,text\n1,"good\n0,bad"\n1,great\n', "3 lines are 2 rows, as quoted texts run over lines; if the marks"),
        ('text,label\n"two, or\nthree, lines",1\n', "2 lines are 1 row, as quoted texts run over lines"),
        ('label,text\n1,good\n0,"bad\n', "quotation marks are read as part of the texts: a quotation mark that opens"),
        ('text,label\n"a ""b""",1\n', None),
    ],
)
def test_what_quotation_marks_did_is_said(content, said, tmp_path, caplog):
    caplog.set_level(logging.INFO, "plait")
    (tmp_path / "x.csv").write_text(content)
    read_examples(tmp_path / "x.csv")
    assert [said in message for message in caplog.messages] == ([True] if said else [])


def test_marks_without_a_meaning_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text('text,label\n"a, b",1\n"good" film,0\n')
    with pytest.raises(DataError, match=r"one that closes a text is followed by more text \(near line 3\)"):
        read_examples(tmp_path / "x.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_characters_are_read_as_excel_writes_them(name, encoding, tmp_path, caplog):
    mark = ";" if name == "x.csv" else "\t"
    (tmp_path / name).write_bytes(f"text{mark}label\r\nfür alle\r\n".replace("alle", f"alle{mark}1").encode(encoding))
    assert both(tmp_path / name) == (("für alle",), (1,))
    warned = [f"{tmp_path / name}: is not UTF-8; reading it as Windows-1252 (such as 'für'); if that is wrong, "
              "save it as UTF-8"]  # fmt: skip
    assert warnings(caplog) == (warned * 2 if encoding == "cp1252" else [])


def test_a_no_break_space_is_no_word(tmp_path, caplog):
    (tmp_path / "x.csv").write_bytes(b"text,label\nhello\xa0world,1\nf\xfcr alle,0\n")
    assert both(tmp_path / "x.csv") == (("hello\xa0world", "für alle"), (1, 0))
    assert "(such as 'für')" in warnings(caplog)[0]


def test_a_no_break_space_alone_is_windows_1252_too(tmp_path, caplog):
    (tmp_path / "x.csv").write_bytes(b"text,label\nhello\xa0world,1\n")
    assert both(tmp_path / "x.csv") == (("hello\xa0world",), (1,))
    assert "reading it as Windows-1252 (such as a no-break space)" in warnings(caplog)[0]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("a.2,a,a", ["a.2", "a", "a.1"]),
        ("a,a,a.1", ["a", "a.2", "a.1"]),
        ("a,a,a", ["a", "a.1", "a.2"]),
        ("a,a.1,a,a.1", ["a", "a.1", "a.2", "a.1.1"]),
    ],
)
def test_no_two_columns_have_one_name(header, names):
    assert column_names(header.split(",")) == names


def test_a_column_called_data_is_a_column():
    table = {"data": ["a", "b"], "cls": ["x", "y"]}
    for data in (table, pd.DataFrame(table), pa.table(table)):
        assert read_examples(data, text="data", label="cls").labels == ("x", "y")
    rows = pd.DataFrame({"data": [{"id": 1}, {"id": 2}], "body": ["a", "b"], "cls": ["x", "y"]})
    assert read_examples(rows, text="body", label="cls").labels == ("x", "y")


def test_a_list_called_data_in_json(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"data": ["a", "b"], "cls": ["x", "y"]}')
    assert read_examples(path, text="data", label="cls").labels == ("x", "y")
    path.write_text('{"version": "1", "authors": ["one"], "data": ["a", "b"]}')
    assert read_examples(path).texts == ("a", "b")


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.json"])
def test_bytes_that_are_no_characters_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b'{"text": "a"}\n{"text": "f\xfcr"}\n')
    for read in (read_examples, lambda data: open_texts(data).count()):
        with pytest.raises(DataError, match=r"byte 0xfc in line 2 is not UTF-8; save the file as UTF-8$"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1", "0", ""], (1, 0, None)),
        (["0111", "0112", "1"], ("0111", "0112", "1")),
        (["1_1", "2_1"], ("1_1", "2_1")),
        (["0.0", "1.0"], (0.0, 1.0)),
        (["1", "2.5"], (1.0, 2.5)),
        (["nan", "1"], ("nan", "1")),
        (["inf", "1"], ("inf", "1")),
        (["True", "false"], (True, False)),
        ([" pos", "neg "], ("pos", "neg")),
        (["['joy']", "['joy', 'anger']", "[]"], (("joy",), ("joy", "anger"), ())),
        (["['joy' 'anger']", '["fear"]'], (("joy", "anger"), ("fear",))),
        (["[1 0 1]", "[0 0 0]"], ((1, 0, 1), (0, 0, 0))),
        (["[PER]", "[LOC]"], ("[PER]", "[LOC]")),
        (["it's", "[]"], ("it's", "[]")),
        (["true", "1", "0"], ("true", "1", "0")),
        (["1", "false"], ("1", "false")),
        (["[1]", "5"], ("[1]", "5")),
        (["[1]", "true", "5"], ("[1]", "true", "5")),
        (["[1]", "2.5"], ("[1]", "2.5")),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_labels_of_files_without_types(cells, labels, suffix, tmp_path):
    mark = "\t" if suffix == ".tsv" else ";"
    rows = "".join(f"t{i}{mark}{cell}\n" for i, cell in enumerate(cells))
    (tmp_path / f"x{suffix}").write_text(f"text{mark}label\n{rows}")
    _, found = both(tmp_path / f"x{suffix}")
    assert found == labels
    assert [isinstance(label, bool) for label in found] == [isinstance(label, bool) for label in labels]


def test_printed_lists_are_lists_wherever_they_are():
    assert both({"text": ["a", "b"], "label": ["['x', 'y']", "['x']"]})[1] == (("x", "y"), ("x",))
    assert both({"text": ["a", "b"], "label": ["1", "0"]})[1] == ("1", "0")
    found = read_examples({"tokens": ["['a', 'b']"], "tags": ["['O', 'B-X']"]})
    assert (found.texts, found.labels) == ((("a", "b"),), (("O", "B-X"),))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".json", ".jsonl", ".arrow", ""])
@pytest.mark.parametrize("pair", [False, True])
def test_rows_without_a_text_are_left_out_and_counted(suffix, pair, tmp_path, caplog):
    """One table, one behaviour: whatever it comes from, and through both doors."""
    frame = pd.DataFrame({"text": ["a", None, "  ", "", "b"], "label": [0, 1, 2, 3, 4]})
    if pair:
        frame = pd.DataFrame({"premise": list("vwxyz"), "hypothesis": frame["text"], "label": frame["label"]})
    path = tmp_path / f"x{suffix}"
    match suffix:
        case ".csv" | ".tsv":
            frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
        case ".parquet":
            frame.to_parquet(path)
        case ".json" | ".jsonl":
            frame.to_json(path, orient="records", lines=suffix == ".jsonl")
        case ".arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.table(frame).schema) as writer:
                writer.write_table(pa.table(frame))
    texts, labels = both(path if suffix else frame)
    assert (texts, labels) == (("v", "z") if pair else ("a", "b"), (0, 4))
    source = path if suffix else "data"
    assert warnings(caplog) == [f"{source}: 3 rows of 5 without a text, skipped"] * 2


def test_no_text_at_all():
    for read in (read_examples, lambda data: open_texts(data).count()):
        with pytest.raises(DataError, match="data: no text in 2 rows; expected at least one text in column 'text'"):
            read({"text": [" ", None], "label": [0, 1]})
