"""Fields that recipes of several kinds share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from plait.label_names import told
from plait.registry import canonical

Name = Annotated[str, BeforeValidator(lambda value: canonical(value) if isinstance(value, str) else value)]
Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[\w][\w.+@-]*", name):
        raise ValueError("expected a name of letters, digits, and . _ - + @: it names a folder")
    return name


PlainName = Annotated[str, AfterValidator(_plain_name)]


class Strict(BaseModel):
    """Frozen, and closed: an unknown key is an error that names it.

    The docstring's section `Attributes` is the help of the command line and the description in the JSON schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Fields by subject, in which the help of the command line lists them."""


@dataclass(frozen=True)
class Short:
    """Says in the JSON schema that a text alone, or one entry of a list, stands for the whole."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Returns the schema of the short form or the long one."""
        long = handler(schema)
        entry = long["items"] if long.get("type") == "array" else {"type": "string"}
        return {"anyOf": [entry, long]}


@dataclass(frozen=True)
class Registered:
    """Says in the JSON schema which registry a name and its options are of, by its entry-point group."""

    group: str

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Returns a mark that `plait.schema()` replaces by every method with its options."""
        return {**handler(schema), REGISTRY: self.group}


REGISTRY = "x-registry"
"""The key of that mark."""


class NamedOptions(BaseModel):
    """A method by name, and its own options: any key that its signature declares.

    A recipe is parsed without importing any method, so that names and values are checked when the job is planned.

    Attributes:
        name: Name of the method; `plait methods` lists them.
    """

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    name: Name

    @property
    def options(self) -> dict[str, Any]:
        """Returns the method's own options."""
        return {name: number(value) for name, value in (self.model_extra or {}).items()}


def named(value: Any) -> Any:
    """Returns a name alone as a mapping."""
    return {"name": value} if isinstance(value, str) else value


class DataSpec(Strict):
    """Where texts and labels are, and which columns hold them (found by name when not given).

    Attributes:
        path: File, folder, or data set id on the Hub.
        split: Split of a data set on the Hub.
        text: Column of the texts.
        text_pair: Column of the second text of a pair.
        label: Column of the labels.
    """

    path: Text
    split: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None

    def columns(self) -> dict[str, str]:
        """Returns the given column names and split, ready as keyword arguments of `plait.data.read_examples`."""
        return self.model_dump(exclude_none=True, exclude={"path"})


LabelNames = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: told(value) if isinstance(value, str) else value), Short()
]
"""Names of a head's labels, in its order: a list, or `negative,positive`."""

Data = Annotated[DataSpec, BeforeValidator(lambda v: {"path": v} if isinstance(v, str | Path) else v), Short()]


def number(value: Any) -> Any:
    """Returns a number for a text that is one: YAML takes 1e-6 for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
