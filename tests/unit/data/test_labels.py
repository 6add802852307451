"""Labels reach the head's positions by name or index, or the error names every one that does not."""

from __future__ import annotations

import re

import pytest

from plait.data import Examples, align_labels
from plait.data.cells import Number
from plait.data.labels import names_in, what_was_taken
from plait.errors import DataError
from plait.label_names import placeholders

GENERIC = ("LABEL_0", "LABEL_1")


def labelled(labels, names=None, kind="sequence_classification"):
    texts = tuple(("w",) * len(y) if kind == "token_classification" else "w" for y in labels)
    return Examples(texts, labels=tuple(labels), label_names=names, kind=kind)


@pytest.mark.parametrize(
    ("labels", "names", "head", "expected"),
    [
        (("pos", "neg"), None, ("neg", "pos"), (1, 0)),
        (("Pos", "NEG"), None, ("neg", "pos"), (1, 0)),
        ((0, 1), ("pos", "neg"), ("neg", "pos"), (1, 0)),
        ((0, 1), None, ("neg", "pos"), (0, 1)),
        ((0, 1), ("pos", "neg"), GENERIC, (0, 1)),
        ((0, 1), GENERIC, ("neg", "pos"), (0, 1)),
        ((0, 1), ("pos", "neg"), None, (0, 1)),
        ((1.0, 0.0), None, ("neg", "pos"), (1, 0)),
        (("a", "A"), None, ("A", "a"), (1, 0)),
        ((1, 10, 2), None, ("0", "1", "10", "2"), (1, 2, 3)),
        ((1.0, 5.0), None, ("1", "2", "3", "4", "5"), (0, 4)),
        ((2, 0), None, ("0", "1", "other"), (2, 0)),
        ((2001, 1984), None, ("1984", "2001"), (1, 0)),
        ((0, 1), GENERIC, ("1", "2"), (0, 1)),
        ((0, 1), ("negative", "positive"), ("0", "1"), (0, 1)),
        ((1, 0), ("0", "1"), ("neg", "pos"), (1, 0)),
        ((0, "0", "1"), None, ("neg", "pos"), (0, 0, 1)),
        (("LABEL_1", "label_0"), None, ("neg", "pos"), (1, 0)),
        (("1", "0"), None, GENERIC, (1, 0)),
        ((2, 1), None, ("LABEL_1", "LABEL_2"), (1, 0)),
        ((0, 1), None, ("LABEL_1", "LABEL_0"), (1, 0)),
        ((" pos", "ne\u0301g"), None, ("n\u00e9g", "pos"), (1, 0)),
        ((True, False), None, ("True", "False"), (0, 1)),
        ((True, False), None, ("neg", "pos"), (1, 0)),
        ((Number("1.0"), Number("2.0")), None, ("2.0", "1.0"), (1, 0)),
        ((Number("1.10"), Number("1.9")), None, ("1.10", "1.9"), (0, 1)),
        (("0111",), None, ("0110", "0111"), (1,)),
    ],
)
def test_single_labels(labels, names, head, expected):
    aligned = align_labels(labelled(labels, names), head, problem_type="single_label_classification")
    assert aligned.labels == expected


@pytest.mark.parametrize(
    ("labels", "names", "head", "message"),
    [
        ((0, 2, -1), None, ("a", "b"), r"labels -1; 2 are not the head's; expected 0 to 1 or a, b"),
        ((0, 5), None, GENERIC, r"labels 5 are not the head's; expected 0 to 1"),
        (("x", "a", "y"), None, ("a", "b"), r"labels x; y are not the head's; expected 0 to 1 or a, b"),
        ((0, 1), ("cat", "dog"), ("a", "b"), r"labels cat; dog are not"),
        ((0, 1, 2), ("x", "y", "z"), GENERIC, r"labels x; y; z are not"),
        (("A",), None, ("aa", "á"), r"labels A are not"),
        ((1, 0), None, ("1", "2"), r"labels 0 are not the head's; expected 1, 2"),
        (("1", "pos"), None, ("neg", "pos"), r"labels 1 are not the head's; expected 0 to 1 or neg, pos"),
        (("neg ", "odd "), None, ("neg", "pos"), r"labels 'odd ' are not the head's"),
        (("neg", "pos"), None, GENERIC, r"labels neg; pos are not .* what these stand for: labels \(--labels"),
        ((0, None), None, ("a", "b"), r"data: 1 example has no label: example 1 \('w'\); label them"),
        ((None, None, 1), None, ("a", "b"), r"data: 2 examples have no label: example 0 \('w'\); example 1"),
        ((0, "zero"), None, None, r"labels zero are not the head's; expected whole numbers from 0"),
    ],
)
def test_labels_that_are_not_the_heads(labels, names, head, message):
    with pytest.raises(DataError, match=message):
        align_labels(labelled(labels, names), head, problem_type="single_label_classification")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((("b", "c"), ()), ((0.0, 1.0, 1.0), (0.0, 0.0, 0.0))),
        (((0, 2), (1,)), ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0))),
        (((0, 1, 1), (1, 0, 0)), ((0.0, 1.0, 1.0), (1.0, 0.0, 0.0))),
        (((0.0, 1.0, 1.0),), ((0.0, 1.0, 1.0),)),
    ],
)
def test_several_labels(labels, expected):
    aligned = align_labels(labelled(labels), ("a", "b", "c"))
    assert aligned.labels == expected
    assert aligned.problem_type == "multi_label_classification"


def test_one_label_per_text_for_a_head_of_several_is_said(caplog):
    caplog.set_level("INFO", logger="plait")
    several = {"problem_type": "multi_label_classification"}
    assert align_labels(labelled((1, "c")), ("a", "b", "c"), **several).labels == ((0, 1, 0), (0, 0, 1))
    assert [r.getMessage() for r in caplog.records] == ["data: one label per text for a multi-label head"]
    caplog.clear()
    align_labels(labelled(((1,), ("c", "a"))), ("a", "b", "c"), **several)
    assert not caplog.records


def test_a_long_list_of_strange_labels_is_cut():
    with pytest.raises(DataError, match=r"labels 0.0; 0.1; 0.2; 0.3; 0.4; and 2 more are not the head's"):
        align_labels(labelled([i / 10 for i in range(7)]), (), problem_type="single_label_classification")


def test_several_labels_out_of_range():
    with pytest.raises(DataError, match="labels 7 are not the head's; expected 0 to 2"):
        align_labels(labelled(((0, 7),)), ("a", "b", "c"))


def test_numbers():
    assert align_labels(labelled((1, 2.5)), None, problem_type="regression").labels == (1.0, 2.5)
    with pytest.raises(
        DataError, match=r"needs finite numbers; found others in row 1 \(inf\); row 2 \('x'\)"
    ):
        align_labels(labelled((1, float("inf"), "x")), None, problem_type="regression")


@pytest.mark.parametrize("head", [("a", "b"), None])
def test_several_labels_for_a_head_of_one(head):
    with pytest.raises(
        DataError, match=r"one label a text; found several in row 1 \(\(0, 1\)\); row 2 \(\(\)\)"
    ):
        align_labels(labelled((0, (0, 1), ())), head, problem_type="single_label_classification")


def test_one_label_for_tags():
    tags = Examples((("a", "b"), ("a",)), labels=((0, 1), 0), kind="token_classification")
    with pytest.raises(DataError, match=r"one label a word; found others in row 1 \(0\)"):
        align_labels(tags, ("x", "y"))


def test_tags_keep_the_ignored_ones():
    tags = labelled((("P", -100), ("O",)), kind="token_classification")
    assert align_labels(tags, ("O", "P")).labels == ((1, -100), (0,))


def test_unlabelled_examples_stay_as_they_are():
    examples = Examples(("a",))
    assert align_labels(examples, ("x",)) is examples


def test_data_for_another_head():
    with pytest.raises(
        DataError, match="holds data for sequence classification; the head is for token classification"
    ):
        align_labels(labelled((0,)), ("x",), kind="token_classification")


@pytest.mark.parametrize(
    ("labels", "declared", "names"),
    [
        ((0, 1), ("n", "p"), ("n", "p")),
        (("b", "a"), None, ("a", "b")),
        ((0, 2), None, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ((0.5,), None, None),
        (((0, 1, 1),), None, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ((("x",), ("y", "x")), None, ("x", "y")),
        ((2001, 1984), None, ("1984", "2001")),
        ((0, 999), None, tuple(f"LABEL_{i}" for i in range(1000))),
        (("10", "2", "-1"), None, ("-1", "2", "10")),
        (("10", "2", "x"), None, ("10", "2", "x")),
        ((1, 2, 5), None, ("1", "2", "5")),
        ((1.0, 0.0), None, ("LABEL_0", "LABEL_1")),
        ((1.0, 2.0), None, ("1", "2")),
        ((-1, 1), None, ("-1", "1")),
        ((True, False, True), None, ("False", "True")),
        ((0, None, 1), None, ("LABEL_0", "LABEL_1")),
    ],
)
def test_names_of_a_new_head(labels, declared, names):
    assert names_in(labelled(labels, declared)) == names


def test_numbers_are_classes_where_that_is_chosen():
    floats = labelled((0.0, 2.0, 1.0))
    assert names_in(floats, "regression") is None
    names = names_in(floats, "single_label_classification")
    assert names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert align_labels(floats, names, problem_type="single_label_classification").labels == (0, 2, 1)
    assert names_in(labelled((0, 1)), "regression") is None


def test_only_tags_may_be_ignored():
    with pytest.raises(DataError, match="labels -100 are not the head's"):
        align_labels(labelled((0, -100)), ("a", "b"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, True),
        (("LABEL_0", "LABEL_1"), True),
        (("label_1", "LABEL_0"), True),
        (("0", "1", "2"), True),
        (("1", "0"), False),
        (("1", "2", "3"), False),
        (("neg", "LABEL_1"), False),
        (("neg", "pos"), False),
    ],
)
def test_placeholders_are_the_same_everywhere(names, expected):
    assert placeholders(names) is expected


def test_numbers_with_fractions_are_classes_where_that_is_chosen():
    versions = labelled((Number("1.10"), Number("1.9")))
    assert versions.problem_type == "regression"
    assert names_in(versions, "single_label_classification") == ("1.10", "1.9")


def test_texts_are_numbers_for_a_regression():
    assert align_labels(labelled(("4.5", "1")), None, problem_type="regression").labels == (4.5, 1.0)


@pytest.mark.parametrize(
    ("labels", "declared", "said"),
    [
        ((0.0, 1.0), None, r"labels are whole numbers: 2 classes \(LABEL_0, LABEL_1\); .*--problem-type"),
        ((1, 5), None, r"labels are whole numbers: 2 classes \(1, 5\).*--labels"),
        ((0.5, 1.0), None, r"labels are numbers with a fraction: a regression; for classes: .*--problem-type"),
        ((("a",), ("b", "a")), None, r"labels are lists: several labels a text, of a, b"),
        (("a", "b"), None, None),
        ((0, 1), ("a", "b"), None),
    ],
)
def test_what_was_decided_is_said_with_the_way_out(labels, declared, said):
    examples = labelled(labels, declared)
    found = what_was_taken(examples, names_in(examples))
    assert found is None if said is None else re.match(said, found)
