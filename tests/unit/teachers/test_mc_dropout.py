"""Passes with dropout: real, reproducible, cheaper where asked, and the teacher is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plait.checkpoints.checkpoint import open_checkpoint
from plait.data import Examples, batches
from plait.encoders.modes import seed_of
from plait.errors import SourceError
from plait.teachers import mc_dropout as scorer
from plait.teachers.mc_dropout import Masks, Turn, scoring
from plait.teachers.settings import Settings
from tests.models import FAMILIES, save, texts, tiny
from tests.reference import posteriors as reference

EXAMPLES = Examples(tuple(texts(11)))
WITHOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.0}


@pytest.fixture
def teacher(tmp_path):
    """Makes a teacher of a family: its checkpoint and its model."""

    def make(family="bert", **config):
        checkpoint = open_checkpoint(save(tiny(family, **config), tmp_path / family), name=family)
        return checkpoint, checkpoint.model(dtype=torch.float32)

    return make


def rate_for(family):
    return 0.1 if family == "modernbert" else None


def score(teacher, settings, turn=None, examples=EXAMPLES):
    checkpoint, model = teacher
    with scoring(model, checkpoint.tokenizer(), settings, checkpoint) as ready:
        found = ready.score(examples, turn or Turn(0, passes=settings.passes, whole=True))
        return found, ready.meter.forwards / len(examples)


def plain_logits(teacher):
    checkpoint, model = teacher
    rows = batches(
        EXAMPLES, checkpoint.tokenizer(), batch_size=1, bucket=False, config=model.config, labels=False
    )
    with torch.no_grad():
        return torch.cat([model(**batch).logits for batch in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, teacher):
    made = teacher(family)
    settings = Settings(passes=5, batch_size=4, keep="layers", dropout=rate_for(family))
    found, cost = score(made, settings)
    depth = made[1].config.num_hidden_layers
    torch.testing.assert_close(found["logits"], plain_logits(made), rtol=1e-4, atol=1e-5)
    assert found["probabilities"].shape == (11, 5, 3)
    assert found["probabilities"].std(1).amin() > 0
    assert found["features"].shape[0] == 11
    assert found["layers"].shape == (11, depth + 1, 16)
    assert found["layers"].dtype == found["features"].dtype == torch.float16
    assert cost == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_what_the_classifier_reads(family, teacher):
    checkpoint, model = teacher(family)
    found, _ = score((checkpoint, model), Settings(passes=0, keep="features"))
    (name,) = [n for n in checkpoint.label_parameters if n.endswith("weight")]
    layer = model.get_submodule(name.removesuffix(".weight"))
    torch.testing.assert_close(
        layer(found["features"].float()).detach(), found["logits"], rtol=0.02, atol=0.02
    )


def test_layers_are_means_over_real_tokens(teacher):
    checkpoint, model = teacher()
    found, _ = score((checkpoint, model), Settings(passes=0, keep="layers", batch_size=11))
    for row, text in enumerate(EXAMPLES.texts):
        with torch.no_grad():
            states = model(
                **checkpoint.tokenizer()(text, return_tensors="pt"), output_hidden_states=True
            ).hidden_states
        wanted = torch.stack([state[0].mean(0) for state in states])
        torch.testing.assert_close(found["layers"][row].float(), wanted, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("family", ["bert", "albert", "deberta-v2"])
def test_the_passes_are_those_of_a_plain_loop(family, teacher):
    checkpoint, model = teacher(family)
    settings = Settings(passes=4, batch_size=4, seed=3)
    found, _ = score((checkpoint, model), settings, Turn(2, passes=4, whole=True))
    rows = list(batches(EXAMPLES, checkpoint.tokenizer(), batch_size=4, config=model.config, labels=False))
    order = sorted(range(11), key=lambda i: -len(checkpoint.tokenizer()(EXAMPLES.texts[i])["input_ids"]))
    wanted = reference.hand_loop(copy.deepcopy(model), rows, 4, seed_of(3, checkpoint.digest, 2, 0))
    torch.testing.assert_close(found["logits"][order], torch.cat([logits for logits, _ in wanted]))
    torch.testing.assert_close(found["probabilities"][order], torch.cat([p for _, p in wanted]))


def test_masks_follow_from_seed_teacher_shard_and_turn(teacher):
    one = teacher()
    found = [
        score(one, Settings(passes=2, seed=seed), Turn(shard, number, 2, whole=True))[0]["probabilities"]
        for seed, shard, number in ((0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert torch.equal(found[0], found[1])
    assert not any(torch.equal(found[0], other) for other in found[2:])


def test_masks_of_large_batches_follow_from_the_seed_too(teacher, monkeypatch):
    monkeypatch.setattr(scorer, "FAST", 0)
    one = teacher()
    first, again, other = (
        score(one, Settings(passes=2, seed=seed))[0]["probabilities"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_teacher_is_left_as_it_was(teacher):
    checkpoint, model = teacher(attention_probs_dropout_prob=0.0)
    model.bert.encoder.layer[0].train()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    config, generator = model.config.to_dict(), torch.get_rng_state()
    forwards = [vars(module).get("forward") for module in model.modules()]
    settings = Settings(passes=3, dropout=0.3, keep="features", last_layers=1)
    score((checkpoint, model), settings)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), generator)
    assert [vars(module).get("forward") for module in model.modules()] == forwards
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.0, 0.1}
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_attention_dropout_acts(teacher):
    config = {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.0}
    found, _ = score(teacher("bert", attention_probs_dropout_prob=0.5, **config), Settings(passes=3))
    assert found["probabilities"].std(1).amin() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trunk_is_computed_once(family, teacher):
    checkpoint, model = teacher(family)
    depth = model.config.num_hidden_layers
    settings = Settings(passes=16, last_layers=1, dropout=rate_for(family))
    found, cost = score((checkpoint, model), settings)
    torch.testing.assert_close(found["logits"], plain_logits((checkpoint, model)), rtol=1e-4, atol=1e-5)
    assert cost == pytest.approx(1 + 16 / depth)
    assert found["probabilities"].std(1).amin() > 0
    none, cost = score((checkpoint, model), Settings(passes=16, last_layers=0, dropout=rate_for(family)))
    assert cost == pytest.approx(1)
    # The body of an ALBERT has no dropout by default.
    assert torch.equal(none["probabilities"], found["probabilities"]) == (family == "albert")


@pytest.mark.parametrize("family", ["bert", "albert", "mpnet"])
def test_without_dropout_above_it_the_replayed_trunk_changes_nothing(family, teacher):
    config = {"classifier_dropout": 0.0, "classifier_dropout_prob": 0.0}
    made = teacher(family, **config, **{k: v for k, v in WITHOUT.items() if k != "classifier_dropout"})
    settings = Settings(passes=2, last_layers=1, dropout=1e-9)
    found, _ = score(made, Settings(passes=0))
    checkpoint, model = made
    with scoring(model, checkpoint.tokenizer(), settings, checkpoint) as ready:
        ready.alive = True
        replayed = ready.score(EXAMPLES, Turn(0, passes=2, whole=True))
    for number in range(2):
        torch.testing.assert_close(replayed["probabilities"][:, number], found["logits"].softmax(-1))


def test_all_layers_are_as_good_as_the_whole_teacher(teacher):
    checkpoint, model = teacher()
    model.bert.embeddings.dropout.p = 0.0
    whole, upper = (
        score((checkpoint, model), Settings(passes=6, last_layers=layers))[0] for layers in (None, 2)
    )
    torch.testing.assert_close(upper["probabilities"], whole["probabilities"])


def test_fewer_layers_vary_less(teacher):
    one = teacher("bert", num_hidden_layers=4)
    spreads = [
        score(one, Settings(passes=32, last_layers=m))[0]["probabilities"].std(1).mean() for m in (0, 1, 2, 4)
    ]
    assert spreads == sorted(spreads)


def test_more_layers_than_there_are(teacher):
    with pytest.raises(SourceError, match="bert: last_layers is 3, the teacher has 2 layers; ask for fewer"):
        score(teacher(), Settings(last_layers=3))


class TestMasks:
    @pytest.mark.parametrize("rate", [0.004, 0.1, 0.5, 0.999])
    def test_each_entry_drops_on_its_own_with_the_rate(self, rate):
        ones = torch.ones(1000, 1001)
        with Masks(3):
            first, second = (F.dropout(ones, rate) for _ in range(2))
        dropped = (first == 0).float()
        error = (rate * (1 - rate) / ones.numel()) ** 0.5
        assert dropped.mean().item() == pytest.approx(rate, abs=4 * error + 2**-17)
        both = ((first == 0) & (second == 0)).float().mean().item()
        assert both == pytest.approx(rate**2, abs=5 * (rate**2 / ones.numel()) ** 0.5 + 1e-5)
        # Neighbours share a draw of 64 bits, and rows begin anywhere in one.
        for lag in (1, 2, 3, 4, 1001):
            pairs = (dropped.flatten()[:-lag] * dropped.flatten()[lag:]).mean().item()
            assert pairs == pytest.approx(rate**2, abs=5 * (rate**2 / ones.numel()) ** 0.5 + 1e-5)
        kept = first[first != 0]
        assert kept.unique().numel() == 1
        assert kept[0].item() == pytest.approx(1 / (1 - rate), rel=0.02)

    def test_the_mean_is_kept(self):
        values = torch.rand(1_000_003)
        with Masks(0):
            found = F.dropout(values, 0.1)
        assert found.sum().item() == pytest.approx(values.sum().item(), rel=2e-3)
        assert torch.equal(found[found != 0], (values * (65536 / (65536 - 6554)))[found != 0])

    def test_what_is_not_to_be_dropped_draws_nothing(self):
        values = torch.rand(100)
        with Masks(0):
            wanted = F.dropout(values, 0.5)
        with Masks(0):
            assert F.dropout(values, 0.5, training=False) is values
            assert F.dropout(values, 0.0) is values
            assert nn.Dropout(0.9).eval()(values) is values
            assert torch.equal(nn.Dropout(0.5)(values), wanted)

    @pytest.mark.parametrize("options", [{"inplace": True}, {"p": 1.0}, {"p": 1e-4}])
    def test_the_rest_is_left_to_torch(self, options):
        torch.manual_seed(0)
        wanted = F.dropout(torch.ones(50), **{"p": 0.5} | options)
        torch.manual_seed(0)
        with Masks(0):
            assert torch.equal(F.dropout(torch.ones(50), **{"p": 0.5} | options), wanted)
            assert F.dropout(torch.ones(50).double(), 0.5).dtype == torch.float64

    def test_passes_are_alike_however_masks_are_drawn(self, teacher, monkeypatch):
        monkeypatch.setattr(scorer, "FAST", 0)
        one = teacher()
        ours, _ = score(one, Settings(passes=160, batch_size=16))
        monkeypatch.setattr(scorer, "FAST", 10**9)
        torchs, _ = score(one, Settings(passes=160, batch_size=16))
        first, second = ours["probabilities"], torchs["probabilities"]
        error = (first.var(1) / 80).sqrt()
        assert ((first.mean(1) - second.mean(1)).abs() < 4.5 * error).all()
        torch.testing.assert_close(first.std(1), second.std(1), rtol=0.4, atol=0)


class TestWithoutDropout:
    @pytest.mark.parametrize(("family", "config"), [("modernbert", {}), ("bert", WITHOUT)])
    def test_it_is_said(self, family, config, teacher):
        with pytest.raises(SourceError) as error:
            score(teacher(family, **config), Settings())
        assert str(error.value) == (
            f"{family}: its passes are all the same, for the teacher has no dropout: give --dropout RATE to inject "
            "it, or ask for no passes: --passes 0, and a gate that needs none (plait methods)"
        )

    def test_no_passes_need_none(self, teacher):
        found, cost = score(teacher("modernbert"), Settings(passes=0))
        assert cost == 1
        torch.testing.assert_close(found["mean"], found["logits"].softmax(-1))
        assert (found["spread"].tolist(), found["passes"].tolist()) == ([0.0] * 11, [0] * 11)

    @pytest.mark.parametrize(("family", "config"), [("modernbert", {}), ("bert", WITHOUT)])
    def test_it_is_injected_where_there_is_a_place_for_it(self, family, config, teacher):
        checkpoint, model = teacher(family, **config)
        found, _ = score((checkpoint, model), Settings(dropout=0.2))
        assert found["probabilities"].std(1).amin() > 1e-4
        assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.0}
        if family == "modernbert":
            assert model.model.layers[0].attn.attention_dropout == 0.0

    def test_it_is_injected_behind_layers_where_there_is_no_place(self, teacher):
        checkpoint, model = teacher("bert", attn_implementation="eager", **WITHOUT)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, Nothing())
        found, cost = score((checkpoint, model), Settings(dropout=0.2))
        assert found["probabilities"].std(1).amin() > 1e-4
        assert cost == 17
        upper, cost = score((checkpoint, model), Settings(dropout=0.2, last_layers=1))
        assert upper["probabilities"].std(1).amin() > 1e-4
        assert cost == 9


class Nothing(nn.Identity):
    """A layer that only has a rate."""

    p = 0.0


def test_a_rate_of_its_own_is_kept(teacher):
    first, second = (
        score(teacher(), Settings(passes=3, dropout=rate))[0]["probabilities"] for rate in (None, 0.5)
    )
    assert torch.equal(first, second)


def test_batchnorm_is_refused(teacher):
    checkpoint, model = teacher()
    model.bert.pooler.dense = nn.Sequential(model.bert.pooler.dense, nn.BatchNorm1d(16))
    with pytest.raises(SourceError) as error:
        score((checkpoint, model), Settings())
    assert str(error.value) == (
        "bert: bert.pooler.dense.1 is a BatchNorm, which in train mode mixes the texts of a batch and changes "
        "itself; use a gate that needs no passes (plait methods)"
    )
    assert score((checkpoint, model), Settings(passes=0))[1] == 1


def test_logits_that_are_not_numbers(teacher):
    checkpoint, model = teacher()
    with torch.no_grad():
        model.classifier.bias[1] = torch.nan
    with pytest.raises(SourceError, match="bert: gives logits that are NaN or Inf"):
        score((checkpoint, model), Settings())


def test_a_family_without_a_table_is_found_by_its_list_of_layers(teacher, monkeypatch):
    monkeypatch.setattr("plait.encoders.replay.TABLES", {})
    assert score(teacher(), Settings(last_layers=1))[1] == 9


def test_pairs_are_scored_together(teacher):
    made = teacher()
    pairs = Examples(EXAMPLES.texts, tuple(reversed(EXAMPLES.texts)))
    alone, _ = score(made, Settings(passes=0))
    both, _ = score(made, Settings(passes=0), examples=pairs)
    checkpoint, model = made
    with torch.no_grad():
        wanted = model(**checkpoint.tokenizer()(pairs.texts[3], pairs.pairs[3], return_tensors="pt")).logits[
            0
        ]
    torch.testing.assert_close(both["logits"][3], wanted)
    assert not torch.allclose(alone["logits"], both["logits"])


def test_a_length_beyond_the_teacher_is_cut_and_said(teacher, caplog):
    made = teacher()
    score(made, Settings(passes=0, max_length=500))
    assert [r.getMessage() for r in caplog.records] == [
        "bert takes at most 64 tokens: max_length 500 is cut to that"
    ]
