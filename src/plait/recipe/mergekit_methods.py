"""What translates each method of mergekit: its parameters, in its words, into a rule and its options, in ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plait.errors import did_you_mean
from plait.recipe.mergekit_reader import Reader, short

STRAIGHT = 0.9995
"""|cos Ω| above which mergekit's SLERP takes the straight line."""


def read_method(reader: Reader) -> dict[str, Any]:
    """Returns the rule and its options; models that are the base itself are no sources of rules that start from it."""
    name = reader.content.get("merge_method")
    if name not in METHODS:
        reader.refuse(f"merge_method {name}: no rule here does this{did_you_mean(str(name), METHODS)}")
        return {"name": str(name)}
    if name in FROM_BASE:
        if reader.base is None:
            reader.refuse(f"base_model is missing: {name} starts from it")
        reader.inputs = [one for one in reader.inputs if reader.base is None or one.reference != reader.base.reference]
    if not reader.inputs:
        reader.refuse("no models are left to merge: name models besides the base")
    return METHODS[name](reader)


def _linear(reader: Reader) -> dict[str, Any]:
    if not reader.flag("normalize", default=True):
        weights = [reader.number("weight", None, one) for one in reader.inputs]
        if abs(sum(weights) - 1.0) > 1e-6:
            found = f"normalize: false with weights that sum to {sum(weights):g}"
            reader.refuse(f"{found}: a mean is expected, or a sum of 1")
    return {"name": "average"}


def _task_arithmetic(reader: Reader) -> dict[str, Any]:
    scale = reader.number("lambda", 1.0)
    if reader.flag("normalize", default=False):
        scale /= sum(reader.number("weight", None, one) for one in reader.inputs) or 1.0
    _whole(reader)
    return {"name": "task_arithmetic", "scale": scale}


def _whole(reader: Reader) -> None:
    if reader.common("density", 1.0) < 1.0:
        reader.refuse("density of task_arithmetic drops nothing in mergekit either: leave it out, or use ties")


def _ties(reader: Reader) -> dict[str, Any]:
    _no_rescale(reader, default=False)
    then = "mean" if reader.flag("normalize", default=True) else "sum"
    density = min(reader.common("density", 1.0), 1.0)
    return {"name": "ties", "density": density, "then": then, "scale": reader.number("lambda", 1.0)}


def _no_rescale(reader: Reader, *, default: bool) -> None:
    if reader.flag("rescale", default=default):
        reader.refuse("rescale: true is not done for changes that are dropped by their size")


def _dare(consensus: bool) -> Callable[[Reader], dict[str, Any]]:
    def found(reader: Reader) -> dict[str, Any]:
        density = min(reader.common("density", 1.0), 1.0)
        scale = reader.number("lambda", 1.0)
        # What survives is divided by the density here: without rescaling, that is undone.
        scale *= 1.0 if reader.flag("rescale", default=True) else density
        if density < 0.001:
            reader.refuse(f"density {density:g}: at least 0.001 is expected")
        then = _then(reader, consensus, default=False)
        return {"name": "dare", "drop": round(1.0 - density, 12), "then": then, "scale": scale}

    return found


def _then(reader: Reader, consensus: bool, *, default: bool) -> str:
    normalize = reader.flag("normalize", default=default)
    if consensus:
        return "ties" if normalize else "ties_sum"
    return "average" if normalize else "sum"


def _breadcrumbs(consensus: bool) -> Callable[[Reader], dict[str, Any]]:
    def found(reader: Reader) -> dict[str, Any]:
        _no_rescale(reader, default=False)
        density, gamma = reader.common("density", 1.0), reader.common("gamma", 0.01)
        # There, density is what is left after the outliers have gone; here they are part of it.
        outliers = 0.0 if density >= 1.0 else min(gamma, 1.0 - density)
        return {
            "name": "breadcrumbs", "density": round(min(density + outliers, 1.0), 12), "outliers": round(outliers, 12),
            "then": _then(reader, consensus, default=False), "scale": reader.number("lambda", 1.0),
        }  # fmt: skip

    return found


def _della(consensus: bool) -> Callable[[Reader], dict[str, Any]]:
    def found(reader: Reader) -> dict[str, Any]:
        density, epsilon = reader.common("density", 1.0), reader.common("epsilon", 0.15)
        if not reader.flag("rescale", default=True):
            reader.refuse("rescale: false: what survives is divided by its probability here")
        if density < 1.0 and not 0.0 < density - epsilon < density + epsilon < 1.0:
            reader.refuse(f"density {density:g} ± epsilon {epsilon:g}: both ends between 0 and 1 are expected")
        then, scale = _then(reader, consensus, default=consensus), reader.number("lambda", 1.0)
        drop, spread = (0.0, 0.0) if density >= 1.0 else (round(1.0 - density, 12), 2.0 * epsilon)
        return {"name": "della", "drop": drop, "epsilon": spread, "then": then, "scale": scale}

    return found


def _slerp(reader: Reader) -> dict[str, Any]:
    if reader.base is None:
        reader.refuse("base_model is missing: slerp starts from it")
    else:
        # The base is one of the two, and comes first.
        others = [one for one in reader.inputs if one.reference != reader.base.reference]
        first = next((one for one in reader.inputs if one.reference == reader.base.reference), reader.base)
        reader.inputs, reader.base = [first, *others], None
    if len(reader.inputs) != 2:
        reader.refuse(f"slerp merges two models, one of them the base; {len(reader.inputs)} are given")
    return {"name": "slerp", "straight": STRAIGHT}


def _nuslerp(reader: Reader) -> dict[str, Any]:
    if reader.base is not None:
        reader.refuse("base_model: nuslerp of changes from a base is not done here")
    if reader.flag("nuslerp_row_wise", default=False) or not reader.flag("nuslerp_flatten", default=True):
        reader.refuse("nuslerp_row_wise and nuslerp_flatten: only whole tensors are interpolated here")
    return {"name": "slerp"}


def _model_stock(reader: Reader) -> dict[str, Any]:
    if reader.flag("filter_wise", default=False):
        reader.refuse("filter_wise: true: only whole tensors have one share here")
    return {"name": "model_stock"}


def _karcher(reader: Reader) -> dict[str, Any]:
    # Here the iteration goes on until nothing moves.
    reader.used |= {"max_iter", "tol"}
    if reader.base is not None and all(one.reference != reader.base.reference for one in reader.inputs):
        reader.inputs.append(reader.base)
    reader.base = None
    return {"name": "karcher"}


def _passthrough(reader: Reader) -> dict[str, Any]:
    if len(reader.inputs) != 1:
        reader.refuse(f"passthrough copies one model, {len(reader.inputs)} are given")
    if any(reader.setting("scale", None, one) is not None for one in reader.inputs):
        reader.refuse("scale of passthrough is not done here")
    return {"name": "average"}


METHODS: dict[str, Callable[[Reader], dict[str, Any]]] = {
    "linear": _linear, "slerp": _slerp, "nuslerp": _nuslerp, "task_arithmetic": _task_arithmetic, "ties": _ties,
    "dare_ties": _dare(True), "dare_linear": _dare(False), "breadcrumbs": _breadcrumbs(False),
    "breadcrumbs_ties": _breadcrumbs(True), "della": _della(True), "della_linear": _della(False),
    "model_stock": _model_stock, "karcher": _karcher, "passthrough": _passthrough,
}  # fmt: skip
"""What translates each method of mergekit."""
FROM_BASE = {
    "task_arithmetic", "ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear",
    "model_stock",
}  # fmt: skip
WEIGHTED = {"linear", "nuslerp", *(FROM_BASE - {"model_stock"})}



def read_weights(reader: Reader) -> list[dict[str, Any]]:
    """Returns `weight` or `layer_weights` of each source."""
    method = reader.content.get("merge_method")
    if method == "slerp":
        return _shares(reader)
    if method not in WEIGHTED:
        return [{} for _ in reader.inputs]
    found = []
    for one in reader.inputs:
        value = reader.setting("weight", None, one)
        if value is None:
            reader.refuse(f"parameters.weight of {one.reference} is missing")
        found.append(_by_layer(reader, f"weight of {one.reference}", value, reader.globals.get("weight")))
    return found


def _by_layer(reader: Reader, what: str, value: Any, otherwise: Any = None) -> dict[str, Any]:
    """Returns a source's weight: one number, or numbers by layer and by a part of the parameter's name."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < 0:
            reader.refuse(f"{what} is {value}: weights below 0 are not taken")
        return {"weight": float(value)}
    entries = _entries(value) + (_entries(otherwise) if otherwise is not None and otherwise is not value else [])
    found = [_entry(reader, what, entry) for entry in entries]
    kept = [entry for entry in found if entry is not None]
    if kept and kept[-1].get("filter"):
        reader.refuse(f"{what} says nothing of parameters that no filter names: end with a value without a filter")
    return {"layer_weights": kept}


def _entries(value: Any) -> list[Any]:
    """Returns values with filters one by one; numbers over the layers are one value."""
    return value if isinstance(value, list) and not all(_is_number(v) for v in value) else [value]


def _entry(reader: Reader, what: str, entry: Any) -> dict[str, Any] | None:
    """Returns the values of one filter, from a number, a list over the layers, or a mapping of these."""
    where = None
    if isinstance(entry, Mapping):
        if more := set(entry) - {"filter", "value"}:
            reader.refuse(f"{what}: {', '.join(sorted(map(str, more)))} is not understood (known: filter, value)")
        where, entry = entry.get("filter"), entry.get("value")
    values = entry if isinstance(entry, list) else [entry]
    if not values or not all(_is_number(value) for value in values):
        reader.refuse(f"{what} is {short(entry)}: numbers are expected")
        return None
    if min(values) < 0:
        reader.refuse(f"{what} is {min(values)} somewhere: weights below 0 are not taken")
    named = {} if where in (None, "*") else {"filter": str(where)}
    return {**named, "values": [float(value) for value in values]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shares(reader: Reader) -> list[dict[str, Any]]:
    """Returns the weights of SLERP's two models: 1 − t and t, the base first."""
    value = reader.setting("t")
    if value is None:
        reader.refuse("parameters.t is missing")
        return [{} for _ in reader.inputs]
    there = _by_layer(reader, "t", value)
    parts = [n for entry in there.get("layer_weights", [{"values": [there.get("weight")]}]) for n in entry["values"]]
    if any(part is None or part > 1 for part in parts):
        reader.refuse("t is above 1: a share of the way from the base to the other model is expected")
        return [{} for _ in reader.inputs]
    return [_turned(there), there]


def _turned(weights: dict[str, Any]) -> dict[str, Any]:
    if "weight" in weights:
        return {"weight": 1.0 - weights["weight"]}
    turned = [{**entry, "values": [1.0 - v for v in entry["values"]]} for entry in weights["layer_weights"]]
    return {"layer_weights": turned}


