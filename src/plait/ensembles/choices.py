"""What a recipe of an ensemble chooses: models, labels, sharing, method and perturbation, each checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from plait.checkpoints.checkpoint import Checkpoint, Wanted, open_models
from plait.checkpoints.parameter_names import skeleton
from plait.checkpoints.tokenizer_differences import tokenizer_problems
from plait.checkpoints.tokenizers import has_tokenizer
from plait.data import Examples
from plait.data.reading import read
from plait.encoders.heads import Head
from plait.ensembles.build import check_sources
from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.folding import projection
from plait.ensembles.method import Build, Choice, built_as, refuse_unused
from plait.ensembles.modeling import ENSEMBLES
from plait.ensembles.objective import PerturbationChoice
from plait.ensembles.perturbation import PERTURBATIONS, Place
from plait.ensembles.perturbations.dropout import dropouts
from plait.errors import DataError, MergeError, RecipeError, SourceError, did_you_mean, listed
from plait.evaluation import primary_metric
from plait.evaluation.head_order import in_one_order
from plait.recipe import EnsembleRecipe
from plait.registry import either
from plait.training.heads import head_for

logger = logging.getLogger("plait")
MEMBERS = 4
"""Members where nobody says how many."""
CHOOSING = {
    "single_label_classification": ("accuracy", "macro_f1", "matthews", "nll", "brier"),
    "multi_label_classification": ("macro_f1", "micro_f1", "accuracy", "nll", "brier"),
    "regression": ("pearson", "spearman", "mse"),
}
"""Scores that may choose the epoch."""
LOSSES = ("nll", "brier", "mse")
"""Those of them that are the better the lower they are."""


def check_noise(
    noise: PerturbationChoice, choice: Choice, config: EnsembleConfig, kind: str, *, untrained: bool = False
) -> None:
    """Raises `RecipeError` where a perturbation does not go with the method, or dropout would drop nothing."""
    if noise.place in (Place.HIDDEN, Place.EMBEDDINGS) and choice.build not in (Build.SHARED, Build.SEPARATE):
        raise RecipeError(
            f"method {choice.name} trains with dropout alone; found perturbation {noise.name}: expected none or dropout"
        )
    if noise.place is not Place.DROPOUT:
        if choice.passes:
            raise RecipeError(
                f"method {choice.name} answers by passes with dropout; found perturbation {noise.name}: expected "
                "dropout"
            )
        return
    if noise.options.get("rate") is None and not untrained:
        check_rates(skeleton(ENSEMBLES[kind], config, config.encoder.model_type), noise.name)


def check_projection(
    recipe: EnsembleRecipe, config: EnsembleConfig, kind: str, *, plain: bool = False
) -> None:
    """Refuses tanh heads where a family has no place for those of models that exist, or of one ordinary checkpoint.

    Warns of new ones, which cannot leave.
    """
    if config.head != "tanh":
        return
    try:
        projection(config, kind == "token_classification")
    except RecipeError as error:
        if recipe.sources is not None or plain:
            raise
        logger.warning("what is made cannot be exported, neither whole nor one member: %s", error)


def warn_of_averaged(recipe: EnsembleRecipe, sources: Sequence[Checkpoint], config: EnsembleConfig) -> None:
    """Warns of layers of the heads of models that exist which become one: linear heads own their last layer alone."""
    whole = config.shared_layers == config.num_hidden_layers
    if recipe.sources is None or len(sources) < 2 or config.head != "linear" or not whole:
        return
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in sources[0].head))
    if len(layers) > 1:
        logger.warning(
            "all layers are shared: %s, below the last layer of the heads, %s averaged too; fewer shared layers "
            "leave each model its own",
            listed(layers[:-1]), "is" if len(layers) == 2 else "are",
        )  # fmt: skip


def check_rates(model: Any, name: str) -> None:
    """Raises `RecipeError` where a model drops nothing; warns where its layers do not."""
    if not any(getattr(part, rate) > 0 for part, rate in dropouts(model)):
        raise RecipeError(
            f"perturbation {name}: this encoder drops nothing (its config says 0), so members would not differ; "
            "give a rate (--set rate=0.1), or choose another perturbation"
        )
    if not any(getattr(part, rate) > 0 for part, rate in dropouts(model.encoder.base_model)):
        logger.warning(
            "perturbation %s: this encoder drops in its head alone; give a rate (--set rate=0.1) to drop in its layers",
            name,
        )


def open_sources(recipe: EnsembleRecipe, labelled: Sequence[Any], *, dry: bool) -> tuple[Checkpoint, ...]:
    """Returns the base, or the models that become members, opened, and a tokenizer that fits them found.

    Args:
        recipe: which models.
        labelled: data that may tell the order of placeholder labels.
        dry: whether no model is run for that.
    """
    wanted = [Wanted(model, revision=recipe.revision) for model in recipe.starts]
    sources = open_models(wanted, trust_remote_code=recipe.trust_remote_code)
    if recipe.sources is not None:
        sources = in_one_order(sources, labelled, dry=dry)
        check_sources(sources)
    if problems := tokenizer_problems(sources):
        if recipe.sources is None:
            raise SourceError(f"{recipe.base}: {listed(problems)}")
        raise MergeError(f"these checkpoints cannot be members of one ensemble: {listed(problems)}")
    if not any(has_tokenizer(source.tokenizer_folder) for source in sources):
        sources[0].tokenizer()  # says so
    return sources


def training_data(recipe: EnsembleRecipe, data: Any) -> Examples | None:
    """Returns what to train on; None where existing models are put together and not trained."""
    source = recipe.data if data is None else data
    if source is not None:
        return read(source, limit=recipe.limit, seed=recipe.seed)
    if recipe.sources is not None and recipe.epochs == 0:
        return None
    raise DataError("no data given: an ensemble needs --data FILE with texts and labels to train on")


def head_of(recipe: EnsembleRecipe, sources: tuple[Checkpoint, ...], examples: Examples | None) -> Head:
    """Returns what the members answer: what the data asks for, or what the given models do already."""
    first = sources[0]
    if recipe.sources is not None:
        return Head(first.kind, first.labels, problem_of(recipe, sources))  # type: ignore[arg-type]
    assert examples is not None
    if recipe.epochs == 0:
        raise RecipeError("epochs is 0; expected more: the heads of new members know nothing yet")
    head = head_for(examples, None, recipe.problem_type)
    if head.kind not in ENSEMBLES:
        raise DataError(
            f"{examples.source}: holds data for {head.kind.replace('_', ' ')}; ensembles classify texts or tokens"
        )
    return head


def problem_of(recipe: EnsembleRecipe, sources: tuple[Checkpoint, ...]) -> Any:
    """Returns what the heads of given models are for: as their configurations say, else as asked.

    Raises:
        RecipeError: something else is asked for.
    """
    asked, configured = recipe.problem_type, sources[0].problem_type
    if asked in (None, configured):
        return configured
    decided = sources[0].kind != "sequence_classification" or any(s.config.problem_type for s in sources)
    if decided or "regression" in (asked, configured):
        what = configured or "token_classification"
        raise RecipeError(
            f"problem_type is {asked}; the heads of {listed(s.origin for s in sources)} are for {what}: leave it out"
        )
    return asked


def members_of(recipe: EnsembleRecipe, choice: Choice) -> int:
    """Returns M: as given, as many as there are models, or the default."""
    if recipe.sources is not None:
        count = len(recipe.sources)
        if recipe.members not in (None, count):
            raise RecipeError(f"members is {recipe.members}, and {count} models are given; leave members out")
        return count
    if choice.lone and not choice.passes:
        return 1
    count_wanted = MEMBERS if recipe.members is None else recipe.members
    if count_wanted < 1:
        raise RecipeError(f"members is {count_wanted}; expected 1 or more")
    return count_wanted


def config_of(recipe: EnsembleRecipe, first: Checkpoint, head: Head, members: int) -> EnsembleConfig:
    """Returns the configuration of what is trained.

    Raises:
        RecipeError: more shared layers than there are, or another option out of its limits.
    """
    names = head.names or ("LABEL_0",)
    return EnsembleConfig(
        encoder=first.config, members=members, shared_layers=recipe.shared_layers, head=recipe.head,
        classifier_dropout=recipe.classifier_dropout, problem_type=head.problem_type,
        id2label=dict(enumerate(names)),
    )  # fmt: skip


def metric_of(recipe: EnsembleRecipe, head: Head, held: Examples | None) -> str | None:
    """Returns the score that chooses the epoch; none without rows to judge by.

    Raises:
        RecipeError: a score that such heads do not have, or one that nothing can be judged by.
    """
    problem = head.problem_type or "single_label_classification"
    if held is None:
        if recipe.metric is not None:
            raise RecipeError(
                "metric chooses the epoch by rows that are held back; found none: give validation data"
            )
        return None
    if recipe.metric is None:
        return primary_metric(head.kind, head.problem_type)
    if recipe.metric not in CHOOSING[problem]:
        raise RecipeError(
            f"metric: no score {recipe.metric!r} of {problem.replace('_', ' ')} chooses an epoch"
            + did_you_mean(recipe.metric, CHOOSING[problem])
        )
    return recipe.metric


def choice_of(recipe: EnsembleRecipe, *, texts: bool = False) -> Choice:
    """Returns the method, after checking every name and option; what it would ignore is refused.

    Args:
        recipe: what to do.
        texts: whether texts without labels are given in memory.
    """
    named = recipe.method
    shares = {"shared_layers": None if recipe.shared_layers == "all" else recipe.shared_layers}
    settings = {"consistency": recipe.consistency, "alpha": recipe.alpha, "members": recipe.members}
    refuse_unused(named.name, settings)
    regulariser = recipe.consistency
    choice = Choice(
        named.name,
        named.options,
        "ensemble" if regulariser is None else regulariser.name,
        {} if regulariser is None else regulariser.options,
        weight_of(recipe),
    )
    if regulariser is not None and choice.consistency == "none" and recipe.alpha:
        raise RecipeError(
            f"alpha is {recipe.alpha:g} and consistency none, which nothing weighs: leave one of them out"
        )
    refuse_stray(recipe, choice, shares, texts=texts)
    return choice


def refuse_stray(
    recipe: EnsembleRecipe, choice: Choice, shares: Mapping[str, Any], *, texts: bool
) -> None:
    """Raises `RecipeError` where models that exist, layers, texts or a store are given to what ignores them."""
    if recipe.base is not None and recipe.sources is not None and not choice.taught:
        raise RecipeError(
            f"both of base and from is given; expected one of them: method {choice.name} has no student to start from "
            "a base"
        )
    of_shared: dict[str, Any] = {}
    if choice.build is not Build.SHARED or choice.lone:
        takes = choice.taught or choice.build is Build.SOUP
        of_shared = {"from": None if takes else recipe.sources, "replicate_at": recipe.replicate_at, **shares}
    stray = [name for name, value in of_shared.items() if value is not None]
    others = Build.SHARED
    if not choice.taught:
        keeps = recipe.keep_members and choice.build is not Build.SOUP
        of_taught = {
            "text": recipe.text or texts or None, "store": recipe.store, "student_epochs": recipe.student_epochs,
            "keep_members": keeps or None,
        }  # fmt: skip
        teaching = [name for name, value in of_taught.items() if value is not None]
        stray, others = [*stray, *teaching], Build.TAUGHT if teaching else others
    if stray:
        raise RecipeError(
            f"method {choice.name} does not use {', '.join(stray)}; leave "
            f"{'it' if len(stray) == 1 else 'them'} out, or choose method {either(built_as(others))}"
        )
    if recipe.sources is not None and (recipe.keep_members or (choice.taught and recipe.student_epochs is not None)):
        raise RecipeError(
            "keep_members and student_epochs are for members that are trained; found models that exist (from): leave "
            "them out, epochs is how long the student learns"
        )
    if recipe.sources is not None and recipe.base is not None and choice.from_soup:
        raise RecipeError(
            f"base is {recipe.base}, and start soup begins with the mean of the models after from: leave one of them "
            "out"
        )


def weight_of(recipe: EnsembleRecipe) -> float:
    """Returns α: as given, 1, or 0 where there is nothing to weigh."""
    if recipe.alpha is not None:
        return float(recipe.alpha)
    return 0.0 if recipe.consistency is not None and recipe.consistency.name == "none" else 1.0


def noise_of(recipe: EnsembleRecipe) -> PerturbationChoice:
    """Returns the perturbation: dropout by default; `strength` is an option of those that have one.

    Raises:
        RecipeError: an unknown perturbation or option, one out of its limits, or a strength that is given twice.
    """
    chosen = recipe.perturbation
    lone = Choice(recipe.method.name, recipe.method.options)
    plain = lone.build is not Build.SHARED or (lone.lone and not lone.passes)
    name = ("none" if plain else "dropout") if chosen is None else chosen.name
    options: dict[str, Any] = {} if chosen is None else chosen.options
    if recipe.strength is not None:
        if name == "none":
            said = f"method {recipe.method.name} trains" if chosen is None else "perturbation none goes"
            raise RecipeError(
                f"strength is {recipe.strength:g}, and {said} without a perturbation: leave it out"
            )
        if "strength" in options:
            raise RecipeError("strength is given twice, by itself and as an option of the perturbation")
        word = "rate" if "rate" in PERTURBATIONS[name].options else "strength"
        options = {**options, word: recipe.strength}
    return PerturbationChoice(name, options, recipe.replicate_at)
