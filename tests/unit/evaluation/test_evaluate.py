"""Predictions in the order of the data, whatever the batches; scores for every head."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from plait.data import Examples, align_labels
from plait.errors import DataError
from plait.evaluation import (
    evaluate_model,
    head_kind,
    head_labels,
    head_problem,
    predict_logits,
    primary_metric,
)
from plait.evaluation.evaluate import predict_answers
from plait.merging.scores import by_name
from tests.models import FAMILIES, texts, tiny, tiny_tokenizer

WORDS = texts(11)


def alone(model, tokenizer, text, pair=None):
    with torch.no_grad():
        return model(**tokenizer(text, pair, return_tensors="pt")).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_each_text_alone(family):
    model, tokenizer = tiny(family).double(), tiny_tokenizer(family)
    found = predict_logits(model, tokenizer, Examples(tuple(WORDS)), batch_size=4)
    expected = [alone(model, tokenizer, text) for text in WORDS]
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_tags_come_back_per_word(side):
    model = tiny("modernbert", "token").double()
    tokenizer = tiny_tokenizer("modernbert", padding_side=side)
    words = (("the", "xyz", "film"), ("a",), ("john", "q"))
    found = predict_logits(model, tokenizer, Examples(words, kind="token_classification"), batch_size=3)
    for row, (text, logits) in enumerate(zip(words, found, strict=True)):
        table = tokenizer(list(text), is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            rows = model(**table).logits[0]
        starts = [table.word_ids(0).index(word) for word in range(len(text))]
        torch.testing.assert_close(logits.double(), rows[starts], atol=1e-5, rtol=1e-5, msg=str(row))


def test_words_beyond_the_limit_have_no_class():
    model, tokenizer = tiny("bert", "token"), tiny_tokenizer("bert")
    (logits,) = predict_logits(
        model, tokenizer, Examples((("the",) * 9,), kind="token_classification"), max_length=6
    )
    assert logits[:4].isfinite().all()
    assert logits[4:].isneginf().all()


def always(one, model):
    """Returns the model with a head that answers nothing but `one`."""
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()[one] = 9.0
    return model


def test_words_beyond_the_limit_are_not_scored(caplog):
    model, tokenizer = always(1, tiny("bert", "token")), tiny_tokenizer("bert")
    words = (("the",) * 200, ("a", "film"))
    for truth, expected in ((0, 0.0), (1, 1.0)):
        labels = tuple((truth,) * len(row) for row in words)
        caplog.clear()
        found = evaluate_model(
            model, tokenizer, Examples(words, labels=labels, kind="token_classification", source="tags.csv")
        )
        assert found["accuracy"] == expected
        said = "tags.csv: 138 of 202 labelled words have no token within the length limit and are not scored"
        assert said in caplog.text


def test_no_word_to_score():
    model, tokenizer = tiny("bert", "token"), tiny_tokenizer("bert")
    ignored = Examples((("a",),), labels=((-100,),), kind="token_classification")
    with pytest.raises(DataError, match="no labelled word to score"):
        evaluate_model(model, tokenizer, ignored)


def test_the_models_mode_comes_back():
    model = tiny("bert").train()
    model.bert.encoder.eval()
    before = {name: module.training for name, module in model.named_modules()}
    found = predict_logits(model, tiny_tokenizer("bert"), Examples(tuple(WORDS)))
    assert {name: module.training for name, module in model.named_modules()} == before
    again = predict_logits(model, tiny_tokenizer("bert"), Examples(tuple(WORDS)))
    assert torch.stack(found).equal(torch.stack(again))


def test_a_model_agrees_with_its_own_guesses():
    model, tokenizer = tiny("bert"), tiny_tokenizer("bert")
    guesses = [int(alone(model, tokenizer, text).argmax()) for text in WORDS]
    names = tuple(str(model.config.id2label[guess]) for guess in guesses)
    for labels in (tuple(guesses), names):
        assert evaluate_model(model, tokenizer, Examples(tuple(WORDS), labels=labels))["accuracy"] == 1.0


def test_label_order_of_the_data_does_not_matter():
    model, tokenizer = tiny("bert"), tiny_tokenizer("bert")
    guesses = [int(alone(model, tokenizer, text).argmax()) for text in WORDS]
    permuted = ("sequence-2", "sequence-0", "sequence-1")
    labels = tuple(permuted.index(f"sequence-{guess}") for guess in guesses)
    found = evaluate_model(model, tokenizer, Examples(tuple(WORDS), labels=labels, label_names=permuted))
    assert found["accuracy"] == 1.0


def test_pairs_are_read_as_pairs():
    model, tokenizer = tiny("bert").double(), tiny_tokenizer("bert")
    pairs = tuple(reversed(WORDS))
    found = predict_logits(model, tokenizer, Examples(tuple(WORDS), pairs))
    expected = [alone(model, tokenizer, *both) for both in zip(WORDS, pairs, strict=True)]
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_regression_is_scored_by_correlation():
    model, tokenizer = tiny("bert", "regression"), tiny_tokenizer("bert")
    numbers = tuple(2 * float(alone(model, tokenizer, text)) + 1 for text in WORDS)
    found = evaluate_model(model, tokenizer, Examples(tuple(WORDS), labels=numbers))
    assert found["pearson"] == pytest.approx(1.0)
    assert found["mse"] > 0


def test_several_labels_are_scored_at_one_half():
    model, tokenizer = tiny("bert", "multi_label"), tiny_tokenizer("bert")
    rows = tuple(tuple((alone(model, tokenizer, text) > 0).int().tolist()) for text in WORDS)
    assert evaluate_model(model, tokenizer, Examples(tuple(WORDS), labels=rows))["accuracy"] == 1.0


def test_tags_are_scored_where_they_are_not_ignored():
    model, tokenizer = tiny("bert", "token"), tiny_tokenizer("bert")
    words = tuple(tuple(text.split()) for text in WORDS)
    examples = Examples(words, kind="token_classification")
    guesses = [logits.argmax(-1).tolist() for logits in predict_logits(model, tokenizer, examples)]
    labels = tuple((-100, *row[1:]) for row in guesses)
    tagged = Examples(words, labels=labels, kind="token_classification")
    assert evaluate_model(model, tokenizer, tagged)["accuracy"] == 1.0


def test_answers_are_the_best_span_of_the_context():
    model, tokenizer = tiny("bert", "qa").double(), tiny_tokenizer("bert")
    question, context = "what was the film?", "the film was very good and john was bad"
    found = predict_answers(model, tokenizer, Examples((question,), (context,), kind="question_answering"))
    table = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    spans = table.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        outputs = model(**table)
    inside = [i for i, side in enumerate(table.sequence_ids(0)) if side == 1]
    _, first, last = max(
        (float(outputs.start_logits[0, i] + outputs.end_logits[0, j]), i, j)
        for i in inside for j in inside if i <= j
    )  # fmt: skip
    assert found == [context[spans[first][0] : spans[last][1]]]
    answers = (((found[0], 0),),)
    scores = evaluate_model(
        model, tokenizer, Examples((question,), (context,), labels=answers, kind="question_answering")
    )
    assert scores == {"exact_match": 1.0, "f1": 1.0}


def test_no_answer_where_it_beats_every_span():
    model, tokenizer = tiny("bert", "qa"), tiny_tokenizer("bert")
    asked = {
        "texts": ("who?", "what?"),
        "pairs": (" ".join(texts(9)), "a film"),
        "kind": "question_answering",
    }
    spans = predict_answers(model, tokenizer, Examples(**asked))
    assert all(spans)
    answered = tuple(((span, 0),) for span in spans)
    scores = {}
    for bias in (-99.0, 99.0):
        nothing = silent(model, bias)
        assert predict_answers(nothing, tokenizer, Examples(**asked)) == spans
        empty = predict_answers(nothing, tokenizer, Examples(**asked), unanswerable=True)
        assert empty == (["", ""] if bias > 0 else spans)
        mixed = Examples(**asked, labels=(answered[0], ()))
        scores[bias] = evaluate_model(nothing, tokenizer, mixed)["exact_match"]
        assert evaluate_model(nothing, tokenizer, Examples(**asked, labels=answered))["exact_match"] == 1.0
    assert scores == {-99.0: 0.5, 99.0: 0.5}


def silent(model, bias):
    """Returns the model with `bias` on the score of no answer, the first token's."""

    class Silent(type(model)):
        def forward(self, **inputs):
            outputs = super().forward(**inputs)
            outputs.start_logits = outputs.start_logits.clone()
            outputs.start_logits[:, 0] += bias
            return outputs

    other = Silent(model.config)
    other.load_state_dict(model.state_dict())
    other.__class__.__name__ = type(model).__name__
    return other.eval()


def test_long_contexts_answer_once():
    model, tokenizer = tiny("bert", "qa"), tiny_tokenizer("bert")
    examples = Examples(("who?", "what?"), (" ".join(texts(9)), "a film"), kind="question_answering")
    answers = predict_answers(model, tokenizer, examples, max_length=20)
    assert len(answers) == 2
    assert answers[1] in ("a", "film", "a film")


@pytest.mark.parametrize(
    ("head", "kind", "problem", "labels"),
    [
        ("sequence", "sequence_classification", "single_label_classification", 3),
        ("regression", "sequence_classification", "regression", None),
        ("multi_label", "sequence_classification", "multi_label_classification", 3),
        ("token", "token_classification", None, 3),
        ("qa", "question_answering", None, None),
        ("body", None, None, None),
    ],
)
def test_heads_are_told_apart(head, kind, problem, labels):
    model = tiny("electra", head)
    assert head_kind(model) == kind
    if problem is not None:
        assert head_problem(model) == problem
    if head != "body":
        found = head_labels(model)
        assert (found if labels is None else len(found)) == labels


def test_every_task_has_a_leading_score():
    assert primary_metric("sequence_classification") == "accuracy"
    assert primary_metric("sequence_classification", "regression") == "pearson"
    assert primary_metric("question_answering", "regression") == "f1"
    assert primary_metric("sequence_classification", "multi_label_classification") == "macro_f1"


def test_nothing_to_score():
    model, tokenizer = tiny("bert"), tiny_tokenizer("bert")
    with pytest.raises(DataError, match="has no labels; expected a label column to evaluate on"):
        evaluate_model(model, tokenizer, Examples(("a",)))
    with pytest.raises(DataError, match="no examples"):
        evaluate_model(model, tokenizer, Examples((), labels=()))
    with pytest.raises(DataError, match="the head is for sequence classification"):
        evaluate_model(model, tokenizer, Examples((("a",),), labels=((0,),), kind="token_classification"))
    with pytest.raises(DataError, match=r"labels 3 are not the head's; expected 0 to 2"):
        evaluate_model(model, tokenizer, Examples(("a",), labels=(3,)))


def test_labels_that_are_numbers_by_name_stay_so_for_a_source():
    task = SimpleNamespace(labels=("0", "1", "10"))
    named = by_name(Examples(("a", "b"), labels=(10, 1)), task)
    assert (named.labels, named.label_names) == ((2, 1), task.labels)
    assert align_labels(named, ("10", "1", "0")).labels == (0, 1)
