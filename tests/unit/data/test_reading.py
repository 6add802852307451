"""Every kind of data that `read_examples` takes, and what it says of those it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import datasets
import huggingface_hub
import pandas as pd
import pytest

from plait.data import Examples, read_examples
from plait.errors import DataError

TEXTS = ["a good film", "1984", 'say "no", twice']
LABELS = [1, 0, 1]
NAMES = ("neg", "pos")
CLASSES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(NAMES))}
)


def dataset() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS}, features=CLASSES)


def written(folder, suffix):
    path = folder / f"train{suffix}"
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    match suffix:
        case ".parquet":
            dataset().to_parquet(path)
        case ".csv" | ".tsv":
            pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
        case ".json":
            path.write_text(json.dumps(rows))
        case ".jsonl" | ".ndjson":
            path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson"])
def test_files_hold_the_same_examples(tmp_path, suffix):
    examples = read_examples(written(tmp_path, suffix))
    assert examples.texts == tuple(TEXTS)
    assert examples.labels == tuple(LABELS)
    assert examples.label_names == (NAMES if suffix == ".parquet" else None)


@pytest.mark.parametrize(
    "data",
    [
        {"text": TEXTS, "label": LABELS},
        (TEXTS, LABELS),
        [{"sentence": text, "Label": label} for text, label in zip(TEXTS, LABELS, strict=True)],
        pd.DataFrame({"content": TEXTS, "class": LABELS}),
        Examples(tuple(TEXTS), labels=tuple(LABELS)),
    ],
    ids=["columns", "tuple", "rows", "frame", "examples"],
)
def test_memory_holds_the_same_examples(data):
    examples = read_examples(data)
    assert (examples.texts, examples.labels) == (tuple(TEXTS), tuple(LABELS))


def test_datasets_keep_their_label_names(tmp_path):
    for data in (dataset(), datasets.DatasetDict({"train": dataset()})):
        assert read_examples(data).label_names == NAMES
    datasets.DatasetDict({"train": dataset(), "test": dataset()}).save_to_disk(tmp_path / "saved")
    assert read_examples(tmp_path / "saved", split="test").label_names == NAMES


def test_lists_of_declared_labels_keep_their_names():
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "P"])),
        }
    )
    data = datasets.Dataset.from_dict({"tokens": [["go", "john"]], "ner_tags": [[0, 1]]}, features=features)
    examples = read_examples(data)
    assert examples.kind == "token_classification"
    assert (examples.texts, examples.labels) == ((("go", "john"),), ((0, 1),))
    assert examples.label_names == ("O", "P")


def test_texts_alone_have_no_labels(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text("one\n\ntwo\n")
    assert read_examples(path).texts == ("one", "two")
    assert read_examples(["one", "two"]).labels is None


def test_pairs_are_found():
    examples = read_examples({"premise": ["a"], "hypothesis": ["b"], "label": ["yes"]})
    assert (examples.texts, examples.pairs, examples.labels) == (("a",), ("b",), ("yes",))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sentence1", "sentence2"),
        ("Premise", "Hypothesis"),
        ("question", "sentence"),
        ("question1", "question2"),
        ("text", "text_pair"),
        ("question", "context"),
        ("question", "passage"),
        ("query", "document"),
    ],
)
def test_known_pairs_are_read_as_pairs(first, second):
    for data in ({first: ["a"], second: ["b"], "label": [0]}, {"label": [0], second: ["b"], first: ["a"]}):
        examples = read_examples(data)
        assert (examples.texts, examples.pairs, examples.labels) == (("a",), ("b",), (0,))
        assert examples.kind == "sequence_classification"


def test_half_a_named_pair_finds_its_other_half():
    data = {"question": ["a"], "sentence": ["b"], "review": ["c"], "label": [0]}
    for wanted in ({"text": "question", "text_pair": "sentence"}, {"text_pair": "sentence"}):
        examples = read_examples(data, **wanted)
        assert (examples.texts, examples.pairs) == (("a",), ("b",))
    assert read_examples(data, text="sentence").pairs is None


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("text", "review"), "text, review"),
        (("question", "sentence", "content"), "question, sentence, content"),
        (("premise", "choice1", "question"), "premise, question"),
    ],
)
def test_texts_are_not_dropped_in_silence(columns, found):
    data = {**{name: ["a"] for name in columns}, "label": [0]}
    with pytest.raises(
        DataError, match=rf"several columns with text \({found}\).*--text-column.*--text-pair-column"
    ):
        read_examples(data)
    assert read_examples(data, text=columns[0]).pairs is None
    assert read_examples(data, label=columns[1], text=columns[0]).labels == ("a",)


def test_columns_of_other_things_are_no_texts():
    data = {"text": ["a"], "document": [17], "review": [None], "label": [0]}
    assert (read_examples(data).texts, read_examples(data).pairs) == (("a",), None)
    assert read_examples({"sentence": ["a"], "review": ["good"]}, label="review").labels == ("good",)


def test_named_columns_win():
    data = {"text": ["a"], "body": ["b"], "label": [0], "stars": [4.5]}
    examples = read_examples(data, text="body", label="stars")
    assert (examples.texts, examples.labels, examples.problem_type) == (("b",), (4.5,), "regression")


def test_a_description_names_path_split_and_columns(tmp_path):
    (tmp_path / "test.csv").write_text("body,stars\nx,3\n")
    (tmp_path / "train.csv").write_text("body,stars\ny,3\n")
    told = {"path": tmp_path, "split": "test", "text": "body"}
    assert read_examples(told).texts == ("x",)
    assert read_examples(told, split="train").texts == ("y",)
    with pytest.raises(DataError, match=r"unknown entry 'txt' \(did you mean 'text'\?"):
        read_examples({"path": tmp_path, "txt": "body"})


@pytest.mark.parametrize(
    "answers",
    [{"text": ["b"], "answer_start": [2]}, [{"text": "b", "answer_start": 2}]],
    ids=["lists", "rows"],
)
def test_questions_are_found(answers):
    examples = read_examples([{"question": "what?", "context": "a b c", "answers": answers}])
    assert examples.kind == "question_answering"
    assert (examples.texts, examples.pairs, examples.labels) == (("what?",), ("a b c",), ((("b", 2),),))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_label_column_of_any_name_holds_numbers(tmp_path, suffix):
    separator = "\t" if suffix == ".tsv" else ","
    rows = (("text", "similarity", "year"), ("x", "3", "1984"), ("y", "10", "2001"), ("z", "2.5", ""))
    for count, found in ((3, (3, 10)), (4, (3.0, 10.0, 2.5))):
        (tmp_path / f"train{suffix}").write_text("".join(f"{separator.join(r)}\n" for r in rows[:count]))
        for data in (tmp_path / f"train{suffix}", tmp_path):
            labels = read_examples(data, label="similarity").labels
            assert labels == found
            assert isinstance(labels[0], type(found[0]))
        assert read_examples({"path": tmp_path, "label": "similarity"}).labels == found
    assert read_examples(tmp_path, label="year").labels == (1984, 2001, None)
    assert read_examples(tmp_path, text="year", label="similarity").texts == ("1984", "2001")


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0c", "\x1e"])
def test_lines_end_at_line_feeds_alone(tmp_path, mark):
    text = f"one{mark}line"
    row = json.dumps({"text": text, "label": 0}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f"{row}\r\n{row}\n".encode())
    (tmp_path / "b.txt").write_bytes(f"{text}\r\n\ntwo\n".encode())
    if mark in row:  # others are escaped in JSON
        assert read_examples(tmp_path / "a.jsonl").texts == (text, text)
    assert read_examples(tmp_path / "b.txt").texts == (text, "two")


def test_a_folder_of_splits(tmp_path):
    written(tmp_path, ".csv")
    assert len(read_examples(tmp_path)) == 3
    (tmp_path / "test.csv").write_text("text,label\nx,0\n")
    assert read_examples(tmp_path, split="test").texts == ("x",)
    assert read_examples(f"{tmp_path}@test").texts == ("x",)
    with pytest.raises(DataError, match="has the splits test, train; say which one"):
        read_examples(tmp_path)
    with pytest.raises(DataError, match=r"no split 'tets' \(did you mean 'test'\? known: test, train\)"):
        read_examples(tmp_path, split="tets")


def test_published_test_splits_are_unlabelled():
    hidden = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [-1, -1]}, features=CLASSES)
    assert read_examples(hidden).labels is None


def test_a_sample_is_fixed_by_its_seed_and_keeps_the_order():
    data = [f"text {i}" for i in range(50)]
    once, again, other = (read_examples(data, limit=9, seed=seed).texts for seed in (1, 1, 2))
    assert once == again != other
    assert list(once) == sorted(once, key=data.index)
    assert read_examples(data, limit=99).texts == tuple(data)


def test_the_fingerprint_sees_every_part():
    base = Examples(("a", "b"), labels=(0, 1))
    others = [
        Examples(("b", "a"), labels=(0, 1)),
        Examples(("a", "b"), labels=(1, 0)),
        Examples(("a", "b")),
        Examples(("a", "b"), pairs=("0", "1")),
        Examples(("a", "b"), labels=(0, 1), label_names=("x", "y")),
        Examples(("ab",), labels=(0, 1)),
    ]
    prints = [example.fingerprint for example in [base, *others]]
    assert len(set(prints)) == len(prints)
    assert base.fingerprint == Examples(("a", "b"), labels=(0, 1), source="elsewhere").fingerprint


def test_the_fingerprint_is_the_same_in_every_process():
    code = "from plait.data import Examples; print(Examples(('a',), labels=(0,)).fingerprint)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == Examples(("a",), labels=(0,)).fingerprint


def test_no_text_column(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("utterance,intent\nhello,greet\n")
    with pytest.raises(
        DataError, match=r"x.csv: no text column; found columns utterance, intent; expected one of"
    ):
        read_examples(path)


def test_wrong_column_name():
    with pytest.raises(
        DataError, match=r"no column label='labell' \(did you mean 'label'\? known: label, text\)$"
    ):
        read_examples({"text": ["a"], "label": [0]}, label="labell")


def test_empty_data(tmp_path):
    path = tmp_path / "empty.csv"
    path.write_text("text,label\n")
    for data in (path, {"text": []}, []):
        with pytest.raises(DataError, match="no examples; expected at least one row"):
            read_examples(data)


def test_something_else_than_a_text_is_named():
    with pytest.raises(DataError, match=r"column 'text' must hold text; .* in row 2 \(int 3\)$"):
        read_examples({"text": ["a", None, 3]})


def test_a_row_without_a_label_has_none():
    assert read_examples({"text": ["a", "b", "c"], "label": [1, None, float("nan")]}).labels == (1, None, None)
    assert read_examples({"text": ["a", "b"], "label": [None, None]}).labels is None


def test_missing_file(tmp_path):
    for origin in (tmp_path / "no.parquet", "no.csv", "./no/folder", "a/b/c"):
        with pytest.raises(DataError, match=r"no such file or folder$"):
            read_examples(origin)


@pytest.mark.parametrize(
    ("name", "why"),
    [("a" * 300, "File name too long"), ("a" * 300 + "@train", "File name too long"), ("~no_such_user/x.csv", "home")],
)
def test_a_name_that_the_system_refuses(name, why):
    with pytest.raises(DataError, match=rf"cannot be looked for \(.*{why}.*\); expected a path or a Hub") as caught:
        read_examples(name)
    assert len(str(caught.value)) < 250


def test_a_typo_in_a_folder_that_exists_never_goes_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "trec").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"^data/tree: no such file or folder \(did you mean 'trec'\? known: trec\)$"
    ):
        read_examples("data/tree")


def test_a_checkpoint_is_no_data(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        DataError, match=r"is a checkpoint, not data; expected a file of texts, such as train.csv"
    ):
        read_examples(tmp_path)


def test_unknown_kind_of_file(tmp_path):
    path = tmp_path / "data.xlsx"
    path.touch()
    with pytest.raises(DataError, match=r"unknown kind of file '.xlsx'; expected .parquet, .csv"):
        read_examples(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", b"not parquet at all", "cannot be read as parquet"),
        ("x.json", b"{broken", "cannot be read as json"),
        ("x.json", b"3", "holds a int; expected a list of rows"),
        ("x.jsonl", b'{"text": "a"}\n{oops', "line 2"),
        ("x.csv", b"text,label\na,1\nb\n", r"1 row does not have 2 columns, first near line 3"),
        ("x.csv", b"text,label\na", r"1 row does not have 2 columns, first near line 2"),
        ("x.txt", b"\xff\xfe\x00", "cannot be read as txt"),
    ],
)
def test_corrupt_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_examples(path)
    assert "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"no data files; expected files such as train.parquet"):
        read_examples(tmp_path)


def test_uneven_columns():
    with pytest.raises(DataError, match="columns differ in length: text 2, label 1"):
        read_examples({"text": ["a", "b"], "label": [0]})


def test_uneven_tags():
    with pytest.raises(DataError, match=r"words and tags differ in number in row 0 \(2 words, 1 tags\)"):
        read_examples({"tokens": [["a", "b"]], "tags": [[0]]})


def test_tags_that_are_no_lists():
    with pytest.raises(DataError, match=r"column 'labels' needs a list of labels in row 0 \(int 1\)"):
        read_examples({"tokens": [["a"], ["b"]], "labels": [1, [0]]})


def test_rows_without_words_are_skipped(caplog):
    examples = read_examples({"tokens": [["a"], [], None], "tags": [[0], [], None]})
    assert (examples.texts, examples.labels) == ((("a",),), ((0,),))
    assert caplog.messages == ["data: 2 rows of 3 without a text, skipped"]
    with pytest.raises(DataError, match=r"column 'tokens' needs a list of words in row 1 \(str 'b'\)"):
        read_examples({"tokens": [["a"], "b"], "tags": [[0], [1]]})


def test_wrong_answers():
    data = {"question": ["q"], "context": ["c"], "answers": [{"text": ["c"]}]}
    with pytest.raises(DataError, match=r"row 0 of column 'answers' is .*; expected text and answer_start"):
        read_examples(data)


def test_mixed_rows():
    with pytest.raises(DataError, match="row 1 is a str; expected texts alone, or one dict a row"):
        read_examples([{"text": "a"}, "b"])


def test_something_else_altogether():
    with pytest.raises(DataError, match="data is a int; expected a path"):
        read_examples(3)


def test_a_hub_name_that_cannot_be_loaded(monkeypatch):
    def fail(*_args):
        raise ValueError("no network\nhere")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=r"owner/name: no such file or folder here, and no data set .* no network here"
    ):
        read_examples("owner/name")


def test_a_hub_out_of_reach_is_asked_once(monkeypatch, caplog):
    asked = []

    def refuse(*arguments, **_options):
        asked.append(arguments)
        raise OSError("[Errno -2] Name or service not known\nand much more")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=refuse))
    with pytest.raises(DataError) as caught:
        read_examples("some/dataset")
    assert str(caught.value) == (
        "some/dataset: no such file or folder here, and the Hub cannot be reached "
        "([Errno -2] Name or service not known)"
    )
    assert len(asked) == 1
    assert not caplog.records
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"review": ["a"], "stars": [1]}, {}, "data: text=review, label=stars"),
        ({"premise": ["a"], "hypothesis": ["b"]}, {}, "data: text=premise, text_pair=hypothesis"),
        ({"words": [["a"]], "ner_tags": [[1]]}, {}, "data: tokens=words, tags=ner_tags"),
        ({"text": ["a"], "label": [1]}, {}, None),
        ({"text": ["a"]}, {}, None),
        ({"body": ["a"], "mark": [1]}, {"text": "body", "label": "mark"}, None),
        ({"question": ["q"], "context": ["c"]}, {}, None),
    ],
)
def test_columns_that_were_found_are_said(caplog, columns, options, said):
    caplog.set_level("INFO", logger="plait")
    read_examples(columns, **options)
    assert [record.getMessage() for record in caplog.records] == ([said] if said else [])


def test_a_hub_name_with_config_and_split(monkeypatch):
    calls = []

    def load(*arguments):
        calls.append(arguments)
        return datasets.DatasetDict({"train": dataset(), "validation": dataset()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    examples = read_examples("owner/name:sst2@validation")
    assert calls == [("owner/name", "sst2")]
    assert (examples.label_names, examples.source) == (NAMES, "owner/name:sst2@validation")
