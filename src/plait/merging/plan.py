"""A validated merge: sources opened and aligned, data and statistics read; nothing is computed yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import prod
from typing import Any

from plait.checkpoints.checkpoint import Checkpoint, Wanted, open_checkpoint, open_models
from plait.checkpoints.compatibility import Alignment, align
from plait.checkpoints.embedders import is_embedder
from plait.checkpoints.places import check_apart
from plait.checkpoints.vocabulary import fitted, matched
from plait.checkpoints.writer import check_target, parse_size
from plait.data import Examples, align_labels
from plait.data.language import of_language
from plait.data.reading import read
from plait.encoders.topology import Topology, topology_of
from plait.errors import DataError, MergeError, RecipeError, did_you_mean, listed
from plait.evaluation.embedding import scored_pairs
from plait.merging.defaults import label_orders, method_of, refinement_of, usable_base
from plait.merging.hints import check_some, hint_at_tasks, without_data
from plait.merging.job import check_options
from plait.merging.places import check_order, check_places
from plait.merging.rule import RULES
from plait.merging.saved_statistics import checked
from plait.merging.search.run import describe as describe_search
from plait.merging.search.space import space_of
from plait.merging.search.study import check_search
from plait.merging.search.validation import Split, split_rows, tasks_of
from plait.recipe import ESTIMATION, DataSpec, MergeRecipe, MethodSpec
from plait.registry import Entry
from plait.statistics.cache_space import size_limit
from plait.statistics.embedding import as_objective
from plait.statistics.estimator import ESTIMATORS
from plait.statistics.importance import NORMALIZATIONS, Statistics, load_statistics
from plait.training.state import check_accelerate


@dataclass(frozen=True)
class Plan:
    """A validated merge: what will be combined, and how."""

    recipe: MergeRecipe
    method: MethodSpec
    rule: Entry[Any]
    alignment: Alignment
    inputs: Inputs

    @cached_property
    def topology(self) -> Topology | None:
        """Returns where the layers' weights lie in the sources, None for a family that is not known."""
        return topology_of(self.sources[0].config)

    @property
    def sources(self) -> tuple[Checkpoint, ...]:
        """Returns the opened sources in order."""
        return tuple(self.alignment.sources)

    @property
    def estimator(self) -> str | None:
        """Returns the statistic that the rule needs: an importance, `gram`, or None."""
        return estimator_of(self.rule, self.method)

    @property
    def forward(self) -> bool:
        """Returns whether statistics are gathered in forward order, through the layers merged so far."""
        return in_forward_order(self.rule, self.method)

    def resolved(self) -> MergeRecipe:
        """Returns the recipe with its method spelled out: only settings that the method uses."""
        kept = {"name", *self.method.options}
        if self.estimator is not None or self.forward:
            kept |= {"examples", "batch_size", "max_length", "seed"}
        if self.inputs.texts:
            kept |= {"max_length", "seed"}
        if self.method.forward:
            kept |= {"forward"}
        if "importances" in self.rule.inputs:
            kept |= {"importance", "labels", "normalize", "per"}
            kept |= {"mapping"} if self.method.importance == "mask_nodes" else set()
        if "draws" in self.rule.inputs:
            kept |= {"seed"}
        content = {
            key: value for key, value in self.method.model_dump(exclude_none=True).items() if key in kept
        }
        return self.recipe.model_copy(update={"method": MethodSpec.model_validate(content)})

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain data: parameters, bytes, tasks, statistics."""
        parameters = {name: self._first(name) for name in self.alignment.owners}
        return {
            "combine": "merge",
            "method": self.rule.name,
            "estimator": self.estimator,
            "forward": self.forward,
            "family": self.alignment.family,
            "sources": {s.name: {"model": s.origin, "architecture": s.architecture} for s in self.sources},
            "tasks": {
                task: [self.sources[i].name for i in members]
                for task, members in self.alignment.tasks.items()
            },
            "base": self.alignment.base.origin if self.alignment.base else None,
            "align_heads": self.recipe.align_heads,
            "refine": self.recipe.refine or 0,
            "refine_texts": sum(len(texts) for texts in self.inputs.texts.values()),
            "shared_parameters": sum(prod(h.shape) for h in parameters.values()),
            "megabytes_read": round(
                sum(h.nbytes for s in self.sources for h in s.headers.values()) / 1e6, 2
            ),
            "megabytes_written": round(self.megabytes(), 2),
            "output": self.recipe.output,
            **({"search": describe_search(self)} if self.recipe.search else {}),
        }

    def _first(self, parameter: str) -> Any:
        source = self.sources[self.alignment.owners[parameter][0]]
        return source.header(source.body[parameter])

    def megabytes(self) -> float:
        """Returns the size of the output: one body, and a head and pooler per task."""
        body = (self._first(name) for name in self.alignment.owners)
        firsts = [self.sources[members[0]] for members in self.alignment.tasks.values()]
        heads = (s.header(stored) for s in firsts for stored in self.alignment.own(s).values())
        return float(sum(h.nbytes for h in (*body, *heads))) / 1e6


def check_method(method: MethodSpec) -> Entry[Any]:
    """Returns the rule of a method after checking its name, its importance and every option.

    Raises:
        RecipeError: unknown method, importance, normalisation or option (did you mean), or an option that this
            method cannot use.
    """
    rule = RULES[method.name]
    uses = estimator_of(rule, method) if not {"importances", "grams"}.isdisjoint(rule.inputs) else None
    if method.forward and "grams" not in rule.inputs:
        raise RecipeError(
            "--forward is for methods that use Gram matrices, such as regmean with --data of every source; "
            f"{rule.name} uses none"
        )
    sampled = uses is not None or in_forward_order(rule, method) or "draws" in rule.inputs
    own = ESTIMATION if "importances" in rule.inputs else ("examples", "batch_size", "max_length", "seed")
    known = [*rule.options, *(own if sampled else ())]
    unknown = [name for name in method.options if name not in rule.options]
    if unknown:
        raise RecipeError(
            f"method {rule.name} has no option {listed(f'{n!r}{did_you_mean(n, known)}' for n in unknown)}"
        )
    check_options(rule, method.options)
    if "importances" in rule.inputs:
        check_importance(method)
    elif given := method.model_fields_set & {"importance", "mapping", "labels", "normalize", "per"}:
        raise RecipeError(
            f"method {rule.name} uses no importance, so it cannot take {', '.join(sorted(given))}"
        )
    return rule


def check_importance(method: MethodSpec) -> None:
    """Raises `RecipeError` for an importance or a normalisation that `fisher` does not have."""
    importances = [name for name in ESTIMATORS if name != "gram"]
    if method.importance not in importances:
        raise RecipeError(
            f"unknown importance {method.importance!r}{did_you_mean(method.importance, importances)}"
        )
    if method.normalize not in NORMALIZATIONS:
        raise RecipeError(
            f"unknown normalize {method.normalize!r}{did_you_mean(method.normalize, NORMALIZATIONS)}"
        )
    if method.per == "batch" and method.labels != "given":
        raise RecipeError(
            f"per: batch reproduces published numbers with given labels, not with {method.labels} ones"
        )


def in_forward_order(rule: Entry[Any], method: MethodSpec) -> bool:
    """Returns whether a rule's statistics are gathered in forward order, through the layers merged so far."""
    return method.forward or bool(rule.facts.get("forward"))


def estimator_of(rule: Entry[Any], method: MethodSpec) -> str | None:
    """Returns the statistic that a rule needs of each source beforehand: an importance, `gram`, or None."""
    if in_forward_order(rule, method):
        return None
    if "grams" in rule.inputs:
        return "gram"
    return ESTIMATORS[method.importance].name if "importances" in rule.inputs else None


def check_output(recipe: MergeRecipe, *, overwrite: bool) -> None:
    """Raises `OutputError` when the output exists or would replace what the merge reads; nothing has been read yet."""
    check_target(recipe.output, overwrite=overwrite)
    sources = recipe.sources.values()
    read = [*(s.model for s in sources), *(s.statistics for s in sources), *(s.data for s in sources)]
    check_apart(recipe.output, *read, recipe.base, *recipe.evaluate.values(), *recipe.validation.values())


def check_texts(recipe: MergeRecipe, data: Mapping[str, Any]) -> None:
    """Raises `RecipeError` when a source has no texts to refine the result or align its head on."""
    wanted = [f"--refine {recipe.refine}"] if recipe.refine else []
    wanted += [f"--align-heads {recipe.align_heads}"] if recipe.align_heads not in (None, "none") else []
    bare = [n for n, s in recipe.sources.items() if not (s.data or n in data)]
    if wanted and bare:
        raise RecipeError(
            f"{' and '.join(wanted)} needs texts of {', '.join(bare)} (labels play no part): give "
            f"--data {bare[0]}=FILE, or leave it out"
        )
    if recipe.refine:
        check_accelerate()


def check_data(
    recipe: MergeRecipe, rule: Entry[Any], data: Mapping[str, Any], *, forward: bool = False
) -> None:
    """Raises `RecipeError` when data is missing where the method needs it, or `PLAIT_CACHE_LIMIT` is no size."""
    if not {"importances", "grams"} & set(rule.inputs):
        return
    size_limit()  # statistics are kept
    bare = [n for n, s in recipe.sources.items() if not (s.data or s.statistics or n in data)]
    textless = [n for n, s in recipe.sources.items() if s.statistics and not (s.data or n in data)]
    if forward and textless:
        raise RecipeError(
            f"statistics in forward order depend on all sources, those of {', '.join(textless)} alone are of no use: "
            f"give --data {textless[0]}=FILE, or leave --forward out and use --method regmean"
        )
    if bare:
        instead = "" if forward else f" or --statistics {bare[0]}=FILE"
        raise RecipeError(
            f"method {rule.name} needs data for {', '.join(bare)}: give --data {bare[0]}=FILE{instead}, or use "
            f"--method average, which needs none; {without_data(rule.name, 'importances' in rule.inputs)}"
        )


def check_weights(recipe: MergeRecipe) -> None:
    """Raises `RecipeError` when every λ is zero."""
    weights = recipe.weights()
    if weights is not None and not any(weights) and not any(s.layer_weights for s in recipe.sources.values()):
        raise RecipeError("all weights are 0: give at least one source a positive weight")


def check_layer_weights(recipe: MergeRecipe, rule: Entry[Any], method: MethodSpec) -> None:
    """Raises `RecipeError` where weights by layer meet what looks at all layers at once, or say nothing of a layer."""
    if not any(s.layer_weights for s in recipe.sources.values()):
        return
    if in_forward_order(rule, method) or "depth" in rule.inputs or method.options.get("scope") == "model":
        raise RecipeError(
            f"layer_weights (--layer-weight) cannot be had with {rule.name} as it is asked for, which looks at all "
            "layers at once: give one weight a source"
        )
    ends = [sum(s.weight_at("", depth) for s in recipe.sources.values()) for depth in (0.0, 1.0)]
    if not all(ends):
        raise RecipeError(
            f"layer_weights of all sources are 0 at the {'first' if not ends[0] else 'last'} layer: give one of them a "
            "positive weight there"
        )


def check_count(rule: Entry[Any], count: int) -> None:
    """Raises `RecipeError` when a rule merges another number of sources."""
    wanted = rule.facts.get("sources")
    if wanted is not None and count != wanted:
        raise RecipeError(f"method {rule.name} merges exactly {wanted} sources, {count} are given")


def plan(
    recipe: MergeRecipe,
    data: Mapping[str, Any] | None = None,
    judged: Mapping[str, Any] | None = None,
    *,
    opened: tuple[Checkpoint, ...] | None = None,
    validation: Mapping[str, Any] | None = None,
    dry: bool = False,
) -> Plan:
    """Returns the validated plan of a merge; reads headers, configs, tokenizers and data, no weights.

    Args:
        recipe: what to do.
        data: by source what is in memory instead of in files.
        judged: the same by task, to score on.
        opened: the sources, where somebody has opened them already.
        validation: by task what is in memory to search on.
        dry: whether nothing is to be merged by it, so that no model is run.

    Raises:
        RecipeError: an unknown or unusable method, option, task or weight.
        SourceError: a source that is missing, corrupt or unsafe.
        MergeError: sources that cannot become one model; everything that differs is listed.
        DataError: data that is missing, empty, misnamed, or whose labels a head does not have.
    """
    objects = dict(data or {})
    if opened is not None:
        check_sources(opened)
    sources = open_sources(recipe) if recipe.open and opened is None else opened
    orders = label_orders(recipe, sources, objects, judged or {}, dry=dry) if sources is not None else None
    base = usable_base(recipe, sources, orders) if recipe.open and sources is not None else None
    saved: Saved = cache(load_statistics)
    method = method_of(recipe, objects, saved, base=base is not None)
    recipe = recipe.model_copy(update=refinement_of(recipe, objects, sources))
    rule = check_method(method)
    check_count(rule, len(recipe.sources))
    parse_size(recipe.max_shard_size)
    check_search(recipe, validation or {})
    check_data(recipe, rule, objects, forward=in_forward_order(rule, method))
    check_texts(recipe, objects)
    check_some(recipe, objects)
    check_weights(recipe)
    if recipe.rank is not None:
        raise RecipeError("--rank is that of one adapter: it goes with --keep-adapter")
    check_layer_weights(recipe, rule, method)
    sources = sources or open_sources(recipe)
    if base is None and recipe.base is not None:
        base = open_checkpoint(recipe.base, name="base", trust_remote_code=recipe.trust_remote_code)
    elif base is None and "base" in rule.inputs:
        base = recorded_base(sources, rule.name, trust_remote_code=recipe.trust_remote_code)
    base = fitted(base, sources)
    orders = label_orders(recipe, sources, objects, judged or {}, dry=dry) if orders is None else orders
    alignment = align(sources, base=base, tasks=recipe.tasks(), merge_pooler=recipe.merge_pooler, orders=orders)
    hint_at_tasks(sources, recipe.tasks())
    check_places(sources[0], alignment, estimator_of(rule, method))
    if in_forward_order(rule, method):
        check_order(sources[0], rule.name)
    estimator = "gram" if in_forward_order(rule, method) else estimator_of(rule, method)
    searched = {**recipe.validation, **(validation or {})}
    inputs = read_inputs(recipe, method, estimator, sources, objects, judged or {}, saved, searched)
    found = Plan(recipe, method, rule, alignment, inputs)
    if recipe.search:
        space_of(found)
    return found


def open_sources(recipe: MergeRecipe) -> tuple[Checkpoint, ...]:
    """Returns the opened sources in order."""
    wanted = [Wanted(s.model, name, s.revision, s.labels, s.base or recipe.base) for name, s in recipe.sources.items()]
    sources = open_models(wanted, trust_remote_code=recipe.trust_remote_code)
    check_sources(sources)
    return matched(sources)


def check_sources(sources: tuple[Checkpoint, ...]) -> None:
    """Raises `MergeError` for a class that transformers does not have."""
    import transformers

    odd = [f"{s.name} is a {s.architecture}" for s in sources if not hasattr(transformers, s.architecture)]
    if odd:
        raise MergeError(f"{listed(odd)}: a class that transformers does not have cannot be part of a merge")


def recorded_base(sources: tuple[Checkpoint, ...], method: str, *, trust_remote_code: bool) -> Checkpoint:
    """Returns the base that the sources record.

    Raises:
        RecipeError: none recorded, or not the same one.
    """
    found = sorted({base for s in sources if (base := s.recorded_base) is not None})
    if len(found) != 1:
        what = (
            f"the sources record different bases ({', '.join(found)})"
            if found
            else "no source records its base"
        )
        raise RecipeError(
            f"method {method} needs the base model and {what}: give --base MODEL, or use --method average, or regmean "
            "with texts of every source (labels not needed)"
        )
    return open_checkpoint(found[0], name="base", trust_remote_code=trust_remote_code)


Saved = Callable[[str], Statistics]
"""Reads saved statistics, each file once."""


@dataclass(frozen=True)
class Rows:
    """Data sets that one merge reads, each once: the same rows may serve statistics, refinement and evaluation."""

    known: dict[str, Examples] = field(default_factory=dict)

    def read(self, entry: Any, *, limit: int | None = None, seed: int = 0) -> Examples:
        """Returns the rows of an entry, or a random subset of them."""
        if not isinstance(entry, DataSpec):
            return read(entry, limit=limit, seed=seed)
        key = entry.model_dump_json()
        if key not in self.known:
            self.known[key] = read(entry)
        return self.known[key].sample(limit, seed)


@dataclass(frozen=True)
class Inputs:
    """Examples, statistics and texts to refine on by source, and rows to score on by task."""

    examples: Mapping[str, Examples] = field(default_factory=dict)
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    judged: Mapping[str, Examples] = field(default_factory=dict)
    texts: Mapping[str, Examples] = field(default_factory=dict)
    split: Split = field(default_factory=Split)
    """Rows to search on, where the recipe wants a search; `judged` holds none of them."""


def read_inputs(  # noqa: PLR0917 - what a merge is given, in the order of its stages
    recipe: MergeRecipe,
    method: MethodSpec,
    estimator: str | None,
    sources: tuple[Checkpoint, ...],
    data: Mapping[str, Any],
    judged: Mapping[str, Any],
    saved: Saved,
    searched: Mapping[str, Any],
) -> Inputs:
    """Returns all that a merge reads besides weights, so that what is wrong with it shows before anything is computed.

    Raises:
        DataError: data that is missing, empty, misnamed, without labels or with labels that a head does not have;
            statistics of other weights.
        RecipeError: statistics of another kind, or `evaluate` for a task that is not there.
    """
    examples, statistics = {}, {}
    rows = Rows()
    for source in sources if estimator is not None else ():
        spec = recipe.sources[source.name]
        if spec.statistics is not None:
            statistics[source.name] = checked(
                saved(spec.statistics), spec.statistics, source, estimator or "", method
            )
        else:
            found = rows.read(data.get(source.name, spec.data), limit=method.examples, seed=method.seed)
            if source.objective is not None or (estimator != "gram" and method.labels == "given"):
                check_labels(found, source)
            examples[source.name] = found
    test = read_judged(recipe, sources, {**recipe.evaluate, **judged}, rows)
    split = Split()
    if recipe.search:
        given = read_judged(recipe, sources, searched, rows, "validation")
        entries = {s.name: data.get(s.name, recipe.sources[s.name].data) for s in sources}
        known = {name: rows.read(entry) for name, entry in entries.items() if entry is not None}
        split = split_rows(
            tasks_of(sources, recipe.tasks()), given, known, test, limit=recipe.search_rows, seed=method.seed
        )
    texts = read_texts(recipe, method, sources, data, rows)
    return Inputs(examples, statistics, {**test, **split.judged}, texts, split)


def read_texts(
    recipe: MergeRecipe, method: MethodSpec, sources: tuple[Checkpoint, ...], data: Mapping[str, Any], rows: Rows
) -> dict[str, Examples]:
    """Returns the texts, without labels, that the result is refined on or its heads are aligned on."""
    if not (recipe.refine or recipe.align_heads not in (None, "none")):
        return {}
    given = {s.name: data.get(s.name, recipe.sources[s.name].data) for s in sources}
    return {
        name: rows.read(entry, limit=recipe.refine_texts, seed=method.seed).unlabelled()
        for name, entry in given.items()
    }


def read_judged(
    recipe: MergeRecipe,
    sources: tuple[Checkpoint, ...],
    named: Mapping[str, Any],
    rows: Rows,
    what: str = "evaluate",
) -> dict[str, Examples]:
    """Returns the rows to score on by task, whose labels the task's head knows."""
    firsts: dict[str, Checkpoint] = {}
    for source in sources:
        firsts.setdefault(recipe.tasks()[source.name], source)
    strangers = [
        f"{what} names unknown task {n!r}{did_you_mean(n, firsts)}" for n in named if n not in firsts
    ]
    if strangers:
        raise RecipeError(listed(strangers))
    found = {task: rows.read(entry) for task, entry in named.items()}
    for task, examples in found.items():
        if is_embedder(firsts[task]):
            scored_pairs(examples, firsts[task].name)
            continue
        if examples.labels is None and firsts[task].objective is None:
            raise DataError(examples.lacks_labels(f"expected a label column to score task {task} on"))
        check_labels(examples, firsts[task])
    return found


def check_labels(examples: Examples, source: Checkpoint) -> None:
    """Raises `DataError` when examples have no labels, or labels that a source's head does not have."""
    if source.objective is not None:
        of_language(examples, source.objective)
        return
    if is_embedder(source):
        as_objective(examples, "given")
        return
    if source.kind == "body":
        raise DataError(f"{source.name} has no head, so labelled data mean nothing to it: leave its data out")
    if examples.labels is None:
        raise DataError(examples.lacks_labels("give some, or choose --labels sampled or exact"))
    kind: Any = source.kind
    problem: Any = source.problem_type
    align_labels(examples, source.labels, kind=kind, problem_type=problem)
