"""Embedding models: merged, opened by sentence-transformers, scored on pairs, with statistics of texts and pairs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr

import plait
from plait.checkpoints.checkpoint import open_checkpoint
from plait.checkpoints.embedders import embedder_of
from plait.errors import DataError, MergeError
from plait.evaluation.embedding import embeddings
from tests.embedders import embedder, opened, pairs
from tests.models import texts

PROMPTS = {"prompts": {"query": "very ", "document": ""}, "default_prompt_name": "query"}
TEXTS = ["a slow film", "what a very bright book , and quick", "john"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("embedders")
    return {name: embedder(folder / name, seed, **PROMPTS) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def merged(made: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> plait.Merged:
    return plait.merge(made, method="average", out=tmp_path_factory.mktemp("out") / "st")


def test_the_result_opens_with_pooling_dense_and_prompts(made: dict[str, str], merged: plait.Merged) -> None:
    by_hand, other = opened(made["a"]), opened(made["b"])
    with torch.no_grad():
        for mine, theirs in zip(by_hand.parameters(), other.parameters(), strict=True):
            mine.copy_((mine + theirs) / 2)
    wanted = by_hand.encode(TEXTS)
    for place in (merged.path, merged.path / "tasks" / "b"):
        found = opened(place)
        assert found.prompts == by_hand.prompts
        np.testing.assert_allclose(found.encode(TEXTS), wanted, atol=1e-6)
    assert np.abs(wanted - other.encode(TEXTS)).max() > 1e-2


def test_predictions_are_embeddings(merged: plait.Merged) -> None:
    wanted = opened(merged.path).encode(TEXTS)
    found = merged.predict(TEXTS)
    assert list(found) == ["a", "b"]
    np.testing.assert_allclose(found["a"], wanted, atol=1e-6)
    np.testing.assert_allclose(merged.predict(TEXTS[0], task="b"), wanted[:1], atol=1e-6)
    with pytest.raises(DataError, match="reads single texts"):
        merged.predict([("a", "b")])


@pytest.mark.parametrize(
    "mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ["cls", "mean"]]
)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_pooling_is_that_of_sentence_transformers(mode: object, include_prompt: bool, tmp_path: Path) -> None:
    folder = embedder(tmp_path, 3, mode=mode, dense=False, include_prompt=include_prompt, **PROMPTS)
    source = open_checkpoint(folder)
    found = embeddings(embedder_of(source), source.tokenizer(), TEXTS)
    np.testing.assert_allclose(found, opened(folder).encode(TEXTS), atol=1e-6)


def test_pairs_give_rank_correlations_of_cosines(made: dict[str, str], merged: plait.Merged) -> None:
    data = pairs(40)
    model = opened(merged.path)
    first, second = (model.encode(data[name]) for name in ("sentence1", "sentence2"))
    wanted = spearmanr((first * second).sum(1), data["score"]).statistic
    found = plait.evaluate(merged, data)
    scores = found.tasks["model"]
    assert scores.metrics["spearman"] == pytest.approx(wanted, abs=1e-4)
    assert scores.primary == "spearman"
    assert set(scores.metrics) == {"spearman", "pearson"}
    assert scores.interval is not None
    assert scores.interval.low < wanted < scores.interval.high
    assert set(scores.sources) == {"a", "b"}
    alone = plait.evaluate(made["a"], data).tasks["model"].metrics
    assert scores.sources["a"]["spearman"] == pytest.approx(alone["spearman"], abs=1e-6)


def test_the_interval_is_a_bootstrap_of_ranks(merged: plait.Merged) -> None:
    outcome = plait.evaluate(merged, pairs(30)).tasks["model"].outcome
    assert outcome is not None
    x, y = np.concatenate([row.numpy() for row in outcome.logits]), np.asarray(outcome.examples.labels)
    draw = np.random.default_rng(1)
    rows = draw.integers(0, 30, (4000, 30))
    low, high = np.quantile([spearmanr(x[row], y[row]).statistic for row in rows], [0.025, 0.975])
    found = outcome.interval("spearman", resamples=4000, seed=0)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)


def test_what_cannot_be_scored_is_said(made: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="scored on pairs: expected columns such as sentence1, sentence2 and score"):
        plait.evaluate(made["a"], {"text": texts(3), "label": [0.1, 0.2, 0.3]})
    with pytest.raises(DataError, match="expected a score of each pair"):
        plait.evaluate(made["a"], {"sentence1": texts(3), "sentence2": texts(3)})
    with pytest.raises(DataError, match="scored on pairs"):
        plait.merge(made, method="average", evaluate={"a": texts(3)}, out=tmp_path / "m")


def test_a_plain_encoder_is_pooled_by_its_mean(made: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    plain = Path(made["a"]).parent / "encoder"
    with caplog.at_level(logging.INFO, "plait"):
        found = plait.evaluate(str(plain), pairs(10))
    assert "no modules.json beside it: embeddings are the mean of its tokens, of unit length" in caplog.text
    assert -1 <= found.tasks["model"].metrics["spearman"] <= 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "regmean", "forward": True},
        {"method": "regmean"},
        {"method": "fisher", "importance": "mask_nodes"},
        {"method": "fisher", "importance": "diagonal"},
    ],
)  # fmt: skip
def test_merges_with_statistics(options: dict[str, object], made: dict[str, str], tmp_path: Path) -> None:
    data = {"a": pairs(6), "b": {"text": texts(6, seed=3)}}
    out = plait.merge(made, data=data, out=tmp_path / "m", **options)
    found, average = opened(out.path).encode(TEXTS), opened(made["a"]).encode(TEXTS)
    assert np.isfinite(found).all()
    assert np.abs(found - average).max() > 1e-3


def test_what_older_versions_wrote_is_the_same(made: dict[str, str], tmp_path: Path) -> None:
    import shutil

    old = Path(shutil.copytree(made["b"], tmp_path / "old"))
    (old / "1_Pooling/config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
    )
    (old / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    out = plait.merge({"a": made["a"], "old": str(old)}, method="average", out=tmp_path / "m")
    same = plait.merge(made, method="average", out=tmp_path / "n")
    np.testing.assert_allclose(opened(out.path).encode(TEXTS), opened(same.path).encode(TEXTS), atol=1e-6)
    (old / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "not "}}))
    with pytest.raises(MergeError, match=r"config_sentence_transformers\.json differs"):
        plait.merge({"a": made["a"], "old": str(old)}, method="average", out=tmp_path / "o")


def test_prompts_and_lengths_of_all_are_kept(tmp_path: Path) -> None:
    first = embedder(tmp_path / "a", 1, dense=False)
    second = embedder(tmp_path / "b", 2, dense=False, prompts={"query": "q: "})
    for folder, longest in ((first, 16), (second, 32)):
        file = Path(folder) / "sentence_bert_config.json"
        file.write_text(json.dumps({"max_seq_length": longest, "do_lower_case": False}))
    out = plait.merge({"a": first, "b": second}, method="average", out=tmp_path / "m")
    found = opened(out.path)
    assert found.prompts["query"] == "q: "
    assert found.max_seq_length == 32


def test_cross_encoders_keep_their_activation(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    from tests.models import save, tiny

    made = {}
    for seed, name in enumerate("ab"):
        place = save(tiny("bert", "regression", seed=seed), tmp_path / name / "plain")
        CrossEncoder(str(place), device="cpu").save(str(tmp_path / name / "ce"), create_model_card=False)
        made[name] = str(tmp_path / name / "ce")
    out = plait.merge(made, tasks={"a,b": "rank"}, method="average", out=tmp_path / "m")
    found = CrossEncoder(str(out.path), device="cpu").predict([("a film", "a book")])
    by_hand = CrossEncoder(made["a"], device="cpu")
    state = [load_file(Path(folder) / "model.safetensors") for folder in made.values()]
    by_hand.model.load_state_dict({name: (state[0][name] + state[1][name]) / 2 for name in state[0]})
    np.testing.assert_allclose(found, by_hand.predict([("a film", "a book")]), atol=1e-6)
