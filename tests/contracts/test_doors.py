"""Every option is reachable through each door: a recipe, Python and the command line name it alike."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.amalgamation import run as amalgamating
from plait.amalgamation import run as scoring
from plait.api import jobs
from plait.cli import invoke
from plait.comparison import run as comparing
from plait.ensembles import run as ensembling
from plait.errors import RecipeError
from plait.merging import run as merging
from plait.recipe import AmalgamateRecipe, CompareRecipe, EnsembleRecipe, MergeRecipe, parse_as
from plait.recipe.merge import MethodSpec
from plait.statistics import cache as statistics
from plait.teachers import Settings
from plait.training import finetune
from tests.models import save, texts, tiny


class Reached(Exception):
    """What a job would have been done with."""

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__()
        self.values, self.named = values, named


def reach(*values: Any, **named: Any) -> Any:
    raise Reached(*values, **named)


def stopped(call: Callable[[], Any]) -> Reached:
    with pytest.raises(Reached) as found:
        call()
    return found.value


def halt(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """Stops a job where the command line starts it, and where Python does."""
    for place in (module, jobs):
        monkeypatch.setattr(place, name, reach)


SPECIFIED = {"path": "f.csv", "text": "t", "text_pair": "p", "label": "l"}
COLUMNS = ("--text-column", "t", "--text-pair-column", "p", "--label-column", "l")

# The value of a field, then the words of the command line and the arguments in Python where they are not its name.
MERGE: dict[str, tuple[Any, tuple[Any, ...] | None, dict[str, Any] | None]] = {
    "base": ("b", None, None),
    "method": ({"name": "ties", "density": 0.3}, ("--method", "ties", "--set", "density=0.3"),
               {"method": "ties", "density": 0.3}),
    "merge_pooler": (True, None, None),
    "align_heads": ("shift", None, None),
    "align_ridge": (0.5, None, None),
    "refine": (2, None, None),
    "refine_texts": (7, None, None),
    "refine_on": ("hidden", None, None),
    "refine_heads": (True, None, None),
    "refine_dropout": (True, None, None),
    "refine_rate": (0.5, None, None),
    "refine_batch_size": (3, None, None),
    "refine_precision": ("bfloat16", None, None),
    "keep_adapter": ("cat", None, None),
    "rank": (3, None, None),
    "dtype": ("float16", None, None),
    "max_shard_size": ("1GB", None, None),
    "trust_remote_code": (True, None, None),
    "evaluate": ({"a": SPECIFIED}, ("--evaluate", "a=f.csv", *COLUMNS), None),
    "search": (5, None, None),
    "search_rows": (7, None, None),
    "search_batch": (2, None, None),
    "storage": ("sqlite:///s.db", None, None),
    "validation": ({"a": SPECIFIED}, ("--validation", "a=f.csv", *COLUMNS), None),
}  # fmt: skip
SOURCE = {
    "model": ("m", (), {}),
    "data": (SPECIFIED, ("--data", "a=f.csv", *COLUMNS), {"data": {"a": SPECIFIED}}),
    "statistics": ("s", ("--statistics", "a=s"), {"statistics": {"a": "s"}}),
    "task": ("t", ("--task", "a=t"), {"tasks": {"a": "t"}}),
    "labels": (["no", "yes"], ("--labels", "a=no,yes"), {"labels": {"a": ["no", "yes"]}}),
    "weight": (0.5, ("--weight", "a=0.5"), {"weights": {"a": 0.5}}),
    "layer_weights": ([{"filter": "attn", "values": [0, 1]}, {"values": [0.5]}],
                      ("--layer-weight", "a=attn:0,1;0.5"),
                      {"sources": {"a": {"model": "m", "layer_weights": "attn:0,1;0.5"}}}),
    "revision": ("r", ("--revision", "a=r"), {"sources": {"a": {"model": "m", "revision": "r"}}}),
    "base": ("b", ("--adapter-base", "a=b"), {"sources": {"a": {"model": "m", "base": "b"}}}),
}
METHOD = {
    "importance": "mask_nodes", "mapping": "structural", "labels": "exact", "normalize": "l2", "per": "batch",
    "examples": 5, "batch_size": 5, "max_length": 5, "seed": 5, "forward": True,
}  # fmt: skip
AMALGAMATE: dict[str, tuple[Any, tuple[Any, ...] | None, dict[str, Any] | None]] = {
    "text": (SPECIFIED, ("--text", "f.csv", *COLUMNS), {"texts": SPECIFIED}),
    "student": ("s", None, None),
    "base": ("b", None, None),
    "gate": ({"name": "mahalanobis", "neighbours": 3},
             ("--gate", "mahalanobis", "--set-gate", "neighbours=3"), None),
    "temperature": (0.5, None, None),
    "target": ("soft", None, None),
    "margin": (False, ("--no-margin",), None),
    "agreement": (True, None, None),
    "rounds": (2, None, None),
    "posterior": ("mean", None, None),
    "calibrate": ("auto", None, None),
    "objective": ({"name": "vkd", "temperature": 3}, ("--objective", "vkd", "--set", "temperature=3"), None),
    "rename": ({"a.b": "c"}, ("--rename", "a.b=c"), None),
    "passes": (3, None, None),
    "last_layers": (3, None, None),
    "stop": ("likely", None, None),
    "dropout": (0.5, None, None),
    "limit": (3, None, None),
    "held_back": (0.5, None, None),
    "validation": (SPECIFIED, ("--validation", "f.csv", "--validation-text-column", "t", "--text-pair-column", "p",
                               "--validation-label-column", "l"), None),
    "epochs": (7, None, None),
    "learning_rate": (0.5, None, None),
    "batch_size": (3, None, None),
    "max_length": (7, None, None),
    "warmup": (0.5, None, None),
    "weight_decay": (0.5, None, None),
    "precision": ("bfloat16", None, None),
    "seed": (7, None, None),
    "report_to": ("all", None, None),
    "store": ("st", None, None),
    "routing": ("who.csv", None, None),
    "trust_remote_code": (True, None, None),
}  # fmt: skip
ENSEMBLE: dict[str, tuple[Any, tuple[Any, ...] | None, dict[str, Any] | None]] = {
    "base": ("m", (), {}),
    "sources": (["x", "y"], ("--from", "x", "y"), None),
    "revision": ("r", None, None),
    "data": (SPECIFIED, ("--data", "f.csv", *COLUMNS), None),
    "validation": (SPECIFIED, ("--validation", "f.csv", *COLUMNS), None),
    "text": ([{"path": "f.csv", "text": "t"}], ("--text", "f.csv", "--text-column", "t"),
             {"texts": {"path": "f.csv", "text": "t"}}),
    "members": (3, None, None),
    "shared_layers": (3, None, None),
    "head": ("tanh", None, None),
    "classifier_dropout": (0.5, None, None),
    "problem_type": ("regression", None, None),
    "method": ({"name": "lora", "rank": 3}, ("--method", "lora", "--set", "method.rank=3"), None),
    "perturbation": ({"name": "gaussian", "strength": 0.3}, ("--perturbation", "gaussian", "--set", "strength=0.3"),
                     None),
    "strength": (0.5, None, None),
    "replicate_at": (1, None, None),
    "consistency": ({"name": "pairwise"}, ("--consistency", "pairwise"), None),
    "alpha": (0.5, None, None),
    "replay": (True, None, None),
    "accumulate": (2, None, None),
    "limit": (3, None, None),
    "held_back": (0.5, None, None),
    "metric": ("nll", None, None),
    "epochs": (7, None, None),
    "learning_rate": (0.5, None, None),
    "batch_size": (3, None, None),
    "max_length": (7, None, None),
    "warmup": (0.5, None, None),
    "weight_decay": (0.5, None, None),
    "precision": ("bfloat16", None, None),
    "seed": (7, None, None),
    "report_to": ("all", None, None),
    "student_epochs": (0.5, None, None),
    "keep_members": (True, None, None),
    "store": ("st", None, None),
    "trust_remote_code": (True, None, None),
}  # fmt: skip
COMPARE: dict[str, tuple[Any, tuple[Any, ...] | None, dict[str, Any] | None]] = {
    "base": ("b", None, None),
    "test": ({"a": SPECIFIED}, ("--test", "a=f.csv", *COLUMNS), None),
    "text": ({"path": "f.csv", "text": "t"}, ("--text", "f.csv", "--text-column", "t"),
             {"texts": {"path": "f.csv", "text": "t"}}),
    "only": (["merge", "ensemble"], ("--only", "merge,ensemble"), {"only": "merge,ensemble"}),
    "methods": (["regmean", "refine"], ("--methods", "regmean,refine"), None),
    "budget": ("20m", None, None),
    "prefer": ("size", None, None),
    "keep": ("all", None, None),
    "limit": (7, None, None),
    "test_share": (0.25, None, None),
    "batch_size": (3, None, None),
    "max_length": (7, None, None),
    "seed": (7, None, None),
    "report_to": ("all", None, None),
    "trust_remote_code": (True, None, None),
}  # fmt: skip
COMPARED = {
    "model": ("m", (), {}),
    "data": (SPECIFIED, ("--data", "a=f.csv", *COLUMNS), {"data": {"a": SPECIFIED}}),
    "task": ("t", ("--task", "a=t"), {"tasks": {"a": "t"}}),
    "labels": (["no", "yes"], ("--labels", "a=no,yes"), {"labels": {"a": ["no", "yes"]}}),
    "revision": ("r", ("--revision", "a=r"), {"sources": {"a": {"model": "m", "revision": "r"}}}),
}
GIVEN = {"combine", "sources", "output"}
"""Fields that every call of the tests below has."""


def option(name: str, value: Any) -> tuple[Any, ...]:
    dashed = f"--{name.replace('_', '-')}"
    return (dashed,) if value is True else (dashed, value)


def words(name: str, case: tuple[Any, Any, Any]) -> list[str]:
    value, typed, _ = case
    return [str(word) for word in (option(name, value) if typed is None else typed)]


def named(name: str, case: tuple[Any, Any, Any]) -> dict[str, Any]:
    value, _, arguments = case
    return {name: value} if arguments is None else arguments


@pytest.mark.parametrize(
    ("model", "table"),
    [(MergeRecipe, MERGE), (AmalgamateRecipe, AMALGAMATE), (EnsembleRecipe, ENSEMBLE), (CompareRecipe, COMPARE)],
)
def test_every_field_of_a_recipe_stands_below(model: Any, table: dict[str, Any]) -> None:
    assert model.model_fields.keys() - GIVEN == table.keys() - GIVEN
    assert MethodSpec.model_fields.keys() - {"name"} == METHOD.keys()


@pytest.mark.parametrize("field", MERGE)
def test_merge(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    halt(monkeypatch, merging, "run_merge")
    wanted = parse_as(
        MergeRecipe, {"sources": {"a": "m"}, "output": "o", field: MERGE[field][0]}, "merge"
    )
    typed = stopped(lambda: invoke(["merge", "a=m", "-o", "o", *words(field, MERGE[field])])).values[0]
    called = stopped(lambda: plait.merge({"a": "m"}, out="o", **named(field, MERGE[field]))).values[0]
    assert typed == called == wanted


@pytest.mark.parametrize("field", SOURCE)
def test_sources_of_a_merge(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    halt(monkeypatch, merging, "run_merge")
    value, typed, arguments = SOURCE[field]
    wanted = parse_as(MergeRecipe, {"sources": {"a": {"model": "m", field: value}}, "output": "o"}, "merge")
    found = stopped(lambda: invoke(["merge", "a=m", "-o", "o", *typed])).values[0]
    assert found == stopped(lambda: plait.merge(**{"sources": {"a": "m"}, "out": "o", **arguments})).values[0]
    assert found == wanted
    assert set(SOURCE) == type(wanted.sources["a"]).model_fields.keys()


@pytest.mark.parametrize("field", METHOD)
def test_statistics_of_a_merge(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    halt(monkeypatch, merging, "run_merge")
    value = METHOD[field]
    line = ["merge", "a=m", "-o", "o", "--method", "fisher", *map(str, option(field, value))]
    method = stopped(lambda: invoke(line)).values[0].method
    called = stopped(lambda: plait.merge({"a": "m"}, out="o", method="fisher", **{field: value})).values[0]
    assert method == called.method
    assert getattr(method, field) == value


@pytest.mark.parametrize("field", AMALGAMATE)
def test_amalgamate(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    halt(monkeypatch, amalgamating, "run_amalgamation")
    told = {"text": "x.txt", field: AMALGAMATE[field][0]}
    wanted = parse_as(AmalgamateRecipe, {"sources": {"a": "m"}, "output": "o", **told}, "amalgamate")
    line = ["amalgamate", "a=m", "-o", "o", *([] if field == "text" else ["--text", "x.txt"])]
    typed = stopped(lambda: invoke([*line, *words(field, AMALGAMATE[field])])).values[0]
    given = {"texts": "x.txt", "out": "o", **named(field, AMALGAMATE[field])}
    called = stopped(lambda: plait.amalgamate({"a": "m"}, **given)).values[0]
    if field == "validation":  # its pair's column is that of the texts
        typed = typed.model_copy(update={"text": called.text})
    assert typed == called == wanted


@pytest.mark.parametrize("field", ENSEMBLE)
def test_ensemble(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    halt(monkeypatch, ensembling, "run_ensemble")
    value = ENSEMBLE[field][0]
    start = {} if field in {"sources", "base"} else {"base": "m"}
    method = {"method": "distilled"} if field == "text" else {}
    wanted = parse_as(EnsembleRecipe, {**start, **method, "output": "o", field: value}, "ensemble")
    line = ["ensemble", *([] if field == "sources" else ["m"]), "-o", "o", *words(field, ENSEMBLE[field])]
    if field == "sources":
        line = ["ensemble", *words(field, ENSEMBLE[field]), "-o", "o"]
    typed = stopped(lambda: invoke(line)).values[0]
    given: dict[str, Any] = {**start, **({"base": "m"} if field == "base" else {}), **named(field, ENSEMBLE[field])}
    called = stopped(lambda: plait.ensemble(out="o", **given)).values[0]
    assert typed == called == wanted


@pytest.mark.parametrize("field", COMPARE)
def test_compare(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    halt(monkeypatch, comparing, "run_comparison")
    told = {"sources": {"a": "m"}, "output": "o", field: COMPARE[field][0]}
    wanted = parse_as(CompareRecipe, told, "compare")
    typed = stopped(lambda: invoke(["compare", "a=m", "-o", "o", *words(field, COMPARE[field])])).values[0]
    called = stopped(lambda: plait.compare({"a": "m"}, out="o", **named(field, COMPARE[field]))).values[0]
    assert typed == called == wanted


@pytest.mark.parametrize("field", COMPARED)
def test_sources_of_a_comparison(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    halt(monkeypatch, comparing, "run_comparison")
    value, typed, arguments = COMPARED[field]
    told = {"sources": {"a": {"model": "m", field: value}}, "output": "o"}
    wanted = parse_as(CompareRecipe, told, "compare")
    found = stopped(lambda: invoke(["compare", "a=m", "-o", "o", *typed])).values[0]
    assert found == stopped(lambda: plait.compare(**{"sources": {"a": "m"}, "out": "o", **arguments})).values[0]
    assert found == wanted
    assert set(COMPARED) == type(wanted.sources["a"]).model_fields.keys()


@pytest.mark.parametrize("command", ["merge", "amalgamate", "posteriors", "compare"])
def test_a_revision_of_nobody(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts_of = [] if command == "merge" else ["--text", "x.txt"]
    assert invoke([command, "news=m", "-o", "o", *texts_of, "--revision", "new=r"]) == 2
    assert "--revision for unknown source 'new' (did you mean 'news'" in capsys.readouterr().err


TUNED = {
    "validation": "v.csv", "epochs": 7.0, "learning_rate": 0.5, "batch_size": 3, "max_length": 7, "warmup": 0.5,
    "weight_decay": 0.5, "seed": 7, "problem_type": "regression", "labels": ["a", "b"], "limit": 3,
    "precision": "bfloat16", "report_to": "all", "checkpoints": False, "resume": True, "overwrite": True,
    "revision": "r", "trust_remote_code": True, "dry_run": True,
}  # fmt: skip


def test_finetune(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.training.finetune", reach)
    # Columns are said with the data; functions can only be given in Python.
    others = {"base", "data", "out", "columns", "score", "objective"}
    assert TUNED.keys() == inspect.signature(finetune).parameters.keys() - others
    for name, value in TUNED.items():
        typed = ("--no-checkpoints",) if value is False else option(name, value)
        if name == "labels":
            typed = ("--labels", "a", "--labels", "b")
        found = stopped(lambda typed=typed: invoke(["finetune", "m", "--data", "d", "-o", "o", *map(str, typed)]))
        assert found.named[name] == value, name
        assert stopped(lambda told={name: value}: plait.finetune("m", "d", "o", **told)).named[name] == value
    found = stopped(lambda: invoke(["finetune", "m", "--data", "f.csv", "-o", "o", *COLUMNS]))
    assert found.values[1] == SPECIFIED


ESTIMATED = {
    "importance": "gram", "labels": "exact", "batch_size": 3, "examples": 7, "max_length": 7, "per": "batch",
    "passes": 3, "seed": 7, "overwrite": True, "revision": "r", "trust_remote_code": True,
}  # fmt: skip


@pytest.mark.parametrize("dry", [False, True])
def test_estimate(dry: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"model", "data", "out", "tokenizer"}
    assert ESTIMATED.keys() == inspect.signature(plait.estimate).parameters.keys() - others
    monkeypatch.setattr("plait.api.estimate", reach)
    monkeypatch.setattr(statistics, "estimate_plan", reach)
    for name, value in ESTIMATED.items():
        line = ["estimate", "m", "--data", "d", "-o", "o", *map(str, option(name, value)), *["--dry-run"] * dry]
        assert stopped(lambda line=line: invoke(line)).named[name] == value, name


SCORED = {
    "passes": 3, "seed": 7, "last_layers": 3, "dropout": 0.5, "keep": "layers", "batch_size": 3, "max_length": 7,
    "stop": "likely", "overwrite": True, "trust_remote_code": True, "limit": 7,
}  # fmt: skip


@pytest.mark.parametrize("dry", [False, True])
def test_posteriors(dry: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    own = inspect.signature(plait.posteriors).parameters.keys()
    others = {"teachers", "texts", "out", "text", "text_pair", "settings"}
    assert SCORED.keys() == (own | Settings.__dataclass_fields__.keys()) - others
    monkeypatch.setattr("plait.api.posteriors", reach)
    monkeypatch.setattr(scoring, "posteriors_plan", reach)
    for name, value in SCORED.items():
        line = ["posteriors", "a=m", "--text", "d", "-o", "o", *map(str, option(name, value)), *["--dry-run"] * dry]
        assert stopped(lambda line=line: invoke(line)).named[name] == value, name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doors")
    save(tiny("bert", "sequence"), folder / "model")
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts(12))]
    (folder / "data.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize(
    ("command", "start", "said"),
    [
        ("finetune", ("model", "--data", "data.json"), {"examples": 12, "steps": 3, "head": "sequence_classification"}),
        ("estimate", ("model", "--data", "data.json"), {"examples": 12, "passes": 16, "reused": False}),
        ("posteriors", ("a=model", "--text", "data.json"), {"texts": 12}),
    ],
)
def test_a_dry_run_writes_nothing(
    command: str, start: tuple[str, ...], said: dict[str, Any], place: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert invoke([command, *start, "-o", "out", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in said} == said
    assert found["output"].endswith("out")
    assert sorted(place.rglob("*")) == before
    assert invoke([command, *start, "-o", "model", "--dry-run"]) == 2
    assert invoke([command, start[0].replace("model", "nowhere"), *start[1:], "-o", "out", "--dry-run"]) == 2


def test_passes_decide_exact_labels(place: Path) -> None:
    told: dict[str, Any] = {"labels": "exact", "importance": "diagonal"}
    every = plait.estimate(place / "model", place / "data.json", **told)
    one = plait.estimate(place / "model", place / "data.json", passes=1, **told)
    assert any(not every.tensors[name].equal(value) for name, value in one.tensors.items())
    with pytest.raises(RecipeError, match="passes is 0"):
        plait.estimate(place / "model", place / "data.json", passes=0, **told)


def test_weight_decay_reaches_the_student() -> None:
    from plait.amalgamation.rounds import schedule_of

    recipe = {"sources": {"a": "m"}, "text": "t", "output": "o", "weight_decay": 0.5}
    assert schedule_of(parse_as(AmalgamateRecipe, recipe, "amalgamate")).weight_decay == 0.5
    assert jobs.finetune is plait.finetune
