"""Fields that recipes of several kinds share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

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
    """Frozen, and closed: an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSpec(Strict):
    """Where texts and labels are, and which columns hold them (found by name when not given)."""

    path: Text
    split: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None

    def columns(self) -> dict[str, str]:
        """Returns the given column names and split, ready as keyword arguments of `plait.data.read_examples`."""
        return self.model_dump(exclude_none=True, exclude={"path"})


LabelNames = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: told(value) if isinstance(value, str) else value)
]
"""Names of a head's labels, in its order: a list, or `negative,positive`."""

Data = Annotated[DataSpec, BeforeValidator(lambda v: {"path": v} if isinstance(v, str | Path) else v)]


def number(value: Any) -> Any:
    """Returns a number for a text that is one: YAML takes 1e-6 for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
