"""What consoles and notebooks show of results."""

from __future__ import annotations

import json
from pathlib import Path

from plait.amalgamation.student import Student
from plait.ensembles.saved import SavedEnsemble
from plait.evaluation.notebook import html, shortened
from plait.evaluation.scores import Evaluation, TaskScores
from plait.merging.merged import Merged
from plait.reports.record import Manifest, Task


def test_html_is_escaped() -> None:
    shown = html("a <b>", {"folder": "x & y", "nothing": None}, [{"task": "<i>", "score": "1"}])
    assert "<b>" not in shown
    assert "a &lt;b&gt;" in shown
    assert "x &amp; y" in shown
    assert "nothing" not in shown
    assert "<td>&lt;i&gt;</td><td>1</td>" in shown


def test_many_names_are_shortened() -> None:
    assert shortened("abc") == "a, b, c"
    assert shortened([str(n) for n in range(77)]) == "0, 1, 2, 3, 4, 5, … (77 in all)"


def test_evaluation() -> None:
    scores = TaskScores({"accuracy": 0.5}, "accuracy", 10, {"a": {"accuracy": 1.0}})
    found = Evaluation("m", {"mood": scores})
    assert repr(found) == "Evaluation of m\n  mood: accuracy 0.500, 50.0 % of the source, 10 examples"
    assert "<td>mood</td>" in found._repr_html_()


def test_merged(tmp_path: Path) -> None:
    task = Task("mood", "BertForSequenceClassification", "sequence_classification", None, ("a", "b"), ("x",))
    scores = {"tasks": {"mood": {"primary": "accuracy", "metrics": {"accuracy": 0.5}}}}
    sources = {"x": {"origin": "ckpt/x", "digest": "0" * 32}}
    recipe = {"method": {"name": "regmean"}, "output": "m"}
    Manifest({"mood": task}, sources, recipe, {"plait": "1"}, scores=scores).write(tmp_path)
    found = Merged(tmp_path)
    assert repr(found) == f"Merged({str(tmp_path)!r}, tasks=['mood'], method='regmean')"
    assert "accuracy 0.500" in found._repr_html_()


def test_student(tmp_path: Path) -> None:
    told = {
        "made_by": "amalgamate",
        "labels": ["a", "b"],
        "teachers": {"one": {"origin": "m", "labels": ["a"]}, "two": {"origin": "n", "labels": ["b"]}},
        "data": {"texts": 12},
        "who_taught_what": {"teachers": {"one": {"share": 0.25}, "two": {"mean_weight": 0.5}}},
        "epochs": [],
        "recipe": {},
        "forward_equivalents": {},
    }
    (tmp_path / "plait.json").write_text(json.dumps(told))
    found = Student(tmp_path)
    assert repr(found) == f"Student({str(tmp_path)!r}, labels=['a', 'b'], teachers=['one', 'two'])"
    assert "<td>25.0 %</td>" in found._repr_html_()
    assert "<td>50.0 %</td>" in found._repr_html_()


def test_one_model_of_an_ensemble(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    told = {"made_by": "ensemble", "recipe": {"method": {"name": "distilled"}}, "parameters": {"saved": 1200}}
    (tmp_path / "plait.json").write_text(json.dumps(told))
    assert repr(SavedEnsemble(tmp_path)) == f"SavedEnsemble({str(tmp_path)!r}, method='distilled', members=1)"
