"""The table of image encoders and of CLIP's towers; apart from families.py, which has the encoders of texts."""

from __future__ import annotations

from collections.abc import Mapping

from plait.encoders.families import Family, Part

_PROJECTIONS = {"q_proj": Part.QUERY, "k_proj": Part.KEY, "v_proj": Part.VALUE}
_PATCHES = {
    "embeddings.cls_token": Part.EMBEDDING,
    "embeddings.mask_token": Part.EMBEDDING,
    "embeddings.position_embeddings": Part.EMBEDDING,
    "embeddings.patch_embeddings.projection": Part.EMBEDDING,
    "layernorm": Part.FINAL_NORM,
    "pooler.dense": Part.POOLER,
}
_DINOV2 = {
    **{f"attention.{name}": part for name, part in _PROJECTIONS.items()},
    "attention.o_proj": Part.ATTENTION_OUTPUT,
    "norm1": Part.ATTENTION_NORM,
    "layer_scale1.lambda1": Part.ATTENTION_NORM,
    "norm2": Part.FFN_NORM,
    "layer_scale2.lambda1": Part.FFN_NORM,
}
_TOWER = {
    **{f"self_attn.{name}": part for name, part in _PROJECTIONS.items()},
    "self_attn.out_proj": Part.ATTENTION_OUTPUT,
    "layer_norm1": Part.ATTENTION_NORM,
    "mlp.fc1": Part.FFN_IN,
    "mlp.fc2": Part.FFN_OUT,
    "layer_norm2": Part.FFN_NORM,
}
VISION: Mapping[str, Family] = {
    "vit": Family(
        "layers.{}",
        {
            **{f"attention.{name}": part for name, part in _PROJECTIONS.items()},
            "attention.o_proj": Part.ATTENTION_OUTPUT,
            "layernorm_before": Part.ATTENTION_NORM,
            "mlp.fc1": Part.FFN_IN,
            "mlp.fc2": Part.FFN_OUT,
            "layernorm_after": Part.FFN_NORM,
        },
        _PATCHES,
    ),
    "dinov2": Family("encoder.layer.{}", {**_DINOV2, "mlp.fc1": Part.FFN_IN, "mlp.fc2": Part.FFN_OUT}, _PATCHES),
    "clip_vision_model": Family(
        "encoder.layers.{}",
        _TOWER,
        {
            "embeddings.class_embedding": Part.EMBEDDING,
            "embeddings.patch_embedding": Part.EMBEDDING,
            "embeddings.position_embedding": Part.EMBEDDING,
            "pre_layrnorm": Part.EMBEDDING_NORM,
            "post_layernorm": Part.FINAL_NORM,
        },
    ),
    "clip_text_model": Family(
        "encoder.layers.{}",
        _TOWER,
        {
            "embeddings.token_embedding": Part.EMBEDDING,
            "embeddings.position_embedding": Part.EMBEDDING,
            "final_layer_norm": Part.FINAL_NORM,
        },
    ),
}


GATED_DINOV2 = Family(
    "encoder.layer.{}",
    {**_DINOV2, "mlp.gate_proj": Part.FFN_IN, "mlp.up_proj": Part.FFN_IN, "mlp.down_proj": Part.FFN_OUT},
    _PATCHES,
)
"""DINOv2 with SwiGLU: the giant. Its statistics can be taken; its files keep gate and up in one tensor."""
HEADLESS = frozenset({"clip_vision_model"})
"""Image models without a head, which have no likelihood."""


def dinov2_neurons(hidden: int, ratio: float, *, gated: bool) -> int:
    """Returns the neurons of a DINOv2 layer: SwiGLU keeps two thirds of them, rounded up to a multiple of 8."""
    neurons = int(hidden * ratio)
    return (int(neurons * 2 / 3) + 7) // 8 * 8 if gated else neurons
