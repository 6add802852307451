"""Batches hold what the tokenizer gives, padded no more than needed, labels where they belong."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from plait.data import Examples, align_labels, batches, collate, encode, length_limit, plan
from plait.errors import DataError
from tests.models import FAMILIES, texts, tiny, tiny_config, tiny_tokenizer

WORDS = texts(9)


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_what_the_model_takes(family):
    model, tokenizer = tiny(family), tiny_tokenizer(family)
    for batch in batches(Examples(tuple(WORDS), tuple(reversed(WORDS))), tokenizer, config=model.config):
        assert model(**batch).logits.isfinite().all()


def test_a_batch_is_what_the_tokenizer_gives():
    tokenizer = tiny_tokenizer("bert")
    (batch,) = batches(Examples(tuple(WORDS)), tokenizer, bucket=False)
    expected = tokenizer(WORDS, padding=True, return_tensors="pt")
    assert batch.keys() == expected.keys()
    assert all(batch[name].equal(expected[name]) for name in batch)


def test_padding_comes_last_whatever_the_tokenizer_says():
    contexts = ("the film was very good and john was bad", "john")
    answers = ((("very good", contexts[0].index("very good")),), (("john", 0),))
    examples = Examples(("what?", "who?"), contexts, labels=answers, kind="question_answering")
    for side in ("left", "right"):
        tokenizer = tiny_tokenizer("bert", padding_side=side)
        (batch,) = batches(examples, tokenizer, bucket=False)
        assert batch["attention_mask"][:, 0].all()
        spans = zip(batch["input_ids"], batch["start_positions"], batch["end_positions"], strict=True)
        assert [tokenizer.decode(ids[start : end + 1]) for ids, start, end in spans] == ["very good", "john"]


def test_buckets_pad_less_and_lose_nothing():
    encoded = encode(Examples(tuple(texts(40))), tiny_tokenizer("bert"))
    sorted_plan, plain = plan(encoded, 8), plan(encoded, 8, bucket=False)
    assert sorted(row for rows in sorted_plan for row in rows) == list(range(40))

    def area(batched):
        return sum(max(len(encoded[row]["input_ids"]) for row in rows) * len(rows) for rows in batched)

    assert area(sorted_plan) < area(plain)
    lengths = [len(encoded[rows[0]]["input_ids"]) for rows in sorted_plan]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("labels", "problem", "dtype", "shape"),
    [
        ((1, 0), "single_label_classification", torch.int64, (2,)),
        ((1, 0), "regression", torch.float32, (2,)),
        (((1, 0, 1), (0, 0, 1)), "multi_label_classification", torch.float32, (2, 3)),
    ],
)
def test_labels_have_the_type_of_their_loss(labels, problem, dtype, shape):
    examples = align_labels(Examples(("a", "the film"), labels=labels), None, problem_type=problem)
    (batch,) = batches(examples, tiny_tokenizer("bert"), problem_type=problem, bucket=False)
    assert (batch["labels"].dtype, tuple(batch["labels"].shape)) == (dtype, shape)


def test_labels_can_be_left_out():
    (batch,) = batches(Examples(("a",), labels=(1,)), tiny_tokenizer("bert"), labels=False)
    assert "labels" not in batch


def test_tags_sit_on_the_first_piece_of_each_word():
    tokenizer = tiny_tokenizer("bert")
    examples = Examples((("the", "zq"), ("a",)), labels=((1, 2), (0,)), kind="token_classification")
    (batch,) = batches(examples, tokenizer, bucket=False)
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == ["[CLS]", "the", "z", "##q", "[SEP]"]
    assert batch["labels"].tolist() == [[-100, 1, 2, -100, -100], [-100, 0, -100, -100, -100]]


def test_answers_become_token_positions():
    tokenizer = tiny_tokenizer("bert")
    context = "the film was very good and john was bad"
    answer = ("very good", context.index("very good"))
    examples = Examples(("what was the film?",), (context,), labels=((answer,),), kind="question_answering")
    (batch,) = batches(examples, tokenizer)
    start, end = int(batch["start_positions"]), int(batch["end_positions"])
    assert tokenizer.decode(batch["input_ids"][0, start : end + 1]) == "very good"


def test_long_contexts_become_windows():
    tokenizer = tiny_tokenizer("bert")
    context = " ".join(["a"] * 30 + ["john"] + ["the"] * 5)
    examples = Examples(
        ("who?",), (context,), labels=((("john", context.index("john")),),), kind="question_answering"
    )
    encoded = encode(examples, tokenizer, max_length=20)
    assert set(encoded.rows) == {0}
    assert all(len(feature["input_ids"]) <= 20 for feature in encoded.features)
    found = [feature for feature in encoded.features if feature["start_positions"]]
    assert found
    for feature in found:
        assert tokenizer.convert_ids_to_tokens(feature["input_ids"][feature["start_positions"]]) == "john"
    assert len(found) < len(encoded)


@pytest.mark.parametrize("limit", [5, 8, 20, 64])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_long_questions_leave_half_the_room_to_the_context(family, limit, caplog):
    tokenizer = tiny_tokenizer(family)
    context = " ".join(["a"] * 90)
    examples = Examples((" ".join(texts(40)), "x" * 99, "who?"), (context,) * 3, kind="question_answering")
    if limit <= tokenizer.num_special_tokens_to_add(pair=True) + 1:
        with pytest.raises(
            DataError, match=rf"max_length {limit} leaves no room for a question and a context"
        ):
            encode(examples, tokenizer, max_length=limit)
        return
    encoded = encode(examples, tokenizer, max_length=limit)
    assert set(encoded.rows) == {0, 1, 2}
    assert all(len(feature["input_ids"]) <= limit for feature in encoded.features)
    ends = [max(span[1] for span in spans if span is not None) for spans in encoded.offsets]
    for row in range(3):
        assert max(end for end, of in zip(ends, encoded.rows, strict=True) if of == row) == len(context)
    assert re.search(r"\d of 3 questions were cut to \d+ tokens", caplog.text)


def test_unanswerable_questions_point_at_the_first_token():
    examples = Examples(("who?",), ("a film",), labels=((),), kind="question_answering")
    (batch,) = batches(examples, tiny_tokenizer("bert"))
    assert (int(batch["start_positions"]), int(batch["end_positions"])) == (0, 0)


@pytest.mark.parametrize(
    ("family", "expected"),
    [("bert", 60), ("roberta", 58), ("xlm-roberta", 58), ("mpnet", 58), ("modernbert", 60)],
)
def test_the_model_bounds_the_length(family, expected):
    config = tiny_config(family, max_position_embeddings=60)
    assert length_limit(tiny_tokenizer(family, model_max_length=10**30), config) == expected


@pytest.mark.parametrize(("family", "expected"), [("modernbert", 2048), ("roberta", 1022)])
def test_longer_inputs_are_for_the_asking(family, expected, caplog):
    positions = {"modernbert": 8192, "roberta": 1024}[family]
    config = tiny_config(family, max_position_embeddings=positions)
    tokenizer = tiny_tokenizer(family, model_max_length=10**30)
    text = Examples((" ".join(["a"] * 3000),))
    with caplog.at_level(logging.WARNING):
        (default,) = batches(text, tokenizer, config=config)
        assert not caplog.records
        (batch,) = batches(text, tokenizer, config=config, max_length=2048)
    assert (default["input_ids"].shape[1], batch["input_ids"].shape[1]) == (512, expected)
    said = "the model takes at most 1022 tokens: max_length 2048 is cut to that"
    assert [record.getMessage() for record in caplog.records] == [said] * (expected < 2048)
    assert length_limit(tokenizer, config, 2048) == expected


def test_the_longest_input_runs():
    model, tokenizer = (
        tiny("roberta", max_position_embeddings=70),
        tiny_tokenizer("roberta", model_max_length=999),
    )
    (batch,) = batches(Examples((" ".join(["a"] * 99),)), tokenizer, config=model.config, max_length=99)
    assert batch["input_ids"].shape == (1, 68)
    assert model(**batch).logits.isfinite().all()


def test_the_tokenizer_bounds_the_length():
    assert length_limit(tiny_tokenizer("bert", model_max_length=7)) == 7
    (batch,) = batches(Examples((" ".join(["a"] * 50),)), tiny_tokenizer("bert", model_max_length=7))
    assert batch["input_ids"].shape == (1, 7)
    assert length_limit(tiny_tokenizer("bert", model_max_length=10**30)) == 512


def test_collate_leaves_its_features_alone():
    features = [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [1], "labels": 1}]
    collate(features, {"input_ids": 9})
    assert features == [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [1], "labels": 1}]
