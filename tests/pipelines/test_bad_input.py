"""Bad input: exit code 2, one clear line that says what to do, and nothing written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import plait
from plait.cli import invoke
from plait.errors import OutputError
from tests.conftest import write_rows
from tests.models import save, texts, tiny, tiny_tokenizer

Paths = dict[str, str]
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that must fail by the user's fault; returns its one line."""

    def run(*arguments: object, out: Path | None = None) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        target = [] if out is None else ["-o", str(out)]
        assert invoke([*map(str, arguments), *target]) == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, captured.err
        assert "Traceback" not in captured.err
        assert captured.out == ""
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return lines[0]

    return run


@pytest.fixture
def copy(sources: Paths, tmp_path: Path) -> Path:
    """A source of one's own to break."""
    return Path(shutil.copytree(sources["mood"], tmp_path / "broken"))


def test_missing_source(refused: Refused, sources: Paths, tmp_path: Path) -> None:
    line = refused("merge", f"a={tmp_path}/none", f"b={sources['type']}", out=tmp_path / "m")
    assert f"{tmp_path}/none" in line


def test_truncated_weights(refused: Refused, copy: Path, sources: Paths, tmp_path: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    line = refused("merge", f"a={copy}", f"b={sources['type']}", "--method", "average", out=tmp_path / "m")
    assert "model.safetensors" in line


def test_corrupt_header(refused: Refused, copy: Path, sources: Paths, tmp_path: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\xff" * 64)
    line = refused("merge", f"a={copy}", f"b={sources['type']}", "--method", "average", out=tmp_path / "m")
    assert "model.safetensors" in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_weights_are_named(
    refused: Refused, copy: Path, sources: Paths, tmp_path: Path, value: float
) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.weight"
    tensors[name][3, 5] = value
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    line = refused("merge", f"a={copy}", f"b={sources['type']}", "--method", "average", out=tmp_path / "m")
    assert "encoder.layer.1.output.dense.weight" in line
    assert " a" in line


def test_shapes_that_differ_are_all_listed(refused: Refused, sources: Paths, tmp_path: Path) -> None:
    wide = save(tiny("bert", "sequence", intermediate_size=32), tmp_path / "wide")
    line = refused("merge", f"a={sources['mood']}", f"b={wide}", "--method", "average", out=tmp_path / "m")
    assert "intermediate_size" in line or line.count("intermediate.dense") >= 4


def test_vocabularies_that_differ(refused: Refused, sources: Paths, tmp_path: Path) -> None:
    other = save(tiny("bert", "sequence"), tmp_path / "other", tokenizer=False)
    tokenizer = tiny_tokenizer("bert")
    tokenizer.add_tokens(["extraordinary"])
    tokenizer.save_pretrained(other)
    line = refused("merge", f"a={sources['mood']}", f"b={other}", "--method", "average", out=tmp_path / "m")
    assert "extraordinary" in line


def test_architectures_that_differ(refused: Refused, sources: Paths, tmp_path: Path) -> None:
    other = save(tiny("roberta", "sequence"), tmp_path / "other")
    line = refused("merge", f"a={sources['mood']}", f"b={other}", "--method", "average", out=tmp_path / "m")
    assert "bert" in line
    assert "roberta" in line


def test_bases_that_differ(refused: Refused, sources: Paths, tmp_path: Path) -> None:
    other = save(tiny("bert", "sequence", base_seed=99), tmp_path / "other")
    line = refused("merge", f"a={sources['mood']}", f"b={other}", "--method", "average", out=tmp_path / "m")
    assert "base" in line


def test_label_sets_that_differ(refused: Refused, sources: Paths, tmp_path: Path) -> None:
    arguments = [f"a={sources['mood']}", f"b={sources['type']}", "--task", "a=same", "--task", "b=same"]
    line = refused("merge", *arguments, "--method", "average", out=tmp_path / "m")
    assert "same" in line
    assert "label" in line


def test_empty_data(refused: Refused, sources: Paths, data: Paths, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    pair = {n: sources[n] for n in ("mood", "type")}
    named = [f"{n}={p}" for n, p in pair.items()]
    line = refused(
        "merge",
        *named,
        "--data",
        f"mood={tmp_path}/empty.jsonl",
        "--data",
        f"type={data['type']}",
        out=tmp_path / "m",
    )
    assert "empty.jsonl" in line


@pytest.mark.parametrize("label", [7, -1, "unheard-of"])
def test_labels_outside_the_head(refused: Refused, sources: Paths, tmp_path: Path, label: object) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": t, "label": label} for t in texts(3)])
    line = refused("estimate", sources["mood"], "--data", file, out=tmp_path / "s.safetensors")
    assert str(label) in line


def test_wrong_columns(refused: Refused, sources: Paths, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"zzz": t, "yyy": 1} for t in texts(3)])
    line = refused("estimate", sources["mood"], "--data", file, out=tmp_path / "s.safetensors")
    assert "zzz" in line
    assert "text" in line


def test_missing_data_says_which_and_what_to_do(refused: Refused, sources: Paths, tmp_path: Path) -> None:
    named = [f"{n}={p}" for n, p in sources.items()]
    line = refused("merge", *named, "--method", "fisher", out=tmp_path / "m")
    assert "mood, type, value" in line
    assert "--data" in line
    assert "--method average" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "fischer"), ("fischer", "did you mean 'fisher'")),
        (("--method", "fisher", "--importance", "mask-node"), ("did you mean 'mask_nodes'",)),
        (("--method", "fisher", "--normalize", "tensr"), ("did you mean 'tensor'",)),
        (("--method", "ties", "--set", "densty=0.2"), ("did you mean 'density'",)),
        (("--method", "average", "--importance", "diagonal"), ("average", "importance")),
        (("--weight", "mod=1"), ("did you mean 'mood'",)),
        (("--weight", "mood=x"), ("'x' is not a float",)),
        (("--weight", "mood=0", "--weight", "type=0", "--weight", "value=0"), ("weights", "0")),
        (("--task", "mod=x"), ("did you mean 'mood'",)),
        (("--data", "mod=x"), ("did you mean 'mood'",)),
        (("--data", "mood"), ("expected NAME=VALUE",)),
        (("--evaluate", "mod=x"), ("did you mean 'mood'",)),
        (("--dtype", "float8"), ("dtype", "float8")),
        (("--max-shard-size", "many"), ("many",)),
        (("--methd", "average"), ("--methd",)),
        (("--examples", "0"), ("--examples",)),
    ],
)
def test_unknown_names_and_values(
    refused: Refused,
    sources: Paths,
    data: Paths,
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    named = [f"{n}={p}" for n, p in sources.items()]
    informed = [] if "--data" in arguments else [f"--data={n}={p}" for n, p in data.items()]
    line = refused("merge", *named, *informed, *arguments, out=tmp_path / "m")
    for word in words:
        assert word in line


def test_unknown_task(refused: Refused, sources: Paths, data: Paths, tmp_path: Path) -> None:
    assert (
        invoke(
            [
                "merge",
                *(f"{n}={p}" for n, p in sources.items()),
                "-o",
                str(tmp_path / "m"),
                "--method",
                "average",
            ]
        )
        == 0
    )
    line = refused(
        "evaluate", tmp_path / "m", "--data", f"mod={data['mood']}", "--data", f"type={data['type']}"
    )
    assert "did you mean 'mood'" in line
    line = refused("export", tmp_path / "m", "--task", "mod", out=tmp_path / "x")
    assert "did you mean 'mood'" in line
    line = refused("export", tmp_path / "m", out=tmp_path / "x")
    assert "--task" in line


def test_not_a_merged_checkpoint(refused: Refused, sources: Paths, tmp_path: Path) -> None:
    line = refused("export", sources["mood"], "--task", "x", out=tmp_path / "x")
    assert "not a merged checkpoint" in line


def test_pickle_with_code(refused: Refused, sources: Paths, copy: Path, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/owned",)

    (copy / "model.safetensors").unlink()
    with (copy / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weight": Touch()}, file)
    line = refused("merge", f"a={copy}", f"b={sources['type']}", "--method", "average", out=tmp_path / "m")
    assert "pytorch_model.bin" in line
    torch.save({"weight": Touch()}, copy / "pytorch_model.bin")
    refused("merge", f"a={copy}", f"b={sources['type']}", "--method", "average", out=tmp_path / "m")
    assert not (tmp_path / "owned").exists()


def test_remote_code_never_unless_asked(refused: Refused, sources: Paths, copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    line = refused("merge", f"a={copy}", f"b={sources['type']}", "--method", "average", out=tmp_path / "m")
    assert "trust" in line
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/outside.safetensors"])
def test_shards_outside_the_folder(
    refused: Refused, sources: Paths, copy: Path, tmp_path: Path, shard: str
) -> None:
    names = list(load_file(copy / "model.safetensors"))
    shutil.move(copy / "model.safetensors", tmp_path / "outside.safetensors")
    (copy / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, shard)})
    )
    line = refused("merge", f"a={copy}", f"b={sources['type']}", "--method", "average", out=tmp_path / "m")
    assert "outside.safetensors" in line


def test_existing_output_stays_unless_overwrite(refused: Refused, sources: Paths, tmp_path: Path) -> None:
    out = tmp_path / "m"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    named = [f"{n}={p}" for n, p in sources.items()]
    line = refused("merge", *named, "--method", "average", out=out)
    assert "--overwrite" in line
    line = refused("merge", *named, "--method", "average", "--overwrite", out=out)
    assert "holds no model" in line
    assert (out / "precious.txt").read_text() == "mine"
    # Once there is a model, --overwrite replaces the folder.
    (out / "config.json").write_text("{}")
    assert invoke(["merge", *named, "--method", "average", "-o", str(out), "--overwrite"]) == 0
    assert not (out / "precious.txt").exists()


def test_failure_while_overwriting_leaves_the_old_one(
    refused: Refused, sources: Paths, copy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    assert (
        invoke(
            ["merge", f"a={sources['mood']}", f"b={sources['type']}", "--method", "average", "-o", str(out)]
        )
        == 0
    )
    tensors = load_file(copy / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.bias"][0] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    before = (out / "model.safetensors").read_bytes()
    refused("merge", f"a={copy}", f"b={sources['type']}", "--method", "average", "--overwrite", out=out)
    assert (out / "model.safetensors").read_bytes() == before


def test_statistics_of_another_model_or_kind(
    refused: Refused, sources: Paths, data: Paths, tmp_path: Path
) -> None:
    file = tmp_path / "s.safetensors"
    assert invoke(["estimate", sources["mood"], "--data", data["mood"], "-o", str(file), "--quiet"]) == 0
    two = [f"mood={sources['mood']}", f"type={sources['type']}", "--method", "fisher"]
    rest = ["--statistics", f"mood={file}", "--data", f"type={data['type']}"]
    line = refused("merge", *two, *rest, "--importance", "diagonal", out=tmp_path / "m")
    assert "mask_nodes" in line
    assert "diagonal" in line
    swapped = ["--statistics", f"type={file}", "--data", f"mood={data['mood']}"]
    line = refused("merge", *two, *swapped, "--importance", "mask-nodes", out=tmp_path / "m")
    assert "other weights" in line


def test_recipe_mistakes(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("combine: merge\nsources: {a: x}\noutputs: m\n")
    line = refused("check", tmp_path / "r.yaml")
    assert "did you mean 'output'" in line
    line = refused("run", tmp_path / "none.yaml")
    assert "no recipe" in line


@pytest.mark.parametrize("place", ["same", "above", "inside"])
def test_output_never_replaces_a_source(sources: Paths, tmp_path: Path, place: str) -> None:
    ours = {n: str(shutil.copytree(p, tmp_path / "ck" / n)) for n, p in sources.items() if n != "value"}
    out = {
        "same": tmp_path / "ck" / "mood",
        "above": tmp_path / "ck",
        "inside": tmp_path / "ck" / "mood" / "x",
    }[place]
    with pytest.raises(OutputError, match="choose another output"):
        plait.merge(ours, method="average", out=out, overwrite=True)
    assert all((Path(p) / "model.safetensors").is_file() for p in ours.values())


def test_check_reads_the_data(sources: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {
        "sources": {n: {"model": p, "data": str(tmp_path / "none.parquet")} for n, p in sources.items()}
    }
    (tmp_path / "r.yaml").write_text(
        json.dumps({**recipe, "method": "regmean", "output": str(tmp_path / "m")})
    )
    assert invoke(["check", str(tmp_path / "r.yaml")]) == 2
    assert "none.parquet" in capsys.readouterr().err
