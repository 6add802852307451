"""Fine-tuning: every head learns, equal seeds give equal weights, a cut run ends where a whole one does."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from plait.data import encode, read_examples
from plait.errors import DataError, OutputError, PlaitError, RecipeError, SourceError
from plait.evaluation import evaluate_model
from plait.training import Schedule, finetune, train
from plait.training.heads import check_openable
from plait.training.trainer import Sampler
from tests.conftest import write_rows
from tests.models import save, texts, tiny, tiny_tokenizer

WORDS = texts(24)
GOOD = [int("good" in text or "bright" in text or "the" in text) for text in WORDS]
QUICK = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "checkpoints": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save(tiny("bert", "body"), tmp_path_factory.mktemp("base"))


def weights(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def same(left, right):
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


DATA = {
    "sequence": {"text": WORDS, "label": ["yes" if good else "no" for good in GOOD]},
    "regression": {"text": WORDS, "label": [float(good) for good in GOOD]},
    "multi_label": {"text": WORDS, "label": [["a"] if good else ["a", "b"] for good in GOOD]},
    "token": {"tokens": [t.split() for t in WORDS], "tags": [[w[0] for w in t.split()] for t in WORDS]},
    "qa": {
        "question": ["who?"] * 24,
        "context": WORDS,
        "answers": [{"text": [t.split()[0]], "answer_start": [0]} for t in WORDS],
    },
}


@pytest.mark.parametrize("head", DATA)
def test_every_head_learns(base, tmp_path, head):
    report = finetune(
        base, DATA[head], tmp_path / "out", validation=DATA[head], score=evaluate_model, **QUICK
    )
    assert report["validation"]
    assert report["data"]["examples"] == 24
    record = json.loads((tmp_path / "out" / "plait.json").read_text())
    assert (tmp_path / "out" / record["base"]).resolve() == base.resolve()
    assert record["kind"] == "finetuned"
    losses = [entry["loss"] for entry in record["losses"]]
    assert losses[-1] < losses[0]
    assert "losses" not in report
    assert (report["training_loss"], report["steps"]) == (pytest.approx(losses[-1], rel=1e-3), 6)
    assert len(str(report["training_loss"])) < 10
    assert not list(tmp_path.glob(".*"))


def test_without_scores_the_loss_judges(base, tmp_path):
    report = finetune(base, DATA["sequence"], tmp_path / "out", validation=DATA["sequence"], **QUICK)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    inputs = tiny_tokenizer("bert")(WORDS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, labels=torch.tensor(GOOD)).loss.item()
    assert report["validation"] == {"loss": pytest.approx(expected, rel=1e-5)}


def test_the_checkpoint_is_an_ordinary_one(base, tmp_path):
    finetune(base, DATA["sequence"], tmp_path / "out", **QUICK)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert model.config.problem_type == "single_label_classification"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(WORDS[0]).input_ids == tiny_tokenizer("bert")(WORDS[0]).input_ids


def test_equal_seeds_give_equal_weights(base, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(hash(name) % 100)
        finetune(base, DATA["sequence"], tmp_path / name, seed=seed, **QUICK)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_the_callers_random_states_come_back(base, tmp_path):
    def draw():
        return torch.rand(1).item(), np.random.rand()  # noqa: NPY002

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = draw()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    finetune(base, DATA["sequence"], tmp_path / "out", **QUICK)
    assert draw() == expected


class Cut(Exception):
    """Stands for a power cut."""


def test_a_resumed_run_ends_where_a_whole_one_does(base, tmp_path, monkeypatch):
    options = {**QUICK, "epochs": 3, "checkpoints": True}
    finetune(base, DATA["sequence"], tmp_path / "whole", **options)

    from plait.training import trainer as loop

    compute = loop.ObjectiveTrainer.compute_loss

    def cut_in_the_second_epoch(self, *arguments, **more):
        if self.state.global_step == 4:
            raise Cut
        return compute(self, *arguments, **more)

    monkeypatch.setattr(loop.ObjectiveTrainer, "compute_loss", cut_in_the_second_epoch)
    with pytest.raises(Cut):
        finetune(base, DATA["sequence"], tmp_path / "cut", **options)
    monkeypatch.setattr(loop.ObjectiveTrainer, "compute_loss", compute)
    assert not (tmp_path / "cut").exists()
    assert (tmp_path / ".cut.training" / "checkpoint-3").is_dir()
    with pytest.raises(PlaitError, match=r"left by another run \(seed was 0, is 1\); repeat its options"):
        finetune(base, DATA["sequence"], tmp_path / "cut", resume=True, seed=1, **options)
    finetune(base, DATA["sequence"], tmp_path / "cut", resume=True, **options)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_terms_of_an_objective_are_summed_and_logged(tmp_path):
    model, tokenizer = tiny("bert"), tiny_tokenizer("bert")
    encoded = encode(read_examples((WORDS, GOOD)), tokenizer)
    seen = []

    def objective(model, batch):
        task = model(**batch).loss
        seen.append(float(task.detach()))
        return {"task": task, "size": 0.1 * model.classifier.weight.square().sum()}

    log = train(model, encoded, tmp_path, objective=objective, schedule=Schedule(epochs=1, batch_size=24))
    first = next(entry for entry in log if "loss/task" in entry)
    assert first["loss/task"] == pytest.approx(seen[0])
    assert first["loss"] == pytest.approx(first["loss/task"] + first["loss/size"], rel=1e-5)


def test_a_diverging_run_says_so(base, tmp_path):
    with pytest.raises(DataError, match=r"training diverged before step .*task .*lower learning_rate"):
        finetune(base, DATA["regression"], tmp_path / "out", **{**QUICK, "learning_rate": 1e30, "epochs": 9})
    assert not list(tmp_path.iterdir())


def test_the_order_is_that_of_seed_and_epoch():
    sampler = Sampler(list(range(100, 0, -1)), 8, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first
    batches = [first[i : i + 8] for i in range(0, 96, 8)]
    assert max(max(batch) - min(batch) for batch in batches) < 12


def test_an_old_head_of_other_labels_is_drawn_again(tmp_path):
    old = save(tiny("bert", "sequence"), tmp_path / "old")
    still = {**QUICK, "learning_rate": 0.0, "epochs": 1}
    names = [f"sequence-{i}" for i in range(3)]
    data = {"text": WORDS[:3], "label": names}
    finetune(old, data, tmp_path / "kept", labels=names, **still)
    finetune(old, {"text": WORDS[:3], "label": ["x", "y", "z"]}, tmp_path / "new", **still)
    before, kept, new = (weights(tmp_path / name) for name in ("old", "kept", "new"))
    assert kept["classifier.weight"].equal(before["classifier.weight"])
    assert not new["classifier.weight"].equal(before["classifier.weight"])
    assert new["bert.encoder.layer.0.output.dense.weight"].equal(
        before["bert.encoder.layer.0.output.dense.weight"]
    )


def test_tags_are_of_words_that_begin_with_a_space(tmp_path):
    base = tmp_path / "base"
    tiny("roberta", "body").save_pretrained(base)
    tiny_tokenizer("roberta", add_prefix_space=False).save_pretrained(base)
    finetune(base, DATA["token"], tmp_path / "out", **QUICK)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    pieces = tokenizer(["the", "film"], is_split_into_words=True).input_ids
    assert tokenizer.convert_ids_to_tokens(pieces) == ["<s>", "Ġthe", "Ġfilm", "</s>"]


def test_whole_numbers_can_be_regressed(base, tmp_path):
    finetune(base, (WORDS, GOOD), tmp_path / "out", problem_type="regression", **QUICK)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert (config.num_labels, config.problem_type) == (1, "regression")


@pytest.mark.parametrize("where", ["base", "base/inside", "."])
def test_the_base_is_never_replaced(base, tmp_path, where):
    own = shutil.copytree(base, tmp_path / "run" / "base")
    (tmp_path / "run" / "config.json").write_text("{}")
    before = weights_in(tmp_path)
    with pytest.raises(OutputError, match=r"base, which is read, overlap .*: choose another output"):
        finetune(own, DATA["sequence"], tmp_path / "run" / where, overwrite=True, **QUICK)
    assert weights_in(tmp_path) == before


@pytest.mark.parametrize("role", ["data", "validation"])
@pytest.mark.parametrize("form", [str, Path, lambda path: {"path": f"{path}"}])
def test_the_data_is_never_replaced(base, tmp_path, role, form):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    file = write_rows(out / "a.jsonl", [{"text": "a", "label": 0}])
    told = {"data": DATA["sequence"], role: form(file)}
    with pytest.raises(OutputError, match=r"a.jsonl, which is read, overlap .the output holds it"):
        finetune(base, out=out, overwrite=True, **told, **QUICK)
    assert file.exists()


def weights_in(folder):
    return sorted(path for path in folder.rglob("*"))


def test_an_unknown_problem_type_is_refused_first(tmp_path):
    with pytest.raises(
        RecipeError, match=r"unknown problem_type 'regresion' \(did you mean 'regression'\? known: multi"
    ):
        finetune(tmp_path / "nowhere", "nothing", tmp_path / "out", problem_type="regresion", **QUICK)


def test_output_that_exists_stays(base, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    (out / "config.json").touch()
    with pytest.raises(OutputError, match=r"out exists and is not empty \(use --overwrite"):
        finetune(base, DATA["sequence"], out, **QUICK)
    assert (out / "precious").exists()
    finetune(base, DATA["sequence"], out, overwrite=True, **QUICK)
    assert not (out / "precious").exists()


def test_what_is_no_model_is_not_replaced(base, tmp_path, monkeypatch):
    work = tmp_path / "work"
    (work / ".git").mkdir(parents=True)
    (work / "notes").touch()
    with pytest.raises(OutputError, match="it will not be overwritten"):
        finetune(base, DATA["sequence"], work, overwrite=True, **QUICK)
    (work / ".git").rmdir()
    monkeypatch.chdir(work)
    with pytest.raises(OutputError, match="choose another output"):
        finetune(base, DATA["sequence"], ".", overwrite=True, **QUICK)
    assert [path.name for path in work.iterdir()] == ["notes"]
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_a_failed_write_leaves_the_old_output(base, tmp_path, monkeypatch):
    out, neighbour = tmp_path / "out", tmp_path / ".out.partial"
    for folder in (out, neighbour):
        folder.mkdir()
        (folder / "precious").touch()
        (folder / "config.json").touch()

    def full(*_arguments, **_options):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(OutputError, match="out: cannot be written: No space left on device"):
        finetune(base, DATA["sequence"], out, overwrite=True, **QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "out"]
    assert all((folder / "precious").exists() for folder in (out, neighbour))


@pytest.mark.gpu
def test_the_loss_is_taken_where_the_model_is(base, tmp_path):
    report = finetune(base, DATA["sequence"], tmp_path / "out", validation=DATA["sequence"], **QUICK)
    assert np.isfinite(report["validation"]["loss"])


def test_output_that_is_a_file(base, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match=r"is a file \(expected a folder"):
        finetune(base, DATA["sequence"], tmp_path / "out", overwrite=True, **QUICK)


def test_data_that_cannot_train(base, tmp_path):
    with pytest.raises(DataError, match="has no labels; expected a label column to train on"):
        finetune(base, WORDS, tmp_path / "out", **QUICK)
    with pytest.raises(DataError, match=r"labels maybe are not the head's; expected 0 to 1 or no, yes"):
        finetune(base, (WORDS[:2], ["yes", "maybe"]), tmp_path / "out", labels=["no", "yes"], **QUICK)
    for label, said in (("same", "'same'"), (0, "0")):
        with pytest.raises(DataError, match=f"data: all labels are {said}; a classifier needs two or more"):
            finetune(base, (WORDS[:2], [label] * 2), tmp_path / "out", **QUICK)
    assert not list(tmp_path.iterdir())


def test_classes_may_be_written_as_floats(base, tmp_path):
    data = (WORDS, [float(good) for good in GOOD])
    finetune(base, data, tmp_path / "out", problem_type="single_label_classification", **QUICK)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert (config.num_labels, config.problem_type) == (2, "single_label_classification")
    with pytest.raises(DataError, match=r"labels inf are not the head's"):
        finetune(
            base, (WORDS[:2], [0.5, float("inf")]), tmp_path / "no", problem_type=config.problem_type, **QUICK
        )


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (WORDS, "has no labels; expected a label column to validate on"),
        ((WORDS[:1], ["maybe"]), "labels maybe are not the head's"),
        (DATA["token"], "holds data for token classification; the head is for sequence"),
    ],
)
def test_validation_that_does_not_fit_is_refused_before_the_base(tmp_path, validation, message):
    options = {**QUICK, "checkpoints": True}
    with pytest.raises(DataError, match=message):
        finetune(tmp_path / "nowhere", DATA["sequence"], tmp_path / "out", validation=validation, **options)
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_checkpoint_leaves_nothing(base, tmp_path):
    options = {**QUICK, "learning_rate": 1e30, "epochs": 9, "batch_size": 2, "checkpoints": True}
    with pytest.raises(DataError, match="training diverged"):
        finetune(base, DATA["regression"], tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_base_that_is_none(base, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"not a checkpoint: no config.json in .*empty"):
        finetune(tmp_path / "empty", DATA["sequence"], tmp_path / "out", **QUICK)
    with pytest.raises(
        SourceError, match="nobody/nothing: no such folder here, and the Hub cannot be reached"
    ):
        finetune("nobody/nothing", DATA["sequence"], tmp_path / "out", **QUICK)
    broken = shutil.copytree(base, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"broken: no weights found; expected model.safetensors"):
        finetune(broken, DATA["sequence"], tmp_path / "out", **QUICK)
    with pytest.raises(SourceError, match="nowhere: no such folder"):
        finetune(tmp_path / "nowhere", DATA["sequence"], tmp_path / "out", **QUICK)


def test_a_base_without_a_tokenizer_of_its_own(tmp_path):
    tiny("bert", "body").save_pretrained(tmp_path / "mute")
    large = tiny_tokenizer("bert")
    large.add_tokens(["extra"])
    save(tiny("bert", "body"), tmp_path / "large")
    large.save_pretrained(tmp_path / "large")
    for name, said in (
        ("mute", r"mute: no tokenizer in .*; expected tokenizer.json or a vocabulary"),
        (
            "large",
            rf"large: its tokenizer has ids up to {len(large) - 1}, its embeddings only {len(large) - 1} rows",
        ),
    ):
        with pytest.raises(SourceError, match=said):
            finetune(tmp_path / name, DATA["sequence"], tmp_path / "out", **QUICK)
        with pytest.raises(SourceError, match=said):
            check_openable(tmp_path / name, None, False)


def test_accelerate_may_be_missing(base, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlaitError, match=r"needs accelerate.*pip install accelerate"):
        finetune(base, DATA["sequence"], tmp_path / "out", **QUICK)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_nothing_is_printed(base, tmp_path, capfd, caplog, monkeypatch, checkpoints):
    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)  # tests.models turns the bars off
    caplog.set_level(logging.WARNING)
    options = {**QUICK, "checkpoints": checkpoints, "validation": DATA["sequence"]}
    finetune(base, DATA["sequence"], tmp_path / "out", **options)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_mixed_precision_leaves_ordinary_float32_weights(base, tmp_path):
    seen = []

    def score(model, tokenizer, examples):
        seen.append((model.forward.__func__ is type(model).forward, model.dtype))
        return {}

    options = {**QUICK, "validation": DATA["sequence"], "score": score}
    finetune(base, DATA["sequence"], tmp_path / "half", precision="bfloat16", **options)
    finetune(base, DATA["sequence"], tmp_path / "full", **options)
    assert seen == [(True, torch.float32)] * 2
    half, full = weights(tmp_path / "half"), weights(tmp_path / "full")
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    assert not same(half, full)
