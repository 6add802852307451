"""The model of an ensemble: what its members say, and that it is what separate models would say."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait.encoders.layers import layers_of
from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.folding import one_member
from plait.ensembles.modeling import ENSEMBLES, Ensemble
from plait.ensembles.perturbation import perturber
from plait.ensembles.sharing import original, unrolled, without_member
from tests.models import FAMILIES, tiny_config
from tests.reference import ensembles_model as reference

EXACT = {"rtol": 0.0, "atol": 1e-12}
TASKS = {"sequence": "sequence_classification", "token": "token_classification"}


def ensemble(
    family: str = "bert", kind: str = "sequence", *, members: int = 3, seed: int = 0, **settings: Any
) -> Ensemble:
    """A small ensemble in float64 whose members differ in all that is theirs, without dropout unless asked for."""
    rate = settings.pop("dropout", 0.0)
    encoder = tiny_config(family, kind, **settings.pop("encoder", {}))
    for name in vars(encoder):
        if name.endswith(("dropout", "dropout_prob")):
            setattr(encoder, name, rate)
    labels = {"id2label": {i: f"label {i}" for i in range(settings.pop("labels", 3))}}
    config = EnsembleConfig(encoder=encoder, members=members, **{**labels, **settings})
    model = ENSEMBLES[TASKS[kind]](config).double().eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return model


def batch(rows: int = 4, length: int = 7) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        mask[row, length - row % 4 :] = 0
    return {"input_ids": torch.randint(5, 30, (rows, length), generator=draw), "attention_mask": mask}


def depths(family: str) -> range:
    return range(tiny_config(family).num_hidden_layers + 1)


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_members_are_separate_models(family: str, kind: str) -> None:
    inputs = batch()
    for shared in depths(family):
        model = ensemble(family, kind, shared_layers=shared)
        with torch.no_grad():
            found = model(**inputs, output_members=True)
            expected = reference.separate_passes([one_member(model, m) for m in range(3)], inputs)
        torch.testing.assert_close(found.logits, found.member_logits.mean(0), **EXACT)
        for member, rows in enumerate(expected):
            for row, logits in enumerate(rows):
                mine = found.member_logits[member, row]
                torch.testing.assert_close(mine[: len(logits)] if kind == "token" else mine, logits, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_tanh_heads_look_at_the_first_token(family: str) -> None:
    model, inputs = ensemble(family, head="tanh"), batch(2)
    with torch.no_grad():
        found = model(**inputs, output_members=True).member_logits
        first = model.encoder(**inputs).last_hidden_state[:, 0]
        dense, out = model.heads.dense, model.heads.out
        for m in range(3):
            for row in range(2):
                expected = reference.tanh_head(
                    first[row], (dense.weight[m], dense.bias[m]), (out.weight[m], out.bias[m])
                )
                torch.testing.assert_close(found[m, row], expected, **EXACT)


@pytest.mark.parametrize("head", ["linear", "tanh"])
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_where_members_are_replicated_changes_nothing(family: str, kind: str, head: str) -> None:
    inputs = batch()
    for shared in depths(family):
        model = ensemble(family, kind, shared_layers=shared, head=head)
        with torch.no_grad():
            expected = model(**inputs, output_members=True).member_logits
            for depth in range(shared + 1):
                for options in ({"perturb": lambda states, _: states}, {"replay": True}, {}):
                    found = model(**inputs, output_members=True, replicate_at=depth, **options).member_logits
                    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        # The table of relative positions has as many rows as the batch: it must not be sliced.
        ("deberta-v2", {"members": 4}),
        # The convolution that belongs to the first layer also belongs to the last one.
        ("deberta-v2", {"encoder": {"num_hidden_layers": 1}}),
        ("albert", {"encoder": {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}}),
        ("electra", {"encoder": {"embedding_size": 16}}),
        # The layer before the last one is of the same shape.
        ("distilbert", {"labels": 16}),
        ("roberta", {"labels": 16}),
        ("modernbert", {"labels": 16}),
    ],
)
def test_odd_encoders(family: str, settings: dict[str, Any]) -> None:
    inputs = batch()
    depth = settings.get("encoder", {}).get("num_hidden_layers", 2)
    for shared in range(depth + 1):
        model = ensemble(family, shared_layers=shared, **copy.deepcopy(settings))
        alone = [one_member(model, member)(**inputs).logits for member in range(model.config.members)]
        for place in range(shared + 1):
            for options in ({"perturb": lambda states, _: states}, {"replay": True}):
                found = model(**inputs, output_members=True, replicate_at=place, **options).member_logits
                torch.testing.assert_close(found, torch.stack(alone), **EXACT)


def test_mean_pooling_counts_only_tokens() -> None:
    inputs = batch()
    for shared in depths("modernbert"):
        model = ensemble("modernbert", shared_layers=shared, encoder={"classifier_pooling": "mean"})
        expected = reference.separate_passes([one_member(model, m) for m in range(3)], inputs)
        for depth in range(shared + 1):
            found = model(**inputs, output_members=True, replicate_at=depth).member_logits
            torch.testing.assert_close(found, torch.stack([torch.stack(rows) for rows in expected]), **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("replay", [False, True])
def test_noise_enters_where_it_is_told_to(family: str, replay: bool) -> None:
    """A member with noise is its ordinary model with that noise added to the input of the same layer."""
    inputs = batch()
    for shared in depths(family):
        model = ensemble(family, shared_layers=shared)
        for depth in range(shared + 1):
            seen: list[Tensor] = []

            def perturb(states: Tensor, _: Any, seen: list[Tensor] = seen) -> Tensor:
                noise = 0.1 * torch.randn(states.shape, dtype=states.dtype)
                seen.extend(noise)
                return states + noise

            with torch.no_grad():
                found = model(
                    **inputs, output_members=True, replicate_at=depth, perturb=perturb, replay=replay
                )
                for member, noise in enumerate(seen):
                    alone = with_noise(one_member(model, member), depth, noise, inputs)
                    torch.testing.assert_close(found.member_logits[member], alone, **EXACT)


def with_noise(model: Any, depth: int, noise: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """An ordinary model's logits where noise is added at a depth, by hooks."""
    layers = layers_of(model.base_model)
    calls = iter(range(100))

    def entering(_: nn.Module, args: tuple[Any, ...]) -> Any:
        return (args[0] + noise, *args[1:]) if next(calls) == depth else None

    def leaving(_: nn.Module, __: Any, output: Any) -> Any:
        if depth == 0 or next(calls) == depth - 1:
            return (output[0] + noise, *output[1:]) if isinstance(output, tuple) else output + noise
        return None

    if depth == 0:
        hooks = [model.base_model.embeddings.register_forward_hook(leaving)]
    elif depth == layers.depth:
        hooks = [layer.register_forward_hook(leaving) for layer in layers.distinct()]
    else:
        hooks = [layer.register_forward_pre_hook(entering) for layer in layers.distinct()]
    logits: Tensor = model(**inputs).logits
    for hook in hooks:
        hook.remove()
    return logits


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_separate_models(family: str, replay: bool) -> None:
    exact = {"rtol": 1e-9, "atol": 1e-12}
    if family == "modernbert":  # its rotary embeddings work in float32
        exact = {"rtol": 1e-5, "atol": 1e-7}
    inputs, labels = batch(), torch.tensor([0, 2, 1, 1])
    for shared in depths(family):
        model = ensemble(family, shared_layers=shared).train()
        alone = [one_member(model, m).train() for m in range(3)]
        logits = [m(**inputs).logits for m in alone]
        reference.mean_of_losses(logits, labels, "single_label_classification").backward()
        expected = [gradients(m) for m in alone]
        for depth in {0, shared // 2, shared}:
            model(**inputs, labels=labels, replicate_at=depth, replay=replay).loss.backward()
            for name, gradient in gradients(model).items():
                if name.startswith("heads"):
                    continue
                inner = name.removeprefix("encoder.")
                plain, owner = original(inner, model.config.encoder)
                own = expected if owner is None else [expected[owner]]
                places = [without_member(place) for place in unrolled(inner, model.encoder.base_model)]
                places = places if shared > 0 else [plain]
                whole = sum(found[place] for found in own for place in places)
                torch.testing.assert_close(gradient, whole, **exact)


@pytest.mark.parametrize(
    ("problem", "kind", "labels"),
    [
        ("regression", "sequence", torch.tensor([0.5, -1.0, 2.0, 0.0])),
        ("multi_label_classification", "sequence", torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])),
        ("single_label_classification", "sequence", torch.tensor([2, 0, 1, 1])),
        (None, "token", torch.tensor([[0, 1, 2, -100, 0, 0, 1]] * 4)),
    ],
)  # fmt: skip
def test_the_loss_is_the_mean_of_the_members(problem: str | None, kind: str, labels: Tensor) -> None:
    count = 1 if problem == "regression" else 3
    for told in (problem, None):  # what is not told is read from the labels
        model = ensemble("bert", kind, labels=count, problem_type=told)
        found = model(**batch(), labels=labels, output_members=True)
        rows = [z.flatten(0, -2) if kind == "token" else z for z in found.member_logits]
        expected = reference.mean_of_losses(
            rows, labels.flatten() if kind == "token" else labels, problem or ""
        )
        torch.testing.assert_close(found.loss, expected, **EXACT)


def alike(model: Ensemble) -> Ensemble:
    """Gives all members the first one's weights."""
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    return model


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("head", ["linear", "tanh"])
def test_every_member_draws_its_own_dropout(head: str, replay: bool) -> None:
    model = alike(ensemble(head=head, dropout=0.4)).train()
    for depth in depths("bert"):
        found = model(**batch(), output_members=True, replicate_at=depth, replay=replay).member_logits
        for one in range(3):
            for other in range(one):
                assert not torch.allclose(found[one], found[other])


def test_below_the_replication_all_members_see_the_same() -> None:
    model, seen = ensemble(dropout=0.4).train(), []
    model(**batch(), replicate_at=1, perturb=lambda states, _: seen.append(states) or states)
    assert seen[0].shape == (3, 4, 7, 16)
    assert torch.equal(seen[0][0], seen[0][2])


def test_dropout_is_that_of_an_ordinary_model_on_a_repeated_batch() -> None:
    model = alike(ensemble(dropout=0.3)).train()
    alone = one_member(model, 0).train()
    inputs = batch()
    torch.manual_seed(3)
    found = model(**inputs, output_members=True, replicate_at=0).member_logits
    torch.manual_seed(3)
    expected = alone(**{name: t.repeat(3, 1) for name, t in inputs.items()}).logits
    torch.testing.assert_close(found.flatten(0, 1), expected, **EXACT)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "albert", "modernbert"])
def test_replay_draws_again_what_it_drew(family: str) -> None:
    """Its gradients, dropout and noise included, are those of a loop over members that keeps everything."""
    inputs, labels = batch(), torch.tensor([0, 2, 1, 1])

    def noisy(states: Tensor, _: Any) -> Tensor:
        return states + torch.randn(states.shape, dtype=states.dtype)

    for shared in depths(family):
        model = ensemble(family, shared_layers=shared, dropout=0.2).train()
        model(**inputs, replicate_at=0, perturb=noisy)  # what is learnt at the first call draws nothing later
        for depth in {0, shared}:
            for perturb in (None, noisy):
                options = {"replicate_at": depth, "perturb": perturb, "labels": labels}
                torch.manual_seed(5)
                model(**inputs, **options, replay=True).loss.backward()
                found = gradients(model)
                torch.manual_seed(5)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("plait.ensembles.modeling.again", lambda f, *args: f(*args))
                    model(**inputs, **options, replay=True).loss.backward()
                for name, expected in gradients(model).items():
                    torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


def kept(model: Ensemble, **options: Any) -> int:
    """Bytes that autograd keeps for a backward pass, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(**batch(8, 16), labels=torch.zeros(8, dtype=torch.long), **options)
    del output
    return sum(storages.values())


def test_replay_keeps_next_to_nothing() -> None:
    model = ensemble(members=8, dropout=0.1).train()
    for depth in (0, 1):
        assert kept(model, replicate_at=depth, replay=True) < 0.3 * kept(model, replicate_at=depth)


@pytest.mark.parametrize("head", ["linear", "tanh"])
def test_one_encoder_pass_in_evaluation(head: str) -> None:
    model, rows = ensemble(members=8, head=head), []
    for layer in layers_of(model.encoder.base_model).applied:
        layer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    model(**batch())
    assert rows == [4, 4]


def test_shared_layers_run_once_private_ones_once_per_member() -> None:
    model, rows = ensemble(members=3, shared_layers=1), []
    for name, module in model.named_modules():
        if type(module).__name__ == "BertSelfAttention":
            module.register_forward_pre_hook(lambda _, args, name=name: rows.append((name, len(args[0]))))
    model(**batch())
    assert [count for _, count in rows] == [4, 4, 4, 4]
    assert len({name for name, _ in rows}) == 4


def test_order_of_members_does_not_matter() -> None:
    model = ensemble(shared_layers=1)
    order = [2, 0, 1]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved = dict(state)
    for name in state:
        if name.startswith("heads"):
            moved[name] = state[name][order]
        elif ".members." in name:
            before, _, after = name.partition(".members.")
            member, _, rest = after.partition(".")
            moved[name] = state[f"{before}.members.{order[int(member)]}.{rest}"]
    inputs = batch()
    before = model(**inputs, output_members=True)
    model.load_state_dict(moved)
    after = model(**inputs, output_members=True)
    torch.testing.assert_close(after.member_logits, before.member_logits[order], **EXACT)
    torch.testing.assert_close(after.logits, before.logits, **EXACT)


def test_neither_company_nor_padding_matters() -> None:
    model, inputs = ensemble(shared_layers=1), batch()
    together = model(**inputs, output_members=True).member_logits
    for row in range(4):
        alone = model(**reference.without_padding(inputs, row), output_members=True).member_logits
        torch.testing.assert_close(together[:, row : row + 1], alone, **EXACT)


def test_one_member_is_an_ordinary_model() -> None:
    for shared in depths("bert"):
        model = ensemble(members=1, shared_layers=shared)
        found = model(**batch(), output_members=True)
        torch.testing.assert_close(found.logits, one_member(model, 0)(**batch()).logits, **EXACT)
        assert found.member_logits.shape == (1, 4, 3)


def test_outputs_are_ordinary() -> None:
    model = ensemble()
    found = model(**batch(), labels=torch.tensor([0, 1, 2, 0]))
    assert type(found).__name__ == "SequenceClassifierOutput"
    assert type(ensemble(kind="token")(**batch())).__name__ == "TokenClassifierOutput"
    loss, logits = model(**batch(), labels=torch.tensor([0, 1, 2, 0]), return_dict=False)
    assert torch.equal(loss, found.loss)
    assert torch.equal(logits, found.logits)
    states = model(**batch(), output_hidden_states=True).hidden_states
    assert [tuple(s.shape) for s in states] == [(4, 7, 16)] * 3


def test_states_of_several_members_are_not_mixed_up() -> None:
    with pytest.raises(ValueError, match="output_hidden_states: the members have layers of their own"):
        ensemble(shared_layers=1)(**batch(), output_hidden_states=True)


def test_replication_above_the_shared_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="replicate_at is 2; expected 0 to 1, the shared layers"):
        ensemble(shared_layers=1)(**batch(), replicate_at=2)


@pytest.mark.parametrize("depth", [0, 1])
def test_gradient_checkpointing_changes_nothing(depth: int) -> None:
    model = ensemble(shared_layers=1).train()
    options = {"labels": torch.tensor([0, 1, 2, 0]), "replicate_at": depth}
    model(**batch(), **options).loss.backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable()
    model(**batch(), **options).loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], **EXACT)


def test_the_encoder_is_left_as_it_was() -> None:
    model = ensemble(shared_layers=1).train()
    model(**batch(), replay=True, replicate_at=1)
    with pytest.raises(ZeroDivisionError):
        model(**batch(), replicate_at=1, perturb=lambda *_: 1 / 0)
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.roster.active == (0, 1, 2)


def test_mixed_precision_and_half() -> None:
    model = ensemble(shared_layers=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**batch(), labels=torch.tensor([0, 1, 2, 0]), replicate_at=1)
    found.loss.backward()
    assert torch.isfinite(found.logits).all()
    assert model.to(torch.bfloat16)(**batch()).logits.dtype is torch.bfloat16


def test_unused_parameters_want_no_gradient() -> None:
    """Several processes wait for the gradient of every parameter that wants one."""
    for family in FAMILIES:
        for head in ("linear", "tanh"):
            for shared in depths(family):
                model = ensemble(family, shared_layers=shared, head=head).train()
                model(**batch(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
                assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("head", ["linear", "tanh"])
def test_distributed_training_sees_every_gradient(head: str, one_process: None) -> None:
    """DistributedDataParallel fails at the second step when a parameter got no gradient, or two, in the first."""
    options = {"labels": torch.tensor([0, 1, 2, 0])}
    for shared in depths("bert"):
        model = ensemble(shared_layers=shared, head=head, dropout=0.1).train()
        wrapped = nn.parallel.DistributedDataParallel(model)
        for depth in {0, shared}:
            for more in (
                {},
                {"replay": True},
                {"perturb": lambda states, forward: states + 0 * states.detach()},
            ):
                for _ in range(2):
                    torch.manual_seed(1)
                    wrapped(**batch(), **options, replicate_at=depth, **more).loss.backward()
                    found = gradients(model)
                torch.manual_seed(1)
                model(**batch(), **options, replicate_at=depth, **more).loss.backward()
                for name, gradient in gradients(model).items():
                    torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_copies_are_independent() -> None:
    model = ensemble(shared_layers=1)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert twin.roster is not model.roster
    assert not torch.equal(model(**batch()).logits, twin(**batch()).logits)


@pytest.mark.parametrize("name", ["gaussian", "adversarial", "word_dropout"])
@pytest.mark.parametrize("family", ["bert", "electra", "deberta-v2", "albert"])
def test_perturbations_draw_the_same_at_once_and_member_by_member(family: str, name: str) -> None:
    inputs = batch()
    real = inputs["attention_mask"].bool()
    for shared in depths(family):
        model = ensemble(family, shared_layers=shared)
        clean = model(**inputs, output_members=True).member_logits
        for depth in {0, shared} if name != "word_dropout" else {0}:
            found = []
            for replay in (False, True):
                options = {"rate": 0.5} if name == "word_dropout" else {"strength": 0.3}
                generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
                given = {"mask": real} | ({"droppable": real} if name == "word_dropout" else {})
                perturb = perturber(name, options, generators, **given)
                outputs = model(
                    **inputs, output_members=True, replicate_at=depth, perturb=perturb, replay=replay
                )
                found.append(outputs.member_logits)
            torch.testing.assert_close(found[0], found[1], rtol=0.0, atol=1e-9)
            assert not torch.allclose(found[0], clean)
            found[1].sum().backward()
            assert all(torch.isfinite(g).all() for g in gradients(model).values())


def test_an_unknown_word_is_what_its_id_gives() -> None:
    """Blanking what the embeddings give is the same as blanking the ids."""
    model, inputs = ensemble(), batch()
    droppable = inputs["attention_mask"].bool()
    blank = model.embed({**inputs, "input_ids": torch.full_like(inputs["input_ids"], 4)})
    perturb = perturber(
        "word_dropout", {"rate": 0.9999999}, None, mask=droppable, droppable=droppable, blank=blank
    )
    torch.manual_seed(1)
    found = model(**inputs, output_members=True, replicate_at=0, perturb=perturb).member_logits
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(droppable, 4)}
    torch.testing.assert_close(found, model(**other, output_members=True).member_logits, **EXACT)
