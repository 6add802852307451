"""The methods of ensembles: their terms against plain loops, factors against written-out weights, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.consistency import ensemble as consistency
from plait.ensembles.factors import Factored, add_factors, expanded
from plait.ensembles.fit import Joint
from plait.ensembles.folding import one_member
from plait.ensembles.method import METHODS, Choice, refuse_unused
from plait.ensembles.modeling import ENSEMBLES, Ensemble, task_loss
from plait.ensembles.objective import Ensembling, PerturbationChoice, Words, words_of
from plait.ensembles.perturbation import Place
from plait.errors import RecipeError
from plait.training.trainer import Schedule
from tests.models import FAMILIES, tiny_config, tiny_tokenizer
from tests.reference import ensembles_methods as reference

SINGLE: Any = "single_label_classification"
SHAPES = {
    "single_label_classification": (3, 5, 4),
    "multi_label_classification": (3, 5, 4),
    "regression": (3, 5, 1),
}


def drawn(problem: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [M, B, C] and labels."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(SHAPES[problem], generator=draw, dtype=torch.float64) * 2
    if problem == "regression":
        return logits, torch.randn(5, generator=draw, dtype=torch.float64)
    if problem == "multi_label_classification":
        return logits, torch.randint(2, (5, 4), generator=draw).double()
    return logits, torch.randint(4, (5,), generator=draw)


def ensemble(family: str = "bert", kind: str = "sequence", *, members: int = 3, **settings: Any) -> Ensemble:
    encoder = tiny_config(family, kind)
    for name in vars(encoder):
        if name.endswith(("dropout", "dropout_prob")):
            setattr(encoder, name, 0.0)
    labels = {i: f"label {i}" for i in range(3)}
    config = EnsembleConfig(encoder=encoder, members=members, id2label=labels, **settings)
    torch.manual_seed(0)
    return ENSEMBLES[f"{kind}_classification"](config).double().eval()


BATCH = {
    "input_ids": torch.tensor([[2, 10, 11, 12, 3], [2, 13, 14, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
}


@pytest.mark.parametrize("problem", SHAPES)
@pytest.mark.parametrize("name", sorted(set(METHODS) - set(reference.TAUGHT)))
def test_terms_are_what_a_plain_loop_says(name: str, problem: Any) -> None:
    logits, labels = drawn(problem)
    task = task_loss(logits, labels, problem)
    choice = Choice(name, alpha=0.7)
    found = choice.terms(task, logits, labels, problem, None)
    wanted = reference.TERMS[name](logits, labels, problem, alpha=0.7)
    assert set(found) == set(wanted)
    for term, value in wanted.items():
        assert float(found[term]) == pytest.approx(value, abs=1e-10), term


def test_every_method_has_a_reference() -> None:
    assert set(reference.TERMS) | set(reference.TAUGHT) == set(METHODS)


@pytest.mark.parametrize("labelled", [[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize(("mixture", "temperature"), [(0.5, 1.0), (0.2, 2.0), (1.0, 1.0)])
@pytest.mark.parametrize("problem", SHAPES)
@pytest.mark.parametrize("name", sorted(reference.TAUGHT))
def test_what_is_taught_is_what_a_plain_loop_says(
    name: str, problem: Any, mixture: float, temperature: float, labelled: list[int]
) -> None:
    logits, labels = drawn(problem)
    teachers, _ = drawn(problem, seed=1)
    logits = logits[:1] if name == "distilled" else logits
    known = torch.tensor(labelled).bool()
    task = task_loss(logits[:, known], labels[known], problem) if known.any() else torch.zeros(())
    choice = Choice(name, {"mixture": mixture, "temperature": temperature})
    found = choice.terms(task, logits, labels, problem, None, teachers, known)
    wanted = reference.TAUGHT[name](logits, labels, problem, teachers, known, mixture, temperature)
    assert {k: float(v) for k, v in found.items()} == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("problem", SHAPES)
@pytest.mark.parametrize("name", sorted(reference.TAUGHT))
def test_whoever_says_what_its_teachers_say_has_nothing_to_learn(name: str, problem: Any) -> None:
    teachers, labels = drawn(problem)
    logits = teachers[:1].clone() if name == "distilled" else teachers.clone()
    told = logits.expand_as(teachers)
    logits.requires_grad_()
    none = torch.zeros(5).bool()
    found = Choice(name).terms(torch.zeros(()), logits, labels, problem, None, told, none)
    found["distillation"].backward()
    assert float(found["distillation"].detach()) == pytest.approx(0, abs=1e-12)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-12


def test_what_is_taught_is_no_way_back_to_the_teachers() -> None:
    teachers, labels = drawn(SINGLE)
    teachers.requires_grad_()
    logits = drawn(SINGLE, seed=1)[0][:1].requires_grad_()
    terms = Choice("distilled").terms(
        torch.zeros(()), logits, labels, SINGLE, None, teachers, torch.ones(5).bool()
    )
    terms["distillation"].backward()
    assert teachers.grad is None
    assert logits.grad is not None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("distilled", {"mixture": 1.5}, r"mixture is 1\.5 \(expected 0 to 1\)"),
        ("distilled", {"temperature": 0}, r"temperature is 0 \(expected 0\.1 to 100\)"),
        ("distilled", {"start": "soap"}, "start is 'soap'.*soup"),
        ("hydra", {"start": "soup"}, "no option 'start'"),
        ("swa", {"share": "half"}, "expected a number"),
        ("deni", {"noise": -1}, "noise is -1"),
    ],
)
def test_options_out_of_their_limits(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Choice(name, options)


@pytest.mark.parametrize("name", ["one", "codistillation"])
def test_teachers_are_held_still(name: str) -> None:
    logits, labels = drawn(SINGLE)
    logits.requires_grad_()
    found = Choice(name, alpha=1.0).terms(torch.zeros(()), logits, labels, SINGLE, None)["distillation"]
    found.backward()
    moved = reference.gradient_of_distillation(name, logits.detach())
    torch.testing.assert_close(logits.grad, moved, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["camero", "one", "codistillation"])
def test_a_batch_without_any_label_teaches_nothing(name: str) -> None:
    logits = torch.randn(2, 3, 4, 3, requires_grad=True)
    labels = torch.full((3, 4), -100)
    task = task_loss(logits, labels, SINGLE)
    terms = Choice(name).terms(task, logits, labels, SINGLE, labels != -100)
    torch.stack(list(terms.values())).sum().backward()
    assert {float(term.detach()) for term in terms.values()} == {0.0}
    assert logits.grad is not None
    assert not logits.grad.any()


def test_rows_that_do_not_count_change_nothing() -> None:
    logits, _ = drawn(SINGLE)
    labels, mask = torch.tensor([0, 1, 2, -100, -100]), torch.tensor([True, True, True, False, False])
    for name in ("one", "codistillation", "camero"):
        told = Choice(name)
        first = told.terms(torch.zeros(()), logits, labels, SINGLE, mask)
        second = told.terms(torch.zeros(()), logits[:, :3], labels[:3], SINGLE, None)
        assert {k: float(v) for k, v in first.items()} == pytest.approx(
            {k: float(v) for k, v in second.items()}
        )


def private(model: Ensemble) -> dict[str, nn.Parameter]:
    """The parameters by member of the encoder's layers: those whose first axis is the members'."""
    names = ("scale_in", "scale_out", "down", "up", "values", "bias")
    layers = {n: m for n, m in model.encoder.named_modules() if hasattr(m, "weight_of")}
    own = {f"{n}.{p}": getattr(m, p) for n, m in layers.items() for p in names if getattr(m, p, None) is not None}
    return {n: p for n, p in own.items() if not n.endswith("bias") or p.dim() == 2}


def factorised(model: Ensemble, name: str) -> Ensemble:
    """Gives a model a method's factors, moved away from where they start."""
    Choice(name).factorise(model)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in private(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return model


@pytest.mark.parametrize("name", ["batchensemble", "lora", "singular"])
@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("head", ["linear", "tanh"])
@pytest.mark.parametrize("family", FAMILIES)
def test_factors_are_weights_of_their_own(family: str, head: Any, kind: str, name: str) -> None:
    model = ensemble(family, kind, head=head)
    with torch.no_grad():
        plain = model(**BATCH, output_members=True).member_logits
        factorised(model, name)
        found = model(**BATCH, output_members=True, replicate_at=0).member_logits
        written = expanded(model).double()
        said = written(**BATCH, output_members=True).member_logits
    # The ensemble is written in float32.
    torch.testing.assert_close(found[..., 0, :], said[..., 0, :], rtol=0, atol=1e-6)
    assert float((found - plain).abs().max()) > 1e-6
    if head == "linear":
        with torch.no_grad():
            own = one_member(written, 1)(**BATCH).logits
        torch.testing.assert_close(own.double()[..., 0, :], found[1][..., 0, :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["batchensemble", "lora", "singular"])
def test_a_member_alone_is_a_member_of_the_batch(name: str) -> None:
    model = factorised(ensemble(), name)
    with torch.no_grad():
        together = model(**BATCH, output_members=True, replicate_at=0).member_logits
        for member in range(3):
            model.roster.active = (member,)
            alone = model.encoder(**BATCH)
            head = model.heads(model._features(alone).unsqueeze(0), [member])[0]
            torch.testing.assert_close(head, together[member])
    assert float((together[0] - together[1]).abs().max()) > 1e-4


def test_low_rank_updates_are_those_of_the_attention() -> None:
    model = ensemble()
    with torch.no_grad():
        before = model(**BATCH, output_members=True).member_logits
        Choice("lora", {"rank": 3}).factorise(model)
        torch.testing.assert_close(model(**BATCH, output_members=True, replicate_at=0).member_logits, before)
    layers = {n: m for n, m in model.encoder.named_modules() if hasattr(m, "weight_of")}
    assert len(layers) == 2 * 4
    assert all(".attention." in name for name in layers)
    layer: Any = layers["bert.encoder.layer.0.attention.self.query"]
    assert layer.down.shape == (3, 3, 16)
    with torch.no_grad():
        layer.up.normal_()
    for m in range(3):
        wanted = layer.weight.clone()
        for i in range(16):
            for j in range(16):
                wanted[i, j] += sum(layer.up[m, i, k] * layer.down[m, k, j] for k in range(3))
        torch.testing.assert_close(layer.weight_of(m), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_attention_to_update(family: str) -> None:
    model = ensemble(family)
    Choice("lora").factorise(model)
    layers = sum(hasattr(m, "weight_of") for m in model.encoder.modules())
    assert layers >= 2 * (1 if family == "albert" else model.config.num_hidden_layers)  # ALBERT has one group


def test_singular_values_are_private_and_vectors_are_not() -> None:
    model = ensemble()
    with torch.no_grad():
        before = model(**BATCH, output_members=True).member_logits
        weight = model.encoder.get_submodule("bert.encoder.layer.0.output.dense").weight.clone()
        Choice("singular", {"spread": 0}).factorise(model)
        found = model(**BATCH, output_members=True, replicate_at=0).member_logits
    torch.testing.assert_close(found, before)
    layer: Any = model.encoder.get_submodule("bert.encoder.layer.0.output.dense")
    torch.testing.assert_close(layer.weight_of(0), weight)
    torch.testing.assert_close(layer.values[1], torch.linalg.svdvals(weight))
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(n.startswith("heads.") or n.endswith((".values", ".bias")) for n in learning)
    assert not {n for n in learning if "embeddings" in n or "LayerNorm" in n}


def test_a_frozen_encoder_learns_nothing_but_updates() -> None:
    model = ensemble().train()
    Choice("lora", {"encoder": "frozen"}).factorise(model)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(n.startswith("heads.") or n.endswith((".down", ".up")) for n in learning)
    loss = model(**BATCH, output_members=True, replicate_at=0).member_logits.sum()
    loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n in learning)


def test_factors_begin_near_what_was_learnt() -> None:
    model = ensemble()
    before = {name: p.clone() for name, p in model.named_parameters()}
    add_factors(model, 1e-9)
    with torch.no_grad():
        found = model(**BATCH, output_members=True, replicate_at=0).member_logits
        torch.testing.assert_close(found, ensemble()(**BATCH, output_members=True).member_logits)
    assert all(torch.equal(dict(model.named_parameters())[name], p) for name, p in before.items())
    layers = [m for m in model.modules() if isinstance(m, Factored)]
    assert len(layers) == 13
    assert all(layer.scale_in.shape[0] == 3 for layer in layers)


def test_joint_models_are_members() -> None:
    models = [ensemble(members=1) for _ in range(3)]
    with torch.no_grad():
        for number, model in enumerate(models):
            for parameter in model.parameters():
                parameter.add_(0.1 * number)
        found = Joint(models)(**BATCH)
        for number, model in enumerate(models):
            assert torch.equal(found.member_logits[number], model(**BATCH).logits)


@pytest.mark.parametrize(
    ("name", "options", "place", "depth"),
    [
        ("dropout", {}, Place.DROPOUT, 0),
        ("word_dropout", {}, Place.EMBEDDINGS, 0),
        ("gaussian", {}, Place.HIDDEN, 2),
        ("adversarial", {"at": "embeddings"}, Place.EMBEDDINGS, 0),
        ("none", {}, Place.NONE, 2),
    ],
)
def test_where_members_part(name: str, options: dict[str, Any], place: Place, depth: int) -> None:
    noise = PerturbationChoice(name, options)
    assert (noise.place, noise.depth(2)) == (place, depth)
    assert noise.extra_cost() == (3 if name == "adversarial" else 0)
    with pytest.raises(RecipeError, match="2 layers are shared"):
        PerturbationChoice(name, options, replicate_at=3).depth(2)


@pytest.mark.parametrize("name", ["none", "dropout", "gaussian", "adversarial", "word_dropout"])
def test_the_objective_trains_every_parameter(name: str) -> None:
    model = ensemble(shared_layers=1).train()
    noise = PerturbationChoice(name, {"rate": 0.2} if "dropout" in name else {})
    words = words_of(tiny_tokenizer("bert"))
    objective = Ensembling(Choice("camero", alpha=0.5), noise, noise.depth(1), words=words)
    terms = objective(nn.DataParallel(model), {**BATCH, "labels": torch.tensor([0, 2])})
    assert set(terms) == {"task", "consistency"}
    sum(terms.values(), torch.zeros(())).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_objective_is_its_parts() -> None:
    model = ensemble().train()
    objective = Ensembling(Choice("camero", alpha=0.5), PerturbationChoice("none"), 2)
    labels = torch.tensor([0, 2])
    terms = objective(model, {**BATCH, "labels": labels})
    members = model(**BATCH, output_members=True, replicate_at=2).member_logits
    mean = torch.stack([nn.functional.cross_entropy(z, labels) for z in members]).mean()
    torch.testing.assert_close(terms["task"], mean)
    torch.testing.assert_close(terms["consistency"], 0.5 * consistency(members))


def test_special_words_stay() -> None:
    found = words_of(tiny_tokenizer("bert"))
    tokenizer = tiny_tokenizer("bert")
    assert set(found.special) == set(tokenizer.all_special_ids)
    assert found.unknown == tokenizer.mask_token_id
    assert Words().special == ()


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("shared", {"alpha": 1.0}, "does not use alpha"),
        (
            "separate",
            {"alpha": 1.0, "consistency": "pairwise"},
            "does not use alpha, consistency; leave them out",
        ),
        ("one", {"consistency": "pairwise"}, "does not use consistency; leave it out"),
        ("single", {"members": 4}, "does not use members"),
    ],
)
def test_what_a_method_would_ignore_is_refused(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        refuse_unused(name, given)
    refuse_unused(name, dict.fromkeys(given))
    refuse_unused("camero", given)
    refuse_unused("single", {"members": 1})


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "much"])
def test_options_of_methods(value: Any) -> None:
    with pytest.raises(RecipeError, match="expected a number above 0"):
        Choice("one", {"temperature": value})


def test_a_batch_is_divided_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Schedule(batch_size=16, accumulate=4).part == 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Schedule(batch_size=16, accumulate=4).part == 2
    with pytest.raises(RecipeError, match=r"multiple of 12 \(accumulate 6 in 2 processes\)"):
        _ = Schedule(batch_size=16, accumulate=6).part
