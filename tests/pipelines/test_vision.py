"""Image models: folders and tables of images, merges with and without data, scores and predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

import plait
from plait.data import read_examples
from plait.errors import DataError, MergeError, PlaitError, RecipeError, SourceError
from tests.models import texts
from tests.vision import CLASSES, class_folders, image, save_vision, tiny_vision


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("vision")
    return {
        "a": save_vision(tiny_vision("vit", seed=1), folder / "a"),
        "b": save_vision(tiny_vision("vit", seed=2, labels=2), folder / "b"),
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("images")
    return {"a": str(class_folders(folder / "a")), "b": str(class_folders(folder / "b", seed=50, classes=2))}


def logits_of(folder: str | Path, pictures: list[object]) -> torch.Tensor:
    """Returns what transformers alone says of images."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.no_grad():
        return torch.cat([model(**processor(one, return_tensors="pt")).logits for one in pictures])


@pytest.mark.parametrize(
    "options",
    [
        {"method": "average"},
        {"method": "regmean"},
        {},
        {"method": "regmean", "forward": True},
        {"method": "fisher", "importance": "mask_nodes"},
        {"method": "fisher", "importance": "block_traces"},
    ],
)  # fmt: skip
def test_merges_open_in_transformers(
    options: dict[str, object], made: dict[str, str], images: dict[str, str], tmp_path: Path
) -> None:
    data = {} if options.get("method") == "average" else {"data": images}
    out = plait.merge(made, out=tmp_path / "m", **data, **options)
    pictures = [image(7), image(8)]
    said = out.predict(pictures)
    for task, folder in made.items():
        found = logits_of(out.path / "tasks" / task, pictures)
        assert [row["label"] for row in said[task]] == [CLASSES[i] for i in found.argmax(-1).tolist()]
        wanted = np.array([list(row["scores"].values()) for row in said[task]])
        np.testing.assert_allclose(found.softmax(-1), wanted, atol=1e-5)
        for place in (out.path, out.path / "tasks" / task):
            file = "preprocessor_config.json"
            assert (place / file).read_bytes() == (Path(folder) / file).read_bytes()


def test_scores_are_those_of_transformers(made: dict[str, str], images: dict[str, str], tmp_path: Path) -> None:
    out = plait.merge(made, method="average", evaluate=images, out=tmp_path / "m")
    files = sorted(Path(images["a"]).rglob("*.png"))
    from PIL import Image

    answers = logits_of(out.path / "tasks" / "a", [Image.open(file) for file in files]).argmax(-1)
    right = [CLASSES[i] == file.parent.name for i, file in zip(answers.tolist(), files, strict=True)]
    found = plait.evaluate(out, images)
    assert found["a"]["accuracy"] == pytest.approx(np.mean(right))
    assert set(found.tasks["a"].sources) == {"a"}
    alone = plait.evaluate(made["a"], images["a"])
    assert alone.tasks["model"].metrics == found.tasks["a"].sources["a"]
    exported = plait.export(out, tmp_path / "plain", task="a")
    mine, theirs = (logits_of(place, [image(3)]) for place in (exported, out.path / "tasks" / "a"))
    np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_images_from_everywhere(images: dict[str, str], tmp_path: Path) -> None:
    import datasets
    import pandas as pd

    whole = read_examples(images["a"])
    assert whole.kind == "image_classification"
    assert whole.label_names == CLASSES
    folder = Path(images["a"])
    names = [str(Path(one.name).relative_to(folder)) for one in whole.texts]
    labels = [CLASSES[label] for label in whole.labels or ()]
    table = pd.DataFrame({"file_name": names, "label": labels})
    table.to_csv(folder / "list.csv", index=False)
    table.to_parquet(folder / "list.parquet")
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    hub = datasets.Dataset.from_dict({"image": [str(folder / name) for name in names], "label": labels})
    hub = hub.cast_column("image", datasets.Image())
    hub.to_parquet(tmp_path / "embedded.parquet")
    listed = [folder / "list.csv", folder / "list.parquet", folder / "list.jsonl"]
    for given in (*map(str, listed), hub, str(tmp_path / "embedded.parquet")):
        found = read_examples(given)
        assert list(found.labels or ()) == labels
        np.testing.assert_array_equal(found.texts[4].open(), whole.texts[4].open())
    memory = read_examples({"image": [one.open() for one in whole.texts], "label": labels})
    np.testing.assert_array_equal(memory.texts[4].open(), whole.texts[4].open())
    for file in listed:
        file.unlink()


def test_fingerprints_follow_the_pixels(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "x", 3)
    before = read_examples(str(folder)).fingerprint
    assert read_examples(str(folder)).fingerprint == before
    image(99).save(folder / "cat" / "0.png")
    assert read_examples(str(folder)).fingerprint != before


def test_splits_of_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / "x" / split, 3 if split == "train" else 6)
    assert len(read_examples(f"{tmp_path / 'x'}@test")) == 6
    with pytest.raises(DataError, match="has the splits test, train"):
        read_examples(str(tmp_path / "x"))


def test_what_is_wrong_with_images_is_said(made: dict[str, str], images: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file_name,label\nnowhere.png,cat\n")
    with pytest.raises(DataError, match=r"names images that are not there: row 0 \(str 'nowhere.png'\)"):
        read_examples(str(tmp_path / "list.csv"))
    broken = class_folders(tmp_path / "broken", 3)
    (broken / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png is not readable as an image"):
        plait.evaluate(made["a"], str(broken))
    with pytest.raises(DataError, match="the head is for image classification"):
        plait.evaluate(made["a"], {"text": texts(3), "label": [0, 1, 2]})
    with pytest.raises(RecipeError, match="--refine and --align-heads read texts, these models read images"):
        plait.merge(made, data=images, refine=1, out=tmp_path / "m")
    other = json.loads((Path(made["b"]) / "preprocessor_config.json").read_text()) | {"image_mean": [0.1, 0.1, 0.1]}
    odd = Path(save_vision(tiny_vision("vit", seed=3), tmp_path / "odd"))
    (odd / "preprocessor_config.json").write_text(json.dumps(other))
    with pytest.raises(MergeError, match=r"preprocessor_config\.json: image_mean differs"):
        plait.merge({"a": made["a"], "odd": str(odd)}, method="average", out=tmp_path / "m")
    (odd / "preprocessor_config.json").unlink()
    with pytest.raises(SourceError, match="which says how images are prepared"):
        plait.evaluate(str(odd), images["a"])
    with pytest.raises(DataError, match=r"image 0 is 'no'.*expected files such as cat\.png, or PIL images"):
        plait.merge(made, method="average", out=tmp_path / "m").predict(["no"])


@pytest.mark.parametrize("family", ["dinov2", "clip_vision_model"])
def test_towers_without_heads(family: str, images: dict[str, str], tmp_path: Path) -> None:
    bodies = {
        name: save_vision(tiny_vision(family, seed=seed, head=False), tmp_path / name) for seed, name in enumerate("ab")
    }
    out = plait.merge(bodies, data=images, method="regmean", out=tmp_path / "m")
    assert (out.path / "preprocessor_config.json").is_file()
    found, first = out.encoder, type(out.encoder).from_pretrained(bodies["a"])
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert float((found(pixels)[0] - first(pixels)[0]).abs().max()) > 1e-3
    with pytest.raises(DataError, match="a body without a head cannot be evaluated"):
        plait.evaluate(bodies["a"], images["a"])


def test_clip_with_a_head_is_one_line(images: dict[str, str], tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPForImageClassification

    from tests.vision import SIZES

    text = {k: v for k, v in SIZES.items() if not k.startswith(("image", "patch"))} | {"vocab_size": 30}
    model = CLIPForImageClassification(CLIPConfig(vision_config=dict(SIZES), text_config=text, num_labels=2))
    folder = save_vision(model, tmp_path / "clip")
    with pytest.raises(PlaitError, match=r"save its tower alone \(such as model\.vision_model\.save_pretrained\)"):
        plait.merge([folder], method="average", out=tmp_path / "m")
    tower = save_vision(tiny_vision("clip_vision_model"), tmp_path / "tower")
    with pytest.raises(PlaitError, match="has no head"):
        plait.merge({"a": tower}, data={"a": images["a"]}, method="fisher", out=tmp_path / "m")
