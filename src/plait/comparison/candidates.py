"""Candidates: what sources can become, by every method that is registered, the best tested ones first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plait.comparison.situation import Situation, as_they_are
from plait.ensembles.method import METHODS, Build
from plait.errors import RecipeError, did_you_mean, listed
from plait.merging.rule import RULES
from plait.recipe import AmalgamateRecipe, EnsembleRecipe, MergeRecipe
from plait.registry import Entry

SEPARATE = "separate"
FIRST = ("heads", "refine", "actmerge", "regmean", "average", "tsv", "ties", "fisher", "task_arithmetic")
"""Merges in the order in which the experiments recommend them; all other rules follow."""
DEFAULT = "default"
"""What `--methods` calls the merge that Plait makes without being told a method."""
AUTO, MERGED, TEACHER = "auto", "merged", "teacher"
"""Students by where they start: the base, the merge of their teachers, one of them."""


@dataclass(frozen=True)
class Candidate:
    """One way of combining the sources.

    Attributes:
        id: such as `merge/regmean`.
        title: for people.
        recipe: that makes it, at its place in the comparison; None where nothing is to be made.
        reason: why it is not possible; None where it is.
        default: whether it takes part without a budget and without being named.
        texts: whether it is made of the texts that students learn from.
        data: whether it is made of the sources' data.
    """

    id: str
    title: str
    recipe: MergeRecipe | EnsembleRecipe | AmalgamateRecipe | None = None
    reason: str | None = None
    default: bool = True
    texts: bool = False
    data: bool = False

    @property
    def way(self) -> str:
        """Returns `merge`, `ensemble`, `amalgamate`, or `separate`."""
        return self.id.partition("/")[0]

    @property
    def method(self) -> str:
        """Returns the method's name, or that of a variant."""
        return self.id.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """Returns its folder in the comparison."""
        return f"candidates/{self.id.replace('/', '-')}"


def candidates_of(situation: Situation) -> list[Candidate]:
    """Returns what is to be compared, the sources as they are first.

    Raises:
        RecipeError: a method that does not exist, or none that is possible.
    """
    apart = Candidate(SEPARATE, "the sources as they are, each on its own")
    found = [*merges(situation), *ensembles(situation), *students(situation)]
    return [apart, *chosen(situation, found)]


def chosen(situation: Situation, found: Sequence[Candidate]) -> list[Candidate]:
    """Returns the candidates of the ways and methods that the recipe names."""
    recipe = situation.recipe
    of_ways = [c for c in found if not recipe.only or c.way in recipe.only]
    if not recipe.methods:
        return of_ways
    wanted = [default_merge(situation) if name == DEFAULT else name for name in recipe.methods]
    known = {c.method for c in found}
    if unknown := [name for name in wanted if name not in known]:
        every = {*known, DEFAULT}
        raise RecipeError(listed(f"no method {name!r} to compare{did_you_mean(name, every)}" for name in unknown))
    kept = [replace(c, default=True) for c in of_ways if c.method in wanted]
    if not any(c.reason is None for c in kept):
        reasons = listed(f"{c.id}: {c.reason}" for c in kept) or f"none of them is of --only {','.join(recipe.only)}"
        raise RecipeError(f"--methods {','.join(recipe.methods)}: {reasons}")
    return kept


def default_merge(situation: Situation) -> str:
    """Returns which candidate is the merge that Plait makes without being told a method."""
    if not lacking(situation):
        return "refine"
    return "actmerge" if situation.base is not None else "average"


def lacking(situation: Situation) -> list[str]:
    """Returns the sources without data."""
    return [name for name in situation.material.names if name not in situation.material.data]


def merges(situation: Situation) -> Iterator[Candidate]:
    """Yields a merge by every rule, and those that go on after the rule."""
    if not situation.can("merge"):
        return
    names = [*FIRST, *(name for name in RULES if name not in FIRST)]
    soup = situation.material.alike
    for name in names:
        found = variant(situation, name) if name in VARIANTS else by_rule(situation, RULES[name])
        yield replace(found, title=f"{found.title}, one head") if soup else found


VARIANTS = {
    "heads": ("default rule, heads fitted to the merged encoder", {"refine": 0, "align_heads": "ridge"}),
    "refine": ("default merge: heads fitted, encoder refined on the sources' answers", {}),
}
"""Merges by the default rule, by what follows it: title, and fields of their recipes."""


def variant(situation: Situation, name: str) -> Candidate:
    """Returns the merge by the default rule with what follows it on texts."""
    title, changes = VARIANTS[name]
    if bare := lacking(situation):
        return Candidate(f"merge/{name}", title, reason=f"needs texts of {', '.join(bare)} (--data {bare[0]}=FILE)")
    told: dict[str, Any] = {**at(situation, f"merge-{name}"), **changes}
    if situation.recipe.max_length is not None:
        told["method"] = {"name": AUTO, "max_length": situation.recipe.max_length}
    return Candidate(f"merge/{name}", title, situation.merging(data=True, **told), data=True)


def at(situation: Situation, folder: str) -> dict[str, Any]:
    """Returns where a candidate is written."""
    return {"output": str(situation.folder / "candidates" / folder)}


def by_rule(situation: Situation, rule: Entry[Any]) -> Candidate:
    """Returns the merge by one rule, with its defaults; or why there is none."""
    method: dict[str, Any] = {"name": rule.name}
    informed = uses_data(rule)
    if informed and situation.recipe.max_length is not None:
        method["max_length"] = situation.recipe.max_length
    title = rule.name.replace("_", " ")
    if (reason := rule_problem(situation, rule)) is not None:
        return Candidate(f"merge/{rule.name}", title, reason=reason, data=informed)
    recipe = situation.merging(data=informed, method=method, **at(situation, f"merge-{rule.name}"))
    return Candidate(f"merge/{rule.name}", title, recipe, data=informed)


def uses_data(rule: Entry[Any]) -> bool:
    """Says whether a rule looks at the sources' data."""
    return bool({"importances", "grams"} & set(rule.inputs) or rule.facts.get("forward"))


def rule_problem(situation: Situation, rule: Entry[Any]) -> str | None:
    """Returns why a rule cannot merge these sources; None where it can."""
    data, wanted = situation.material.data, rule.facts.get("sources")
    if wanted is not None and wanted != len(situation.material.sources):
        return f"merges exactly {wanted} sources"
    if "base" in rule.inputs and situation.base is None:
        return "needs the model that the sources were fine-tuned from (--base MODEL)"
    if uses_data(rule) and (bare := lacking(situation)):
        return f"needs texts of {', '.join(bare)} (--data {bare[0]}=FILE)"
    if "importances" in rule.inputs and (bare := [name for name, rows in data.items() if rows.labels is None]):
        return f"needs labels of {', '.join(bare)}"
    return None


def ensembles(situation: Situation) -> Iterator[Candidate]:
    """Yields what ensembles can be made of sources that exist: together, over one bottom, averaged, or as teachers."""
    material = situation.material
    if not material.alike or material.sources[0].kind == "question_answering":
        return
    members = situation.can("ensemble")
    recipe = as_they_are(situation.recipe, **at(situation, "ensemble-separate")) if members else None
    yield Candidate("ensemble/separate", "all sources answer together (the ceiling)", recipe)
    for name in METHODS:
        entry = METHODS[name]
        if entry.facts.get("lone"):
            continue
        if members and entry.facts["build"] == Build.SHARED and entry.facts.get("implied"):
            yield over_one_bottom(situation, name)
        elif members and entry.facts.get("greedy"):
            yield chosen_soup(situation, name)
        elif entry.facts["build"] == Build.TAUGHT:
            yield taught(situation, name)


def over_one_bottom(situation: Situation, name: str) -> Candidate:
    """Returns the sources as members that share the lower half of their layers."""
    depth = int(getattr(situation.material.sources[0].config, "num_hidden_layers", 0) or 0)
    told = {**at(situation, f"ensemble-{name}"), "method": name, "shared_layers": depth // 2}
    title = f"the sources share their lower {depth // 2} layers, averaged"
    if depth < 2:
        return Candidate(f"ensemble/{name}", title, reason="the encoder has no layers that could be shared")
    return Candidate(f"ensemble/{name}", title, as_they_are(situation.recipe, **told))


def chosen_soup(situation: Situation, name: str) -> Candidate:
    """Returns the average of those sources that help on the data."""
    title = "average of the sources that help on the data"
    labelled = {n: rows for n, rows in situation.material.data.items() if rows.labels is not None}
    if not labelled:
        return Candidate(f"ensemble/{name}", title, reason="needs labelled data to choose by (--data NAME=FILE)")
    told = {**at(situation, f"ensemble-{name}"), "method": name, "validation": situation.written("validation")}
    return Candidate(f"ensemble/{name}", title, as_they_are(situation.recipe, **told), data=True)


def taught(situation: Situation, name: str) -> Candidate:
    """Returns one model that the sources teach; it takes part by default where texts for that are given."""
    title, start = f"one model that all sources teach ({name})", situation.starts_at
    if situation.material.texts is None or start is None:
        lacks = "texts to teach on (--text FILE)" if start is not None else "a base to start from (--base MODEL)"
        return Candidate(f"ensemble/{name}", title, reason=f"needs {lacks}")
    told = {
        **at(situation, f"ensemble-{name}"), "method": name, "base": start, "epochs": 3.0,
        "text": [situation.texts.model_dump(exclude_none=True)],
    }  # fmt: skip
    if situation.recipe.max_length is not None:
        told["max_length"] = situation.recipe.max_length
    recipe = as_they_are(situation.recipe, **told)
    first = name == "distilled" and situation.material.told
    return Candidate(f"ensemble/{name}", title, recipe, default=first, texts=True)


def students(situation: Situation) -> Iterator[Candidate]:
    """Yields students of all sources, by where they start; the first by default where texts are given."""
    if not situation.can("amalgamate"):
        return
    only = situation.material.told or not situation.can("merge")
    first = situation.material.sources[0].name
    starts = {
        AUTO: ("student from the base", situation.starts_at),
        MERGED: ("student from the merge of its teachers", MERGED if situation.can("merge") else None),
        TEACHER: (f"student from the teacher {first}", first),
    }
    missing = {AUTO: "no base is known to start from (--base MODEL)", MERGED: "the teachers cannot be merged"}
    for name, (title, start) in starts.items():
        if start is None:
            yield Candidate(f"amalgamate/{name}", title, reason=missing[name])
            continue
        default = only and name == (AUTO if starts[AUTO][1] is not None else TEACHER)
        yield Candidate(f"amalgamate/{name}", title, studying(situation, name, start), default=default, texts=True)


def studying(situation: Situation, name: str, start: str) -> AmalgamateRecipe:
    """Returns the recipe of a student; all students of a comparison share one store of posteriors."""
    told = situation.recipe
    sources = {
        n: s.model_dump(exclude_none=True, exclude={"data", "task"}) for n, s in told.sources.items()
    }
    content: dict[str, Any] = {
        "sources": sources, "text": situation.texts.model_dump(exclude_none=True), "student": start,
        "store": str(situation.folder / "posteriors"), "seed": told.seed, "report_to": told.report_to,
        "trust_remote_code": told.trust_remote_code, **at(situation, f"amalgamate-{name}"),
    }  # fmt: skip
    content |= {} if told.base is None else {"base": told.base}
    content |= {} if told.max_length is None else {"max_length": told.max_length}
    return AmalgamateRecipe.model_validate(content)
