"""Statistics in forward order: against whole passes of the model merged so far, on every family."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import plait
from plait.checkpoints.checkpoint import open_checkpoint
from plait.cli import invoke
from plait.merging import calibration, forward
from plait.merging import chunks as parts
from plait.merging.rule import RULES
from plait.statistics.layerwise import BELOW, Layerwise, layers_of
from tests.batches import batch
from tests.models import FAMILIES, save, texts, tiny
from tests.pipelines.test_families import columns, make
from tests.reference import forward as reference
from tests.stopping import stopped_at

ORDERED = tuple(family for family in FAMILIES if family != "albert")
HEADS = ("sequence", "token", "regression")


def inputs(family: str, seed: int) -> list[dict[str, torch.Tensor]]:
    found = []
    for number, size in enumerate((4, 3)):
        one = dict(batch(family, "sequence", n=size, seed=10 * seed + number))
        found.append({name: one[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in one})
    return found


def merge_of(family: str, tmp_path: Path, rule: str, **options: Any) -> tuple[Any, Any, Any]:
    sources = [open_checkpoint(path, name=name) for name, path in make(family, HEADS, tmp_path).items()]
    bodies = [source.model(dtype=torch.float32).base_model for source in sources]
    batches = [inputs(family, seed) for seed in range(len(sources))]
    job = forward.ForwardMerge(
        [parts.body(s) for s in sources], RULES[rule], torch.tensor([1.0, 2.0, 0.5]), options, batches,
    )  # fmt: skip
    return job, bodies, batches


@pytest.mark.parametrize("family", ORDERED)
def test_regmean_in_forward_order_is_that_of_whole_passes(family: str, tmp_path: Path) -> None:
    job, bodies, batches = merge_of(family, tmp_path, "regmean", ridge=1e-3)
    body = copy.deepcopy(bodies[1]).eval()
    found = job.run(body, None)
    slow = copy.deepcopy(bodies[1]).double().eval()
    start = job_average(job, slow)
    slow.load_state_dict({**slow.state_dict(), **start})
    shares = job.weights.double()

    def solve(weights: Any, grams: Any) -> torch.Tensor:
        return RULES["regmean"].function(torch.stack(weights), torch.stack(grams), shares, ridge=1e-3)

    sources = [dict(b.state_dict()) for b in bodies]
    reference.regmean_forward(slow, sources, groups_of(body, batches[0]), batches, solve)
    changed = 0
    for name, parameter in slow.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name].double(), parameter.detach(), rtol=2e-3, atol=2e-5)
            changed += not torch.allclose(found[name].double(), start[name], atol=1e-4)
    assert changed >= 8


def job_average(job: Any, body: Any) -> dict[str, torch.Tensor]:
    shares = (job.weights / job.weights.sum()).double()
    names = [n for n, _ in body.named_parameters() if all(n in s for s in job.sources)]
    return {
        n: sum(share * s.read(n).double() for share, s in zip(shares, job.sources, strict=True)) for n in names
    }


def test_deberta_may_project_positions_by_the_layers_of_the_words(tmp_path: Path) -> None:
    paths = {
        f"s{i}": str(save(tiny("deberta-v2", "sequence", seed=i, share_att_key=True), tmp_path / f"s{i}"))
        for i in range(2)
    }
    for method in ({"method": "calibrate"}, {"method": "regmean", "forward": True}):
        merged = plait.merge(
            paths, data={n: {"text": texts(8, seed=3)} for n in paths}, out=tmp_path / method["method"], **method
        )
        merged.predict(texts(2))


def groups_of(body: Any, batches: Any) -> list[list[str]]:
    layers = layers_of(body)
    assert layers is not None
    run, found = Layerwise(body, layers, batches), []
    for _ in range(BELOW, len(layers)):
        found += [list(stage.paths) for stage in run.stages(norms=False)]
        run.advance()
    return found


@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert", "deberta-v2"])
def test_what_enters_a_stage_is_what_an_ordinary_pass_gives(family: str) -> None:
    body = tiny(family, "body", seed=1).eval()
    layers = layers_of(body)
    assert layers is not None
    batches = inputs(family, 3)
    run = Layerwise(body, layers, batches)
    for _ in range(BELOW, len(layers)):
        for stage in run.stages(norms=True):
            wanted = reference.inputs_of(copy.deepcopy(body).double(), stage.paths[:1], batches)
            found = torch.cat([x[mask] for x, mask in run.at(stage)])
            torch.testing.assert_close(found.double(), wanted[stage.paths[0]], rtol=1e-4, atol=1e-5)
            run.settle(stage)
        run.advance()


def test_products_of_settled_layers_are_computed_once() -> None:
    body = tiny("bert", "body", seed=1).eval()
    layers = layers_of(body)
    assert layers is not None
    batches = inputs("bert", 3)
    run = Layerwise(body, layers, batches)
    run.advance()
    calls: list[str] = []
    query = layers[0].attention.self.query
    original = query.forward
    query.forward = lambda x: calls.append("query") or original(x)
    for stage in run.stages(norms=False):
        for _ in run.at(stage):
            pass
        run.settle(stage)
    run.advance()
    # Once to find the stages, once to see what enters the attention's output; never again.
    assert len(calls) <= 2 * len(batches) + 1


@pytest.mark.parametrize("mixed", [1.0, 0.4])
def test_calibrate_against_least_squares(mixed: float) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(5, 4, generator=draw).double() for _ in range(3)]
    merged = [torch.randn(20 + j, 4, generator=draw).double() for j in range(3)]
    own = [x + 0.3 * torch.randn(x.shape, generator=draw).double() for x in merged]
    shares = [1.0, 0.5, 2.0]
    moments = [calibration.LinearMoments() for _ in range(3)]
    for one, x, y in zip(moments, merged, own, strict=True):
        one.add(x, y, mixed)
    grams = torch.stack([m.gram / m.count for m in moments])
    crosses = torch.stack([m.cross / m.count for m in moments])
    found = RULES["calibrate"].function(torch.stack(weights), grams, crosses, torch.tensor(shares), ridge=0.1)
    wanted = reference.calibrated(weights, merged, own, shares, ridge=0.1, mixed=mixed)
    torch.testing.assert_close(found, wanted)
    biases = [torch.randn(5, generator=draw).double() for _ in range(3)]
    bias = calibration.fitted_bias(found, weights, biases, moments, shares)
    outputs = [
        (mixed * y + (1 - mixed) * x) @ w.T + b - x @ found.T
        for w, b, x, y in zip(weights, biases, merged, own, strict=True)
    ]
    mean = sum(s * gap.mean(0) for s, gap in zip(shares, outputs, strict=True)) / sum(shares)
    torch.testing.assert_close(bias, mean)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.2])
def test_norms_against_least_squares(shifted: bool, ridge: float) -> None:
    draw = torch.Generator().manual_seed(1)
    xs = [torch.randn(30 + j, 3, generator=draw).double() for j in range(2)]
    ys = [x * 1.3 + 0.2 + 0.1 * torch.randn(x.shape, generator=draw).double() for x in xs]
    start = (torch.ones(3).double(), torch.zeros(3).double() if shifted else None)
    moments = [calibration.NormMoments() for _ in range(2)]
    for one, x, y in zip(moments, xs, ys, strict=True):
        one.add(x, y)
    found = calibration.fitted_norm(*start, moments, [1.0, 3.0], ridge)
    wanted = reference.norm_by_least_squares(xs, ys, [1.0, 3.0], start, ridge)
    torch.testing.assert_close(found[0], wanted[0])
    assert (found[1] is None) == (not shifted)
    if found[1] is not None:
        torch.testing.assert_close(found[1], wanted[1])


@pytest.mark.parametrize("family", ORDERED)
@pytest.mark.parametrize("method", [{"method": "regmean", "forward": True}, {"method": "calibrate"}])
def test_every_family_and_head(family: str, method: dict[str, Any], tmp_path: Path) -> None:
    heads = ("sequence", "regression", "multi_label", "token", "qa")
    merged = plait.merge(
        make(family, heads, tmp_path), data={h: columns(h) for h in heads}, out=tmp_path / "m", **method
    )
    plait.evaluate(merged, {head: columns(head) for head in heads})


@pytest.mark.parametrize("family", ORDERED)
def test_calibrated_source_alone_comes_back(family: str, tmp_path: Path) -> None:
    model = tiny(family, "sequence", seed=4)
    source = str(save(model, tmp_path / "s"))
    merged = plait.merge(
        {"only": source}, data={"only": {"text": texts(30)}}, method="calibrate", out=tmp_path / "m"
    )
    ours = merged.task("only").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", [{"method": "regmean", "forward": True}, {"method": "calibrate"}])
def test_a_resumed_merge_equals_an_uninterrupted_one(
    sources: dict[str, str], data: dict[str, str], tmp_path: Path, method: dict[str, Any]
) -> None:
    whole = plait.merge(sources, data=data, out=tmp_path / "whole", **method)
    with stopped_at(forward, "write_sealed", 2):
        plait.merge(sources, data=data, out=tmp_path / "parts", **method)
    again = plait.merge(sources, data=data, out=tmp_path / "parts", resume=True, **method)
    found, wanted = (load_file(m.path / "model.safetensors") for m in (again, whole))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_from_the_command_line(sources: dict[str, str], data: dict[str, str], tmp_path: Path) -> None:
    named = [f"--data={name}={file}" for name, file in data.items()]
    line = ["merge", *(f"{n}={p}" for n, p in sources.items()), *named, "--method", "regmean", "--forward"]
    assert invoke([*line, "--examples", "8", "-o", str(tmp_path / "m"), "--quiet"]) == 0
    manifest = json.loads((tmp_path / "m" / "plait.json").read_text())
    assert manifest["recipe"]["method"]["forward"] is True
    plait.run({**manifest["recipe"], "output": str(tmp_path / "again")})
    found, wanted = (load_file(tmp_path / m / "model.safetensors") for m in ("again", "m"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "ties", "--forward"], "--forward is for methods that use Gram matrices"),
        (["--method", "calibrate"], "needs data for mood, type, value: give --data mood=FILE, or use"),
    ],
)
def test_what_cannot_be_done_is_said(
    sources: dict[str, str], tmp_path: Path, capsys: Any, more: list[str], message: str
) -> None:
    line = ["merge", *(f"{n}={p}" for n, p in sources.items()), *more, "-o", str(tmp_path / "m")]
    assert invoke(line) == 2
    assert message in capsys.readouterr().err


def test_layers_applied_several_times_have_no_order(tmp_path: Path) -> None:
    sources = make("albert", ("sequence", "token"), tmp_path)
    settings: dict[str, Any] = {"data": {h: columns(h) for h in sources}, "out": tmp_path / "m"}
    with pytest.raises(plait.PlaitError, match=r"albert applies 1 layer 3 times.*use --method regmean"):
        plait.merge(sources, method="calibrate", **settings)
    with pytest.raises(plait.PlaitError, match="leave --forward out"):
        plait.merge(sources, method="regmean", forward=True, **settings)
