# SPDX-License-Identifier: Apache-2.0
"""Weights of published models: a folder of config.json and safetensors, with Hugging Face's names.

Reads one parameter of our tree at a time, tensor by tensor, so that the host holds the largest
stacked matrix and nothing else. Files are looked at before anything is read: missing, unexpected
and misshapen tensors are named.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from attention.lm.config import LMConfig
from attention.lm.model import Params

MODEL_TYPES = ("llama", "qwen2", "qwen3")
Put = Callable[[str, np.ndarray], Any]
# Buffers that some exporters save beside the weights; they follow from the config.
IGNORED = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
SHOWN = 8  # names in an error


def read_config(hf: Mapping[str, Any]) -> LMConfig:
    """LMConfig of a config.json of Llama 3, Qwen2/2.5 or Qwen3 (dense).

    Raises:
        ValueError: another model_type, or a setting that the model here does not have.
    """
    kind = hf.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"model_type={kind!r}: must be one of {', '.join(MODEL_TYPES)}")
    for name, allowed in (
        ("hidden_act", ("silu",)),
        ("attention_bias", (False,)),
        ("mlp_bias", (False,)),
        ("use_sliding_window", (False,)),
        ("pretraining_tp", (1,)),
    ):
        if hf.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{name}={hf[name]!r} in config.json: must be {allowed[0]!r}")
    heads = hf["num_attention_heads"]
    # Newer files keep theta among rope_parameters, older ones beside rope_scaling.
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    fields: dict[str, Any] = dict(
        vocab_size=hf["vocab_size"],
        layers=hf["num_hidden_layers"],
        width=hf["hidden_size"],
        heads=heads,
        kv_heads=hf.get("num_key_value_heads") or heads,
        head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
        mlp_width=hf["intermediate_size"],
        norm_eps=hf["rms_norm_eps"],
        qk_norm=kind == "qwen3",
        qkv_bias=kind == "qwen2",
        tied=bool(hf.get("tie_word_embeddings", False)),
        rope_theta=rope.get("rope_theta") or hf.get("rope_theta") or 10000.0,
    )
    scaling = rope.get("rope_type") or rope.get("type") or "default"
    if scaling == "llama3":
        fields |= dict(
            llama3_factor=rope["factor"],
            llama3_low=rope["low_freq_factor"],
            llama3_high=rope["high_freq_factor"],
            llama3_original=rope["original_max_position_embeddings"],
        )
    elif scaling != "default":
        raise ValueError(f"rope type {scaling!r} in config.json: must be 'default' or 'llama3'")
    return LMConfig(**fields)


def write_config(cfg: LMConfig) -> dict[str, Any]:
    """config.json of a model, the inverse of `read_config`.

    Raises:
        ValueError: the config is not of a published family; its fields are named.
    """
    for name, allowed in (
        ("norm", "rms"),
        ("mlp", "swiglu"),
        ("attention", "softmax"),
        ("ntk_factor", 1.0),
    ):
        if getattr(cfg, name) != allowed:
            raise ValueError(
                f"{name}={getattr(cfg, name)!r} has no published layout: it must be {allowed!r}"
            )
    if cfg.qk_norm and cfg.qkv_bias:
        raise ValueError("qk_norm=True and qkv_bias=True: no published family has both")
    kind = "qwen3" if cfg.qk_norm else "qwen2" if cfg.qkv_bias else "llama"
    config: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.width,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.mlp_width,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tied,
        "rope_theta": cfg.rope_theta,
        "hidden_act": "silu",
    }
    if cfg.llama3_factor != 1.0:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": cfg.llama3_factor,
            "low_freq_factor": cfg.llama3_low,
            "high_freq_factor": cfg.llama3_high,
            "original_max_position_embeddings": cfg.llama3_original,
        }
    return config


def names(cfg: LMConfig) -> dict[str, tuple[list[str], tuple[int, ...], bool]]:
    """{path of our leaf: (names of its tensors, one per layer; shape of one; whether transposed)}.

    Raises:
        ValueError: the config is not of a family that has these names.
    """
    plain = cfg.norm == "rms" and cfg.mlp == "swiglu" and cfg.attention == "softmax"
    if not plain:
        raise ValueError("cfg: only softmax attention with rms norm and swiglu has published names")
    D = cfg.width
    F = cfg.mlp_width
    hd = cfg.head_dim
    q = cfg.heads * hd
    kv = cfg.kv_heads * hd
    layer: dict[str, tuple[str, tuple[int, ...], bool]] = {
        "attn_norm/scale": ("input_layernorm.weight", (D,), False),
        "attn/q": ("self_attn.q_proj.weight", (q, D), True),
        "attn/k": ("self_attn.k_proj.weight", (kv, D), True),
        "attn/v": ("self_attn.v_proj.weight", (kv, D), True),
        "attn/o": ("self_attn.o_proj.weight", (D, q), True),
        "mlp_norm/scale": ("post_attention_layernorm.weight", (D,), False),
        "mlp/gate": ("mlp.gate_proj.weight", (F, D), True),
        "mlp/up": ("mlp.up_proj.weight", (F, D), True),
        "mlp/down": ("mlp.down_proj.weight", (D, F), True),
    }
    if cfg.qkv_bias:
        for name, width in (("q", q), ("k", kv), ("v", kv)):
            layer[f"attn/{name}_bias"] = (f"self_attn.{name}_proj.bias", (width,), False)
    if cfg.qk_norm:
        for name in ("q", "k"):
            layer[f"attn/{name}_norm"] = (f"self_attn.{name}_norm.weight", (hd,), False)
    out: dict[str, tuple[list[str], tuple[int, ...], bool]] = {}
    out["embed"] = (["model.embed_tokens.weight"], (cfg.vocab_size, D), False)
    for path, (name, shape, transposed) in layer.items():
        each = [f"model.layers.{number}.{name}" for number in range(cfg.layers)]
        out[f"blocks/{path}"] = (each, shape, transposed)
    out["final_norm/scale"] = (["model.norm.weight"], (D,), False)
    if not cfg.tied:
        out["head"] = (["lm_head.weight"], (cfg.vocab_size, D), False)
    return out


def load(
    folder: str | Path,
    *,
    cfg: LMConfig | None = None,
    dtype: Any = "float32",
    put: Put | None = None,
) -> tuple[Params, LMConfig]:
    """Parameters and config of a downloaded model.

    Args:
        folder: holds config.json and model.safetensors, or shards with
            model.safetensors.index.json.
        cfg: config to use in place of config.json's (other implementation, remat, dtype, ...); its
            shapes must be those of the files.
        dtype: of the parameters, "float32" or "bfloat16".
        put: (path, host array) -> array, e.g. onto a sharding; default `jnp.asarray`.

    Raises:
        ValueError: a missing or broken file; missing, unexpected or misshapen tensors, by name.
        ImportError: safetensors is not installed.
    """
    folder = Path(folder)
    if cfg is None:
        cfg = read_config(_read_json(folder / "config.json"))
    opened = _open(folder)
    wanted = names(cfg)
    _drop_tied_head(cfg, opened)
    _compare(wanted, opened)
    put = put or (lambda _, array: jnp.asarray(array))
    params: Params = {}
    for path, (tensors, shape, transposed) in wanted.items():
        layer_shape = shape[::-1] if transposed else shape
        stacked = path.startswith("blocks/")
        host_shape = (len(tensors), *layer_shape) if stacked else layer_shape
        host = np.empty(host_shape, jnp.dtype(dtype))
        for number, name in enumerate(tensors):
            tensor = opened[name].get_tensor(name)
            host[number if stacked else ...] = tensor.T if transposed else tensor
        _set(params, path, put(path, host))
    return params, cfg


def export(params: Params, cfg: LMConfig) -> dict[str, np.ndarray]:
    """Tensors under their published names, as `safetensors.numpy.save_file` takes them."""
    out = {}
    for path, (tensors, _, transposed) in names(cfg).items():
        leaf: Any = params
        for part in path.split("/"):
            leaf = leaf[part]
        for number, name in enumerate(tensors):
            host = np.asarray(leaf[number] if path.startswith("blocks/") else leaf)
            out[name] = np.ascontiguousarray(host.T if transposed else host)
    return out


def _set(tree: dict[str, Any], path: str, leaf: Any) -> None:
    *parents, last = path.split("/")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = leaf


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a model folder has config.json and *.safetensors")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no valid JSON ({error})") from error


def _open(folder: Path) -> dict[str, Any]:
    """{tensor name: open file that holds it}; nothing is read but the headers."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            "reading weights needs safetensors: pip install 'banyan-stack[lm]'"
        ) from error
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(_read_json(index)["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    opened = {}
    for name in files:
        if name != Path(name).name or name == ".." or "\\" in name or "\0" in name:
            raise ValueError(f"{index}: {name!r} is no name of a file beside it")
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}: no such file; download the model completely")
        try:
            file = safe_open(path, framework="np")
        except SafetensorError as error:
            raise ValueError(f"{path}: broken or truncated ({error})") from error
        opened |= {tensor: file for tensor in file.keys()}
    return opened


def _drop_tied_head(cfg: LMConfig, opened: dict[str, Any]) -> None:
    """Leaves aside the copy of a tied embedding that some exporters save as a head."""
    head = "lm_head.weight"
    embed = "model.embed_tokens.weight"
    if not cfg.tied or head not in opened or embed not in opened:
        return
    head_table = opened[head].get_tensor(head)
    embed_table = opened[embed].get_tensor(embed)
    # Bytes, not values: NaN equals NaN here, and 16-bit types need no comparison of their own.
    if head_table.shape != embed_table.shape or head_table.tobytes() != embed_table.tobytes():
        raise ValueError(f"{head} differs from {embed}, but the config says that they are tied")
    del opened[head]


def _compare(wanted: dict[str, tuple[list[str], tuple[int, ...], bool]], opened: Any) -> None:
    """ValueError naming tensors that are missing, unexpected or of another shape."""
    shapes = {name: shape for each, shape, _ in wanted.values() for name in each}
    in_files = {name for name in opened if not IGNORED.fullmatch(name)}
    wrong = []
    for name in sorted(in_files & set(shapes)):
        shape = tuple(opened[name].get_slice(name).get_shape())
        if shape != shapes[name]:
            wrong.append(f"{name} is {list(shape)}, not {list(shapes[name])}")
    problems = (
        ("missing", sorted(set(shapes) - in_files)),
        ("unexpected", sorted(in_files - set(shapes))),
        ("misshapen", wrong),
    )
    messages = []
    for what, tensors in problems:
        if tensors:
            more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
            messages.append(f"{what}: {', '.join(tensors[:SHOWN])}{more}")
    if messages:
        raise ValueError(f"tensors do not match the config; {'; '.join(messages)}")
