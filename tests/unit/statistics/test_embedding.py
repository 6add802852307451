"""The Fisher information of cosines and embeddings, against float64 autograd on one unpadded pair at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.data import Examples
from plait.encoders.embedding import Dense, Embedder, Normalize, Pooling, Reading
from plait.errors import DataError
from plait.statistics.embedding import as_objective, embedding_batches, single_texts
from plait.statistics.estimate import estimate_statistics
from tests.models import texts, tiny, tiny_tokenizer
from tests.reference import statistics as reference

SCORES = (5.0, 0.0, 2.5, 1.0, 4.2)


def model_of(family: str = "bert") -> Embedder:
    torch.manual_seed(0)
    encoder = tiny(family, "body").double()
    dense = Dense(nn.Linear(16, 8), nn.Tanh(), None).double()
    return Embedder(encoder, Pooling(), [dense, Normalize()], Reading())


def five(kind: str) -> Examples:
    pairs = None if kind == "texts" else tuple(texts(5, seed=9))
    return Examples(tuple(texts(5)), pairs, SCORES if kind == "scored" else None)


def embed(model: Embedder, text: str) -> Tensor:
    """Returns the embedding of one unpadded text, step by step."""
    inputs = tiny_tokenizer(model.config.model_type)(text, return_tensors="pt")
    states = model.backbone(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state[0]
    vector = torch.tanh(model.behind[0].linear(states.mean(0)))
    return vector / vector.norm()


def terms(model: Embedder, kind: str) -> list[list[Tensor]]:
    """Returns per example the terms whose squared gradients make up its Fisher."""
    some = five(kind)
    if kind == "texts":
        return [list(embed(model, text)) for text in some.texts]
    wanted = [score / 5 for score in SCORES] if kind == "scored" else [1.0] * 5
    cosines = [embed(model, a) @ embed(model, b) for a, b in zip(some.texts, some.pairs or (), strict=True)]
    return [[(cosine - y) ** 2 / 2] for cosine, y in zip(cosines, wanted, strict=True)]


def estimated(model: Embedder, estimator: str, kind: str, batch_size: int = 2) -> Any:
    chosen, labels = as_objective(five(kind), "given")
    tokenizer = tiny_tokenizer(model.config.model_type)
    batches = embedding_batches(model, tokenizer, chosen, batch_size=batch_size, max_length=None)
    return estimate_statistics(model, batches, estimator=estimator, labels=labels)


@pytest.mark.parametrize("kind", ["scored", "alike", "texts"])
@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_the_diagonal_of_pairs_and_texts(family: str, kind: str) -> None:
    model = model_of(family)
    wanted = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for example in terms(model, kind):
        for term in example:
            grads = torch.autograd.grad(term, list(model.parameters()), retain_graph=True, allow_unused=True)
            for name, grad in zip(wanted, grads, strict=True):
                wanted[name] += 0 if grad is None else grad.square() / 5
    found = estimated(model, "diagonal", kind)
    for name, value in wanted.items():
        torch.testing.assert_close(found.of(name), value.detach(), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("kind", ["scored", "texts"])
def test_mask_nodes_of_pairs_and_texts(kind: str) -> None:
    model = model_of()
    masks, hooks = reference.masks(model.backbone, reference.NODES["bert"], 2, 4)
    wanted = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for example in terms(model, kind):
        for term in example:
            grads = torch.autograd.grad(term, list(masks.values()), retain_graph=True)
            for name, grad in zip(masks, grads, strict=True):
                wanted[name] += grad.square() / 5
    for hook in hooks:
        hook.remove()
    found = estimated(model, "mask_nodes", kind)
    for layer in range(2):
        torch.testing.assert_close(found.heads[layer], wanted[f"heads.{layer}"].detach(), rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(found.neurons[layer], wanted[f"neurons.{layer}"].detach(), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("kind", ["scored", "texts"])
def test_batches_play_no_part(kind: str) -> None:
    model = model_of()
    one, three = (estimated(model, "block_traces", kind, size).tensors for size in (1, 3))
    assert one.keys() == three.keys()
    for name in one:
        torch.testing.assert_close(one[name], three[name], rtol=1e-9, atol=1e-15)


def test_many_dimensions_take_one_pass_with_random_signs() -> None:
    model = model_of()
    model.behind[0].linear = nn.Linear(16, 40).double()
    found = estimated(model, "mask_nodes", "texts")
    assert bool((found.heads > 0).all())


def test_pairs_are_read_apart_for_gram() -> None:
    model = model_of()
    chosen = single_texts(five("scored"))
    tokenizer = tiny_tokenizer("bert")
    batches = embedding_batches(model, tokenizer, chosen, batch_size=3, max_length=None)
    found = estimate_statistics(model, batches, estimator="gram").of("encoder.layer.0.attention.self.query.weight")
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in chosen.texts]
    rows = torch.cat([model.backbone.embeddings(one)[0] for one in ids])
    torch.testing.assert_close(found, rows.T @ rows / len(rows), rtol=1e-9, atol=1e-12)


def test_scores_become_cosines() -> None:
    assert as_objective(five("scored"), "given")[0].labels == tuple(score / 5 for score in SCORES)
    cosines = Examples(("a", "b"), ("c", "d"), (-0.5, 1.0))
    assert as_objective(cosines, "given")[0].labels == (-0.5, 1.0)
    assert as_objective(five("texts"), "given")[1] == "exact"
    with pytest.raises(DataError, match=r"scores from -3.0 to 5.0; expected numbers from 0, or cosines"):
        as_objective(Examples(("a", "b"), ("c", "d"), (-3.0, 5.0)), "given")


def test_a_pair_is_the_cosine() -> None:
    model = model_of()
    batch = next(embedding_batches(model, tiny_tokenizer("bert"), five("scored"), batch_size=5, max_length=None))
    labels = batch.pop("labels")
    found = model(**batch, labels=labels)
    firsts = {name: value for name, value in batch.items() if not name.startswith("pair_")}
    seconds = {name.removeprefix("pair_"): value for name, value in batch.items() if name.startswith("pair_")}
    wanted = F.cosine_similarity(model.embed(firsts), model.embed(seconds))
    torch.testing.assert_close(found.logits[:, 0], wanted)
    wanted = wanted.detach()
    assert found.loss.item() == pytest.approx(float((wanted - labels).square().mean() / 2))
