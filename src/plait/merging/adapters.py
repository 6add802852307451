"""Adapters merged into one adapter: the exact weighted sum, its best approximation of low rank, or a shared basis.

A LoRA adapter changes a weight by Δ_j = s_j B_j A_j. The sum Σ_j λ_j Δ_j is B A with the factors laid side by side; its
singular values follow from factors alone, so that no matrix of the weight's size is made.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from plait.checkpoints.adapters import CONFIG, WEIGHTS, Adapter, grouped, is_adapter, read_adapter, scale_of
from plait.checkpoints.foreign import checkpoint_place
from plait.checkpoints.writer import atomic_folder, writing
from plait.errors import MergeError, RecipeError, listed
from plait.hub import locate
from plait.merging.chunks import InMemory
from plait.merging.engine import combine
from plait.merging.plan import check_method, check_output, check_weights
from plait.merging.rule import normalized
from plait.recipe import AUTO, MergeRecipe, MethodSpec
from plait.registry import Entry
from plait.reports.record import versions

logger = logging.getLogger("plait")
NAME = "plait_adapter.json"
"""What is recorded beside the adapter."""
PLAIN = frozenset({"params", "weights", "base", "thresholds", "ceilings", "draws"})
SUMS = ("average", "task_arithmetic")
"""Rules whose result is a weighted sum of the changes."""
_PEFT = "base_model.model."


@dataclass(frozen=True)
class MergedAdapter:
    """One adapter made of several: where it lies, its rank, and what truncation has cost.

    Attributes:
        folder: of the adapter, which `PeftModel.from_pretrained(base, folder)` opens.
        rank: of every module.
        error: ‖Δ − BA‖ / ‖Δ‖ over all modules, Δ what the method gives.
        worst: the module with the greatest error, and that error.
        left_out: heads and other parameters saved with the sources that the result does not carry.
    """

    artifact: ClassVar = "adapter"
    folder: Path
    rank: int
    error: float
    worst: tuple[str, float]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Factors:
    """Δ = B A of one module: B [out, r] with its scale, A [r, in]."""

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """Returns r."""
        return int(self.down.shape[0])


@dataclass(frozen=True)
class AdapterPlan:
    """A validated merge of adapters into one: nothing is computed yet."""

    recipe: MergeRecipe
    how: str
    rule: Entry[Any]
    method: MethodSpec
    sources: Sequence[Adapter]
    modules: Mapping[str, Sequence[Factors | None]]
    rank: int

    @property
    def weights(self) -> Tensor:
        """Returns λ."""
        return torch.tensor(self.recipe.weights() or [1.0] * len(self.sources))

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain data."""
        return {
            "combine": "merge", "keep_adapter": self.how, "method": self.rule.name, "rank": self.rank,
            "sources": {s.name: {"model": str(s.folder), "base": s.base} for s in self.sources},
            "modules": len(self.modules), "output": self.recipe.output,
        }  # fmt: skip


def plan_adapters(recipe: MergeRecipe) -> AdapterPlan:
    """Returns the validated merge of adapters into one adapter.

    Raises:
        RecipeError: options that do not go with it.
        MergeError: adapters that cannot become one.
    """
    how = recipe.keep_adapter or "svd"
    rule, method = _method(recipe, how)
    check_weights(recipe)
    sources = _open(recipe)
    _check_bases(recipe, sources)
    modules = _modules(sources)
    return AdapterPlan(recipe, how, rule, method, sources, modules, _rank(recipe, how, rule.name, modules))


def run_adapters(recipe: MergeRecipe, *, overwrite: bool = False) -> MergedAdapter:
    """Returns the merge of adapters into one adapter, written to the recipe's output.

    Raises:
        RecipeError: options that do not go with it.
        MergeError: adapters that cannot become one.
    """
    check_output(recipe, overwrite=overwrite)
    out = Path(os.path.realpath(recipe.output))
    with writing(recipe.output, overwrite=overwrite):
        job = plan_adapters(recipe)
        names = ", ".join(source.name for source in job.sources)
        logger.info("merging the adapters %s with %s by %s", names, job.rule.name, job.how)
        done = {module: _merged(job, module) for module in job.modules}
        saved, left_out = _whole_parameters(job)
        with atomic_folder(out, overwrite=overwrite) as folder:
            found = _write(folder, job, done, saved, left_out)
    return MergedAdapter(Path(recipe.output), **found)


def _method(recipe: MergeRecipe, how: str) -> tuple[Entry[Any], MethodSpec]:
    """Returns the rule: the average, or with a shared basis TIES, unless another is named."""
    chosen = recipe.method or MethodSpec()
    if chosen.name == AUTO:
        chosen = chosen.model_copy(update={"name": "ties" if how == "knots" else "average"})
    rule = check_method(chosen)
    if not set(rule.inputs) <= PLAIN or ("base" not in rule.inputs and rule.name != "average"):
        raise RecipeError(
            f"method {rule.name} does not merge adapters into one (--keep-adapter): use average, task_arithmetic, "
            "ties, dare, della or breadcrumbs, or leave --keep-adapter out"
        )
    if how == "cat" and rule.name not in SUMS:
        raise RecipeError(f"--keep-adapter cat is the sum itself: method {rule.name} needs svd or knots")
    beyond = ("refine", "align_heads", "evaluate", "search")
    asked = [n for n in beyond if getattr(recipe, n) not in (None, 0, "none", {})]
    asked += ["data" for source in recipe.sources.values() if source.data or source.statistics][:1]
    if any(source.layer_weights for source in recipe.sources.values()):
        asked.append("layer_weights")
    if asked:
        raise RecipeError(f"{listed(asked)} cannot be had with --keep-adapter, which merges adapters without data")
    return rule, chosen


def _open(recipe: MergeRecipe) -> list[Adapter]:
    """Returns the sources as adapters of plain LoRA."""
    found = []
    for name, spec in recipe.sources.items():
        folder = checkpoint_place(locate(spec.model, spec.revision, recipe.trust_remote_code), name)
        if not is_adapter(folder):
            raise MergeError(f"{name} is no adapter ({folder}): leave --keep-adapter out to merge models")
        adapter = read_adapter(folder, name)
        odd = [key for key in ("use_dora", "lora_bias", "trainable_token_indices") if adapter.settings.get(key)]
        odd += [] if adapter.settings.get("bias", "none") == "none" else ["bias"]
        if adapter.kind != "LORA" or odd:
            raise MergeError(
                f"{name} is {listed(odd) or adapter.kind}: one adapter is made of plain LoRA adapters alone; leave "
                "--keep-adapter out to merge what they make of their base"
            )
        found.append(adapter)
    return found


def _check_bases(recipe: MergeRecipe, sources: Sequence[Adapter]) -> None:
    tails = {str(s.base).rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower() for s in sources}
    if len(tails) > 1 and recipe.base is None:
        said = ", ".join(f"{source.name}: {source.base}" for source in sources)
        raise MergeError(
            f"the adapters record different bases ({said}): adapters of one base merge into one; if these are one "
            "model under two names, say so by --base MODEL"
        )


def _modules(sources: Sequence[Adapter]) -> dict[str, list[Factors | None]]:
    """Returns by module the factors of each source, None where it does not change that module.

    Raises:
        MergeError: factors of different shapes.
    """
    every = [{module: _factors(source, module, parts) for module, parts in grouped(source.headers).items()}
             for source in sources]  # fmt: skip
    names = sorted({module for found in every for module in found})
    found = {module: [factors.get(module) for factors in every] for module in names}
    problems = []
    for module, parts in found.items():
        shapes = {
            source.name: (part.up.shape[0], part.down.shape[1])
            for source, part in zip(sources, parts, strict=True) if part is not None
        }  # fmt: skip
        if len(set(shapes.values())) > 1:
            problems.append(f"{module} ({', '.join(f'{n}: {list(shape)}' for n, shape in shapes.items())})")
    if problems:
        raise MergeError(f"adapters of bases of different shapes do not merge: {listed(problems, 5)}")
    if not found:
        raise MergeError("the adapters hold no LoRA factors")
    return found


def _factors(source: Adapter, module: str, parts: Mapping[str, str]) -> Factors:
    names = ("lora_embedding_A", "lora_embedding_B") if "lora_embedding_A" in parts else ("lora_A", "lora_B")
    down, up = (source.floats(parts[name]).flatten(1) for name in names)
    return Factors(up * scale_of(source.settings, module, down.shape[0]), down)


def _rank(recipe: MergeRecipe, how: str, rule: str, modules: Mapping[str, Sequence[Factors | None]]) -> int:
    """Returns the rank of the result: as asked, else the greatest of the sources, or their sum where nothing is cut."""
    whole = max(sum(part.rank for part in parts if part is not None) for parts in modules.values())
    if how == "cat":
        if recipe.rank not in (None, whole):
            raise RecipeError(
                f"--keep-adapter cat has the rank {whole}, the sum of the sources', not {recipe.rank}: use svd for "
                "another rank, or leave --rank out"
            )
        return whole
    largest = max(part.rank for parts in modules.values() for part in parts if part is not None)
    asked = recipe.rank or (whole if how == "knots" else largest)
    if asked <= whole or (how == "svd" and rule not in SUMS):
        return asked
    logger.warning("--rank %d is more than the sum of the sources' ranks: %d is exact and taken", asked, whole)
    return whole


def _merged(job: AdapterPlan, module: str) -> tuple[Factors, tuple[float, float]]:
    """Returns one module's factors, and ‖Δ − BA‖² and ‖Δ‖²."""
    how, parts, weights, rule, method, rank = (
        job.how, job.modules[module], job.weights, job.rule, job.method, job.rank,
    )  # fmt: skip
    names = [source.name for source in job.sources]
    if rule.name in SUMS:
        scale = method.options.get("scale", rule.options["scale"].default) if "scale" in rule.options else 1.0
        shares = normalized(weights) if rule.name == "average" else weights * scale
        whole = laid_side_by_side(parts, shares.tolist())
        return (whole, (0.0, 1.0)) if how == "cat" else truncated(whole, rank)
    some = next(part for part in parts if part is not None)
    merged = partial(by_rule, rule=rule, method=method, weights=weights, names=names, module=module)
    if how == "knots":
        basis, coordinates = shared_basis(parts)
        return truncated(Factors(basis, merged(coordinates)), rank)
    zero = torch.zeros(some.up.shape[0], some.down.shape[1])
    dense = merged([zero if part is None else part.up @ part.down for part in parts])
    left, values, right = torch.linalg.svd(dense.double(), full_matrices=False)
    kept = Factors((left[:, :rank] * values[:rank]).float(), right[:rank].float())
    return kept, (float(values[rank:].square().sum()), float(values.square().sum()))


def by_rule(
    changes: Sequence[Tensor],
    *,
    rule: Entry[Any],
    method: MethodSpec,
    weights: Tensor,
    names: Sequence[str],
    module: str,
) -> Tensor:
    """Returns what a rule makes of changes, of a base of zeros."""
    sources = [InMemory(name, {module: change}) for name, change in zip(names, changes, strict=True)]
    base = InMemory("base", {module: torch.zeros_like(changes[0])})
    given = {"weights": weights.tolist(), "options": method.options, "seed": method.seed, "base": base}
    return next(tensor for _, tensor in combine(sources, [module], rule, **given))


def laid_side_by_side(parts: Sequence[Factors | None], shares: Sequence[float]) -> Factors:
    """Returns Σ_j λ_j B_j A_j exactly: [λ_1 B_1 …] and [A_1; …]."""
    having = [(part, share) for part, share in zip(parts, shares, strict=True) if part is not None]
    return Factors(
        torch.cat([part.up * share for part, share in having], dim=1), torch.cat([part.down for part, _ in having])
    )


def truncated(whole: Factors, rank: int) -> tuple[Factors, tuple[float, float]]:
    """Returns the best approximation of B A of a rank, and ‖Δ − BA‖² and ‖Δ‖².

    B = Q_B R_B and Aᵀ = Q_A R_A, so the singular values are those of the small R_B R_Aᵀ (Eckart and Young).
    """
    left, small_left = torch.linalg.qr(whole.up.double())
    right, small_right = torch.linalg.qr(whole.down.double().T)
    u, values, v = torch.linalg.svd(small_left @ small_right.T, full_matrices=False)
    kept = values[:rank].sqrt()
    factors = Factors((left @ u[:, :rank] * kept).float(), ((right @ v[:rank].T) * kept).T.float().contiguous())
    return factors, (float(values[rank:].square().sum()), float(values.square().sum()))


def shared_basis(parts: Sequence[Factors | None]) -> tuple[Tensor, list[Tensor]]:
    """Returns U and S V_jᵀ of [Δ_1 … Δ_n] = U S [V_1ᵀ … V_nᵀ]: all changes in one basis (KnOTS, arXiv:2410.19735)."""
    having = [part for part in parts if part is not None]
    span, corner = torch.linalg.qr(torch.cat([part.up.double() for part in having], dim=1))
    starts = [0]
    for part in having:
        starts.append(starts[-1] + part.rank)
    blocks = iter(range(len(having)))
    inside = [
        None if part is None else corner[:, starts[i := next(blocks)] : starts[i + 1]] @ part.down.double()
        for part in parts
    ]
    known = [block for block in inside if block is not None]
    _, turn = torch.linalg.eigh(sum((block @ block.T for block in known), torch.zeros_like(known[0] @ known[0].T)))
    turn = turn.flip(1)
    zero = torch.zeros_like(known[0])
    coordinates = [(turn.T @ (zero if block is None else block)).float() for block in inside]
    return (span @ turn).float(), coordinates


def _whole_parameters(job: AdapterPlan) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Returns heads and other parameters saved whole, averaged where all sources share a task, and what is left out."""
    recipe, sources, weights = job.recipe, job.sources, job.weights
    held = [{n for n in s.headers if n not in _of_factors(s)} for s in sources]
    names = sorted(set().union(*held))
    if not names:
        return {}, ()
    shapes = [{name: source.headers[name].shape for name in kept} for source, kept in zip(sources, held, strict=True)]
    alike = all(found == shapes[0] for found in shapes[1:])
    if not alike or (len(set(recipe.tasks().values())) > 1 and len(sources) > 1):
        logger.warning(
            "%s are saved with the adapters and left out of the result: sources of one task (--task %s=TASK) have them "
            "averaged", listed(names, 4), ",".join(s.name for s in sources),
        )  # fmt: skip
        return {}, tuple(names)
    shares = normalized(weights).tolist()
    averaged = {
        name: sum((s.floats(name) * share for s, share in zip(sources, shares, strict=True)), torch.zeros(1))
        for name in names
    }
    return {name: tensor.to(sources[0].headers[name].dtype) for name, tensor in averaged.items()}, ()


def _of_factors(source: Adapter) -> set[str]:
    return {name for parts in grouped(source.headers).values() for name in parts.values()}


def _write(
    folder: Path,
    job: AdapterPlan,
    done: Mapping[str, tuple[Factors, tuple[float, float]]],
    saved: Mapping[str, Tensor],
    left_out: tuple[str, ...],
) -> dict[str, Any]:
    """Returns what `MergedAdapter` says, having written tensors, settings and record."""
    recipe, sources = job.recipe, job.sources
    merged = {module: factors for module, (factors, _) in done.items()}
    errors = {module: error for module, (_, error) in done.items()}
    rank = max(factors.rank for factors in merged.values())
    prefix = "" if saved or not left_out else _prefix(merged)
    save_file(_tensors(sources, merged, saved, rank, prefix), folder / f"{WEIGHTS}.safetensors", {"format": "pt"})
    settings = _settings(recipe, sources, [m.removeprefix(prefix) for m in merged], rank, headless=bool(left_out))
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    worst = max(errors, key=lambda module: errors[module][0] / (errors[module][1] or 1.0))
    lost, total = (sum(error[i] for error in errors.values()) for i in (0, 1))
    facts = {
        "rank": rank, "error": (lost / (total or 1.0)) ** 0.5, "left_out": left_out,
        "worst": (worst, (errors[worst][0] / (errors[worst][1] or 1.0)) ** 0.5),
    }  # fmt: skip
    record = {
        **facts, "versions": versions(),
        "recipe": recipe.model_dump(exclude_none=True, exclude_unset=True, mode="json"),
        "sources": {s.name: {"origin": recipe.sources[s.name].model, "base": s.base} for s in sources},
        "errors": {module: (lost / (total or 1.0)) ** 0.5 for module, (lost, total) in errors.items()},
    }  # fmt: skip
    (folder / NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return facts


def _prefix(modules: Mapping[str, Factors]) -> str:
    """Returns the name of the encoder inside a model with a head, where every module begins with it."""
    first = {module.partition(".")[0] for module in modules}
    known = {"encoder", "embeddings", "layers", "layer", "h", "blocks"}
    return f"{first.pop()}." if len(first) == 1 and not first & known else ""


def _tensors(
    sources: Sequence[Adapter], merged: Mapping[str, Factors], saved: Mapping[str, Tensor], rank: int, prefix: str
) -> dict[str, Tensor]:
    """Returns all tensors by the names that PEFT gives them; factors of a lower rank are filled up with zeros."""
    parts = {
        module: (source, found) for source in reversed(sources) for module, found in grouped(source.headers).items()
    }
    tensors = {f"{_PEFT}{name}": tensor.contiguous() for name, tensor in saved.items()}
    for module, factors in merged.items():
        source, found = parts[module]
        of_embedding = "lora_embedding_A" in found
        up = torch.nn.functional.pad(factors.up, (0, rank - factors.rank))
        down = torch.nn.functional.pad(factors.down, (0, 0, 0, rank - factors.rank))
        names = ("lora_embedding_A", "lora_embedding_B") if of_embedding else ("lora_A", "lora_B")
        for name, tensor in zip(names, (down, up), strict=True):
            header = source.headers[found[name]]
            tail = header.shape[1:] if name == "lora_A" else (rank, *header.shape[2:])
            shaped = tensor if of_embedding else tensor.reshape(tensor.shape[0], *tail)
            key = f"{_PEFT}{module.removeprefix(prefix)}.{name}{'' if of_embedding else '.weight'}"
            tensors[key] = shaped.to(header.dtype).contiguous().clone()
    return tensors


def _settings(
    recipe: MergeRecipe, sources: Sequence[Adapter], modules: Sequence[str], rank: int, *, headless: bool
) -> dict[str, Any]:
    """Returns the settings of the result: those of the first source, with a scale of 1."""
    first = dict(sources[0].settings)
    first |= {
        "r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none",
        "target_modules": list(modules), "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None,
        "inference_mode": True, "base_model_name_or_path": recipe.base or sources[0].base,
    }  # fmt: skip
    if headless:
        first |= {"modules_to_save": None, "task_type": "FEATURE_EXTRACTION"}
    return first
