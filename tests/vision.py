"""Tiny image models, images, and folders of them: no network, milliseconds each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    CLIPTextModel,
    CLIPVisionModel,
    PreTrainedModel,
)

from tests.models import _normal, _value, tiny_tokenizer

FAMILIES = ("vit", "dinov2", "dinov2-swiglu", "clip_vision_model", "clip_text_model")
CLASSES = ("cat", "dog", "eel")
SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


def tiny_vision(
    family: str, *, seed: int = 0, head: bool = True, labels: int = 3, drift: float = 0.2, vocabulary: int = 30
) -> PreTrainedModel:
    """Returns a model in eval mode; equal arguments give equal weights, and bodies of all seeds come from one base."""
    kind, _, gated = family.partition("-")
    settings = dict(SIZES)
    if kind == "dinov2":
        settings |= {"mlp_ratio": 2, "use_swiglu_ffn": bool(gated)}
        del settings["intermediate_size"]
    if kind == "clip_text_model":
        settings = {name: value for name, value in settings.items() if not name.startswith(("image", "patch"))}
        settings |= {"vocab_size": vocabulary, "max_position_embeddings": 12}
        settings |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    named = CLASSES[:labels]
    classes = {"id2label": dict(enumerate(named)), "label2id": {name: row for row, name in enumerate(named)}}
    towers = {"clip_vision_model": CLIPVisionModel, "clip_text_model": CLIPTextModel}
    config = AutoConfig.for_model(kind, **settings, **({} if kind in towers else classes))
    if kind in towers:
        model = towers[kind](config)
    else:
        model = (AutoModelForImageClassification if head else AutoModel).from_config(config)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            inner = name.removeprefix(prefix)
            of_body = name.startswith(prefix)
            value = _value(inner if of_body else name, parameter.shape, 0 if of_body else 2000 + seed)
            parameter.copy_(value + drift * value.std() * _normal(inner, parameter.shape, 1000 + seed))
    return model.eval()


def save_vision(model: PreTrainedModel, folder: Path) -> str:
    """Returns the folder of a model with its image processor."""
    model.save_pretrained(folder)
    told = {
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.4, 0.3],
        "image_processor_type": "ViTImageProcessor", "image_std": [0.5, 0.5, 0.5], "resample": 2,
        "rescale_factor": 1 / 255, "size": {"height": 8, "width": 8},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(told, indent=1))
    return str(folder)


def save_tower(family: str, folder: Path, seed: int, **options: Any) -> str:
    """Returns the folder of a model with what it reads by: an image processor, or a tokenizer for CLIP's texts."""
    if family != "clip_text_model":
        return save_vision(tiny_vision(family, seed=seed, **options), folder)
    tokenizer = tiny_tokenizer("bert")
    model = tiny_vision(family, seed=seed, vocabulary=len(tokenizer), **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def image(seed: int) -> Image.Image:
    """Returns a picture of random pixels, of a size of its own."""
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (9 + seed % 3, 12, 3), dtype=np.uint8))


def class_folders(folder: Path, count: int = 9, *, seed: int = 0, classes: int = 3) -> Path:
    """Returns a folder with a folder of images for each class."""
    for at in range(count):
        place = folder / CLASSES[at % classes]
        place.mkdir(parents=True, exist_ok=True)
        image(seed + at).save(place / f"{at}.png")
    return folder
