"""The engine: equal to plain torch to the bit, however it is cut, spread and stored; and its refusals."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.checkpoints.checkpoint import open_checkpoint
from plait.encoders.topology import topology
from plait.errors import MergeError, RecipeError, SourceError
from plait.merging import chunks as parts
from plait.merging import chunks as pieces
from plait.merging import engine
from plait.merging.chunks import CheckpointView, InMemory
from plait.merging.engine import combine, uniform, write_jobs, write_merged
from plait.merging.job import prepare
from plait.merging.rule import RULES, Law, laws
from tests.models import save, tiny

SHAPES = {
    "embedding.weight": (37, 8),
    "layer.weight": (8, 8),
    "layer.bias": (8,),
    "scalar": (),
    "stack": (3, 4, 5),
    "crumb": (1, 1),
    "layers.0.wide.weight": (6, 8),
    "layers.1.tall.weight": (8, 6),
}
DEPTHS = {"embedding.weight": 0.0, "layers.0.wide.weight": 0.0}
NAMES = [*SHAPES, "ids"]


def tensors(seed: int, dtype: torch.dtype = torch.float32, move: float = 0.1) -> dict[str, Tensor]:
    common, own = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    made = {
        name: torch.randn(shape, generator=common) + move * torch.randn(shape, generator=own)
        for name, shape in SHAPES.items()
    }
    return {**{name: tensor.to(dtype) for name, tensor in made.items()}, "ids": torch.arange(4)}


@dataclass(frozen=True)
class Known:
    """Statistics: a table, nothing for what it lacks."""

    table: dict[str, Tensor]

    def of(self, parameter: str) -> Tensor | None:
        return self.table.get(parameter)


def importances(seed: int) -> Known:
    """Rows, columns, dense, scalar, one for all of a stack; nothing for the crumb."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "embedding.weight": (37, 1), "layer.weight": (1, 8), "layer.bias": (8,), "scalar": (), "stack": (4, 1),
    }  # fmt: skip
    return Known({name: torch.rand(shape, generator=g) for name, shape in shapes.items()})


def grams(seed: int) -> Known:
    inputs = torch.randn(20, 8, generator=torch.Generator().manual_seed(seed))
    return Known({"layer.weight": inputs.T @ inputs / 20})


class File:
    """A safetensors file as a checkpoint: what `Part` needs of one."""

    def __init__(self, name: str, folder: Path, held: dict[str, Tensor]) -> None:
        from plait.checkpoints.headers import TensorFiles, read_headers

        folder.mkdir(parents=True)
        save_file(held, folder / "model.safetensors")
        self.name, self.folder = name, folder
        self.headers, self.reader = read_headers(folder), TensorFiles()
        self.noted: dict[str, str] = {}
        self.header = self.headers.__getitem__

    def read(self, stored: str) -> Tensor:
        return self.reader.read(stored, self.headers[stored])

    def note_hash(self, stored: str, digest: str) -> None:
        self.noted[stored] = digest


def part(name: str, folder: Path, held: dict[str, Tensor]) -> CheckpointView:
    return CheckpointView(File(name, folder / name, held), {key: key for key in held})


def settings_for(rule: str, count: int) -> dict[str, Any]:
    entry = RULES[rule]
    return {
        "weights": [1.0, 0.5, 2.0][:count],
        "base": InMemory("base", tensors(0, move=0.0)) if "base" in entry.inputs else None,
        "importances": [importances(i) for i in range(count)] if "importances" in entry.inputs else None,
        "grams": [grams(i) for i in range(count)] if "grams" in entry.inputs else None,
    }


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[k].dtype == wanted[k].dtype and torch.equal(found[k], wanted[k]) for k in wanted
    )


def plain_mean(held: list[dict[str, Tensor]], dtype: torch.dtype) -> dict[str, Tensor]:
    third = torch.tensor(1.0) / 3
    mean = {k: sum((h[k].float() * third for h in held[1:]), held[0][k].float() * third) for k in SHAPES}
    return {**{k: v.to(dtype) for k, v in mean.items()}, "ids": held[0]["ids"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_average_is_that_of_plain_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    held = [tensors(seed, dtype) for seed in (1, 2, 3)]
    sources = [part(f"s{i}", tmp_path, h) for i, h in enumerate(held)]
    found = dict(combine(sources, NAMES, RULES["average"]))
    wanted = plain_mean(held, dtype)
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in wanted.items()}
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=torch.finfo(dtype).eps + 1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [2, 4])
def test_the_average_of_a_power_of_two_is_exact_to_the_bit(count: int, tmp_path: Path) -> None:
    held = [tensors(seed) for seed in range(count)]
    sources = [part(f"s{i}", tmp_path, h) for i, h in enumerate(held)]
    found = dict(combine(sources, list(SHAPES), RULES["average"]))
    for name, tensor in found.items():
        total = held[0][name] / count
        for other in held[1:]:
            total = total + other[name] / count
        assert torch.equal(tensor, total)


def written(folder: Path, *args: Any, **settings: Any) -> dict[str, Tensor]:
    folder.mkdir()
    done = write_merged(folder, *args, **settings)
    return {name: tensor for file in done.files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("rule", RULES)
def test_cuts_threads_and_files_change_nothing(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = RULES[rule].facts.get("sources", 3)
    held = [tensors(seed) for seed in range(1, count + 1)]
    settings = settings_for(rule, count)
    in_memory = [InMemory(f"s{i}", h) for i, h in enumerate(held)]
    on_disk = [part(f"s{i}", tmp_path, h) for i, h in enumerate(held)]
    wanted = dict(combine(in_memory, NAMES, RULES[rule], **settings))
    for chunk, threads in ((8, 1), (56, 3), (2**16, 2)):
        monkeypatch.setattr(pieces, "CHUNK", chunk)
        found = written(tmp_path / f"o{chunk}", on_disk, NAMES, RULES[rule], threads=threads, **settings)
        assert same(found, wanted)


@pytest.mark.parametrize("rule", RULES)
def test_the_engine_supplies_what_the_rule_asks_for(rule: str) -> None:
    """Called by hand with everything expanded and nothing in pieces."""
    entry = RULES[rule]
    count = entry.facts.get("sources", 3)
    held = [tensors(seed) for seed in range(1, count + 1)]
    settings = settings_for(rule, count)
    found = dict(combine([InMemory(f"s{i}", h) for i, h in enumerate(held)], NAMES, entry, **settings))
    base = tensors(0, move=0.0)
    density, outliers = (
        entry.options[name].default if name in entry.options else 0.0 for name in ("density", "outliers")
    )
    for name, shape in SHAPES.items():
        params = torch.stack([h[name] for h in held])
        weighed = [importances(i).of(name) for i in range(count)]
        known = [torch.zeros(shape) if w is None else w.expand(shape) for w in weighed]
        supplied: dict[str, Any] = {
            "params": params,
            "weights": torch.tensor(settings["weights"]),
            "base": base[name],
            "importances": torch.stack(known),
            "typical": torch.stack([k.mean() for k in known]),
            "grams": torch.stack([grams(i).table[name] for i in range(count)])
            if name == "layer.weight"
            else None,
            "crosses": None,
            "thresholds": torch.stack([cut(p - base[name], math.ceil, density) for p in params]),
            "ceilings": torch.stack([cut(p - base[name], math.floor, outliers) for p in params]),
            "depth": DEPTHS.get(name, 1.0),
            "draws": torch.stack(
                [uniform(0, f"s{i}", name, 0, params[0].numel()).reshape(shape) for i in range(count)]
            ),
        }
        called = entry if name.startswith("layers.") else RULES[entry.facts.get("elsewhere", rule)]
        wanted = called.function(**{key: supplied[key] for key in called.inputs})
        torch.testing.assert_close(found[name], wanted, rtol=1e-6, atol=1e-7)


def cut(change: Tensor, rounding: Callable[[float], int], share: float) -> Tensor:
    ranked = change.abs().reshape(-1).sort(descending=True).values
    k = rounding(round(share * len(ranked), 9))
    return ranked[k - 1] if k else torch.tensor(torch.inf)


def test_sources_are_left_alone(tmp_path: Path) -> None:
    held = [tensors(seed) for seed in (1, 2)]
    before = [{k: v.clone() for k, v in h.items()} for h in held]
    trained = InMemory(
        "s1", {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in held[1].items()}
    )
    for rule in RULES:
        merged = dict(combine([InMemory("s0", held[0]), trained], NAMES, RULES[rule], **settings_for(rule, 2)))
        assert not any(tensor.requires_grad for tensor in merged.values())
    assert all(same(h, b) for h, b in zip(held, before, strict=True))


def test_dtypes_mix_and_may_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CHUNK", 8)
    sources = [
        part("a", tmp_path, tensors(1, torch.bfloat16)),
        part("b", tmp_path, tensors(2, torch.float64)),
        InMemory("c", tensors(3, torch.float32)),
    ]
    mixed = dict(combine(sources, NAMES, RULES["average"]))
    assert {t.dtype for k, t in mixed.items() if k != "ids"} == {torch.float64}
    half = written(tmp_path / "o", sources, NAMES, RULES["average"], dtype=torch.float16)
    assert same(half, {k: t.half() if k != "ids" else t for k, t in mixed.items()})


def test_memory_is_that_of_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CHUNK", 16)
    asked: list[int] = []
    stack = pieces.StackBuffer.stack

    def watched(self: pieces.StackBuffer, feeds: Any, piece: pieces.Chunk) -> Tensor:
        asked.append(len(feeds) * piece.size)
        return stack(self, feeds, piece)

    monkeypatch.setattr(pieces.StackBuffer, "stack", watched)
    sources = [part(f"s{i}", tmp_path, tensors(i)) for i in range(3)]
    for rule in ("average", "ties", "fisher", "breadcrumbs", "lines", "della", "actmerge", "svc"):
        write_merged(tmp_path, sources, ["embedding.weight", "stack"], RULES[rule], **settings_for(rule, 3))
    # pieces of fisher and della are whole rows, the longest of which has 20 entries
    assert max(asked) <= 4 * 20


def test_names_shards_and_order(tmp_path: Path) -> None:
    held = [tensors(seed) for seed in (1, 2)]
    sources = [part(f"s{i}", tmp_path, h) for i, h in enumerate(held)]
    (tmp_path / "o").mkdir()
    done = write_merged(
        tmp_path / "o",
        sources,
        NAMES,
        RULES["average"],
        rename=lambda n: f"bert.{n}",
        stem="x",
        max_shard_size=600,
    )
    assert done.parameters == len(NAMES)
    assert [f.name for f in done.files] == [
        f"x-0000{i}-of-0000{len(done.files)}.safetensors" for i in range(1, len(done.files) + 1)
    ]
    assert len(done.files) > 1
    assert {n for f in done.files for n in load_file(f)} == {f"bert.{n}" for n in NAMES}
    order = [name for name, _ in combine(sources, NAMES, RULES["average"])]
    headers = sources[0].checkpoint.headers
    assert order == sorted(NAMES, key=lambda n: headers[n].start)


def test_several_merges_in_one_checkpoint(tmp_path: Path) -> None:
    one, two = tensors(1), tensors(2)
    both = prepare([InMemory("a", one), InMemory("b", two)], ["layer.weight", "ids"], RULES["average"])
    alone = prepare([InMemory("a", one)], ["layer.bias"], RULES["average"])
    done = write_jobs(tmp_path, [both, alone])
    mean = one["layer.weight"] / 2 + two["layer.weight"] / 2
    wanted = {"layer.weight": mean, "ids": one["ids"], "layer.bias": one["layer.bias"]}
    assert same(load_file(done.files[0]), wanted)


def test_hashes_come_with_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CHUNK", 8)
    held = [tensors(seed) for seed in (1, 2)]
    sources = [part(f"s{i}", tmp_path, h) for i, h in enumerate(held)]
    written(tmp_path / "o", sources, list(SHAPES), RULES["average"])
    for source, tensors_held in zip(sources, held, strict=True):
        wanted = {k: xxhash.xxh3_128(tensors_held[k].numpy().tobytes()).hexdigest() for k in SHAPES}
        assert source.checkpoint.noted == wanted
    quiet = part("s3", tmp_path, held[0])
    written(tmp_path / "p", [quiet, sources[0]], list(SHAPES), RULES["average"], digests=False)
    assert quiet.checkpoint.noted == {}


def test_real_checkpoints(tmp_path: Path) -> None:
    models = [tiny("bert", "sequence", seed=seed, labels=3) for seed in (1, 2)]
    sources = [open_checkpoint(save(m, tmp_path / f"s{i}")) for i, m in enumerate(models)]
    again = [open_checkpoint(tmp_path / f"s{i}") for i in range(2)]
    names = list(sources[0].body)
    found = written(tmp_path / "o", [parts.body(s) for s in sources], names, RULES["average"])
    states = [m.bert.state_dict() for m in models]
    assert same(found, {n: states[0][n] / 2 + states[1][n] / 2 for n in names})
    assert [s.digest for s in sources] == [s.digest for s in again]


def test_heads_with_other_label_orders(tmp_path: Path) -> None:
    model = tiny("roberta", "sequence", seed=1, labels=3)
    checkpoint = open_checkpoint(save(model, tmp_path / "s"))
    straight, turned = parts.head(checkpoint), parts.head(checkpoint, (2, 0, 1))
    for name in checkpoint.head:
        moved = name.startswith("classifier.out_proj")
        wanted = straight.read(name)[[2, 0, 1]] if moved else straight.read(name)
        assert torch.equal(turned.read(name), wanted)
    found = dict(combine([turned], list(checkpoint.head), RULES["average"]))
    assert torch.equal(
        found["classifier.out_proj.bias"], straight.read("classifier.out_proj.bias")[[2, 0, 1]]
    )


def test_what_the_base_lacks_is_averaged_and_said(caplog: pytest.LogCaptureFixture) -> None:
    held = [tensors(1), tensors(2)]
    base = {k: v for k, v in tensors(0, move=0.0).items() if k != "layer.bias"}
    with caplog.at_level(logging.WARNING, logger="plait"):
        found = dict(
            combine([InMemory("a", held[0]), InMemory("b", held[1])], NAMES, RULES["ties"], base=InMemory("base", base))
        )
    assert "base lacks layer.bias: averaged there" in caplog.text
    assert torch.equal(found["layer.bias"], held[0]["layer.bias"] / 2 + held[1]["layer.bias"] / 2)


def test_draws_do_not_depend_on_pieces_or_the_order_of_sources() -> None:
    all_of_it = uniform(3, "a", "w", 0, 1000)
    for start, count in ((0, 8), (1, 13), (7, 900), (999, 1)):
        assert torch.equal(uniform(3, "a", "w", start, count), all_of_it[start : start + count])
    others = [uniform(4, "a", "w", 0, 1000), uniform(3, "b", "w", 0, 1000), uniform(3, "a", "v", 0, 1000)]
    assert all(float((o - all_of_it).abs().min()) < 1 and not torch.equal(o, all_of_it) for o in others)
    assert 0.45 < float(all_of_it.mean()) < 0.55
    assert 0.0 <= float(all_of_it.min()) < float(all_of_it.max()) < 1.0
    a, b = InMemory("a", tensors(1)), InMemory("b", tensors(2))
    settings = settings_for("dare", 2) | {"weights": None, "seed": 5}
    one = dict(combine([a, b], NAMES, RULES["dare"], **settings))
    other = dict(combine([b, a], NAMES, RULES["dare"], **settings))
    assert all(torch.allclose(one[k], other[k], atol=1e-6) for k in SHAPES)
    assert not same(one, dict(combine([a, b], NAMES, RULES["dare"], **(settings | {"seed": 6}))))


def spoil(held: dict[str, Tensor], name: str, value: float) -> dict[str, Tensor]:
    tensor = held[name].clone()
    tensor.view(-1)[-1] = value
    return {**held, name: tensor}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rule", RULES)
def test_numbers_that_are_none_are_traced(rule: str, value: float, tmp_path: Path) -> None:
    bad = InMemory("bad", spoil(tensors(2), "layer.weight", value))
    message = r"layer\.weight of bad contains NaN or Inf"
    with pytest.raises(MergeError, match=message):
        dict(combine([InMemory("good", tensors(1)), bad], NAMES, RULES[rule], **settings_for(rule, 2)))
    with pytest.raises(MergeError, match=message):
        write_merged(tmp_path, [InMemory("good", tensors(1)), bad], NAMES, RULES[rule], **settings_for(rule, 2))


def test_a_base_that_is_not_finite_is_traced() -> None:
    base = InMemory("start", spoil(tensors(0), "stack", float("nan")))
    with pytest.raises(MergeError, match="stack of start contains NaN"):
        dict(combine([InMemory("a", tensors(1))], NAMES, RULES["task_arithmetic"], base=base))


def test_large_numbers_are_not_taken_for_infinite() -> None:
    held = {"w": torch.full((1000,), 3e38)}
    found = dict(combine([InMemory("a", held), InMemory("b", held)], ["w"], RULES["average"]))
    assert torch.equal(found["w"], held["w"])


def test_a_dtype_too_narrow() -> None:
    held = {"w": torch.full((4,), 1e5)}
    with pytest.raises(
        MergeError, match=r"w: average gives values beyond float16 \(write dtype bfloat16 or float32\)"
    ):
        dict(combine([InMemory("a", held)], ["w"], RULES["average"], dtype=torch.float16))


def run(rule: str = "average", **changes: Any) -> Callable[[], Any]:
    sources = changes.pop("sources", None) or [InMemory("a", tensors(1)), InMemory("b", tensors(2))]
    names = changes.pop("names", NAMES)
    return lambda: dict(combine(sources, names, RULES[rule], **changes))


def reshaped(**shapes: tuple[int, ...]) -> InMemory:
    return InMemory("c", {**tensors(3), **{k.replace("_", "."): torch.zeros(s) for k, s in shapes.items()}})


A = InMemory("a", tensors(1))
BASE = InMemory("base", tensors(0))
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (run(sources=[A, InMemory("b", {"x": torch.ones(1)})], names=["layer.bias", "scalar"]), MergeError,
     "parameters are missing: b has no layer.bias; b has no scalar"),
    (run(sources=[A, reshaped(layer_bias=(3,), layer_weight=(2, 8))]), MergeError,
     "shapes differ, these models cannot be merged: layer.weight: a [8, 8], c [2, 8]; layer.bias: a [8], c [3]"),
    (run("ties", base=InMemory("base", {**tensors(0), "layer.bias": torch.ones(2)})), MergeError,
     "layer.bias: a [8], b [8], base [2]"),
    (run(sources=[A, InMemory("b", {**tensors(2), "ids": torch.ones(4, dtype=torch.int64)})]), MergeError,
     "ids (int64) differs between a and b: it cannot be averaged"),
    (run(sources=[InMemory("a", {"z": torch.ones(2, dtype=torch.complex64)})], names=["z"]), MergeError,
     "cannot be merged: z of a is complex64 (expected float64, float32"),
    (run(weights=[1.0]), RecipeError, "1 weights for 2 sources"),
    (run(weights=[1.0, -1.0]), RecipeError, "weights [1.0, -1.0] for average: expected finite numbers, none below 0"),
    (run(weights=[0.0, 0.0]), RecipeError, "one above 0"),
    (run(weights=[1.0, float("nan")]), RecipeError, "expected finite numbers"),
    (run("ties"), RecipeError, "ties needs the model that the sources were fine-tuned from: give it as base"),
    (run("fisher"), RecipeError, "fisher needs importances of each of the 2 sources, found none: give data"),
    (run("regmean", grams=[grams(0)]), RecipeError, "regmean needs grams of each of the 2 sources, found 1"),
    (run("slerp", sources=[A, A, A]), RecipeError, "slerp merges exactly 2 sources, 3 are given"),
    (run("ties", base=BASE, options={"densty": 1}), RecipeError, "ties has no option 'densty' (did you mean"),
    (run("ties", base=BASE, options={"density": 1.5}), RecipeError, "ties: density is 1.5 (expected 0 to 1)"),
    (run("ties", base=BASE, options={"density": "much"}), RecipeError, "ties: density is 'much' (expected a number)"),
    (run("ties", base=BASE, options={"density": True}), RecipeError, "ties: density is True (expected a number)"),
    (run("ties", base=BASE, options={"scope": "modelx"}), RecipeError,
     "ties: scope is 'modelx' (did you mean 'model'?"),
    (run("fisher", importances=[Known({"layer.bias": torch.ones(3)})] * 2), MergeError,
     "layer.bias: importances of a are [3], the parameter [8]"),
    (run("fisher", importances=[Known({"layer.bias": -torch.ones(8)})] * 2), MergeError,
     "layer.bias: importances are negative, NaN or Inf"),
    (run("fisher", importances=[Known({"layer.bias": torch.full((8,), float("nan"))})] * 2), MergeError,
     "layer.bias: importances are negative, NaN or Inf"),
    (run("actmerge", base=BASE, options={"ridge": 0}), RecipeError, "actmerge: ridge is 0 (expected 1e-08 to 1e+08)"),
    (run("actmerge"), RecipeError, "actmerge needs the model that the sources were fine-tuned from: give it as base"),
    (run("breadcrumbs", base=BASE, options={"outliers": 2}), RecipeError,
     "breadcrumbs: outliers is 2 (expected 0 to 1)"),
    (run("della", base=BASE, options={"drop": 1.0}), RecipeError, "della: drop is 1.0 (expected 0 to 0.999)"),
    (run("regmean", grams=[grams(0)] * 2, options={"scale_grams": "traces"}), RecipeError,
     "regmean: scale_grams is 'traces' (did you mean"),
    (run("regmean", grams=[Known({"layer.weight": torch.full((8, 8), float("nan"))})] * 2), MergeError,
     "layer.weight: the Gram matrix of a contains NaN or Inf (estimate it again)"),
    (run("regmean", grams=[Known({"layer.weight": torch.ones(3, 3)})] * 2), MergeError,
     "layer.weight: the Gram matrix of a is [3, 3], the weight [8, 8]"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "kind", "message"), REFUSED, ids=[m[:40] for _, _, m in REFUSED])
def test_refused_in_one_line(act: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_nothing_to_merge() -> None:
    with pytest.raises(RecipeError, match="nothing to merge"):
        prepare([], [], RULES["average"])


def test_checks_come_before_reading(tmp_path: Path) -> None:
    source = part("a", tmp_path, tensors(1))
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="has no option"):
        combine([source], NAMES, RULES["average"], options={"x": 1})
    with pytest.raises(SourceError, match=r"model\.safetensors cannot be read"):
        dict(combine([source], list(SHAPES), RULES["average"]))


def test_a_file_cut_short_meanwhile(tmp_path: Path) -> None:
    source = part("a", tmp_path, tensors(1))
    file = tmp_path / "a" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SourceError, match="ends inside"):
        dict(combine([source], list(SHAPES), RULES["average"]))


def test_the_first_failure_stops_the_rest() -> None:
    begun: list[int] = []

    def slow() -> None:
        time.sleep(0.01)
        begun.append(1)

    def fail() -> None:
        raise MergeError("no")

    with pytest.raises(MergeError, match="no"):
        engine.in_parallel([fail, *[slow] * 100], 1, lambda _: None)
    assert len(begun) < 50


def test_torch_threads_are_given_back() -> None:
    torch.set_num_threads(2)
    try:
        with engine.one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


MATRICES = [name for name in RULES if "elsewhere" in RULES[name].facts]


@pytest.mark.parametrize("rule", MATRICES)
def test_what_is_no_linear_weight_of_a_layer(rule: str) -> None:
    """It gets the rule named `elsewhere`, and the options that both have: here SVC's scale."""
    sources = [InMemory("a", tensors(1)), InMemory("b", tensors(2))]
    base = InMemory("base", tensors(0, move=0.0))
    options = {"scale": 0.75} if rule == "svc" else {}
    found = dict(combine(sources, NAMES, RULES[rule], base=base, options=options))
    plain = dict(combine(sources, NAMES, RULES[RULES[rule].facts["elsewhere"]], base=base, options=options))
    others = {name for name in NAMES if not name.startswith("layers.")}
    assert all(torch.equal(found[name], plain[name]) for name in others)
    assert not any(torch.equal(found[name], plain[name]) for name in set(NAMES) - others)


def test_the_defaults_of_a_rule_hold_elsewhere() -> None:
    scale = RULES["svc"].options["scale"].default
    sources, base = [InMemory("a", tensors(1))], InMemory("base", tensors(0, move=0.0))
    found = dict(combine(sources, NAMES, RULES["svc"], base=base))
    plain = dict(combine(sources, NAMES, RULES["task_arithmetic"], base=base, options={"scale": scale}))
    assert torch.equal(found["layer.bias"], plain["layer.bias"])


def test_the_table_says_what_is_linear(tmp_path: Path) -> None:
    models = [tiny("bert", "body", seed=seed) for seed in (1, 2)]
    sources = [InMemory(f"s{i}", dict(m.state_dict())) for i, m in enumerate(models)]
    start = InMemory("base", dict(tiny("bert", "body", drift=0.0).state_dict()))
    names = [name for name, _ in models[0].named_parameters()]
    table = topology(models[0].config)
    job = prepare(sources, names, RULES["actmerge"], base=start, topology=table)
    by_rule = {slot.name for slot in job.slots if job.rule_for(slot).name == "actmerge"}
    assert by_rule == {n for n in names if ".layer." in n and n.endswith("weight") and "Norm" not in n}
    merged = dict(combine(sources, names, RULES["actmerge"], base=start, topology=table))
    name = "encoder.layer.1.output.dense.weight"
    params = torch.stack([source.tensors[name] for source in sources])
    assert torch.equal(merged[name], RULES["actmerge"].function(params, start.tensors[name], torch.ones(2)))
    pooler = "pooler.dense.weight"
    assert torch.equal(merged[pooler], sources[0].tensors[pooler] / 2 + sources[1].tensors[pooler] / 2)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sources_of_half_precision(rule: str, dtype: torch.dtype) -> None:
    """Computed in float32 or better and rounded once: as if the same numbers had been given in float32."""
    count = RULES[rule].facts.get("sources", 3)
    held = [tensors(seed, dtype) for seed in range(1, count + 1)]
    full = [{k: v.float() if v.is_floating_point() else v for k, v in h.items()} for h in held]
    settings = settings_for(rule, count)
    found = dict(combine([InMemory(f"s{i}", h) for i, h in enumerate(held)], NAMES, RULES[rule], **settings))
    wanted = dict(combine([InMemory(f"s{i}", h) for i, h in enumerate(full)], NAMES, RULES[rule], **settings))
    assert all(found[n].dtype == dtype and torch.equal(found[n], wanted[n].to(dtype)) for n in SHAPES)


def test_which_rules_are_not_cut() -> None:
    of_a_matrix = {"actmerge", "wudi", "ace", "tsv", "iso", "svc", "cart"}
    assert {n for n in RULES if "elsewhere" in RULES[n].facts} == of_a_matrix
    whole = {n for n in RULES if not laws(RULES[n]) & {Law.ELEMENTWISE, Law.ROWWISE}}
    assert whole == of_a_matrix | {"regmean", "calibrate", "slerp", "model_stock", "karcher"}


@pytest.mark.parametrize("name", ["average", "task_arithmetic", "ties", "dare", "breadcrumbs", "regmean", "della"])
def test_merges_of_one_pass_are_those_of_many(name: str, tmp_path: Path) -> None:
    rule = RULES[name]
    sources = [InMemory(str(seed), tensors(seed)) for seed in range(3)]
    inputs: dict[str, Any] = {"base": InMemory("base", tensors(9))} if "base" in rule.inputs else {}
    inputs |= {"grams": [grams(seed) for seed in range(3)]} if "grams" in rule.inputs else {}
    varied = [option for option in ("scale", "density", "ridge", "drop") if option in rule.options]
    jobs = [
        prepare(sources, NAMES, rule, weights=weights, options=dict.fromkeys(varied, value), **inputs)
        for value, weights in ((0.5, None), (0.3, [1.0, 0.5, 0.0]), (0.7, [2.0, 1.0, 1.0]))
    ]
    folders = [tmp_path / str(at) for at in range(6)]
    for folder in folders:
        folder.mkdir()
    engine.write_alike(folders[:3], [jobs], threads=2)
    for job, folder in zip(jobs, folders[3:], strict=True):
        write_jobs(folder, [job])
    files = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert files[:3] == files[3:]
    assert len(set(files[:3])) == 3
