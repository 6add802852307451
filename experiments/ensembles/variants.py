"""What is compared, and in which order: methods of Plait with their defaults, four members, α = 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks import SEEDS

MEMBERS = 4
ALPHA = 1.0
LAYERS = 6  # of the MiniLM
SWEPT = "trec"
DEEP = ("sst2", "trec", "cola")
"""Tasks with all variants."""
WIDE = (*DEEP, "stsb")
"""Tasks with all seeds: the others cost as much as these together."""


@dataclass(frozen=True)
class Variant:
    """A row of the table, and the options of `plait.ensemble` that make it.

    Attributes:
        name: of the row.
        options: of `plait.ensemble`.
        teachers: so many of the models of `separate` teach it; they are trained once for all rows.
        text: whether texts without labels teach too.
        pooled: whether it averages the models of `soup`, which are trained once.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    teachers: int = 0
    text: bool = False
    pooled: bool = False

    @property
    def members(self) -> int | None:
        """Returns M; None for a single model."""
        if self.name in ("single", "swa") or self.teachers or self.pooled:
            return None
        return self.options.get("members", MEMBERS)


def _noise(name: str, **options: Any) -> dict[str, Any]:
    return {"perturbation": {"name": name, **options}}


SINGLE = Variant("single", {"method": "single"})  # the others' `separate` holds it already: see run.py
SEPARATE = Variant("separate", {"method": "separate"})
SHARED = Variant("shared", {"method": "shared"})
CAMERO = Variant("camero")
CORE = (
    SEPARATE,
    SHARED,
    CAMERO,
    Variant("one", {"method": "one"}),
    Variant("mc-dropout", {"method": "mc-dropout"}),
)
OTHER = (
    Variant("camero pairwise", {"consistency": "pairwise"}),
    Variant("camero gaussian", _noise("gaussian", at="embeddings")),
    Variant("camero adversarial", _noise("adversarial", at="embeddings")),
    Variant("camero word-dropout", _noise("word-dropout")),
    Variant("codistillation", {"method": "codistillation"}),
    Variant("batchensemble", {"method": "batchensemble"}),
)
ONE_PASS = (
    Variant("distilled", {"method": "distilled"}, teachers=MEMBERS),
    Variant("distilled-text", {"method": "distilled"}, teachers=MEMBERS, text=True),
    Variant("self-trained-text", {"method": "distilled"}, teachers=1, text=True),
    Variant("hydra", {"method": "hydra"}, teachers=MEMBERS),
    Variant("hydra-text", {"method": "hydra"}, teachers=MEMBERS, text=True),
    Variant("soup", {"method": "soup"}),
    Variant("greedy_soup", {"method": "greedy_soup"}, pooled=True),
    Variant("swa", {"method": "swa"}),
    Variant("deni", {"method": "deni"}),
)
"""What becomes one model, or one pass."""
FIRST_OF_THEM = ONE_PASS[:3]
MEMBER_SWEEP = (2, 4, 8)
LAYER_SWEEP = (0, 2, 4, LAYERS)
ALPHA_SWEEP = (0.1, 0.3, 1.0, 3.0, 10.0)
STRENGTH = 0.03  # Plait's default
STRENGTH_SWEEP = (0.01, 0.03, 0.1)


def with_members(variant: Variant, members: int) -> Variant:
    """Returns a variant with M members."""
    if members == MEMBERS:
        return variant
    return Variant(f"{variant.name} members {members}", {**variant.options, "members": members})


def with_layers(layers: int) -> Variant:
    """Returns CAMERO with the bottom layers shared."""
    return CAMERO if layers == LAYERS else Variant(f"camero layers {layers}", {"shared_layers": layers})


def with_alpha(alpha: float) -> Variant:
    """Returns CAMERO with another weight of the regulariser."""
    return CAMERO if alpha == ALPHA else Variant(f"camero alpha {alpha:g}", {"alpha": alpha})


def with_strength(strength: float) -> Variant:
    """Returns CAMERO with adversarial noise of another strength."""
    name = "camero adversarial" + ("" if strength == STRENGTH else f" {strength:g}")
    return Variant(name, _noise("adversarial", at="embeddings", strength=strength))


VARIANTS = {variant.name: variant for variant in (*CORE, *OTHER, SINGLE, *ONE_PASS)}
SWEEPS = tuple(
    variant
    for variant in (
        *(with_strength(s) for s in STRENGTH_SWEEP),
        *(with_members(v, m) for m in MEMBER_SWEEP for v in (CAMERO, SHARED, SEPARATE)),
        *(with_layers(k) for k in LAYER_SWEEP),
        *(with_alpha(a) for a in ALPHA_SWEEP),
    )
    if variant.name not in VARIANTS  # where the sweep passes through the table
)


def work(
    tasks: Sequence[str], seeds: Sequence[int], *, everything: bool
) -> Iterator[tuple[int, str, Variant]]:
    """Yields seed, task and variant of every cell in the order of the work: what the claim needs comes first."""
    for part in (FIRST_OF_THEM, ONE_PASS[len(FIRST_OF_THEM) :]):
        for seed in seeds:
            yield from ((seed, task, v) for task in tasks if task in WIDE for v in part)
    yield from ((SEEDS[0], task, v) for task in tasks if task not in WIDE for v in ONE_PASS)
    for seed in seeds:
        first = seed == SEEDS[0] or everything
        yield from ((seed, task, v) for task in tasks if first or task in WIDE for v in CORE)
        if first:
            yield from ((seed, task, v) for task in tasks if everything or task in DEEP for v in OTHER)
            yield from ((seed, task, v) for task in tasks if task == SWEPT for v in SWEEPS)
