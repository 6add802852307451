"""The ensemble, stage by stage: plan > build > train > score > write."""

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

from plait.api.ensemble_building import build, built
from plait.api.ensemble_choices import LOSSES
from plait.api.ensemble_costs import bytes_needed
from plait.api.ensemble_plan import EnsemblePlan, check_output, plan
from plait.api.ensemble_scores import Members, member_logits, scores
from plait.api.ensemble_teaching import are_files, lesson, teachers_of, written
from plait.api.ensembles import SavedEnsemble, keep, write_ensemble
from plait.api.inputs import is_file
from plait.api.merging import versions
from plait.checkpoints.tokenizers import has_tokenizer
from plait.checkpoints.writer import check_space, writing
from plait.data import Encoded, Examples, encode, length_limit
from plait.ensembles.fitting import fit
from plait.ensembles.learning import PREFERENCE, Fit, Fitted
from plait.ensembles.method import Build, Choice
from plait.ensembles.teaching import Teaching
from plait.ensembles.training import Ensembling, words_of
from plait.recipe import EnsembleRecipe, parse_as
from plait.report.scores import TaskScores
from plait.statistics.posteriors.score import text_facts
from plait.training.processes import first, together
from plait.training.state import (
    check_accelerate,
    check_state,
    finished_job,
    full_disk,
    is_finished,
    job_key,
    seeded,
    training_state,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("plait")


def ensemble(
    base: str | Path | None = None,
    *,
    data: Any = None,
    out: str | Path,
    sources: str | Path | Sequence[str | Path] | None = None,
    validation: Any = None,
    texts: Any = None,
    overwrite: bool = False,
    resume: bool = False,
    **options: Any,
) -> SavedEnsemble:
    """Returns an ensemble trained on labelled data and written to `out`; `.model` is a transformers model.

    Methods `distilled`, `soup`, `greedy_soup`, `swa` and `deni` write one ordinary checkpoint.

    Args:
        base: the encoder that all members start from (folder or Hub id).
        data: labelled data: a file, a `datasets.Dataset`, columns.
        out: the folder to write.
        sources: fine-tuned models that become the members, instead of `base`; with `distilled` and `hydra` those that
            teach, of any architecture, and `base` is what learns from them.
        validation: labelled data that decides which epoch is kept; a tenth of `data` is held back without it.
        texts: texts without labels to teach on, of `distilled` and `hydra`: a file, several, or texts in memory.
        overwrite: whether an existing output is replaced, once the new one is complete.
        resume: go on with a training that was stopped.
        options: all other fields of a recipe: `members`, `shared_layers`, `head`, `method`, `perturbation`,
            `strength`, `replicate_at`, `consistency`, `alpha`, `replay`, `accumulate`, `limit`, `held_back`, `metric`,
            `epochs`, `learning_rate`, `batch_size`, `max_length`, `warmup`, `weight_decay`, `precision`, `seed`,
            `problem_type`, `classifier_dropout`, `revision`, `report_to`, `trust_remote_code`, `student_epochs`,
            `keep_members`, `store`.

    Raises:
        PlaitError: anything a user can mend; nothing has been written then.
    """
    recipe = ensemble_recipe(
        base, data=data, out=out, sources=sources, validation=validation, texts=texts, options=options
    )
    return run_ensemble(
        recipe,
        data=None if is_file(data) else data,
        validation=None if is_file(validation) else validation,
        texts=None if are_files(texts) else texts,
        overwrite=overwrite,
        resume=resume,
    )


def ensemble_recipe(
    base: str | Path | None,
    *,
    data: Any,
    out: str | Path,
    sources: str | Path | Sequence[str | Path] | None,
    validation: Any,
    texts: Any = None,
    options: Mapping[str, Any],
) -> EnsembleRecipe:
    """Returns the recipe that these arguments of `ensemble` spell; data in memory stays outside."""
    given = [sources] if isinstance(sources, str | Path) else sources
    content = {
        "base": None if base is None else str(base),
        "sources": None if given is None else [str(source) for source in given],
        "data": data if is_file(data) else None,
        "validation": validation if is_file(validation) else None,
        **({"text": texts} if are_files(texts) else {}),
        "output": str(out),
        **options,
    }
    if "method" not in content and (texts is not None or content.get("text")):
        content["method"] = "distilled"
    return parse_as(EnsembleRecipe, content, "ensemble")


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
    source = next((source for source in job.sources if has_tokenizer(source.folder)), job.sources[0])
    tokenizer = source.tokenizer()
    if job.kind == "token_classification" and getattr(tokenizer, "add_prefix_space", None) is False:
        # Words that come one by one are not continuations of the word before.
        from transformers import AutoTokenizer

        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.folder, add_prefix_space=True, local_files_only=True, trust_remote_code=False
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
        lesson=partial(lesson, job, tokenizer, state, overwrite),
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
    return {
        "made_by": "ensemble",
        "base": job.sources[0].origin if job.choice.taught else job.recipe.base,
        "kind": job.kind,
        "separate": len(fitted.models) > 1,
        "plain": job.choice.plain,
        **{name: told[name] for name in kept},
        "sources": [{"origin": s.origin, "digest": s.digest} for s in job.sources],
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


__all__ = ["check_output", "ensemble", "ensemble_recipe", "plan", "run_ensemble"]
