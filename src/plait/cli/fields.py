"""Options made of recipe fields: name, type, limits, default and help are read off the recipe."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from plait.registry import arguments_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from plait.recipe.fields import Strict

FIELDS = "fields"
"""The parameter of a command in whose place the options stand; it is given what was said, by field."""
OTHERS = "Options"
COMPLETE = "complete"
"""The attribute of a command that makes the whole one of it."""


class Grouped(TyperCommand):
    """Lists options by subject, in the order in which the subjects first come."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes a section for each subject."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                section = getattr(parameter, "rich_help_panel", None) or OTHERS
                sections.setdefault(section, []).append(record)
        for name, rows in sections.items():
            with formatter.section(name):
                formatter.write_dl(rows)


class Completing(TyperGroup):
    """Gives a command the options of its recipe when it is called: `plait --help` need not import recipes."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the name, the whole command, and what is left of the line."""
        name, command, rest = super().resolve_command(ctx, args)
        complete = getattr(command.callback, COMPLETE, None) if command is not None else None
        return name, command if complete is None else complete(name), rest


def with_fields(
    *models: str, without: tuple[str, ...] = (), cls: type[TyperCommand] = Grouped
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that gives a command one option for each field of recipe models, in place of `fields`.

    Args:
        models: Names of the models in `plait.recipe`; subjects are in the order of the first one.
        without: Fields that the command spells itself.
        cls: What the command becomes.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        names = list(own.parameters)
        at = names.index(FIELDS)
        every = [own.parameters[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in names]

        def spelled(options: list[inspect.Parameter]) -> Callable[..., None]:
            @functools.wraps(command)
            def run(**values: Any) -> None:
                said = {p.name: value for p in options if (value := values.pop(p.name)) is not None}
                command(**values, fields=said)

            parameters = [*every[:at], *options, *every[at + 1 :]]
            run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
            run.__annotations__ = {}
            return run

        def complete(name: str) -> Any:
            whole = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
            whole.command(name, cls=cls)(spelled(generated(models, without)))
            return typer.main.get_command(whole)

        short = spelled([])
        setattr(short, COMPLETE, complete)
        return short

    return decorate


def generated(models: tuple[str, ...], without: tuple[str, ...]) -> list[inspect.Parameter]:
    """Returns the options of recipe models by subject."""
    import plait.recipe

    found = [getattr(plait.recipe, name) for name in models]
    order = [name for names in found[0].PANELS.values() for name in names]
    options = [option for model in found for option in field_options(model) if option.name not in without]
    return sorted(options, key=lambda option: order.index(option.name))


def field_options(model: type[Strict]) -> Iterator[inspect.Parameter]:
    """Yields a parameter, as typer reads it, for each field that has a subject; None where nothing is said."""
    meanings = arguments_of(model)
    panels = {name: panel for panel, names in model.PANELS.items() for name in names}
    for name, field in model.model_fields.items():
        if name not in panels:
            continue
        kind, choices = kind_of(field.annotation)
        flag = f"--{name.replace('_', '-')}"
        if kind is bool and field.default is None:
            flag = f"{flag}/--no-{name.replace('_', '-')}"
        option = typer.Option(
            flag,
            help=help_of(field, meanings.get(name, "")),
            metavar=f"[{'|'.join(choices)}]" if choices else None,
            rich_help_panel=panels[name],
            show_default=False,
            **(limits_of(field) if kind in (int, float) else {}),
        )
        annotation: Any = Annotated[kind | None, option]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def kind_of(annotation: Any) -> tuple[type, tuple[str, ...]]:
    """Returns the type that the shell gives a field, and the words to choose from; what is not simple is a text."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(parts[0])
    if origin is Literal:
        return str, tuple(map(str, parts))
    if origin in (Union, UnionType):
        others = [part for part in parts if part is not type(None)]
        return kind_of(others[0]) if len(others) == 1 else (str, ())
    return (annotation if annotation in (bool, int, float) else str), ()


def limits_of(field: FieldInfo) -> Mapping[str, Any]:
    """Returns the least and the greatest value of a field, where it may take them."""
    facts = {name: getattr(fact, name) for fact in field.metadata for name in ("ge", "le") if hasattr(fact, name)}
    return {"min": facts.get("ge"), "max": facts.get("le")}


def help_of(field: FieldInfo, meaning: str) -> str:
    """Returns what a field means, with its default where that is a value."""
    default = getattr(field.default, "name", field.default)
    if default is None or default is False or "Default:" in meaning:
        return meaning
    return f"{meaning} Default: {default:g}." if isinstance(default, int | float) else f"{meaning} Default: {default}."
