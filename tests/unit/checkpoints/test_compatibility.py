"""Alignment: what merges and what stays per task; whatever differs is said, all of it, in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers, pre_tokenizers, processors

from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.checkpoints.compatibility import align
from plait.checkpoints.tokenizer_differences import differences
from plait.errors import MergeError, RecipeError
from tests.models import FAMILIES, HEADS, save, tiny, tiny_tokenizer
from tests.unit.checkpoints.test_checkpoint import configure, rewrite


def opened(
    folder: Path, name: str, head: str = "sequence", family: str = "bert", **options: object
) -> Checkpoint:
    """Returns a tiny checkpoint saved below `folder` under its name."""
    return open_checkpoint(save(tiny(family, head, **options), folder / name), name=name)


def refusal(*sources: Checkpoint, **options: object) -> str:
    """Returns the one line with which sources are refused."""
    with pytest.raises(MergeError) as error:
        align(sources, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def relabel(checkpoint: Checkpoint, *labels: str) -> Checkpoint:
    """Returns the checkpoint after giving its rows these labels."""
    maps = {"id2label": {str(i): label for i, label in enumerate(labels)}, "label2id": None}
    return open_checkpoint(configure(checkpoint.folder, **maps), name=checkpoint.name)


class TestOwners:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_heads_of_every_kind_share_a_body(self, family, tmp_path):
        sources = [opened(tmp_path, head, head, family, seed=i) for i, head in enumerate(HEADS)]
        alignment = align(sources)
        assert alignment.family == family
        assert set(alignment.owners) == {name for source in sources for name in source.body}
        for name, owners in alignment.owners.items():
            assert owners == tuple(i for i, source in enumerate(sources) if name in source.body)
        assert set(alignment.shared) == set.intersection(*(set(source.body) for source in sources))
        assert alignment.tasks == {head: (i,) for i, head in enumerate(HEADS)}
        assert set(alignment.head_rows.values()) == {None}

    def test_a_pooler_belongs_to_the_tasks_that_use_it(self, tmp_path):
        sources = [
            opened(tmp_path, name, head)
            for name, head in (("t", "token"), ("s", "sequence"), ("r", "regression"))
        ]
        alignment = align(sources)
        poolers = {name: owners for name, owners in alignment.owners.items() if len(owners) < 3}
        assert poolers == {"pooler.dense.weight": (1, 2), "pooler.dense.bias": (1, 2)}
        assert "pooler.dense.bias" in alignment.parameters("s")
        assert set(alignment.parameters("t")) == set(sources[0].body)
        assert not set(poolers) & set(alignment.shared)
        assert alignment.task_of(2) == "r"

    def test_one_source_is_aligned_with_itself(self, tmp_path):
        source = opened(tmp_path, "a")
        assert align([source]).shared == tuple(source.body)

    def test_order_is_the_order_given(self, tmp_path):
        a, b = (opened(tmp_path, name, seed=i) for i, name in enumerate("ab"))
        assert [s.name for s in align([b, a]).sources] == ["b", "a"]
        assert align([a, b]).shared == align([b, a]).shared

    def test_dtypes_may_differ(self, tmp_path):
        half = save(tiny("bert", seed=1).to(torch.bfloat16), tmp_path / "half")
        align([opened(tmp_path, "a"), open_checkpoint(half)])


class TestNames:
    def test_none(self):
        assert refusal() == "no sources given: name at least one checkpoint"

    def test_twice(self, tmp_path):
        message = refusal(opened(tmp_path, "a"), opened(tmp_path, "a"))
        assert message == "several sources are called a: give each a name of its own (name=folder)"

    def test_a_task_for_nobody(self, tmp_path):
        with pytest.raises(
            RecipeError, match=r"task for unknown source 'mod' \(did you mean 'mood'\? known: mood\)"
        ):
            align([opened(tmp_path, "mood")], tasks={"mod": "x"})


class TestArchitecture:
    def test_families(self, tmp_path):
        message = refusal(
            opened(tmp_path, "a"), opened(tmp_path, "b", family="electra"), opened(tmp_path, "c")
        )
        assert message == (
            "different architectures cannot be merged: a is bert; b is electra; c is bert; "
            "merge sources of one base model"
        )

    @pytest.mark.parametrize(
        ("family", "change", "said"),
        [
            ("bert", {"hidden_act": "relu"}, "hidden_act differs (a: gelu, b: relu)"),
            ("bert", {"layer_norm_eps": 1e-5}, "layer_norm_eps differs (a: 1e-12, b: 1e-05)"),
            ("bert", {"num_attention_heads": 2}, "num_attention_heads differs (a: 4, b: 2)"),
            ("bert", {"num_hidden_layers": 3}, "num_hidden_layers differs (a: 2, b: 3)"),
            ("distilbert", {"activation": "relu"}, "activation differs (a: gelu, b: relu)"),
            ("deberta-v2", {"pos_att_type": ["p2c", "c2p"]}, "pos_att_type differs"),
            ("albert", {"num_hidden_layers": 5}, "num_hidden_layers differs (a: 3, b: 5)"),
            ("modernbert", {"local_attention": 4}, "local_attention differs"),
        ],
    )
    def test_settings_on_which_the_encoder_depends(self, family, change, said, tmp_path):
        a, b = opened(tmp_path, "a", family=family), opened(tmp_path, "b", family=family, **change)
        message = refusal(a, b)
        assert message.startswith("cannot merge a, b: ")
        assert said in message

    def test_settings_of_training_and_records_do_not_count(self, tmp_path):
        a = opened(tmp_path, "a")
        b = opened(
            tmp_path, "b", seed=1, hidden_dropout_prob=0.0, classifier_dropout=0.5, initializer_range=1.0,
            use_cache=False, my_note="b", eos_token_id=None,
        )  # fmt: skip
        assert len(align([a, b]).owners) == len(a.body)

    def test_every_shape_is_listed_layers_together(self, tmp_path):
        message = refusal(
            opened(tmp_path, "a"), opened(tmp_path, "b", intermediate_size=12), opened(tmp_path, "c")
        )
        assert "intermediate_size differs (a: 24, b: 12, c: 24)" in message
        shapes = "(a: [24, 16], b: [12, 16], c: [24, 16])"
        assert f"shape of encoder.layer.{{0,1}}.intermediate.dense.weight differs {shapes}" in message
        for part in ("intermediate.dense.bias", "output.dense.weight"):
            assert f"shape of encoder.layer.{{0,1}}.{part} differs" in message

    def test_vocabularies_of_different_size(self, tmp_path):
        message = refusal(opened(tmp_path, "a"), opened(tmp_path, "b", vocab_size=120))
        assert (
            "shape of embeddings.word_embeddings.weight differs (a: [114, 16], b: [120, 16]): the vocabularies differ; "
            "resize_token_embeddings can undo padding" in message
        )


class TestTokenizers:
    def pair(self, folder: Path, tokenizer, family: str = "bert") -> tuple[Checkpoint, Checkpoint]:
        a = opened(folder, "a", family=family)
        b = opened(folder, "b", family=family, seed=1)
        tokenizer.save_pretrained(b.folder)
        return a, open_checkpoint(b.folder, name="b")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                {"do_lower_case": False},
                "differ: normalizer (casing, accents) on 'The quick brown fox' (a: ['[CLS]', 'the', 'quick',",
            ),
            ({"padding_side": "left"}, "tokenizers differ: padding_side (a: right, b: left)"),
            ({"pad_token": "[MASK]"}, "tokenizers differ: pad_token (a: [PAD], b: [MASK])"),
        ],
    )
    def test_differences_are_said_with_their_place(self, change, said, tmp_path):
        assert said in refusal(*self.pair(tmp_path, tiny_tokenizer("bert", **change)))

    def test_the_first_differing_tokens_are_shown(self, tmp_path):
        from transformers import BertTokenizer

        vocabulary = tiny_tokenizer("bert").get_vocab()
        vocabulary["film"], vocabulary["book"] = vocabulary["book"], vocabulary["film"]
        ids = sorted((vocabulary["film"], vocabulary["book"]))
        message = refusal(*self.pair(tmp_path, BertTokenizer(vocab=vocabulary)))
        assert (
            f"2 tokens, first at ids {ids[0]}, {ids[1]} (a: ['film', 'book'], b: ['book', 'film'])" in message
        )

    def test_sizes_of_vocabularies_are_said(self, tmp_path):
        other = tiny_tokenizer("bert")
        other.add_tokens(["newword"])
        message = refusal(*self.pair(tmp_path, other))
        assert "tokenizers differ: size of the vocabulary (a: 114, b: 115)" in message
        assert "1 tokens, first at ids 114 (a: [None], b: ['newword'])" in message
        assert "the tokenizer of b has ids up to 114, its embeddings only 114 rows" in message

    def test_special_tokens_around_texts(self):
        other = tiny_tokenizer("bert")
        other.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", other.cls_token_id)]
        )
        (said,) = differences(tiny_tokenizer("bert"), other, "a", "b")
        assert said.startswith(
            "post-processor (special tokens around texts) on 'The quick brown fox' (a: ['[CLS]', "
        )

    def test_pre_tokenizers(self):
        other = tiny_tokenizer("bert")
        other.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        (said,) = differences(tiny_tokenizer("bert"), other, "a", "b")
        assert said.startswith("pre-tokenizer (how texts split into words) on \"don't U.S.-based e-mail")

    def test_merges(self):
        changed = tiny_tokenizer("roberta")
        stages = json.loads(changed.backend_tokenizer.to_str())
        stages["model"]["merges"][-1] = ["f", "h"]
        stages["model"]["vocab"] = {**stages["model"]["vocab"], "fh": 400}
        changed._tokenizer = type(changed.backend_tokenizer).from_str(json.dumps(stages))
        assert any(
            "merges, first at rank" in said
            for said in differences(tiny_tokenizer("roberta"), changed, "a", "b")
        )

    @pytest.mark.parametrize("family", FAMILIES)
    def test_use_does_not_count(self, family, tmp_path):
        other = tiny_tokenizer(family, model_max_length=17)
        other.backend_tokenizer.enable_truncation(5)
        other.backend_tokenizer.enable_padding(length=9)
        align(self.pair(tmp_path, other, family))

    def test_what_is_written_otherwise_but_reads_alike_does_not_count(self, tmp_path):
        other = tiny_tokenizer("bert")
        other.backend_tokenizer.normalizer = normalizers.Sequence([other.backend_tokenizer.normalizer])
        align(self.pair(tmp_path, other))

    def test_a_source_without_tokenizer_takes_that_of_others(self, tmp_path, caplog):
        bare = open_checkpoint(save(tiny("bert", seed=1), tmp_path / "bare", tokenizer=False))
        with caplog.at_level(logging.WARNING, "plait"):
            align([bare, opened(tmp_path, "a")])
        assert "no tokenizer saved with bare; taking that of a" in caplog.text
        assert align([bare]).tokenizer_source is None
        assert align([bare, opened(tmp_path, "b")]).tokenizer_source.name == "b"


class TestLabels:
    def test_equal_labels_stay(self, tmp_path):
        a, b = (opened(tmp_path, name, seed=i) for i, name in enumerate("ab"))
        alignment = align([a, b], tasks={"a": "mood", "b": "mood"})
        assert alignment.tasks == {"mood": (0, 1)}
        assert alignment.head_rows == {"a": None, "b": None}

    def test_permuted_labels_are_aligned_by_name(self, tmp_path):
        a = relabel(opened(tmp_path, "a"), "bad", "fair", "good")
        b = relabel(opened(tmp_path, "b", seed=1), "good", "bad", "fair")
        rows = align([a, b], tasks={"a": "mood", "b": "mood"}).head_rows
        assert rows == {"a": None, "b": (1, 2, 0)}
        assert tuple(b.labels[i] for i in rows["b"]) == a.labels

    def test_permuted_labels_of_different_tasks_stay(self, tmp_path):
        a = relabel(opened(tmp_path, "a"), "bad", "fair", "good")
        b = relabel(opened(tmp_path, "b", seed=1), "good", "bad", "fair")
        assert set(align([a, b]).head_rows.values()) == {None}

    def test_other_labels_are_refused(self, tmp_path):
        a = relabel(opened(tmp_path, "a"), "bad", "fair", "good")
        b = relabel(opened(tmp_path, "b", seed=1), "bad", "fair", "great")
        message = refusal(a, b, tasks={"a": "mood", "b": "mood"})
        assert (
            "task mood: labels differ (a: bad, fair, good; b: bad, fair, great); give them tasks of their own"
            in message
        )

    def test_another_number_of_labels_is_refused(self, tmp_path):
        message = refusal(opened(tmp_path, "a"), opened(tmp_path, "b", labels=2), tasks={"a": "t", "b": "t"})
        assert (
            "task t: labels differ (a: sequence-0, sequence-1, sequence-2; b: sequence-0, sequence-1)"
            in message
        )

    @pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2")])
    def test_placeholders_prove_no_order(self, names, tmp_path):
        a, b = (relabel(opened(tmp_path, n, seed=i), *names) for i, n in enumerate("ab"))
        message = refusal(a, b, tasks={"a": "t", "b": "t"})
        assert f"a and b both call their labels {', '.join(names)}" in message
        assert "--labels a=…,… --labels b=…,…" in message
        assert len(align([a, b]).tasks) == 2, "each a task of its own"

    @pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2")])
    def test_placeholders_of_heads_that_began_as_one_match_by_position(self, names, tmp_path):
        a, b = (relabel(opened(tmp_path, n, seed=1), *names) for n in "ab")
        assert align([a, b], tasks={"a": "t", "b": "t"}).head_rows == {"a": None, "b": None}

    def test_names_that_are_given_say_the_order(self, tmp_path):
        folders = [relabel(opened(tmp_path, n, seed=i), "LABEL_0", "LABEL_1", "LABEL_2") for i, n in enumerate("ab")]
        names = [("x", "y", "z"), ("z", "x", "y")]
        a, b = (open_checkpoint(c.folder, name=c.name, labels=n) for c, n in zip(folders, names, strict=True))
        found = align([a, b], tasks={"a": "t", "b": "t"})
        assert found.head_rows == {"a": None, "b": (1, 2, 0)}

    def test_generic_names_do_not_match_real_ones(self, tmp_path):
        a, b = opened(tmp_path, "a"), relabel(opened(tmp_path, "b", seed=1), "LABEL_0", "LABEL_1", "LABEL_2")
        message = refusal(a, b, tasks={"a": "t", "b": "t"})
        assert "task t: labels have no common names (a: sequence-0" in message
        assert "say the real ones with labels (--labels)" in message

    @pytest.mark.parametrize(
        ("head", "said"),
        [
            ("token", "task t: head differs (a: sequence_classification, b: token_classification)"),
            ("regression", "task t: problem_type differs (a: single_label_classification, b: regression)"),
        ],
    )
    def test_other_heads_are_refused(self, head, said, tmp_path):
        assert said in refusal(opened(tmp_path, "a"), opened(tmp_path, "b", head), tasks={"a": "t", "b": "t"})

    def test_heads_of_other_shape_are_refused(self, tmp_path):
        a = opened(tmp_path, "a", family="deberta-v2")
        b = opened(tmp_path, "b", family="deberta-v2", pooler_hidden_size=8)
        if a.head.keys() == b.head.keys() and all(a.header(k).shape == b.header(k).shape for k in a.head):
            pytest.skip("this release ignores pooler_hidden_size")
        assert "task t: head parameter pooler.dense.weight differs" in refusal(
            a, b, tasks={"a": "t", "b": "t"}
        )

    def test_regressions_and_answers_need_no_labels(self, tmp_path):
        for head in ("regression", "qa"):
            pair = [opened(tmp_path / head, name, head, seed=i) for i, name in enumerate("ab")]
            assert align(pair, tasks={"a": "t", "b": "t"}).head_rows == {"a": None, "b": None}


class TestBases:
    def test_strangers_are_refused(self, tmp_path):
        message = refusal(
            opened(tmp_path, "a"), opened(tmp_path, "b", base_seed=9), opened(tmp_path, "c", seed=1)
        )
        assert "a and b do not come from one base (cosine of their word embeddings " in message
        assert "b and c do not come from one base" in message
        assert "a and c" not in message
        assert "expected above 0.5); merge models fine-tuned from the same base" in message

    def test_strangers_say_what_they_record(self, tmp_path):
        a, b = opened(tmp_path, "a"), opened(tmp_path, "b", base_seed=9)
        for source in (a, b):
            configure(source.folder, _name_or_path=f"org/base-{source.name}")
        message = refusal(*(open_checkpoint(s.folder, name=s.name) for s in (a, b)))
        assert "; a records org/base-a; b records org/base-b); merge" in message

    def test_a_base_that_is_none_of_theirs_is_refused(self, tmp_path):
        base = opened(tmp_path, "base", "body", base_seed=9)
        assert "a and base do not come from one base" in refusal(opened(tmp_path, "a"), base=base)

    def test_a_base_of_other_shape_is_refused(self, tmp_path):
        base = opened(tmp_path, "base", "body", hidden_size=8)
        message = refusal(opened(tmp_path, "a"), base=base)
        assert "hidden_size differs (a: 16, base: 8)" in message
        assert "shape of pooler.dense.weight differs (a: [16, 16], base: [8, 8])" in message

    def test_a_true_base_is_kept(self, tmp_path):
        base = opened(tmp_path, "base", "body", drift=0.0)
        assert align([opened(tmp_path, "a"), opened(tmp_path, "b", seed=1)], base=base).base is base

    def test_other_records_alone_are_a_warning(self, tmp_path, caplog):
        sources = []
        for seed, name in enumerate("ab"):
            source = opened(tmp_path, name, seed=seed)
            sources.append(
                open_checkpoint(configure(source.folder, _name_or_path=f"org/base-{name}"), name=name)
            )
        with caplog.at_level(logging.WARNING, "plait"):
            align(sources)
        assert (
            "the sources record different bases (a: org/base-a, b: org/base-b); merging them anyway"
            in caplog.text
        )

    def test_one_record_in_two_places_is_no_warning(self, tmp_path, caplog):
        sources = []
        for seed, (name, base) in enumerate((("a", "org/Base"), ("b", "/models/base/"))):
            source = opened(tmp_path, name, seed=seed)
            sources.append(open_checkpoint(configure(source.folder, _name_or_path=base), name=name))
        align(sources)
        assert not caplog.records

    def test_a_base_other_than_recorded_is_a_warning(self, tmp_path, caplog):
        source = opened(tmp_path, "a")
        source = open_checkpoint(configure(source.folder, _name_or_path="org/other"), name="a")
        align([source], base=opened(tmp_path, "base", "body"))
        assert f"the base given is {tmp_path / 'base'}, the sources record org/other" in caplog.text

    def test_not_a_number_is_left_to_the_engine(self, tmp_path):
        broken = save(tiny("bert", seed=1), tmp_path / "nan")
        rewrite(broken, {}, **{"bert.embeddings.word_embeddings.weight": torch.full((114, 16), torch.nan)})
        align([opened(tmp_path, "a"), open_checkpoint(broken)])


def test_everything_that_differs_is_said_at_once(tmp_path):
    a = opened(tmp_path, "a")
    b = opened(tmp_path, "b", intermediate_size=12, hidden_act="relu", labels=2)
    tiny_tokenizer("bert", do_lower_case=False).save_pretrained(b.folder)
    message = refusal(a, open_checkpoint(b.folder, name="b"), tasks={"a": "t", "b": "t"})
    for said in (
        "hidden_act differs",
        "shape of encoder.layer",
        "tokenizers differ",
        "task t: labels differ",
    ):
        assert said in message
