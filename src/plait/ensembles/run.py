"""An ensemble, stage by stage: plan, build, train, score, write."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from plait.checkpoints.lineage import lineage
from plait.checkpoints.tokenizers import has_tokenizer
from plait.checkpoints.writer import check_space, writing
from plait.data import Encoded, Examples, encode, length_limit
from plait.encoders.modes import seeded
from plait.ensembles.answers import Members, member_logits
from plait.ensembles.build import check_sources, from_checkpoints, new_ensemble
from plait.ensembles.choices import LOSSES
from plait.ensembles.cost import bytes_needed
from plait.ensembles.distillation import Teaching, teacher_targets, teachers_of, written
from plait.ensembles.evaluation import scores
from plait.ensembles.fit import PREFERENCE, Fit, Fitted, fit
from plait.ensembles.method import Build, Choice
from plait.ensembles.modeling import Ensemble
from plait.ensembles.objective import Ensembling, words_of
from plait.ensembles.plan import EnsemblePlan, check_output, plan
from plait.ensembles.saved import SavedEnsemble, keep, write_ensemble
from plait.errors import SourceError, first_line, listed
from plait.evaluation.scores import TaskScores
from plait.merging import chunks
from plait.merging.engine import combine
from plait.merging.rule import RULES
from plait.recipe import EnsembleRecipe
from plait.reports.record import origin_beside, versions
from plait.teachers.scoring import text_facts
from plait.training.state import (
    check_accelerate,
    check_state,
    finished_job,
    first,
    full_disk,
    is_finished,
    job_key,
    together,
    training_state,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("plait")


def run_ensemble(
    recipe: EnsembleRecipe,
    *,
    data: Any = None,
    validation: Any = None,
    texts: Any = None,
    overwrite: bool = False,
    resume: bool = False,
) -> SavedEnsemble:
    """Returns the ensemble of a recipe; `data`, `validation` and `texts` are what it has in memory, not in files."""
    started = time.monotonic()
    ended = resume and finished_job(recipe.output) is not None
    if first():
        check_output(recipe, overwrite=overwrite or resume)
    check_accelerate()
    with writing(recipe.output, overwrite=overwrite or ended) if first() else nullcontext():
        job = plan(recipe, data, validation, texts)
        same = identity(job)
        if not (ended and is_finished(recipe.output, same)):
            mine = overwrite or (resume and finished_job(recipe.beside) == job_key(same))
            if first():
                check_output(recipe, overwrite=overwrite, beside=mine)
            _trained(job, same, started, overwrite=overwrite, beside=mine, resume=resume)
    return SavedEnsemble(Path(recipe.output))


def _trained(
    job: EnsemblePlan, same: Mapping[str, Any], started: float, *, overwrite: bool, beside: bool, resume: bool
) -> None:
    recipe = job.recipe
    out = Path(os.path.realpath(recipe.output))
    if first():
        announce(job, out)
    with training_state(out, keep=True, resume=resume) as state, seeded(recipe.seed), full_disk(out):
        tokenizer = tokenizer_of(job)
        check_state(state, same)
        fitted = fit(fit_of(job, tokenizer, state, resume=resume, overwrite=overwrite))
        report = {**describe_result(job, fitted), "job": job_key(same)}
        if job.choice.taught:
            report["teachers"] = teachers_of(job, state)
        if job.held is not None:
            report["validation"] = judged(job, tokenizer, fitted).to_dict()
        report["seconds"] = round(time.monotonic() - started, 1)
        if first():
            if recipe.keep_members and fitted.members:
                written(fitted.members, tokenizer, state / "members")
            if recipe.keep_members:
                keep(state / "members", recipe.beside, report, overwrite=beside)
            told: dict[str, Any] = {"overwrite": overwrite, "plain": job.choice.plain}
            write_ensemble(fitted.models, tokenizer, out, report, **told)
            shutil.rmtree(state, ignore_errors=True)
        together()


def announce(job: EnsemblePlan, out: Path) -> None:
    """Says what will be made, how large it will be and what it costs; stops where the disk is too small for it."""
    sizes, costs = job.sizes(), job.costs()
    logger.info(
        "%s: %d members, %s parameters (%.1f MB) instead of %s, %g forward passes per example and epoch",
        job.choice.name, job.members, f"{sizes['saved']:,}", sizes["saved"] * 4 / 1e6, f"{sizes['separate']:,}",
        costs["training_step"],
    )  # fmt: skip
    place = next(folder for folder in out.parents if folder.exists())
    # The states of the best, the last and the present epoch: weights and two moments of the optimiser.
    check_space(place, math.ceil(bytes_needed(job, 3 * min(3, math.ceil(job.recipe.epochs)))))


def tokenizer_of(job: EnsemblePlan) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of the base, or of the first model that was saved with one."""
    source = next((source for source in job.sources if has_tokenizer(source.tokenizer_folder)), job.sources[0])
    tokenizer = source.tokenizer()
    if job.kind == "token_classification" and getattr(tokenizer, "add_prefix_space", None) is False:
        # Words that come one by one are not continuations of the word before.
        from transformers import AutoTokenizer

        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.tokenizer_folder, add_prefix_space=True, local_files_only=True, trust_remote_code=False
        )
        return found
    return tokenizer


def identity(job: EnsemblePlan) -> dict[str, Any]:
    """Returns what must be the same for a training to be resumed."""
    return {
        **job.resolved().model_dump(mode="json", exclude={"output", "report_to"}),
        "data": None if job.examples is None else job.examples.fingerprint,
        "judged_on": None if job.held is None else job.held.fingerprint,
        "sources": [source.digest for source in (*job.sources, *job.teachers)],
        "unlabelled": [text_facts(texts).fingerprint for texts in job.texts],
    }


def fit_of(
    job: EnsemblePlan, tokenizer: PreTrainedTokenizerBase, state: Path, *, resume: bool, overwrite: bool
) -> Fit:
    """Returns what training needs."""
    recipe = job.recipe
    encoded = encoded_for(job, tokenizer)
    members = Choice("separate") if job.choice.taught else job.choice
    objective = Ensembling(
        members, job.noise, job.depth, job.problem, job.kind == "token_classification", words_of(tokenizer),
        recipe.replay,
    )  # fmt: skip
    held = job.held
    judge = None if held is None else partial(judgement, job, tokenizer, held)
    best = None if held is None else PREFERENCE
    return Fit(
        partial(build, job), job.members if not job.choice.lone else 1, encoded, objective, job.schedule(),
        state, judge, best, resume,
        alike=job.choice.alike,
        given=None if recipe.sources is None else partial(built, job),
        lesson=partial(teacher_targets, job, tokenizer, state, overwrite),
        teaching=Teaching(job.choice, job.problem) if job.choice.taught else None,
        taught=job.student_schedule(),
    )  # fmt: skip


def encoded_for(job: EnsemblePlan, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Returns the examples to train on, tokenised; none where nothing is trained."""
    if job.examples is None:
        return Encoded((), (), {})
    return encode(
        job.examples, tokenizer, max_length=job.recipe.cut_at, problem_type=job.head.problem_type,
        config=job.config.encoder,
    )  # fmt: skip


def preference(metrics: Mapping[str, float], metric: str) -> float:
    """Returns what decides which epoch is kept: the metric, the higher the better; where that is level, the lower NLL.

    Accuracies on few rows are often level. The NLL, n, takes away n/(1+n) of a millionth, less than one row in a
    million does.
    """
    nll = metrics.get("nll", 0.0)
    return metrics[metric] * (-1 if metric in LOSSES else 1) - 1e-6 * nll / (1 + nll)


def asked(job: EnsemblePlan, *, trained: bool) -> dict[str, Any]:
    """Returns what a forward pass of the trained thing is told: factors tell members apart from the first layer on."""
    return {} if trained or job.choice.build is not Build.FACTORS else {"replicate_at": 0}


def judgement(job: EnsemblePlan, tokenizer: Any, held: Examples, model: Any) -> dict[str, float]:
    """Returns what all members together score on the rows held back, and how far that speaks for the epoch."""
    speaker = Members(model, job.config.encoder, asked(job, trained=False))
    found = scored_by([speaker], job, tokenizer, held)
    return {**found.metrics, PREFERENCE: preference(found.metrics, job.metric or found.primary)}


def judged(job: EnsemblePlan, tokenizer: Any, fitted: Fitted) -> TaskScores:
    """Returns the scores of the result on the rows held back."""
    assert job.held is not None
    passes = job.members if job.choice.passes else None
    rate = job.noise.options.get("rate")
    told = [Members(m, job.config.encoder, passes=passes, rate=rate) for m in fitted.models]
    return scored_by(told, job, tokenizer, job.held)


def scored_by(speakers: Sequence[Members], job: EnsemblePlan, tokenizer: Any, held: Examples) -> TaskScores:
    """Returns the scores of what some models say."""
    logits = member_logits(
        speakers, tokenizer, held, labels=int(job.config.num_labels or 1), batch_size=32,
        max_length=length_limit(tokenizer, job.config.encoder, job.recipe.cut_at),
    )  # fmt: skip
    return scores(logits, held, job.head.kind, job.problem)


def describe_result(job: EnsemblePlan, fitted: Fitted) -> dict[str, Any]:
    """Returns what is written beside the model: what it is made of, how, on what, and what that cost."""
    told = job.describe()
    kept = ("members", "layers", "shared_layers", "labels", "parameters", "megabytes", "forward_equivalents")
    examples = job.examples
    base = job.sources[0].origin if job.choice.taught else job.recipe.base
    return {
        "base": None if base is None else origin_beside(str(base), job.recipe.output),
        "head_kind": job.kind,
        "separate": len(fitted.models) > 1,
        "plain": job.choice.plain,
        **{name: told[name] for name in kept},
        "sources": [
            {
                "origin": origin_beside(s.origin, job.recipe.output), "digest": s.digest,
                **lineage(s.origin, s.folder, s.recorded_base),
            }
            for s in job.sources
        ],
        "recipe": job.resolved().model_dump(mode="json", exclude_none=True),
        "data": {
            "source": None if examples is None else examples.source,
            "examples": 0 if examples is None else len(examples),
            "validation": 0 if job.held is None else len(job.held),
            "held_back": job.held is not None and not job.given,
        },
        "epochs": list(fitted.epochs),
        "losses": list(fitted.losses),
        **({"unlabelled": told["unlabelled"]} if job.choice.taught else {}),
        **fitted.facts,
        "versions": versions(),
    }


def build(job: EnsemblePlan, members: int, seed: int) -> Ensemble:
    """Returns an ensemble before training: new heads on the base, or the given models with one bottom.

    Raises:
        SourceError: weights that cannot be read.
    """
    try:
        return opened(job, members, seed)
    except (OSError, SafetensorError) as error:
        names = listed(source.origin for source in job.sources)
        raise SourceError(f"{names}: cannot be opened: {first_line(error)}") from error


def opened(job: EnsemblePlan, members: int, seed: int) -> Ensemble:
    """Returns what `build` makes."""
    recipe = job.recipe
    if recipe.sources is not None and not job.choice.taught:
        return from_checkpoints(
            job.sources,
            shared_layers=recipe.shared_layers,
            shared=merged_bottom(job),
            head=recipe.head,
            classifier_dropout=recipe.classifier_dropout,
            problem_type=job.head.problem_type,
        )
    return new_ensemble(
        job.sources[0],
        members=members,
        labels=job.head.names,
        kind=job.kind,
        problem_type=job.head.problem_type,
        shared_layers=recipe.shared_layers,
        head=recipe.head,
        classifier_dropout=recipe.classifier_dropout,
        seed=seed,
    )


def built(job: EnsemblePlan) -> tuple[Ensemble, ...]:
    """Returns models that exist as ensembles of one member each, with the labels in one order, to be averaged.

    Raises:
        MergeError: models that differ in more than their weights.
    """
    sources = job.teachers or job.sources
    check_sources(sources)
    recipe = job.recipe
    return tuple(
        from_checkpoints(
            (source,),
            head=recipe.head,
            classifier_dropout=recipe.classifier_dropout,
            problem_type=job.head.problem_type,
            labels=job.head.names,
        )
        for source in sources
    )


def merged_bottom(job: EnsemblePlan) -> dict[str, Any]:
    """Returns the average of the sources' encoders, which the merge engine makes; one of them is as it is."""
    names = [name for name in job.sources[0].body if all(name in s.body for s in job.sources)]
    bodies = [chunks.body(source) for source in job.sources]
    return dict(combine(bodies, names, RULES["average"], dtype=torch.float32))
