"""A mergekit recipe while it is read: its models and parameters, and what was not understood so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.boundary import parse_yaml, read_text


@dataclass
class Input:
    """One model of a mergekit recipe: where it lies, and its own parameters."""

    model: str
    revision: str | None = None
    adapter: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """Returns it as mergekit writes it, which tells models apart."""
        own = self.model + (f"@{self.revision}" if self.revision else "")
        return own + (f"+{self.adapter}" if self.adapter else "")

    @property
    def place(self) -> str:
        """Returns the folder or Hub id of the source."""
        return self.adapter or self.model

    def described(self) -> dict[str, Any]:
        """Returns the entry of a source: an adapter is one that names its base."""
        if self.adapter:
            return {"model": self.adapter, "base": self.model}
        return {"model": self.model, **({"revision": self.revision} if self.revision else {})}


@dataclass
class Reader:
    """A mergekit recipe being read: its content, and what was not understood so far."""

    content: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    base: Input | None = None
    used: set[str] = field(default_factory=set)

    @property
    def globals(self) -> Mapping[str, Any]:
        """Returns the parameters that hold for all models."""
        found = self.content.get("parameters") or {}
        return found if isinstance(found, Mapping) else {}

    def refuse(self, problem: str) -> None:
        """Keeps one thing that is not understood."""
        if problem not in self.problems:
            self.problems.append(problem)

    def setting(self, name: str, default: Any = None, of: Input | None = None) -> Any:
        """Returns a parameter: the model's own, else that of all, else the default."""
        self.used.add(name)
        own = of.parameters.get(name) if of is not None else None
        return own if own is not None else self.globals.get(name, default)

    def number(self, name: str, default: float | None, of: Input | None = None) -> float:
        """Returns a parameter that has to be one number."""
        value = self.setting(name, default, of)
        whose = f" of {of.reference}" if of else ""
        if value is None:
            self.refuse(f"parameters.{name}{whose} is missing")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"{name}{whose} is {short(value)}: one number is expected, only weight and t may vary by layer")
        else:
            return float(value)
        return 0.0

    def common(self, name: str, default: float) -> float:
        """Returns a parameter that has to be the same number for all models."""
        values = {self.number(name, default, one) for one in self.inputs}
        if len(values) > 1:
            self.refuse(f"{name} differs between models ({numbers(sorted(values))}): one for all is expected")
        return max(values, default=default)

    def flag(self, name: str, default: bool) -> bool:
        """Returns a parameter that is yes or no."""
        value = self.setting(name, default)
        if not isinstance(value, bool | int):
            self.refuse(f"{name} is {short(value)}: true or false is expected")
        return bool(value)


def read_inputs(reader: Reader) -> None:
    """Reads models or slices, and the base."""
    content = reader.content
    if content.get("base_model") is not None:
        reader.base = read_input(reader, content["base_model"], {}, "base_model")
    if content.get("slices") is not None:
        _read_slices(reader, content["slices"])
    models = content.get("models")
    if models is None and content.get("slices") is None:
        reader.refuse("models is missing")
    if models is not None and not isinstance(models, list):
        reader.refuse(f"models is {short(models)}: a list is expected")
    for entry in models if isinstance(models, list) else ():
        if not isinstance(entry, Mapping) or "model" not in entry:
            reader.refuse(f"models has {short(entry)}: model and parameters are expected")
            continue
        for key in set(entry) - {"model", "parameters"}:
            reader.refuse(f"{key} of a model is not understood (known: model, parameters)")
        if (found := read_input(reader, entry["model"], entry.get("parameters") or {}, "models")) is not None:
            reader.inputs.append(found)


def _read_slices(reader: Reader, slices: Any) -> None:
    """Reads one slice that is the whole of each model; others stack layers into another architecture."""
    first = slices[0] if isinstance(slices, list) and slices and isinstance(slices[0], Mapping) else {}
    sources = first.get("sources")
    if not isinstance(sources, list) or len(slices) > 1:
        reader.refuse("slices: several stack layers into a model of another depth, which no rule here does")
        return
    if more := set(first) - {"sources", "parameters", "base_model"}:
        reader.refuse(f"{', '.join(sorted(more))} of a slice is not understood")
    shared = first.get("parameters") or {}
    ranges = []
    for entry in sources:
        own = {**shared, **(entry.get("parameters") or {})} if isinstance(entry, Mapping) else {}
        found = read_input(reader, entry.get("model") if isinstance(entry, Mapping) else entry, own, "slices")
        if found is not None:
            reader.inputs.append(found)
            ranges.append((found, entry.get("layer_range")))
    for found, layers in ranges:
        depth = _depth(found.model)
        if layers != ranges[0][1] or not isinstance(layers, list) or layers[:1] != [0]:
            reader.refuse(f"layer_range {layers} of {found.reference}: the same layers from 0 on are expected of all")
        elif depth is not None and layers[1] != depth:
            reader.refuse(f"layer_range {layers} of {found.reference}: it has {depth} layers, and all are merged here")


def _depth(place: str) -> int | None:
    """Returns how many layers a model has, where its configuration is here."""
    file = Path(place).expanduser() / "config.json"
    if not file.is_file():
        return None
    content = parse_yaml(read_text(file), file)
    found = content.get("num_hidden_layers", content.get("n_layer")) if isinstance(content, Mapping) else None
    return found if isinstance(found, int) else None


def read_input(reader: Reader, given: Any, parameters: Any, where: str) -> Input | None:
    """Returns a model from `path`, `path@revision`, `path+adapter`, or a mapping of these."""
    if not isinstance(parameters, Mapping):
        reader.refuse(f"parameters of {short(given)} are {short(parameters)}: a mapping is expected")
        parameters = {}
    revision, adapter = None, None
    if isinstance(given, Mapping):
        own = given.get("model")
        adapter = _path(given.get("lora"))
        if more := set(given) - {"model", "lora"} - ({"path", "revision"} if "path" in given else set()):
            reader.refuse(f"{', '.join(sorted(map(str, more)))} of a model is not understood")
        inner = own if isinstance(own, Mapping) else given if "path" in given else {"path": own}
        revision, given = inner.get("revision"), inner.get("path")
    if not isinstance(given, str) or not given.strip():
        reader.refuse(f"{where} has {short(given)}: a folder or a Hub id is expected")
        return None
    if "+" in given and adapter is None and not Path(given).exists():
        given, _, adapter = given.partition("+")
    if "@" in given and revision is None and not Path(given).exists():
        given, _, revision = given.rpartition("@")
    return Input(given, revision, adapter, parameters)


def _path(given: Any) -> str | None:
    found = given.get("path") if isinstance(given, Mapping) else given
    return found if isinstance(found, str) else None


def short(value: Any) -> str:
    """Returns a value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def numbers(values: Sequence[float]) -> str:
    """Returns numbers as they are shown in a message."""
    return ", ".join(f"{value:g}" for value in values)
