"""Teaches the students of every row and judges all ways of combining its teachers: one JSON per row and per student.

Run from the repository root, once for each core:

    python experiments/amalgamation/run.py

Processes that run at once share the work between them, in the order of `work`: what the table needs, and with
--everything all students of all rows and seeds. What is finished is skipped; what is missing (encoders, teachers,
posteriors) is made. A file STOP in work-files/amalgamation ends them after the student they are at.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from encoders import encoder
from rows import RESULTS, ROWS, SEEDS, WORK, Row, Teacher, slug, test, transfer
from sources import claim_of, claimed, finished, folder_of, make, waiting, write
from torch import Tensor

from plait import amalgamate
from plait.amalgamation.choices import Choices
from plait.amalgamation.distillation import Distillation, adapted, classifier_path, make_adapters
from plait.amalgamation.gate import GATES
from plait.amalgamation.label_space import LabelSpace, union
from plait.amalgamation.routing import route
from plait.amalgamation.targets import SoftTargets, concat, hard, soft, soft_targets, tables
from plait.checkpoints.checkpoint import open_checkpoint
from plait.data import Examples
from plait.data.texts import Texts, open_texts
from plait.encoders.heads import Head
from plait.encoders.modes import seeded
from plait.evaluation import predict_logits
from plait.teachers import Posterior, Settings, score_texts
from plait.training.corpus import pack
from plait.training.heads import open_with
from plait.training.trainer import Schedule, train

PASSES = 16
EPOCHS = 5
BATCH = 16
STOP = WORK / "STOP"


@dataclass(frozen=True)
class Student:
    """A student as the table names it, and how its lesson comes about; without choices it reads the gold labels."""

    name: str
    choices: Choices | None


def taught_by(gate: str, target: str = "hard", *, margin: bool = False) -> Choices:
    return Choices(gate=gate, target=target, margin=margin)  # type: ignore[arg-type]


def rival(objective: str, **options: float) -> Choices:
    return Choices("energy", target="soft", margin=False, objective=objective, options=options)


FIRST = (
    Student("muka hard", taught_by("muka", margin=True)),
    Student("vkd", rival("vkd")),
    Student("mahalanobis hard", taught_by("mahalanobis", margin=True)),
    Student("uhc", rival("uhc")),
    Student("dfa", rival("dfa")),
    # With 1 and 1 features are matched and labels are not learnt: see "cfl, ones".
    Student("cfl", rival("cfl", matching=0.1, reconstruction=0.1)),
    Student("supervised", None),
)
SECOND = (
    Student("muka soft", taught_by("muka", "soft", margin=True)),
    Student("mahalanobis soft", taught_by("mahalanobis", "soft", margin=True)),
    Student("energy hard", taught_by("energy", margin=True)),
    Student("muka hard, no margin", taught_by("muka")),
    Student("mahalanobis hard, no margin", taught_by("mahalanobis")),
    Student("energy hard, no margin", taught_by("energy")),
    Student("muka soft, no margin", taught_by("muka", "soft")),
)
GATED = (
    *(
        Student(f"{gate} hard, no margin", taught_by(gate))
        for gate in ("oracle", "max_logit", "entropy", "bald")
    ),
    Student("cfl, ones", rival("cfl", matching=1.0, reconstruction=1.0)),
)
BY_COMMAND: dict[str, dict[str, Any]] = {
    "auto": {"gate": "auto"},
    "auto hard": {"gate": "auto", "target": "hard"},
    "auto soft": {"gate": "auto", "target": "soft", "margin": False},
    "auto no margin": {"gate": "auto", "margin": False},
    "auto agreement": {"gate": "auto", "agreement": True},
    "auto consensus": {"gate": "auto", "target": "consensus"},
    "auto round 1": {"gate": "auto", "rounds": 1},
    "auto round 2": {"gate": "auto", "rounds": 2},
    "auto selected": {"gate": "auto", "objective": {"name": "muka", "selected": 0.8}},
    "auto bootstrap": {"gate": "auto", "objective": {"name": "muka", "bootstrap": 0.3}},
    "mahalanobis by command": {"gate": "mahalanobis"},
}
"""Students made by `plait.amalgamate` with these options, all else as for the others."""
STUDENTS = {
    student.name: student
    for student in (*FIRST, *SECOND, *GATED, *(Student(name, None) for name in BY_COMMAND))
}
_FEW = ("muka hard", "muka soft", "mahalanobis hard", "vkd", "uhc", "supervised")
FEW = tuple(STUDENTS[name] for name in _FEW)
DEEP = ("trec 3+3", "search_snippets 2+6", "ag_news 2+2")
"""Rows with all students, and with the shared split."""
WIDE = (*DEEP, "search_snippets 4x2", "heterogeneous", "overlap")
"""Rows with all seeds: the others cost as much as these together."""
Work = Iterator[tuple[Row, int, tuple[Student, ...]]]


def work(seeds: Sequence[int], rows: Sequence[str], *, everything: bool) -> Work:
    """Yields row, seed and students in the order of the work."""
    main = [ROWS[name] for name in rows if ROWS[name].split == "disjoint"]
    shared = [ROWS[name] for name in rows if ROWS[name].split == "shared"]
    for seed in seeds:
        first = seed == SEEDS[0] or everything
        yield from ((row, seed, FIRST) for row in main if first or row.name in WIDE)
        if first:
            yield from ((row, seed, (*SECOND, *GATED)) for row in main if row.name in DEEP)
            yield from ((row, seed, FEW) for row in shared)
    if everything:
        yield from ((row, seed, SECOND) for seed in seeds for row in main)


@dataclass(frozen=True)
class Stage:
    """All that the students of one row and seed are made from."""

    space: LabelSpace
    texts: Examples
    truth: Tensor
    posteriors: tuple[Posterior, ...]


def score_teacher(row: Row, teacher: Teacher, seed: int) -> Posterior:
    """Returns what a teacher says of the row's transfer texts; each is asked once, whatever rows it stands in."""
    corpus = f"{'+'.join(row.data)}-{row.split}-{seed}"
    folder = WORK / "stores" / corpus / teacher.name
    checkpoint = open_checkpoint(folder_of(teacher, seed), name=teacher.name)
    settings = Settings(passes=PASSES, seed=seed, keep="layers", max_length=row.max_length)
    with waiting(WORK / "claims" / f"{corpus}-{teacher.name}"):
        store = score_texts(folder, open_texts(transfer(row, seed)), [checkpoint], settings)
    return store.posterior(teacher.name)


@cache
def stage(name: str, seed: int) -> Stage:
    """Returns a row's teachers' posteriors, making teachers and posteriors that are missing."""
    row = ROWS[name]
    for teacher in row.teachers:
        with waiting(claim_of(teacher, seed)):
            if not finished(teacher, seed):
                make(teacher, seed)
    space = union({teacher.name: teacher.label_names for teacher in row.teachers})
    texts = transfer(row, seed)
    posteriors = tuple(score_teacher(row, teacher, seed) for teacher in row.teachers)
    return Stage(space, texts, positions(texts, space), posteriors)


def positions(texts: Examples, space: LabelSpace) -> Tensor:
    return torch.tensor([space.names.index(label) for label in texts.labels or ()])


@torch.autocast("cpu", torch.bfloat16)
def predict(model: Any, tokenizer: Any, row: Row) -> Tensor:
    logits = predict_logits(model, tokenizer, test(row).unlabelled(), max_length=row.max_length)
    return torch.stack(logits)


def accuracy(scores: Tensor, truth: Tensor) -> float:
    return round(float((scores.argmax(-1) == truth).double().mean()), 6)


def judge_row(row: Row, seed: int) -> dict[str, Any]:
    """Returns everything that needs no student: teachers alone, ensembles, and all gates on the transfer texts."""
    start, found = time.monotonic(), stage(row.name, seed)
    truth = positions(test(row), found.space)
    logits = []
    for teacher in row.teachers:
        checkpoint = open_checkpoint(folder_of(teacher, seed))
        logits.append(predict(checkpoint.model(), checkpoint.tokenizer(), row))
    return {
        "row": row.name,
        "seed": seed,
        "split": row.split,
        "labels": list(found.space.names),
        "texts": {"transfer": len(found.texts), "test": len(truth), "max_length": row.max_length},
        "teachers": [alone(at, t, logits[at], truth, found.space) for at, t in enumerate(row.teachers)],
        "ensembles": ensembles(logits, truth, found.space),
        "gates": gates(found),
        "passes": PASSES,
        "seconds": round(time.monotonic() - start, 1),
    }


def alone(at: int, teacher: Teacher, logits: Tensor, truth: Tensor, space: LabelSpace) -> dict[str, Any]:
    padded = space.pad(at, logits.softmax(-1))
    own = space.known(at)[truth]
    return {
        "name": teacher.name,
        "labels": list(teacher.label_names),
        "accuracy": accuracy(padded, truth),
        "accuracy_on_own_labels": accuracy(padded[own], truth[own]),
    }


def ensembles(logits: list[Tensor], truth: Tensor, space: LabelSpace) -> dict[str, float]:
    """Returns what the teachers reach together at test time, without a student: they all have to be kept."""
    single = [z.softmax(-1) for z in logits]
    found = {"concat": accuracy(concat(logits, space), truth)}
    for gate in ("entropy", "energy", "max_logit"):
        scores = torch.stack([GATES[gate].function(z) for z in logits], 1)
        routing = route(scores, temperature=float(GATES[gate].facts["temperature"]))
        found[f"{gate} hard"] = accuracy(hard(single, routing, space), truth)
    return found


def gates(found: Stage) -> dict[str, Any]:
    """Returns routing and target accuracy of all gates on the transfer texts, plain and calibrated."""
    result = {}
    single = [p.logits.softmax(-1) for p in found.posteriors]
    mask = torch.stack([found.space.known(at) for at in range(len(single))])
    for gate in JUDGED if PASSES else [g for g in JUDGED if not GATES[g].facts["passes"]]:
        plainly = ("none", "temperature", "standardize") if PASSES else ("none", "standardize")
        for calibrate in ("none",) if gate == "oracle" else plainly:
            choices = Choices(gate=gate, calibrate=calibrate)  # type: ignore[arg-type]
            taught = soft_targets(found.posteriors, found.space, choices, found.truth)
            routing = taught.routing
            result[gate if calibrate == "none" else f"{gate}, {calibrate}"] = {
                "routing": round(float(mask[routing.choice, found.truth].double().mean()), 6),
                "hard": accuracy(hard(single, routing, found.space), found.truth),
                "soft": accuracy(soft(single, routing, found.space), found.truth),
                "mean_margin": round(float(routing.margin.mean()), 6),
                "share": [
                    round(float((routing.choice == at).double().mean()), 4) for at in range(len(single))
                ],
            }
    return result


JUDGED = ("muka", "entropy", "energy", "max_logit", "bald", "mahalanobis", "oracle")


def by_command(row: Row, seed: int, told: Mapping[str, Any]) -> tuple[dict[str, Path], Texts, dict[str, Any]]:
    """Returns teachers, texts and options of `plait.amalgamate` for a row; posteriors are kept and used by all."""
    texts = transfer(row, seed)
    columns = {"text": list(texts.texts), "label": list(texts.labels or ())}
    options = {
        "student": encoder("minilm"), "store": str(WORK / "stores" / f"{slug(row.name)}-{seed}-by-command"),
        "epochs": EPOCHS, "learning_rate": row.rate, "batch_size": BATCH, "max_length": row.max_length,
        "held_back": 0.0, "precision": "bfloat16", "seed": seed, **told,
    }  # fmt: skip
    teachers = {teacher.name: folder_of(teacher, seed) for teacher in row.teachers}
    return teachers, open_texts(Dataset.from_dict(columns), label="label"), options


def teach_by_command(row: Row, seed: int, student: Student) -> Mapping[str, Any]:
    """Returns how a student does that the program itself makes, with what it reports of gates, rounds and cost."""
    start = time.monotonic()
    for teacher in row.teachers:
        with waiting(claim_of(teacher, seed)):
            if not finished(teacher, seed):
                make(teacher, seed)
    teachers, data, options = by_command(row, seed, BY_COMMAND[student.name])
    with tempfile.TemporaryDirectory() as folder:
        made = amalgamate(teachers, texts=data, out=Path(folder) / "student", **options)
        report = dict(made.report)
        scores = predict(made.model, made.tokenizer, row)
        space = union({teacher.name: teacher.label_names for teacher in row.teachers})
        found = accuracy(scores, positions(test(row), space))
    return {
        "row": row.name,
        "seed": seed,
        "student": student.name,
        "accuracy": found,
        "rounds": [*report.get("rounds_before", []), report["who_taught_what"]],
        "forward_equivalents": report["forward_equivalents"],
        "options": BY_COMMAND[student.name],
        "seconds": round(time.monotonic() - start, 1),
    }


def lesson_of(student: Student, found: Stage) -> SoftTargets:
    """Returns what a student is taught; the supervised one reads the gold labels."""
    if student.choices is not None:
        return soft_targets(found.posteriors, found.space, student.choices, found.truth)
    plain = soft_targets(found.posteriors, found.space, Choices(gate="oracle"), found.truth)
    gold = torch.nn.functional.one_hot(found.truth, len(found.space)).float()
    return replace(plain, target=gold, weight=torch.ones(len(gold)))


def teach(
    row: Row, seed: int, student: Student, *, length: int = 1, precision: str = "bfloat16"
) -> Mapping[str, Any]:
    """Returns how a student does on the held-out texts; the last epoch is taken, as for every other student."""
    start, found = time.monotonic(), stage(row.name, seed)
    taught, choices = lesson_of(student, found), student.choices or Choices(gate="oracle")
    entry = choices.objective_entry
    schedule = Schedule(EPOCHS * length, row.rate, BATCH, seed=seed, precision=precision)  # type: ignore[arg-type]
    with seeded(seed), tempfile.TemporaryDirectory() as folder:
        head = Head("sequence_classification", found.space.names, "single_label_classification")
        model, tokenizer = open_with(encoder("minilm"), head, False)
        given = tables(found.posteriors, taught, entry)
        corpus = pack([found.texts.unlabelled()], tokenizer, model.config, row.max_length, given)
        path = classifier_path(model)
        objective = Distillation(entry, found.space.columns, path, choices.options)
        with adapted(model, make_adapters(entry, model, given, path)):
            log = train(model, corpus, Path(folder), objective=objective, schedule=schedule)
    scores = predict(model, tokenizer, row)
    return {
        "row": row.name,
        "seed": seed,
        "student": student.name,
        "accuracy": accuracy(scores, positions(test(row), found.space)),
        "target_accuracy": accuracy(taught.target, found.truth),
        "mean_weight": round(float(taught.weight.mean()), 6),
        "settings": {
            "epochs": schedule.epochs,
            "batch_size": BATCH,
            "learning_rate": row.rate,
            "precision": precision,
        },
        "losses": [round(entry["loss"], 5) for entry in log if "loss" in entry][::4],
        "seconds": round(time.monotonic() - start, 1),
    }


def cell_of(row: Row, seed: int, student: Student) -> Path:
    name = slug(student.name.replace(",", ""))
    return RESULTS / "cells" / f"{slug(row.name)}.{seed}.{name}.json"


def row_of(row: Row, seed: int) -> Path:
    return RESULTS / "rows" / f"{slug(row.name)}.{seed}.json"


def advance(row: Row, seed: int, wanted: Sequence[Student]) -> None:
    """Does what nobody else is doing of a row and seed."""
    if not row_of(row, seed).exists():
        with claimed(WORK / "claims" / row_of(row, seed).name) as mine:
            if not mine:
                return
            if not row_of(row, seed).exists():
                report = judge_row(row, seed)
                write(row_of(row, seed), report)
                show(row.name, seed, f"concat {report['ensembles']['concat']:.3f}", report["seconds"])
    for student in wanted:
        file = cell_of(row, seed, student)
        if file.exists() or STOP.exists():
            continue
        with claimed(WORK / "claims" / file.name) as mine:
            if mine and not file.exists():
                cell = (teach_by_command if student.name in BY_COMMAND else teach)(row, seed, student)
                write(file, cell)
                show(row.name, seed, f"{student.name} {cell['accuracy']:.3f}", cell["seconds"])


def show(row: str, seed: int, what: str, seconds: float) -> None:
    print(time.strftime("%H:%M:%S"), f"{row} {seed}: {what} ({seconds:.0f} s)", flush=True)


def judge_gates_anew() -> None:
    """Judges all gates that need no pass, or all, once more, and keeps what is known of the others."""
    for file in sorted((RESULTS / "rows").glob("[!.]*.json")):
        report = json.loads(file.read_text())
        report["gates"] |= gates(stage(report["row"], report["seed"]))
        write(file, report)


def twice(name: str, seed: int, wanted: str) -> None:
    """Teaches one student twice as long, to see whether the length that all have is enough."""
    row = ROWS[name]
    student = STUDENTS[wanted]
    file = RESULTS / "twice" / cell_of(row, seed, student).name
    if not file.exists():
        cell = teach(row, seed, student, length=2)
        write(file, cell)
        show(name, seed, f"{wanted}, twice as long {cell['accuracy']:.3f}", cell["seconds"])


def chosen(arguments: argparse.Namespace) -> Work:
    """Yields what the command line asks for: some students of some rows, or the work in its order."""
    if not arguments.students:
        yield from work(arguments.seeds, arguments.rows, everything=arguments.everything)
        return
    wanted = tuple(STUDENTS[name] for name in arguments.students)
    yield from ((ROWS[name], seed, wanted) for seed in arguments.seeds for name in arguments.rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    parser.add_argument("--students", nargs="*", metavar="NAME", help="only these, such as 'muka soft'")
    parser.add_argument("--passes", type=int, default=PASSES, help="0 where no gate needs Monte Carlo passes")
    parser.add_argument("--everything", action="store_true", help="all students of all rows and seeds")
    parser.add_argument(
        "--twice", nargs=3, metavar=("ROW", "SEED", "STUDENT"), help="only this, twice as long"
    )
    parser.add_argument(
        "--gates", action="store_true", help="only judge the gates anew, from the posteriors on disk"
    )
    arguments = parser.parse_args()
    globals()["PASSES"] = arguments.passes
    torch.set_num_threads(1)
    for name in ("transformers", "plait"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if arguments.twice:
        row, seed, student = arguments.twice
        twice(row, int(seed), student)
        return
    if arguments.gates:
        judge_gates_anew()
        return
    for _ in range(2):  # again: another process may have been at work on a row
        for row, seed, wanted in chosen(arguments):
            if not STOP.exists():
                advance(row, seed, wanted)
            stage.cache_clear()


if __name__ == "__main__":
    main()
