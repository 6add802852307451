"""The table of language decoders and of T5, apart from families.py, whose families also ensembles and teachers know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from plait.encoders.families import Family, Part

_ATTENTION = {
    "input_layernorm": Part.ATTENTION_NORM,
    "self_attn.q_proj": Part.QUERY,
    "self_attn.k_proj": Part.KEY,
    "self_attn.v_proj": Part.VALUE,
    "self_attn.o_proj": Part.ATTENTION_OUTPUT,
    "self_attn.q_norm": Part.ATTENTION_NORM,
    "self_attn.k_norm": Part.ATTENTION_NORM,
}
_GATED = {
    "mlp.gate_proj": Part.FFN_IN,
    "mlp.up_proj": Part.FFN_IN,
    "mlp.down_proj": Part.FFN_OUT,
}
_OUTSIDE = {"embed_tokens": Part.EMBEDDING, "norm": Part.FINAL_NORM}
_LLAMA = Family("layers.{}", {**_ATTENTION, "post_attention_layernorm": Part.FFN_NORM, **_GATED}, _OUTSIDE)
# Gemma normalises what attention and feed-forward layers give before it is added, so its norms come in pairs.
_GEMMA2 = replace(
    _LLAMA,
    inside={
        **_LLAMA.inside,
        "post_attention_layernorm": Part.ATTENTION_NORM,
        "pre_feedforward_layernorm": Part.FFN_NORM,
        "post_feedforward_layernorm": Part.FFN_NORM,
    },
)
_MIXTURE = replace(
    _LLAMA,
    inside={
        **_LLAMA.inside,
        "mlp.gate": Part.ROUTER,
        "mlp.experts.gate_up_proj": Part.EXPERTS,
        "mlp.experts.down_proj": Part.EXPERTS,
        "mlp.shared_expert.gate_proj": Part.FFN_IN,
        "mlp.shared_expert.up_proj": Part.FFN_IN,
        "mlp.shared_expert.down_proj": Part.FFN_OUT,
        "mlp.shared_expert_gate": Part.ROUTER,
    },
)
_T5_ATTENTION = {
    "layer.0.SelfAttention.q": Part.QUERY,
    "layer.0.SelfAttention.k": Part.KEY,
    "layer.0.SelfAttention.v": Part.VALUE,
    "layer.0.SelfAttention.o": Part.ATTENTION_OUTPUT,
    "layer.0.SelfAttention.relative_attention_bias": Part.RELATIVE,
    "layer.0.layer_norm": Part.ATTENTION_NORM,
}


def _t5_feed_forward(place: int) -> dict[str, Part]:
    """Returns the feed-forward modules of a block of T5, plain or gated, which are its last sublayer."""
    inside = f"layer.{place}.DenseReluDense"
    first = dict.fromkeys((f"{inside}.wi", f"{inside}.wi_0", f"{inside}.wi_1"), Part.FFN_IN)
    return {**first, f"{inside}.wo": Part.FFN_OUT, f"layer.{place}.layer_norm": Part.FFN_NORM}


_T5 = Family(
    "encoder.block.{}",
    {**_T5_ATTENTION, **_t5_feed_forward(1)},
    {
        "shared": Part.EMBEDDING,
        "encoder.final_layer_norm": Part.OTHER_NORM,
        "decoder.final_layer_norm": Part.FINAL_NORM,
        "lm_head": Part.LANGUAGE_HEAD,
    },
    upper=(
        "decoder.block.{}",
        {
            **_T5_ATTENTION,
            "layer.1.EncDecAttention.q": Part.CROSS_QUERY,
            "layer.1.EncDecAttention.k": Part.CROSS_KEY,
            "layer.1.EncDecAttention.v": Part.CROSS_VALUE,
            "layer.1.EncDecAttention.o": Part.CROSS_OUTPUT,
            "layer.1.layer_norm": Part.CROSS_NORM,
            **_t5_feed_forward(2),
        },
    ),
)
_GPT2 = Family(
    "h.{}",
    {
        "ln_1": Part.ATTENTION_NORM,
        "attn.c_attn": Part.QUERY_KEY_VALUE,
        "attn.c_proj": Part.ATTENTION_OUTPUT,
        "ln_2": Part.FFN_NORM,
        "mlp.c_fc": Part.FFN_IN,
        "mlp.c_proj": Part.FFN_OUT,
    },
    {"wte": Part.EMBEDDING, "wpe": Part.EMBEDDING, "ln_f": Part.FINAL_NORM},
    transposed=True,
)
DECODERS: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gpt2": _GPT2,
    "t5": _T5,
    "mixtral": _MIXTURE,
    "qwen2_moe": _MIXTURE,
    "qwen3_moe": _MIXTURE,
}
MIXTURES = frozenset(kind for kind, family in DECODERS.items() if Part.EXPERTS in family.inside.values())
"""Families whose feed-forward layers are mixtures of experts."""
