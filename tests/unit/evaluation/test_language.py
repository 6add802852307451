"""Perplexity and bits per byte against a plain loop, windows, the first token, intervals."""

from __future__ import annotations

import math

import pytest
import torch

from plait.data import Examples
from plait.errors import DataError, RecipeError, SourceError
from plait.evaluation.language import language_outcome, spans, window_of
from tests.languages import tiny_language, word_tokenizer
from tests.models import tiny
from tests.reference import language as reference

TEXTS = ("good film", "bad", "the film was great news a awful sport the the film", "science news", "a w20 w21 w22")


def outcome(name: str = "llama", texts: tuple[str, ...] = TEXTS, *, bos: bool = True, **options):
    return language_outcome(tiny_language(name), word_tokenizer(bos=bos, eos=False), Examples(texts), **options)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt"])
@pytest.mark.parametrize(("width", "stride"), [(64, None), (5, 2), (4, 3), (2, 1)])
def test_perplexity_is_that_of_a_plain_loop(name, width, stride):
    found = outcome(name, max_length=width, stride=stride)
    model, tokenizer = tiny_language(name), word_tokenizer()
    wanted = [
        reference.document(
            model, [2, *tokenizer(text, add_special_tokens=False)["input_ids"]], width, stride or width // 2
        )
        for text in TEXTS
    ]
    assert found.tokens == tuple(count for _, count in wanted)
    assert found.nll == pytest.approx([value for value, _ in wanted], rel=1e-5)
    scores = found.scores()
    assert scores["perplexity"] == pytest.approx(reference.perplexity(wanted), rel=1e-5)
    size = sum(len(text.encode()) for text in TEXTS)
    assert scores["bytes"] == size
    assert scores["bits_per_byte"] == pytest.approx(sum(v for v, _ in wanted) / math.log(2) / size, rel=1e-5)


def test_every_token_is_scored_once_and_has_one_before_it():
    for count in range(1, 30):
        for width in range(2, 9):
            for step in range(1, width):
                places = [place for _, end, scored in spans(count, width, step) for place in range(scored, end)]
                assert places == list(range(1, count)), (count, width, step)
                assert all(begin < scored for begin, end, scored in spans(count, width, step) if end > scored)


def test_without_a_token_for_the_beginning_the_first_is_not_scored():
    found = outcome(texts=("film good bad", "film"), bos=False)
    assert found.tokens == (2, 0)
    assert found.sizes == (len("film good bad") - len("film"), 0)


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="no token to score"):
        outcome(texts=("film", "bad"), bos=False)


def test_batches_do_not_matter():
    alone, together = outcome(batch_size=1, max_length=6), outcome(batch_size=7, max_length=6)
    assert alone.nll == pytest.approx(together.nll, rel=1e-5)


def test_documents_are_resampled():
    found = outcome()
    interval = found.interval("perplexity", resamples=200, seed=1)
    assert interval.low < found.scores()["perplexity"] < interval.high
    assert found.interval("perplexity", resamples=200, seed=1) == interval
    assert found.interval("perplexity", resamples=0) is None
    assert outcome(texts=("good film",)).interval("perplexity") is None
    assert found.interval("accuracy") is None


def test_rows_can_be_written():
    table = outcome().columns()
    assert list(table) == ["row", "text", "nll", "tokens", "bytes", "perplexity"]
    assert table["perplexity"][1] == pytest.approx(math.exp(table["nll"][1]))


@pytest.mark.parametrize("name", ["t5", "t5-gated"])
def test_targets_are_scored_given_texts(name):
    model, tokenizer = tiny_language(name), word_tokenizer()
    found = language_outcome(model, tokenizer, Examples(TEXTS[:2], labels=("bad news", "a sport the")))
    for text, target, nll, tokens in zip(TEXTS, ("bad news", "a sport the"), found.nll, found.tokens, strict=False):
        ids, labels = (torch.tensor([tokenizer(words)["input_ids"]]) for words in (text, target))
        assert tokens == labels.shape[1] == len(target.split()) + 1
        wanted = reference.nll(model, {"input_ids": ids, "labels": labels})
        assert nll == pytest.approx(wanted.item(), rel=1e-5)
    assert found.sizes == (len("bad news"), len("a sport the"))


def test_targets_must_be_there():
    with pytest.raises(DataError, match=r"has no targets.*--label-column"):
        language_outcome(tiny_language("t5"), word_tokenizer(), Examples(TEXTS))
    with pytest.raises(DataError, match=r"labels that are no texts"):
        language_outcome(tiny_language("t5"), word_tokenizer(), Examples(TEXTS, labels=(1, 2, 3, 4, 5)))


def test_a_causal_model_takes_one_text():
    with pytest.raises(DataError, match="has pairs of texts"):
        language_outcome(tiny_language("llama"), word_tokenizer(), Examples(("a",), pairs=("b",)))


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_leaves_a_token_before_each(stride):
    with pytest.raises(RecipeError, match=rf"stride is {stride} \(expected 1 to 4"):
        outcome(max_length=5, stride=stride)


def test_windows_are_no_longer_than_the_context():
    model, tokenizer = tiny_language("llama", max_position_embeddings=16), word_tokenizer()
    assert window_of(model, tokenizer, None) == 16
    assert window_of(model, tokenizer, 1000) == 16
    with pytest.raises(RecipeError, match="max_length is 1"):
        window_of(model, tokenizer, 1)


def test_other_heads_give_no_likelihood():
    with pytest.raises(SourceError, match="gives no likelihood of texts"):
        language_outcome(tiny("bert"), word_tokenizer(), Examples(TEXTS))


def test_damaged_weights_are_named():
    model = tiny_language("llama")
    with torch.no_grad():
        model.lm_head.weight[:] = torch.nan
    with pytest.raises(SourceError, match="its likelihood of some texts is NaN or Inf"):
        language_outcome(model, word_tokenizer(), Examples(TEXTS))
