"""The one table of encoder families: which module does what. Nothing else reads meaning from names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """What a parameter does in the encoder."""

    EMBEDDING = "embedding"
    EMBEDDING_NORM = "embedding_norm"
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    QUERY_KEY_VALUE = "query_key_value"
    ATTENTION_OUTPUT = "attention_output"
    ATTENTION_NORM = "attention_norm"
    FFN_IN = "ffn_in"
    FFN_OUT = "ffn_out"
    FFN_NORM = "ffn_norm"
    RELATIVE = "relative"
    CONVOLUTION = "convolution"
    OTHER_NORM = "other_norm"
    FINAL_NORM = "final_norm"
    POOLER = "pooler"
    CROSS_QUERY = "cross_query"
    CROSS_KEY = "cross_key"
    CROSS_VALUE = "cross_value"
    CROSS_OUTPUT = "cross_output"
    CROSS_NORM = "cross_norm"
    ROUTER = "router"
    EXPERTS = "experts"
    LANGUAGE_HEAD = "language_head"


@dataclass(frozen=True)
class Family:
    """Module names of one family: inside a layer (below `layer`, one `{}` per index), and outside.

    Attributes:
        layer: where a layer lies.
        inside: modules of a layer, and parameters of their own such as fused experts.
        outside: modules beside the layers.
        gated: whether gate and first projection are one matrix, gate rows first.
        transposed: whether linear weights of layers are stored [in, out], as GPT-2's `Conv1D` does.
        upper: the layers of a second stack that reads what the first gives (T5's decoder), and what is in them.
    """

    layer: str
    inside: Mapping[str, Part]
    outside: Mapping[str, Part]
    gated: bool = False
    transposed: bool = False
    upper: tuple[str, Mapping[str, Part]] | None = None

    @property
    def stacks(self) -> tuple[tuple[str, Mapping[str, Part]], ...]:
        """Returns the stacks of layers from the bottom up: where a layer lies, and what is in it."""
        return ((self.layer, self.inside), *((self.upper,) if self.upper else ()))


_EMBEDDINGS = {
    "embeddings.word_embeddings": Part.EMBEDDING,
    "embeddings.position_embeddings": Part.EMBEDDING,
    "embeddings.token_type_embeddings": Part.EMBEDDING,
    "embeddings.LayerNorm": Part.EMBEDDING_NORM,
}
_FEED_FORWARD = {
    "intermediate.dense": Part.FFN_IN,
    "output.dense": Part.FFN_OUT,
    "output.LayerNorm": Part.FFN_NORM,
}
_BERT = Family(
    "encoder.layer.{}",
    {
        "attention.self.query": Part.QUERY,
        "attention.self.key": Part.KEY,
        "attention.self.value": Part.VALUE,
        "attention.output.dense": Part.ATTENTION_OUTPUT,
        "attention.output.LayerNorm": Part.ATTENTION_NORM,
        **_FEED_FORWARD,
    },
    {**_EMBEDDINGS, "pooler.dense": Part.POOLER},
)
FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": Family(_BERT.layer, _BERT.inside, {**_EMBEDDINGS, "embeddings_project": Part.EMBEDDING}),
    "distilbert": Family(
        "transformer.layer.{}",
        {
            "attention.q_lin": Part.QUERY,
            "attention.k_lin": Part.KEY,
            "attention.v_lin": Part.VALUE,
            "attention.out_lin": Part.ATTENTION_OUTPUT,
            "sa_layer_norm": Part.ATTENTION_NORM,
            "ffn.lin1": Part.FFN_IN,
            "ffn.lin2": Part.FFN_OUT,
            "output_layer_norm": Part.FFN_NORM,
        },
        _EMBEDDINGS,
    ),
    "mpnet": Family(
        "encoder.layer.{}",
        {
            "attention.attn.q": Part.QUERY,
            "attention.attn.k": Part.KEY,
            "attention.attn.v": Part.VALUE,
            "attention.attn.o": Part.ATTENTION_OUTPUT,
            "attention.LayerNorm": Part.ATTENTION_NORM,
            **_FEED_FORWARD,
        },
        {**_BERT.outside, "encoder.relative_attention_bias": Part.RELATIVE},
    ),
    "deberta-v2": Family(
        "encoder.layer.{}",
        {
            "attention.self.query_proj": Part.QUERY,
            "attention.self.key_proj": Part.KEY,
            "attention.self.value_proj": Part.VALUE,
            "attention.self.pos_query_proj": Part.QUERY,
            "attention.self.pos_key_proj": Part.KEY,
            "attention.output.dense": Part.ATTENTION_OUTPUT,
            "attention.output.LayerNorm": Part.ATTENTION_NORM,
            **_FEED_FORWARD,
        },
        {
            **_EMBEDDINGS,
            "embeddings.embed_proj": Part.EMBEDDING,
            "encoder.rel_embeddings": Part.RELATIVE,
            "encoder.LayerNorm": Part.OTHER_NORM,
            "encoder.conv.conv": Part.CONVOLUTION,
            "encoder.conv.LayerNorm": Part.OTHER_NORM,
        },
    ),
    "albert": Family(
        "encoder.albert_layer_groups.{}.albert_layers.{}",
        {
            "attention.query": Part.QUERY,
            "attention.key": Part.KEY,
            "attention.value": Part.VALUE,
            "attention.dense": Part.ATTENTION_OUTPUT,
            "attention.LayerNorm": Part.ATTENTION_NORM,
            "ffn": Part.FFN_IN,
            "ffn_output": Part.FFN_OUT,
            "full_layer_layer_norm": Part.FFN_NORM,
        },
        {**_EMBEDDINGS, "encoder.embedding_hidden_mapping_in": Part.EMBEDDING, "pooler": Part.POOLER},
    ),
    "modernbert": Family(
        "layers.{}",
        {
            "attn.Wqkv": Part.QUERY_KEY_VALUE,
            "attn.Wo": Part.ATTENTION_OUTPUT,
            "attn_norm": Part.ATTENTION_NORM,
            "mlp.Wi": Part.FFN_IN,
            "mlp.Wo": Part.FFN_OUT,
            "mlp_norm": Part.FFN_NORM,
        },
        {
            "embeddings.tok_embeddings": Part.EMBEDDING,
            "embeddings.norm": Part.EMBEDDING_NORM,
            "final_norm": Part.OTHER_NORM,
        },
        gated=True,
    ),
}
