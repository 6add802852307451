"""The README and the pages of docs/: their commands parse, their lines run, their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

import plait
from plait.cli import invoke
from plait.recipe import COMBINES, MethodSpec
from tests.conftest import write_rows
from tests.models import save, texts, tiny

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    str(f.relative_to(ROOT)): f.read_text(encoding="utf-8")
    for f in (*ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md"), *(ROOT / "docs").rglob("*.md"))
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Returns the `plait` commands in a page's blocks, comments left out and continued lines joined."""
    found = []
    for block in (*blocks(page, ""), *blocks(page, "shell")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("plait "):
                for part in line.split(" && "):
                    found.append(shlex.split(part, comments=True)[1:])
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the README's lines mention, made of tiny models."""
    monkeypatch.chdir(tmp_path)
    save(tiny("bert", "body", drift=0.0), tmp_path / "ckpt" / "base")
    for seed, (task, names) in enumerate({"mood": ("good", "bad"), "topic": ("film", "food")}.items(), 1):
        model = tiny("bert", "sequence", seed=seed, labels=2)
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: i for i, name in enumerate(names)}
        save(model, tmp_path / "ckpt" / task)
        rows = [{"text": text, "label": names[i % 2]} for i, text in enumerate(texts(40, seed=seed))]
        write_rows(tmp_path / f"{task}.jsonl", rows)
    (tmp_path / "unlabelled.txt").write_text("\n".join(texts(80, seed=5)) + "\n", encoding="utf-8")
    return tmp_path


def test_the_readme_is_a_page() -> None:
    assert len(README.splitlines()) <= 120
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_lines_of_the_readme_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shell,), (python,) = blocks(README, "shell"), blocks(README, "python")
    assert len(shell.splitlines()) == len(python.splitlines()) == 3
    for arguments in commands(f"```shell\n{shell}```"):
        assert invoke([*arguments, "--quiet"]) == 0, capsys.readouterr().err
    assert all((place / made / "plait.json").is_file() for made in ("merged", "student", "ensemble"))
    exec(python, {})
    assert set(plait.load("merged-in-python").tasks) == {"mood", "topic"}
    assert "score" in capsys.readouterr().out
    assert torch.is_grad_enabled()


COMMANDS = sorted({shlex.join(arguments) for page in PAGES.values() for arguments in commands(page)})


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_all_pages_parse(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*shlex.split(line), "--help"]) == 0, capsys.readouterr().err


def test_a_stale_option_would_be_noticed() -> None:
    assert invoke(["merge", "a=b", "--renamed-away", "--help"]) == 2


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[name]):
        if not target.startswith(("http", "plait.schema.json")):
            assert ((ROOT / name).parent / target).exists(), target


def test_methods_named_beside_options_exist() -> None:
    known = {name.rpartition(" ")[2] for name in plait.methods()}
    options = re.compile(r"--(?:method|gate|objective|perturbation)[ =]([a-z][a-z_-]+)")
    for name, page in PAGES.items():
        if name not in {"CONTRIBUTING.md", "docs/log.md", "docs/decisions.md"}:
            named = {method.replace("-", "_") for method in options.findall(page)}
            assert named <= known, name


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "hooks" / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_name_every_method(generated: ModuleType) -> None:
    page, papers = generated.methods(), generated.papers()
    for name, method in plait.methods().items():
        own = name.removeprefix(f"{method['kind']} ")
        assert f"| `{own}` |" in page
        assert all(f"`{option}=" in page for option in method["options"])
        assert not method["paper"] or f"| `{own}` | {method['kind']} |" in papers


def test_generated_parts_are_whole(generated: ModuleType) -> None:
    assert {"merge", "amalgamate", "ensemble", "methods"} <= set(generated.command_names())
    for name, part in generated.PARTS.items():
        assert part().strip(), name
    assert all(f"::: plait.{name}" in generated.functions() for name in plait.__all__)
    assert "`plait.merging`" in generated.floors()
    used = {m for page in PAGES.values() for m in generated.MARKER.findall(page)}
    assert used == set(generated.PARTS)


def test_every_key_of_a_recipe_is_explained() -> None:
    page = PAGES["docs/recipes.md"]
    for model in (*COMBINES.values(), MethodSpec):
        for name, field in model.model_fields.items():
            names = {name, field.alias or name, str(field.validation_alias or name)}
            assert any(f"`{n}`" in page or f"`{n}:" in page or f"\n{n}:" in page for n in names), name


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/]+\.md", yaml.dump(yaml.safe_load(text)["nav"])))
    assert listed == {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")}
