"""Heads of one task whose labels are placeholders: labelled data tell their order, or they are refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import plait
from plait.api import check
from plait.checkpoints.checkpoint import open_checkpoint
from plait.data import Examples
from plait.errors import MergeError
from plait.evaluation import predict, predict_logits
from tests.models import save, texts, tiny
from tests.unit.checkpoints.test_checkpoint import rewrite

TEXTS = texts(120)


def pair(folder: Path) -> dict[str, str]:
    """Returns two models that answer alike, the second with its rows the other way round."""
    for name in "ab":
        save(tiny("bert", "sequence", seed=3, labels=2), folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        names = {str(row): f"LABEL_{row}" for row in range(2)}
        config |= {"id2label": names, "label2id": {name: int(row) for row, name in names.items()}}
        (folder / name / "config.json").write_text(json.dumps(config))
    centre(folder / "a")
    head = {name: load_file(folder / "a/model.safetensors")[name] for name in ("classifier.weight", "classifier.bias")}
    rewrite(folder / "b", {}, **{name: value.flip(0).contiguous() for name, value in head.items()})
    return {name: str(folder / name) for name in "ab"}


def centre(folder: Path) -> None:
    """Sets a head's bias so that no label is rare."""
    logits = answers(folder)
    bias = load_file(folder / "model.safetensors")["classifier.bias"]
    # The difference of two rows has its median at 0.
    surplus = (logits[:, 0] - logits[:, 1]).median()
    rewrite(folder, {}, **{"classifier.bias": bias - torch.stack([surplus, torch.tensor(0.0)])})


def answers(folder: Path | str) -> Any:
    source = open_checkpoint(folder)
    return torch.stack(predict_logits(source.model(), source.tokenizer(), Examples(tuple(TEXTS))))


@pytest.mark.parametrize("coding", ["own", "turned", "names"])
def test_another_order_is_found_and_turned(tmp_path: Path, coding: str, caplog: pytest.LogCaptureFixture) -> None:
    made = pair(tmp_path)
    truth = answers(made["a"]).argmax(-1).tolist()
    said = {"own": truth, "turned": [1 - row for row in truth], "names": [("bad", "good")[row] for row in truth]}
    with caplog.at_level(logging.INFO, logger="plait"):
        merged = plait.merge(
            made, method="average", tasks={"a": "t", "b": "t"}, data={"a": {"text": TEXTS, "label": said[coding]}},
            out=tmp_path / "m",
        )  # fmt: skip
    assert "b has its labels in another order than a: rows [1, 0] become [0, 1]" in caplog.text
    head = load_file(merged.path / "tasks/t/head.safetensors")
    first = load_file(tmp_path / "a/model.safetensors")
    torch.testing.assert_close(head["classifier.weight"], first["classifier.weight"])
    assert [row["label"] for row in merged.predict(TEXTS, task="t")] == [f"LABEL_{row}" for row in truth]


def test_the_order_is_found_on_data_to_score_on(tmp_path: Path) -> None:
    made = pair(tmp_path)
    rows = {"text": TEXTS, "label": answers(made["a"]).argmax(-1).tolist()}
    merged = plait.merge(made, method="average", tasks={"a": "t", "b": "t"}, evaluate={"t": rows}, out=tmp_path / "m")
    assert merged.manifest.scores["tasks"]["t"]["metrics"]["accuracy"] == 1


@pytest.mark.parametrize("case", ["few", "guesses", "three", "none"])
def test_what_data_do_not_tell_is_refused(tmp_path: Path, case: str) -> None:
    made = pair(tmp_path)
    truth: list[Any] = answers(made["a"]).argmax(-1).tolist()
    count, labels = {
        "few": (6, truth[:6]), "guesses": (120, [row % 2 for row in range(120)]),
        "three": (120, [*truth[:-1], 2]), "none": (120, None),
    }[case]  # fmt: skip
    rows = {"text": TEXTS[:count], **({} if labels is None else {"label": labels})}
    with pytest.raises(MergeError, match="--labels a=…,… --labels b=…,…"):
        plait.merge(made, method="average", tasks={"a": "t", "b": "t"}, data={"a": rows}, out=tmp_path / "m")


def test_a_dry_run_asks_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = pair(tmp_path)
    rows = "".join(json.dumps({"text": text, "label": 0}) + "\n" for text in TEXTS)
    (tmp_path / "rows.jsonl").write_text(rows)
    monkeypatch.setattr(predict, "predict_logits", lambda *_: pytest.fail("a model was run"))
    merge: dict[str, Any] = {"method": "average", "output": str(tmp_path / "m")}
    merge["sources"] = {name: {"model": model, "task": "t"} for name, model in made.items()}
    ensemble = {"combine": "ensemble", "from": list(made.values()), "epochs": 0, "output": str(tmp_path / "e")}
    with caplog.at_level(logging.INFO, logger="plait"):
        check({**merge, "evaluate": {"t": str(tmp_path / "rows.jsonl")}})
        check({**ensemble, "data": str(tmp_path / "rows.jsonl")})
    said = f"whether b has its labels in the order of a will be found on {tmp_path / 'rows.jsonl'}"
    assert caplog.text.count(said) == 2
    for recipe in (merge, ensemble):
        with pytest.raises(MergeError, match="does not say that they have them in one order"):
            check(recipe)


@pytest.mark.parametrize("method", [None, "soup", "distilled"])
def test_members_and_teachers_are_put_into_one_order(tmp_path: Path, method: str | None) -> None:
    made = pair(tmp_path)
    truth = answers(made["a"]).argmax(-1).tolist()
    rows = {"text": TEXTS, "label": truth}
    more = {} if method is None else {"method": method}
    steps = {"epochs": 1, "learning_rate": 1e-9} if method == "distilled" else {"epochs": 0}
    saved = plait.ensemble(sources=list(made.values()), data=rows, out=tmp_path / "e", **more, **steps)
    found = plait.evaluate(saved, rows, resamples=0)
    wanted = found.tasks["model"]
    assert saved.labels == ("LABEL_0", "LABEL_1")
    if method == "distilled":
        assert wanted.sources.keys() >= {"a", "b"}  # the teachers, asked again
    else:
        assert wanted.metrics["accuracy"] == 1
    assert [name for name, metrics in wanted.sources.items() if metrics["accuracy"] < 1] == []


@pytest.mark.parametrize("method", [None, "distilled"])
def test_members_and_teachers_in_doubt_are_refused(tmp_path: Path, method: str | None) -> None:
    made = pair(tmp_path)
    rows = {"text": TEXTS, "label": [row % 2 for row in range(120)]}
    more = {} if method is None else {"method": method}
    with pytest.raises(MergeError, match=r"(both|all) call their labels LABEL_0, LABEL_1, which"):
        plait.ensemble(sources=list(made.values()), data=rows, out=tmp_path / "e", epochs=1, **more)
