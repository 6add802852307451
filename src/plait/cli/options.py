"""Options that several commands share, and the parsing of NAME=VALUE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from plait.errors import RecipeError, did_you_mean

SOURCES, METHOD, OUTPUT, RUN = "Sources and data", "Method", "Output", "Run"
"""Subjects under which the help lists options that stand in no recipe."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=RUN)]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress and no notes, only results and errors.", rich_help_panel=RUN),
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.", rich_help_panel=OUTPUT)]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace an existing output, once the new one is complete.", rich_help_panel=OUTPUT
    ),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let a checkpoint run its own code.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Texts per batch.")]
MaxLength = Annotated[int | None, typer.Option("--max-length", min=4, help="Token limit per text.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Random seed.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub id.")]
Revisions = Annotated[
    list[str] | None,
    typer.Option(
        "--revision", help="NAME=REVISION: branch, tag or commit of a source's Hub id.", rich_help_panel=SOURCES
    ),
]
AdapterBases = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter-base", help="NAME=MODEL that an adapter changes. Default: as it records, else --base.",
        rich_help_panel=SOURCES,
    ),
]
LayerWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--layer-weight",
        help="NAME=[PART:]λ,λ…: weights of a source from the first layer to the last, of parameters whose names "
        "contain PART; several after ;",
        rich_help_panel=SOURCES,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(
        "--text-column", help="Column of the texts. Default: found by name.", rich_help_panel=SOURCES
    ),
]
PairColumn = Annotated[
    str | None,
    typer.Option("--text-pair-column", help="Column of the second text of a pair.", rich_help_panel=SOURCES),
]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="Column of the labels.", rich_help_panel=SOURCES)
]
Epochs = Annotated[float, typer.Option("--epochs", min=0.0, help="Training epochs.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", min=0.0, help="Peak learning rate.")]
StepSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Batch size: examples per optimizer step.")
]
CutAt = Annotated[int, typer.Option("--max-length", min=4, help="Token limit per text.")]
Warmup = Annotated[
    float,
    typer.Option("--warmup", min=0.0, max=1.0, help="Share of the steps in which the learning rate rises."),
]
WeightDecay = Annotated[float, typer.Option("--weight-decay", min=0.0, help="Weight decay of AdamW.")]
Precision = Annotated[str, typer.Option("--precision", help="float32 or bfloat16.")]
ProblemType = Annotated[
    str | None,
    typer.Option("--problem-type", help="Meaning of the labels, as in transformers. Default: found from the data."),
]
ReportTo = Annotated[
    str, typer.Option("--report-to", help="Tracker that transformers reports to, such as tensorboard.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Resume an interrupted run.", rich_help_panel=RUN)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, compute nothing.", rich_help_panel=RUN)
]

Names = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="NAME=FILE: texts of a source or task, with labels where they are needed.",
        rich_help_panel=SOURCES,
    ),
]

LabelNames = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        help="NAME=LABEL,LABEL: what the labels of a head are called, in its order; for heads of LABEL_0, LABEL_1.",
        rich_help_panel=SOURCES,
    ),
]


def label_names(values: Sequence[str] | None) -> Any:
    """Returns the label names of each head, or those of the only one; None where none are given.

    Raises:
        RecipeError: names for one head among those of several.
    """
    every = list(values or ())
    if len(every) == 1 and "=" not in every[0]:
        return every[0]
    return pairs(every, "--labels") or None


def pairs(values: Sequence[str] | None, what: str, convert: Callable[[str], Any] = str) -> dict[str, Any]:
    """Returns NAME=VALUE arguments as a dictionary in their order.

    Raises:
        RecipeError: no `=`, an empty side, a name given twice, or a value that does not convert.
    """
    found: dict[str, Any] = {}
    for value in values or ():
        name, equals, content = value.partition("=")
        if not (name and equals and content):
            raise RecipeError(f"{what}: expected NAME=VALUE, found {value!r}")
        if name in found:
            raise RecipeError(f"{what}: {name!r} is given twice")
        try:
            found[name] = convert(content)
        except ValueError:
            raise RecipeError(f"{what}: {content!r} is not a {convert.__name__} (in {value!r})") from None
    return found


def named_sources(values: Sequence[str] | None, what: str) -> dict[str, Any]:
    """Returns NAME=CHECKPOINT arguments as a dictionary; checkpoints without names have those of their folders.

    Raises:
        RecipeError: a name given twice, or names for some of them alone.
    """
    from plait.recipe.naming import named_places

    every = list(values or ())
    bare = [value for value in every if "=" not in value or "/" in value.partition("=")[0]]
    if not bare:
        return pairs(every, what)
    if len(bare) < len(every):
        raise RecipeError(f"{what}: {bare[0]!r} has no name and others have: name all (NAME=CHECKPOINT) or none")
    return named_places(bare)


def revised(sources: dict[str, Any], revisions: Sequence[str] | None) -> dict[str, Any]:
    """Returns sources with the revisions of their Hub ids.

    Raises:
        RecipeError: a revision of a source that does not exist (did you mean).
    """
    return told_of(sources, "--revision", "revision", revisions)


def told_of(sources: dict[str, Any], option: str, field: str, values: Sequence[str] | None) -> dict[str, Any]:
    """Returns sources with a field of some of them.

    Raises:
        RecipeError: it is said of a source that does not exist (did you mean).
    """
    found = dict(sources)
    for name, value in pairs(values, option).items():
        if name not in sources:
            raise RecipeError(f"{option} for unknown source {name!r}{did_you_mean(name, sources)}")
        model = sources[name]
        found[name] = {**(model if isinstance(model, dict) else {"model": model}), field: value}
    return found


def named_or_alone(values: Sequence[str] | None, what: str, names: Sequence[str] | None = None) -> Any:
    """Returns NAME=FILE arguments as a dictionary, or the only FILE alone.

    A path may contain `=`: what stands before it counts as a name when it looks like one.
    """
    every = list(values or ())
    if not every:
        raise RecipeError(f"{what}: no data given (expected {what} FILE or {what} TASK=FILE)")
    head = every[0].partition("=")[0]
    if len(every) == 1 and ("=" not in every[0] or "/" in head or (names is not None and not names)):
        return every[0]
    return pairs(every, what)


def spec(path: Any, text: str | None, pair: str | None, label: str | None) -> Any:
    """Returns a data entry with the columns that were named on the command line."""
    columns = {"text": text, "text_pair": pair, "label": label}
    given = {name: value for name, value in columns.items() if value is not None}
    if not given:
        return path
    if isinstance(path, dict):
        return {name: {"path": value, **given} for name, value in path.items()}
    return {"path": path, **given}


def parse_yaml(text: str) -> Any:
    """Returns an option's value with its type: `0.5`, `true`, `global`."""
    from plait.boundary import parse_yaml as parsed
    from plait.recipe import number

    try:
        return number(parsed(text, "option", error=RecipeError))
    except RecipeError:
        raise RecipeError(
            f"{text!r} is no value as YAML writes them: put a text that begins so in quotes"
        ) from None
