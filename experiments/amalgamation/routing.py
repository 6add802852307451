"""Judges every gate that needs no passes, alone and together, without a student: one JSON per row and seed.

Run from the repository root, after the students that `run.py` makes by command (it uses their posteriors), or before:

    python experiments/amalgamation/routing.py --seeds 0 --rows "trec 3+3" "ag_news 2+2"

Per gate: how often the chosen teacher has the text's true label (*routing*) and how often its prediction is that label
(*hard*). For `fitted`: the same on the other texts, of five draws of 20, 50 and 100 labelled ones.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from alternatives import ALTERNATIVES
from rows import RESULTS, ROWS, WORK, Row, slug
from run import by_command
from sources import claim_of, finished, make, waiting, write
from torch import Tensor

from plait.amalgamation.choices import Choices
from plait.amalgamation.gate_selection import auto, fitted, gate_scores, members_of
from plait.amalgamation.plan import AmalgamationPlan, plan
from plait.amalgamation.rounds import TrainingInputs, correction, targets_of, training_inputs
from plait.amalgamation.routing import Routing, route
from plait.amalgamation.run import score, true_labels
from plait.amalgamation.targets import SoftTargets, consensus, hard, soft, soft_targets
from plait.recipe.arguments import amalgamation_recipe

GATES: dict[str, tuple[str, dict[str, Any]]] = {
    "entropy": ("entropy", {}),
    "energy": ("energy", {}),
    "max_logit": ("max_logit", {}),
    "mahalanobis": ("mahalanobis", {}),
    "base, alone": ("base", {"neighbours": 0}),
    "base": ("base", {}),
    "vocabulary, alone": ("vocabulary", {"neighbours": 0}),
    "vocabulary": ("vocabulary", {}),
    "vocabulary, 30 neighbours": ("vocabulary", {"neighbours": 30}),
    "update": ("update", {}),
    "update, 10 neighbours": ("update", {"neighbours": 10}),
}
LABELLED = (20, 50, 100)
DRAWS = 5


def job_of(row: Row, seed: int) -> AmalgamationPlan:
    """Returns the plan of a row, making teachers that are missing."""
    for teacher in row.teachers:
        with waiting(claim_of(teacher, seed)):
            if not finished(teacher, seed):
                make(teacher, seed)
    teachers, data, options = by_command(row, seed, {"gate": "auto"})
    recipe = amalgamation_recipe(
        teachers, out=WORK / "nowhere", texts=data, student=options.pop("student"), validation=None, options=options
    )
    return plan(recipe, texts=data)


def judged(
    given: Routing, job: AmalgamationPlan, material: TrainingInputs, rows: Tensor | None = None
) -> dict[str, float]:
    """Returns how often a routing, and the targets that follow from it, are right."""
    truth = material.truth
    assert truth is not None
    known = torch.stack([job.space.known(at) for at in range(len(job.teachers))])
    single = [p.logits.softmax(-1) for p in material.corpus]
    rows = torch.arange(len(truth)) if rows is None else rows
    told = {"routing": known[given.choice, truth].double()}
    for name, build in (("hard", hard), ("soft", soft), ("consensus", consensus)):
        told[name] = (build(single, given, job.space).argmax(-1) == truth).double()
    return {name: round(float(right[rows].mean()), 4) for name, right in told.items()}


def labels_worth(job: AmalgamationPlan, material: TrainingInputs) -> dict[str, Any]:
    """Returns what 20, 50 and 100 labels are worth, on the texts that were not labelled."""
    truth, choices = material.truth, Choices(gate="fitted")
    assert truth is not None
    plain = [1.0] * len(job.teachers)
    panel = {
        entry.name: gate_scores(
            material.posteriors, job.space, entry, {}, temperatures=plain, evidence=material.evidence
        )
        for entry in members_of(choices, material.posteriors, material.evidence)
    }
    known = torch.stack([job.space.known(at)[truth] for at in range(len(job.teachers))], 1)
    found: dict[str, Any] = {}
    for count in LABELLED:
        draws = []
        for draw in range(DRAWS):
            order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(draw))
            verdict = fitted(torch.stack(list(panel.values()), -1), list(panel), known[order[:count]], order[:count])
            draws.append(judged(verdict.routing, job, material, order[count:]))
        found[str(count)] = {
            name: [round(f([d[name] for d in draws]), 4) for f in (statistics.mean, statistics.stdev)]
            for name in draws[0]
        }
    return found


def judge(row: Row, seed: int) -> dict[str, Any]:
    job = job_of(row, seed)
    truth = true_labels(job)
    store, _ = score(job, job.recipe.store_folder(), overwrite=False)
    material, gathered = training_inputs(job, store, truth)
    gates: dict[str, Any] = {}
    scores: dict[str, Tensor] = {}
    for name, (gate, options) in GATES.items():
        choices = Choices(gate=gate, gate_options=options)
        given: SoftTargets = soft_targets(material.posteriors, job.space, choices, truth, material.evidence)
        gates[name], scores[name] = judged(given.routing, job, material), given.routing.scores
        standard = Choices(gate=gate, gate_options=options, calibrate="standardize")
        given = soft_targets(material.posteriors, job.space, standard, truth, material.evidence)
        gates[f"{name}, standardize"] = judged(given.routing, job, material)
        midpoints = Choices(gate=gate, gate_options=options, calibrate="auto")
        given = soft_targets(material.posteriors, job.space, midpoints, truth, material.evidence)
        gates[f"{name}, auto"] = judged(given.routing, job, material)
    verdict = soft_targets(material.posteriors, job.space, Choices(gate="auto"), truth, material.evidence).verdict
    assert verdict is not None
    gates["auto"] = {**judged(verdict.routing, job, material), "evidence": dict(verdict.evidence)}
    for left in ("mahalanobis", "vocabulary", "update"):
        others = [name for name in ("mahalanobis", "vocabulary", "update") if name != left]
        panel = torch.stack([scores[name] for name in others], -1)
        gates[f"auto without {left}"] = judged(auto(panel, others).routing, job, material)
    panel = torch.stack([scores[name] for name in ("mahalanobis", "vocabulary", "update", "base")], -1)
    gates["auto with base"] = judged(auto(panel, ["m", "v", "u", "b"]).routing, job, material)
    panel = torch.stack([scores[name] for name in ("mahalanobis", "vocabulary", "update")], -1)
    ways = {name: judged(route(way(panel), temperature=1.0), job, material) for name, way in ALTERNATIVES.items()}
    known = torch.stack([job.space.known(at)[truth] for at in range(len(job.teachers))], 1).double()
    gates["oracle"] = judged(route(known, temperature=0.2), job, material)
    return {
        "row": row.name,
        "seed": seed,
        "texts": store.count,
        "known": [round(float(share), 4) for share in known.mean(0)],
        "gates": gates,
        "ways of weighing": ways,
        "labelled": labels_worth(job, material),
        "passes": {"teachers": round(store.cost.total, 2), "base": round(gathered.passes, 2)},
    }


def corrected(row: Row, seed: int) -> dict[str, Any]:
    """Returns what one round of students makes of the routing of `auto`, and of the student's mass alone."""
    job = job_of(row, seed)
    truth = true_labels(job)
    store, _ = score(job, job.recipe.store_folder(), overwrite=False)
    material, _ = training_inputs(job, store, truth)
    given = targets_of(job, material, None)
    with tempfile.TemporaryDirectory() as folder:
        mass, forwards = correction(job, material, given, Path(folder), resume=False)
    after = targets_of(job, material, mass)
    assert after.verdict is not None
    return {
        "row": row.name,
        "seed": seed,
        "before": judged(given.routing, job, material),
        "student alone": judged(route(mass, temperature=1.0), job, material),
        "after": {**judged(after.routing, job, material), "evidence": dict(after.verdict.evidence)},
        "forwards": round(forwards / store.count, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--rows", nargs="*", default=[name for name, row in ROWS.items() if row.split == "disjoint"])
    parser.add_argument("--correct", action="store_true", help="what a round of students corrects, instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("transformers", "plait"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for seed in arguments.seeds:
        for name in arguments.rows:
            file: Path = RESULTS / "routing" / f"{slug(name)}.{seed}.json"
            if arguments.correct:
                file = RESULTS / "corrected" / file.name
                if not file.exists():
                    write(file, corrected(ROWS[name], seed))
            elif not file.exists():
                found = judge(ROWS[name], seed)
                write(file, found)
                told = {gate: found["gates"][gate]["routing"] for gate in ("mahalanobis", "auto")}
                print(name, seed, told, flush=True)


if __name__ == "__main__":
    main()
