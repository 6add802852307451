"""What Plait does, one function a job: merge, amalgamate, ensemble, finetune, estimate, posteriors, run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from plait.amalgamation.run import run_amalgamation, scoring_of
from plait.amalgamation.student import Student
from plait.amalgamation.texts import with_columns
from plait.api.checking import Given, as_recipe
from plait.checkpoints.checkpoint import open_checkpoint
from plait.checkpoints.output import one_writer
from plait.comparison.material import InMemory
from plait.comparison.result import Comparison
from plait.comparison.run import run_comparison
from plait.ensembles.run import run_ensemble
from plait.ensembles.saved import SavedEnsemble
from plait.errors import RecipeError
from plait.merging.merged import Merged
from plait.merging.run import run_merge
from plait.processes import one_job, rank
from plait.progress import noted
from plait.recipe import (
    AmalgamateRecipe,
    CompareRecipe,
    EnsembleRecipe,
)
from plait.recipe.arguments import (
    amalgamation_recipe,
    are_files,
    comparison_recipe,
    ensemble_recipe,
    is_file,
    merge_recipe,
)
from plait.statistics.cache import PASSES, asked, cached, estimated
from plait.statistics.importance import Statistics
from plait.teachers import Store, score_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("plait")

@noted
def run(
    recipe: Given, *, overwrite: bool = False, resume: bool = False, output: str | Path | None = None
) -> Any:
    """Returns the result of a recipe (a YAML file, a mapping or a parsed one), written to its `output`.

    A merge gives a `Merged` checkpoint, an amalgamation a `Student`, an ensemble a `SavedEnsemble`, a comparison a
    `Comparison`.

    Args:
        recipe: a YAML file (ours or mergekit's), a mapping or a parsed recipe.
        overwrite: whether an existing output is replaced, once the new one is complete.
        resume: go on with the training that was stopped, where there is any.
        output: the folder to write instead of the recipe's.

    Raises:
        PlaitError: anything a user can mend; nothing has been written then.
    """
    found = as_recipe(recipe, output)
    if isinstance(found, AmalgamateRecipe):
        return run_amalgamation(found, overwrite=overwrite, resume=resume)
    if isinstance(found, EnsembleRecipe):
        return run_ensemble(found, overwrite=overwrite, resume=resume)
    if isinstance(found, CompareRecipe):
        return run_comparison(found, overwrite=overwrite)
    return run_merge(found, overwrite=overwrite, resume=resume)


@noted
def finetune(base: str | Path, data: Any, out: str | Path, **options: Any) -> dict[str, Any]:
    """Returns the report of a fine-tuned checkpoint written to `out`; see `plait.training.finetune` for options.

    Raises:
        PlaitError: unusable base or data, existing output, accelerate missing.
    """
    from plait.evaluation import evaluate_model
    from plait.training import finetune as train

    return train(base, data, out, **{"score": evaluate_model, **options})


@noted
@one_job()
def estimate(
    model: str | Path | PreTrainedModel,
    data: Any,
    *,
    importance: str = "mask_nodes",
    labels: str = "given",
    tokenizer: Any = None,
    batch_size: int = 16,
    examples: int | None = None,
    max_length: int | None = None,
    per: str = "example",
    passes: int = PASSES,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Statistics:
    """Returns a model's statistics on data: `.of(parameter)` weighs a parameter, `.save(path)` shares them.

    Args:
        model: a checkpoint (folder or Hub id) or a transformers model in memory, which is left as it was.
        data: a file, a `datasets.Dataset`, columns, or `(texts, labels)`.
        importance: an importance of `plait.methods()`; `gram` for RegMean.
        labels: `given`, `sampled` from the model, or `exact` (the expectation over the model's distribution).
        tokenizer: needed for a model in memory.
        batch_size: texts at a time; the result does not depend on it (except for `per="batch"`).
        examples: a random subset of this size; default all.
        max_length: tokens a text is cut at.
        per: `example`; `batch` only to reproduce published numbers.
        passes: `exact` labels take at most so many backward passes per text; beyond, one with random signs.
        seed: of the subset, of sampled labels and of random signs.
        out: a `.safetensors` file to write as well.
        overwrite: whether an existing `out` is replaced.
        revision: of a Hub id.
        trust_remote_code: whether the checkpoint may run its own code.

    Raises:
        PlaitError: unknown importance or labels, unusable data or model, existing output.
    """
    entry, chosen, settings = asked(
        model, data, importance, examples, out, overwrite=overwrite, labels=labels, per=per, passes=passes, seed=seed,
        batch_size=batch_size, max_length=max_length,
    )  # fmt: skip
    with nullcontext() if out is None or rank() else one_writer(out):
        if isinstance(model, str | Path):
            source = open_checkpoint(model, revision=revision, trust_remote_code=trust_remote_code)
            found = cached(source, chosen, entry.name, settings)
        elif tokenizer is None:
            raise RecipeError("a model in memory needs its tokenizer: pass tokenizer=")
        else:
            provenance = {
                "estimator": entry.name,
                "data": chosen.fingerprint,
                "examples": len(chosen),
                **settings,
            }
            if model.dtype.itemsize < torch.float32.itemsize:
                model = cast("PreTrainedModel", copy.deepcopy(model).float())
            found = estimated(model, tokenizer, chosen, entry.name, settings, provenance)
        if out is not None and not rank():
            found.save(out)
    return found


@noted
def amalgamate(
    teachers: Mapping[str, Any] | Sequence[str | Path],
    *,
    texts: Any,
    out: str | Path,
    student: str | Path | None = None,
    validation: Any = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **options: Any,
) -> Student:
    """Returns one student over the union of the teachers' labels, taught without labels and written to `out`.

    Args:
        teachers: name -> classifier (folder or Hub id), in order; a value may be a mapping as in a recipe.
        texts: unlabelled texts: a file, a `datasets.Dataset`, a list of texts.
        out: the folder to write, an ordinary checkpoint.
        student: where the student starts: a model, a teacher's name, or `merged` for the average of the teachers;
            default the base that all teachers record.
        validation: labelled data that decides which epoch is kept, instead of agreement with the teachers.
        text: column of the texts, where its name is not a usual one.
        text_pair: column of their pairs.
        label: column of the texts' own labels, for study: gate `oracle`, and how often the gate is right.
        overwrite: whether an existing output is replaced, once the new one is complete.
        resume: go on with a training that was stopped. Posteriors are resumed in any case.
        options: `labels`, a teacher's name -> names of its head's labels in order, where its own are LABEL_0, LABEL_1;
            all other fields of a recipe: `gate`, `base`, `temperature`, `target`, `margin`, `agreement`, `rounds`,
            `posterior`, `calibrate`, `objective`, `rename`, `passes`, `last_layers`, `stop`, `dropout`, `limit`,
            `held_back`, `epochs`, `learning_rate`, `batch_size`, `max_length`, `warmup`, `weight_decay`, `precision`,
            `seed`, `report_to`, `store`, `trust_remote_code`; `routing`, a file (csv, jsonl or parquet) that says who
            taught each text, how clearly, and with which weights.

    Raises:
        PlaitError: anything a user can mend; no student has been written then.
    """
    texts = with_columns(texts, text=text, text_pair=text_pair, label=label)
    recipe = amalgamation_recipe(
        teachers, out=out, texts=texts, student=student, validation=validation, options=options
    )
    return run_amalgamation(
        recipe,
        texts=None if is_file(texts) else texts,
        validation=None if is_file(validation) else validation,
        overwrite=overwrite,
        resume=resume,
    )


@noted
@one_job()
def posteriors(
    teachers: Mapping[str, Any] | Sequence[str | Path],
    *,
    texts: Any,
    out: str | Path,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    limit: int | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    **settings: Any,
) -> Store:
    """Returns the store that `amalgamate(…, store=out)` makes as its first stage; a stopped run goes on where it was.

    Args:
        teachers: name -> classifier (folder or Hub id), in order.
        texts: unlabelled texts: a file, a `datasets.Dataset`, a list of texts.
        out: the folder of the store.
        overwrite: whether a store of other teachers, texts or settings is replaced.
        trust_remote_code: whether a teacher may run its own code.
        limit: a random subset of this size.
        text: column of the texts, where its name is not a usual one.
        text_pair: column of their pairs.
        settings: `passes` (16), `seed`, `last_layers`, `dropout`, `keep` (features unless none or layers),
            `stop`, `batch_size`, `max_length`.

    Raises:
        PlaitError: anything a user can mend.
    """
    job = scoring_of(
        teachers, texts=texts, out=out, trust_remote_code=trust_remote_code, limit=limit, text=text,
        text_pair=text_pair, **settings,
    )  # fmt: skip
    store = score_texts(Path(out), job.texts, job.teachers, job.settings, overwrite=overwrite)
    logger.info("%d texts scored by %s", store.count, ", ".join(t.name for t in store.teachers))
    return store


@noted
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

    Some methods write one ordinary checkpoint: see `plait.methods()`.

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


@noted
def merge(
    sources: Mapping[str, Any] | Sequence[str | Path],
    *,
    out: str | Path,
    method: str | None = None,
    data: Mapping[str, Any] | None = None,
    statistics: Mapping[str, str | Path] | None = None,
    base: str | Path | None = None,
    weights: Mapping[str, float] | None = None,
    tasks: Mapping[str, str] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    merge_pooler: bool = False,
    align_heads: str | None = None,
    align_ridge: float = 1.0,
    refine: int | None = None,
    refine_texts: int = 256,
    refine_on: str = "logits",
    refine_heads: bool = False,
    refine_dropout: bool = False,
    refine_rate: float = 1e-4,
    refine_batch_size: int = 16,
    refine_precision: str = "float32",
    keep_adapter: str | None = None,
    rank: int | None = None,
    search: int | None = None,
    search_rows: int = 500,
    search_batch: int = 4,
    storage: str | None = None,
    validation: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    **options: Any,
) -> Merged:
    """Returns one checkpoint made of several, written to `out`.

    Args:
        sources: name -> checkpoint (folder or Hub id), in order; a value may be a mapping as in a recipe. A list of
            checkpoints takes the names of their folders.
        out: the folder to write.
        method: a rule of `plait.methods()`; left open it is chosen by what is given, see docs/merging.md (`fisher`
            where an importance is).
        data: name -> labelled data of that source: a file, a `datasets.Dataset`, or columns.
        statistics: name -> statistics saved by `plait.estimate`, instead of data.
        base: the model the sources were fine-tuned from, for the rules that need it; else found where it is recorded.
        weights: name -> λ, 1 where not given.
        tasks: source name -> task name, for sources that share one task (their heads are merged, aligned by label);
            `{"a,b,c": "sentiment"}` names several at once.
        evaluate: task -> labelled data to score the result and its sources on.
        merge_pooler: merge the poolers too, as Plait 0.1 did, instead of keeping each with its head.
        align_heads: fit each head to the merged encoder on the texts of `data`: `shift`, `ridge` or `none`; default
            `ridge` where the method is left open and every source has texts.
        align_ridge: how strongly `ridge` is held to the states as they are, relative to their mean square.
        refine: passes over texts of `data` in which the merged encoder learns the sources' own answers; labels play no
            part. Default: see docs/merging.md.
        refine_texts: texts of each source for both, a random subset.
        refine_on: what is learned: `logits`, or the `hidden` states that the heads read.
        refine_heads: whether heads are trained too.
        refine_dropout: whether the encoder's dropout is on.
        refine_rate: the highest learning rate.
        refine_batch_size: texts a step.
        refine_precision: `float32`, or `bfloat16` mixed precision.
        keep_adapter: merge adapters into one adapter (`svd`, `cat` or `knots`), see docs/sources.md; the result is a
            `MergedAdapter`.
        rank: of that adapter.
        search: trials in which the method's numbers and the weights of sources are searched on validation data.
        search_rows: validation rows of each task, a random subset.
        search_batch: trials for each pass over the weights, where the method works entry by entry.
        storage: a database that several processes may search in together, such as `sqlite:///search.db`; default a file
            beside the output.
        validation: task -> labelled data to search on; default the labelled `data` of its sources, else half of the
            rows that are evaluated on.
        dtype: of the output; default that of the sources.
        max_shard_size: such as `5GB`.
        trust_remote_code: whether a source may run its own code; never unless asked.
        overwrite: whether an existing output is replaced, once the new one is complete.
        resume: go on with a search or a refinement that was stopped.
        options: `forward`, `importance`, `mapping`, `labels`, `normalize`, `per`, `examples`, `batch_size`,
            `max_length`, `seed`, and the options of the method. A mapping `labels` says instead what the labels of a
            source's head are called, in its order: `{"sst": ["negative", "positive"]}`.

    Raises:
        PlaitError: anything a user can mend; nothing has been written then.
    """
    judged = {task: entry for task, entry in (evaluate or {}).items() if not is_file(entry)}
    searched = {task: entry for task, entry in (validation or {}).items() if not is_file(entry)}
    recipe, objects = merge_recipe(
        sources, out=out, method=method, data=data, statistics=statistics, base=base, weights=weights,
        tasks=tasks, evaluate={task: entry for task, entry in (evaluate or {}).items() if task not in judged},
        merge_pooler=merge_pooler, align_heads=align_heads, align_ridge=align_ridge, refine=refine,
        refine_texts=refine_texts, refine_on=refine_on, refine_heads=refine_heads,
        refine_dropout=refine_dropout, refine_rate=refine_rate, refine_batch_size=refine_batch_size,
        refine_precision=refine_precision, keep_adapter=keep_adapter, rank=rank, search=search,
        search_rows=search_rows, search_batch=search_batch, storage=storage,
        validation={task: entry for task, entry in (validation or {}).items() if task not in searched},
        dtype=dtype, max_shard_size=max_shard_size, trust_remote_code=trust_remote_code, options=options,
    )  # fmt: skip
    return run_merge(
        recipe, data=objects, judged=judged, validation=searched, overwrite=overwrite, resume=resume
    )


@noted
def compare(
    sources: Mapping[str, Any] | Sequence[str | Path],
    *,
    out: str | Path,
    data: Mapping[str, Any] | None = None,
    test: Any = None,
    texts: Any = None,
    base: str | Path | None = None,
    tasks: Mapping[str, str] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Comparison:
    """Returns every way in which checkpoints can become one model, scored on the same rows and written to `out`.

    `.table` has a row for each candidate, `.recommended` the choice, `.recipe(id)` what makes one, `.save(path)` writes
    it. What lies in `out` already is not computed again.

    Args:
        sources: name -> checkpoint (folder or Hub id), in order; a value may be a mapping as in a recipe. A list of
            checkpoints takes the names of their folders.
        out: the folder to write.
        data: name -> texts of that source, with labels where a method needs them: a file, a `Dataset`, columns.
        test: name -> labelled rows to score on; a name that is no source's, or rows alone, are scored over all labels.
            Sources without any have half of their data cut off for it.
        texts: texts without labels that students learn from; default those of the data.
        base: the model the sources were fine-tuned from; else found where it is recorded.
        tasks: source name -> task name, for sources that share one task; by default where all labels are the same.
        overwrite: whether what lies in `out` is forgotten first.
        options: `only`, `methods`, `budget`, `prefer`, `keep`, `limit`, `test_share`, `batch_size`, `max_length`,
            `seed`, `report_to`, `trust_remote_code`; `labels`, a source's name -> names of its head's labels in order.

    Raises:
        PlaitError: anything a user can mend. A candidate that fails stops nobody: `.failed` says which and why.
    """
    recipe, objects, held = comparison_recipe(
        sources, out=out, data=data, test=test, texts=texts, base=base, tasks=tasks, options=options
    )
    given = InMemory(objects, held, None if is_file(texts) else texts)
    return run_comparison(recipe, given, overwrite=overwrite)
