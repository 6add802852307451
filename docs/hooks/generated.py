"""Fills in what the documentation takes from the program: methods, papers, commands, functions, recipe keys.

mkdocs calls `on_page_markdown` for every page: a line `<!-- generated: NAME -->` becomes what `PARTS[NAME]` returns.
Nothing here names a method, a command or a key: all are read from the registries, the command line and the recipes.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import plait

ROOT = Path(__file__).parents[2]

TITLES = {
    "method": ("Merge rules", "`--method NAME` of `plait merge`, `method:` in a recipe."),
    "importance": ("Importances", "`--importance NAME` of `plait merge` and `plait estimate`."),
    "gate": ("Gates", "`--gate NAME` of `plait amalgamate`: the score by which the teacher of a text is chosen."),
    "joint gate": ("Joint gates", "`--gate NAME` of `plait amalgamate`: several gates weighed together."),
    "objective": ("Objectives", "`--objective NAME` of `plait amalgamate`: the loss of the student."),
    "ensemble": ("Ensemble methods", "`--method NAME` of `plait ensemble`."),
    "perturbation": ("Perturbations", "`--perturbation NAME` of `plait ensemble`: what tells members apart."),
    "consistency": ("Consistency regularisers", "`--consistency NAME` of `plait ensemble`."),
}
"""Heading and introduction of each kind of method; a kind that is missing here gets its own name."""

MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def cell(text: str) -> str:
    """Returns text that may stand in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|") or "–"


def sentence(summary: str) -> str:
    """Returns the first line of a docstring as a table says it: without "Returns"."""
    said = summary.removeprefix("Returns ").strip()
    return said[:1].upper() + said[1:]


def paper_link(paper: str | None) -> str:
    """Returns a link to a paper that a registry names: `arXiv:…`, `doi:…` or an address."""
    if not paper:
        return "–"
    scheme, _, rest = paper.partition(":")
    homes = {"arxiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
    if scheme.lower() in homes:
        return f"[{paper}]({homes[scheme.lower()]}{rest})"
    return f"<{paper}>" if paper.startswith("http") else paper


def bare(name: str, kind: str) -> str:
    """Returns a method's own name: `plait.methods()` calls the gate `muka` "gate muka"."""
    return name.removeprefix(f"{kind} ")


def by_kind() -> dict[str, dict[str, Mapping[str, Any]]]:
    """Returns every registered method: kind, then name, then what `plait.methods()` says of it."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {kind: {} for kind in TITLES}
    for name, method in plait.methods().items():
        found.setdefault(method["kind"], {})[bare(name, method["kind"])] = method
    return {kind: members for kind, members in found.items() if members}


def option_list(options: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns options with their defaults, as a cell."""
    return ", ".join(f"`{name}={about['default']}`" for name, about in options.items()) or "–"


def table(members: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields the lines of the table of one kind."""
    yield "| name | what it computes | needs | options and defaults | paper |"
    yield "|---|---|---|---|---|"
    for name, method in members.items():
        cells = (
            f"`{name}`",
            cell(sentence(method["summary"])),
            cell(", ".join(method["needs"])),
            cell(option_list(method["options"])),
            paper_link(method["paper"]),
        )
        yield f"| {' | '.join(cells)} |"


def details(members: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields one closed box per method, with its equation and all that its docstring says."""
    for name, method in members.items():
        yield f'\n??? note "{name}"\n'
        yield "    ```text"
        yield from (f"    {line}".rstrip() for line in method["documentation"].splitlines())
        yield "    ```"


def methods() -> str:
    """Returns a section per kind of method: a table, then each method whole."""
    lines: list[str] = []
    for kind, members in by_kind().items():
        title, introduction = TITLES.get(kind, (kind.capitalize(), ""))
        lines += [f"## {title}", "", introduction, "", *table(members), *details(members), ""]
    return "\n".join(lines)


def differences(documentation: str) -> str:
    """Returns the paragraphs of a docstring that say where a method leaves its paper."""
    paragraphs = re.split(r"\n\s*\n", documentation)
    return " ".join(p for p in paragraphs if re.search(r"\b[Dd]iffers from\b", p))


def papers() -> str:
    """Returns every method that has a paper, with the paper and the differences."""
    lines = ["| method | kind | paper | how Plait's version differs |", "|---|---|---|---|"]
    for kind, members in by_kind().items():
        for name, method in members.items():
            if method["paper"]:
                said = cell(differences(method["documentation"]))
                lines.append(f"| `{name}` | {kind} | {paper_link(method['paper'])} | {said} |")
    return "\n".join(lines)


def spoken(*arguments: str) -> str:
    """Returns what a command line prints."""
    from plait.cli import invoke

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        invoke(list(arguments))
    return printed.getvalue().strip()


def command_names() -> list[str]:
    """Returns the commands that `plait --help` lists."""
    listed = spoken("--help").partition("Commands:")[2]
    return re.findall(r"^ {2}([a-z][\w-]*)", listed, re.MULTILINE)


def commands() -> str:
    """Returns the help of every command."""
    parts = ((name, spoken(name, "--help")) for name in command_names())
    return "\n\n".join(f"## plait {name}\n\n```text\n{said}\n```" for name, said in parts)


def functions() -> str:
    """Returns the directives by which mkdocstrings documents what `import plait` offers, and what it returns."""
    from plait import api

    names = [f"plait.{name}" for name in plait.__all__]
    classes = {c for c in vars(api).values() if inspect.isclass(c) and c.__module__.startswith("plait.")}
    names += sorted(f"{c.__module__}.{c.__qualname__}" for c in classes)
    return "\n\n".join(f"::: {name}" for name in names)


def recipe_models() -> dict[str, Any]:
    """Returns the kinds of recipe: the value of `combine`, and the model that checks the rest."""
    from plait import recipe

    return dict(recipe.COMBINES)


def kind_of_value(schema: Mapping[str, Any]) -> str:
    """Returns the type of a key as a reader would say it."""
    if choices := schema.get("enum"):
        return ", ".join(f"`{choice}`" for choice in choices)
    if "const" in schema:
        return f"`{schema['const']}`"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(kind_of_value(o) for o in options if o.get("type") != "null"))
    if "$ref" in schema:
        return "mapping"
    names = {"object": "mapping", "array": "list", "string": "text"}
    return names.get(str(schema.get("type")), str(schema.get("type", "any")))


def keys() -> str:
    """Returns every key of every kind of recipe with its type and default."""
    lines: list[str] = []
    for combine, model in recipe_models().items():
        schema = model.model_json_schema()
        lines += [f"### combine: {combine}", "", "| key | type | default |", "|---|---|---|"]
        for name, about in schema["properties"].items():
            required = name in schema.get("required", ())
            default = "required" if required else f"`{json.dumps(about.get('default'), ensure_ascii=False)}`"
            lines.append(f"| `{name}` | {cell(kind_of_value(about))} | {default} |")
        lines.append("")
    return "\n".join(lines)


def recipe_schema() -> str:
    """Returns the JSON schema of a recipe of any kind."""
    if "schema" in command_names():
        return spoken("schema")
    kinds = {combine: model.model_json_schema() for combine, model in recipe_models().items()}
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps({"$schema": dialect, "title": "A recipe of Plait", "anyOf": list(kinds.values())}, indent=1)


def first_line(package: str) -> str:
    """Returns the first line of a package's docstring, which says what it is for."""
    folder = ROOT / "src" / package.replace(".", "/")
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def floors() -> str:
    """Returns the contract of imports as a table, the top floor first, with what each package is for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["type"] == "layers")
    root = "".join(f"{name}." for name in layers.get("containers", ()))
    lines = ["| packages of one floor | what they are for |", "|---|---|"]
    for row in layers["layers"]:
        packages = [root + name.strip(" ()") for name in re.split(r"[|:]", row)]
        names = ", ".join(f"`{name}`" for name in packages)
        about = "<br>".join(f"`{name.rpartition('.')[2]}`: {cell(first_line(name))}" for name in packages)
        lines.append(f"| {names} | {about} |")
    return "\n".join(lines)


def families() -> str:
    """Returns what works for each family: one table by statistics, one by rules that need none."""
    from plait.merging.abilities import abilities, table

    rows, names = table(), [ability.name for ability in abilities()]
    lines: list[str] = []
    for title, chosen in (("By statistics", range(6)), ("Without data", range(6, len(names)))):
        lines += [f"## {title}", "", "| " + " | ".join(["family", *(f"`{names[i]}`" for i in chosen)]) + " |"]
        lines += ["|---" * (len(chosen) + 1) + "|"]
        lines += [f"| {row[0]} | " + " | ".join(row[i + 1] for i in chosen) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "methods": methods,
    "papers": papers,
    "commands": commands,
    "functions": functions,
    "keys": keys,
    "floors": floors,
    "families": families,
}


def filled(markdown: str) -> str:
    """Returns a page with its markers replaced."""
    return MARKER.sub(lambda found: PARTS[found[1]](), markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in a page before it is rendered."""
    return filled(markdown)


def on_files(files: Any, config: Any) -> Any:
    """Adds the JSON schema of recipes, for editors, to the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "plait.schema.json", content=recipe_schema() + "\n"))
    return files
