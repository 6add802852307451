"""The union of label spaces: names, places, renaming, and warnings about names that teachers disagree on."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.amalgamation.label_space import disagreement, union
from plait.errors import RecipeError

quick = settings(deadline=None, max_examples=50)


def test_disjoint_labels_follow_each_other() -> None:
    space = union({"news": ["World", "Sports"], "science": ["Physics", "Biology"]})
    assert space.names == ("World", "Sports", "Physics", "Biology")
    assert space.columns == ((0, 1), (2, 3))
    assert space.teachers == ("news", "science")
    assert len(space) == 4


def test_equal_names_are_one_label() -> None:
    space = union({"a": ["World", "Sports", "Business"], "b": ["Business", "Sci/Tech"]})
    assert space.names == ("World", "Sports", "Business", "Sci/Tech")
    assert space.columns == ((0, 1, 2), (2, 3))
    assert space.known(1).tolist() == [False, False, True, True]


def test_renaming_joins_and_parts() -> None:
    labels = {"a": ["Tech", "Other"], "b": ["Sci/Tech", "Other"]}
    joined = union(labels, {"a.Tech": "Sci/Tech"})
    assert joined.names == ("Sci/Tech", "Other")
    parted = union(labels, {"b.Other": "Rest"})
    assert parted.names == ("Tech", "Other", "Sci/Tech", "Rest")


def test_two_labels_of_one_teacher_add_up() -> None:
    space = union({"a": ["Soccer", "Tennis", "Art"]}, {"a.Soccer": "Sports", "a.Tennis": "Sports"})
    assert space.columns == ((0, 0, 1),)
    padded = space.pad(0, torch.tensor([[0.5, 0.2, 0.3]]))
    torch.testing.assert_close(padded, torch.tensor([[0.7, 0.3]]))


def test_pad_leaves_the_teachers_numbers_alone() -> None:
    space = union({"a": ["x", "y"], "b": ["z", "x"]})
    p = torch.tensor([[0.25, 0.75]])
    assert space.pad(1, p).tolist() == [[0.75, 0.0, 0.25]]
    assert p.tolist() == [[0.25, 0.75]]


@given(data=st.data())
@quick
def test_every_teacher_keeps_its_mass_and_names(data: st.DataObject) -> None:
    letters = st.lists(st.sampled_from("abcdef"), min_size=2, max_size=4, unique=True)
    labels = data.draw(st.dictionaries(st.sampled_from(["t", "u", "v.w"]), letters, min_size=1))
    space = union(labels)
    assert set(space.names) == {name for names in labels.values() for name in names}
    for at, names in enumerate(labels.values()):
        p = torch.rand(3, len(names))
        padded = space.pad(at, p)
        torch.testing.assert_close(padded.sum(1), p.sum(1))
        assert [space.names[c] for c in space.columns[at]] == names
        assert bool((padded[:, ~space.known(at)] == 0).all())


def test_names_with_dots() -> None:
    labels = {"a": ["b.c", "d"], "a.b": ["c", "e"]}
    space = union(labels, {"a.b.c": "new", "a.d": "D"})
    assert "new" in space.names
    assert "D" in space.names


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"news.Sprots": "x"}, r"rename: teacher 'news' has no label 'Sprots' \(did you mean 'Sports'\?"),
        ({"nws.Sports": "x"}, r"rename: 'nws.Sports': unknown teacher 'nws' \(did you mean 'news'\?"),
        ({"Sports": "x"}, r"rename: 'Sports' names no teacher's label \(did you mean 'news.Sports'\?"),
        ({"news.Sports": " "}, r"the new name of 'news.Sports' is empty: write teacher.Label=Name"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(rename: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        union({"news": ["Sports", "World"], "b": ["x", "y"]}, rename)


def test_all_offenders_at_once() -> None:
    with pytest.raises(RecipeError, match=r"(?s)'A'.*; .*'B'"):
        union({"news": ["Sports", "World"]}, {"news.A": "x", "news.B": "y"})


@pytest.mark.parametrize("labels", [{}, {"a": ["x", "x"]}, {"a": ["x"]}])
def test_a_student_needs_two_labels(labels: dict[str, list[str]]) -> None:
    with pytest.raises(RecipeError, match="a student needs at least 2"):
        union(labels)


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1"], ["0", "1"]])
def test_placeholders_of_two_teachers_are_not_one_label(
    names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    space = union({"a": names, "b": names, "c": ["World", "Sports"]})
    assert space.names == (
        f"a.{names[0]}",
        f"a.{names[1]}",
        f"b.{names[0]}",
        f"b.{names[1]}",
        "World",
        "Sports",
    )
    assert "a and b do not name their labels" in caplog.text
    assert f"--rename a.{names[0]}=NAME" in caplog.text


def test_placeholders_of_one_teacher_stay(caplog: pytest.LogCaptureFixture) -> None:
    space = union({"a": ["LABEL_0", "LABEL_1"], "b": ["World", "Sports"]})
    assert space.names == ("LABEL_0", "LABEL_1", "World", "Sports")
    assert [record.levelname for record in caplog.records] in ([], ["INFO"])


def test_renamed_placeholders_say_something(caplog: pytest.LogCaptureFixture) -> None:
    names = ["LABEL_0", "LABEL_1"]
    rename = {"b.LABEL_0": "World", "b.LABEL_1": "Sports"}
    space = union({"a": names, "b": names}, rename)
    assert space.names == ("LABEL_0", "LABEL_1", "World", "Sports")
    assert [record.levelname for record in caplog.records] in ([], ["INFO"])


def test_spellings_of_one_name_are_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    space = union({"a": ["Sci/Tech", "World"], "b": ["sci tech", "World"]})
    assert space.names == ("Sci/Tech", "World", "sci tech")
    assert "a's 'Sci/Tech' and b's 'sci tech' are taken for two labels" in caplog.text
    assert "--rename 'b.sci tech=Sci/Tech'" in caplog.text
    assert len(caplog.records) == 1


def test_one_teacher_may_tell_spellings_apart(caplog: pytest.LogCaptureFixture) -> None:
    union({"a": ["polish", "Polish"], "b": ["Polish", "German"]})
    assert caplog.text == ""


@pytest.mark.parametrize("names", [["tech", "Tech"], ["Tech", "tech"]])
def test_a_spelling_that_both_have_is_no_twin(names: list[str], caplog: pytest.LogCaptureFixture) -> None:
    union({"a": names, "b": ["tech", "Art"]})
    union({"a": ["Tech", "Art"], "b": names})
    assert caplog.text == ""


def test_the_longest_teacher_is_meant() -> None:
    with pytest.raises(RecipeError, match=r"teacher 'a\.b' has no label 'x'"):
        union({"a": ["c", "d"], "a.b": ["c", "e"]}, {"a.b.x": "new"})


def test_signs_alone_are_not_one_spelling(caplog: pytest.LogCaptureFixture) -> None:
    union({"a": ["+", "x"], "b": ["-", "y"]})
    assert caplog.text == ""


def test_numbers_are_names_unless_they_are_places() -> None:
    assert union({"a": ("1", "2", "3"), "b": ("3", "4")}).names == ("1", "2", "3", "4")
    assert union({"a": ("0", "1"), "b": ("0", "1")}).names == ("a.0", "a.1", "b.0", "b.1")


def unsure(count: int = 400) -> torch.Tensor:
    """A teacher that is right about its labels and gives them little more than one half."""
    kinds = torch.arange(count) % 2
    noise = torch.rand(count, generator=torch.Generator().manual_seed(0)) * 0.02
    first = torch.where(kinds == 0, 0.53 + noise, 0.45 - noise)
    return torch.stack([first, 1 - first], 1)


def test_equal_teachers_agree_however_unsure() -> None:
    space = union({"a": ["x", "y"], "b": ["x", "y"]})
    assert disagreement([unsure(), unsure()], space, space.teachers) == []


def test_advice_names_a_renamed_label_as_its_teacher_does() -> None:
    space = union({"a": ["x", "y"], "b": ["z", "y"]}, {"b.z": "x"})
    sure = torch.tensor([[0.99, 0.01], [0.01, 0.99]]).repeat(100, 1)
    found = disagreement([sure, sure.flip(1)], space, space.teachers)
    assert [text.rpartition("--rename ")[2] for text in found] == ["'b.z=NAME'", "'b.y=NAME'"]
