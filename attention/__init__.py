# SPDX-License-Identifier: Apache-2.0
"""Attention operators and kernels, the shared transformer, the language model.

    from attention import attention, attention_map, output_norm, tda_attention

    o = attention(q, k, v, kind="softmax")          # eight kinds, one layout: attention.KINDS
    o = output_norm(tda_attention(q, k, v, lam))    # threshold differential attention (TDA)

Names here are imported on first use, so that `import attention` loads no JAX. Modules: kinds and
tda (the operators), kernels (their backends), decode (int8 sketches of a cache), parallel (meshes),
masks, layers, survivors (what attention maps do), transformer, lm (the language model), data.
"""

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

__all__ = [
    "KINDS",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "LMConfig",
    "SketchCache",
    "TransformerConfig",
    "append_tokens",
    "attention",
    "attention_map",
    "dense_decode",
    "empty_cache",
    "entmax15",
    "expected_survivors",
    "init_cache",
    "layer_norm",
    "map_statistics",
    "output_norm",
    "relative_buckets",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "row_lengths",
    "segment_positions",
    "sequence_parallel_tda",
    "sharded_tda",
    "sketch_decode",
    "swiglu",
    "t5",
    "tda_attention",
    "threshold",
    "visible",
]

# Public name -> module:name. A submodule's name may not be one: whichever is imported last would
# hide the other.
_PUBLIC = MappingProxyType(
    {
        "Decoder": "attention.transformer:Decoder",
        "Encoder": "attention.transformer:Encoder",
        "EncoderDecoder": "attention.transformer:EncoderDecoder",
        "KINDS": "attention.names:KINDS",
        "LMConfig": "attention.lm.config:LMConfig",
        "SketchCache": "attention.decode:SketchCache",
        "TransformerConfig": "attention.transformer_config:TransformerConfig",
        "append_tokens": "attention.decode:append",
        "attention": "attention.kinds:attention",
        "attention_map": "attention.kinds:attention_map",
        "dense_decode": "attention.decode:dense_decode",
        "empty_cache": "attention.decode:empty_cache",
        "entmax15": "attention.kinds:entmax15",
        "expected_survivors": "attention.survivors:expected_survivors",
        "init_cache": "attention.transformer:init_cache",
        "layer_norm": "attention.layers:layer_norm",
        "map_statistics": "attention.survivors:statistics",
        "output_norm": "attention.tda:output_norm",
        "relative_buckets": "attention.layers:relative_buckets",
        "rms_norm": "attention.layers:rms_norm",
        "rope": "attention.layers:rope",
        "rope_frequencies": "attention.layers:rope_frequencies",
        "row_lengths": "attention.masks:row_lengths",
        "segment_positions": "attention.layers:segment_positions",
        "sequence_parallel_tda": "attention.parallel:sequence_parallel_tda",
        "sharded_tda": "attention.parallel:sharded_tda",
        "sketch_decode": "attention.decode:sketch_decode",
        "swiglu": "attention.layers:swiglu",
        "t5": "attention.transformer_config:t5",
        "tda_attention": "attention.tda:tda_attention",
        "threshold": "attention.tda:threshold",
        "visible": "attention.masks:visible",
    }
)

if TYPE_CHECKING:  # the same names for type checkers, which do not run `__getattr__`
    from attention.decode import SketchCache, dense_decode, empty_cache, sketch_decode
    from attention.decode import append as append_tokens
    from attention.kinds import attention, attention_map, entmax15
    from attention.layers import (
        layer_norm,
        relative_buckets,
        rms_norm,
        rope,
        rope_frequencies,
        segment_positions,
        swiglu,
    )
    from attention.lm.config import LMConfig
    from attention.masks import row_lengths, visible
    from attention.names import KINDS
    from attention.parallel import sequence_parallel_tda, sharded_tda
    from attention.survivors import expected_survivors
    from attention.survivors import statistics as map_statistics
    from attention.tda import output_norm, tda_attention, threshold
    from attention.transformer import Decoder, Encoder, EncoderDecoder, init_cache
    from attention.transformer_config import TransformerConfig, t5
else:

    def __getattr__(name: str) -> Any:
        """Imports a public name on first use (PEP 562)."""
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _PUBLIC[name].partition(":")
        value = getattr(importlib.import_module(module), attribute)
        globals()[name] = value  # the next use finds it without a call
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
