# SPDX-License-Identifier: Apache-2.0
"""Files of weights, configs and tokenizers; and the same logits as transformers where it is."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.lm import loading, model, sampler, tokenizer
from attention.lm.config import LMConfig, preset

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
SIZES: dict[str, Any] = dict(
    vocab_size=60, layers=2, width=32, heads=4, kv_heads=2, head_dim=12, mlp_width=48
)
QWEN3 = LMConfig(**SIZES, qk_norm=True, rope_theta=5e6)
QWEN2 = LMConfig(**SIZES, qkv_bias=True, tied=False, rope_theta=1e6)
HF = {
    "model_type": "qwen3",
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e6,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def loud(cfg: LMConfig, dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), cfg))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), dtype), shapes)


def write(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any], shards: int = 1):
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        safetensors.save_file(tensors, folder / "model.safetensors")
        return
    where = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        safetensors.save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


@pytest.mark.parametrize(("shards", "dtype"), [(1, "float32"), (3, "bfloat16")])
@pytest.mark.parametrize("cfg", [QWEN3, QWEN2], ids=["tied", "untied"])
def test_round_trip(tmp_path: Path, cfg: LMConfig, shards: int, dtype: str) -> None:
    """Every bit comes back, through one file or several, in the names of published models."""
    params = loud(cfg, jnp.dtype(dtype))
    tensors = loading.export(params, cfg)
    assert tensors["model.layers.1.self_attn.q_proj.weight"].shape == (48, 32)
    assert ("lm_head.weight" in tensors) == (not cfg.tied)
    config = HF | {"model_type": "qwen2" if cfg.qkv_bias else "qwen3"}
    config |= {"tie_word_embeddings": cfg.tied, "rope_theta": cfg.rope_theta}
    write(tmp_path, tensors, config, shards)
    loaded, found = loading.load(tmp_path, dtype=dtype)
    assert found == cfg
    same(loaded, params)
    placed: list[str] = []

    def put(path: str, host: np.ndarray) -> jax.Array:
        placed.append(path)
        return jnp.asarray(host)

    other = LMConfig(**{**vars(cfg), "remat": True})
    loaded, found = loading.load(tmp_path, cfg=other, dtype="float32", put=put)
    assert found.remat and len(set(placed)) == len(jax.tree.leaves(params))
    same(loaded, jax.tree.map(lambda x: x.astype(jnp.float32), params))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    def fails(match: str) -> None:
        with pytest.raises(ValueError, match=match):
            loading.load(tmp_path)

    fails("config.json: no such file")
    (tmp_path / "config.json").write_text("{")
    fails("config.json: no valid JSON")
    good = loading.export(loud(QWEN3), QWEN3)
    write(tmp_path, good, HF)
    (tmp_path / "model.safetensors").unlink()
    fails("model.safetensors: no such file")
    (tmp_path / "model.safetensors").write_bytes(b"\x10" * 40)
    fails("model.safetensors: broken or truncated")
    q, norm = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"
    bad = {name: x for name, x in good.items() if name != norm}
    bad |= {q: good[q][:, :5].copy(), "model.layers.2.x": good[norm]}
    bad["model.rotary_emb.inv_freq"] = good[norm]  # a buffer that is left aside
    write(tmp_path, bad, HF)
    with pytest.raises(ValueError) as raised:
        loading.load(tmp_path)
    said = str(raised.value)
    assert f"missing: {norm};" in said and "unexpected: model.layers.2.x;" in said
    assert f"misshapen: {q} is [48, 5], not [48, 32]" in said and "inv_freq" not in said
    embed = good["model.embed_tokens.weight"]
    write(tmp_path, good | {"lm_head.weight": embed + 1}, HF)
    fails("lm_head.weight differs from model.embed_tokens.weight")
    write(tmp_path, good | {"lm_head.weight": embed}, HF)
    assert "head" not in loading.load(tmp_path)[0]
    write(tmp_path, good, HF, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    fails("model-00002-of-00002.safetensors: no such file; download")


def test_published_configs() -> None:
    """Fields that change what is computed are read or refused, in old and new spelling."""
    assert loading.read_config(HF) == QWEN3
    rope = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    llama = {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    old = llama | {"rope_theta": 5e5, "rope_scaling": rope}
    new = llama | {"rope_parameters": rope | {"rope_theta": 5e5}}
    assert loading.read_config(old) == loading.read_config(new) == preset("llama-3.2-1b")
    for change, named in (
        ({"model_type": "mistral"}, "model_type='mistral': must be one of llama, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope type 'yarn'"),
    ):
        with pytest.raises(ValueError, match=named):
            loading.read_config(HF | change)
    with pytest.raises(ValueError, match="cfg: only softmax"):
        loading.names(preset("tiny", attention="tda"))


def test_character_tokenizer() -> None:
    tokens = tokenizer.CharTokenizer("to be or not")
    assert isinstance(tokens, tokenizer.Tokenizer)
    assert tokens.vocab_size == len(set("to be or not")) and tokens.token_id("z") is None
    ids = tokens.encode("rotten toe")
    assert tokens.decode(ids) == "rotten toe" and max(ids) < tokens.vocab_size
    assert tokens.token_id(" ") == 0
    again = tokenizer.from_json(tokens.to_json())
    assert again.encode("rotten toe") == ids
    with pytest.raises(ValueError, match=r"outside the vocabulary: \['!', 'x'\]"):
        tokens.encode("ox!")
    with pytest.raises(ValueError, match="characters"):
        tokenizer.CharTokenizer("")


def test_byte_level_bpe(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    text = "the cat sat on the mat and the rat sat on the cat. " * 20
    special = ("<|im_start|>", "<|im_end|>")
    tokens = tokenizer.train_bpe([text], 300, special)
    assert isinstance(tokens, tokenizer.Tokenizer)
    assert 258 < tokens.vocab_size <= 300
    assert [tokens.token_id(name) for name in special] == [0, 1]
    strange = "naïve 猫 \n\t 🙂 the cat<|im_end|>"
    ids = tokens.encode(strange)
    assert tokens.decode(ids) == strange and ids[-1] == 1
    assert len(tokens.encode(text)) < 0.5 * len(text)
    (tmp_path / "tokenizer.json").write_text(tokens.to_json())
    assert tokenizer.load(tmp_path / "tokenizer.json").encode(strange) == ids
    assert tokenizer.from_json(tokens.to_json()).encode(strange) == ids
    with pytest.raises(ValueError, match="vocab_size=257: at least 258"):
        tokenizer.train_bpe([text], 257, special)
    with pytest.raises(ValueError, match="no such file"):
        tokenizer.load(tmp_path / "nothing.json")


def test_chat_formats() -> None:
    """Goldens of the published formats [secondary: their templates without tools]."""
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi\n"},
        {"role": "assistant", "content": "Hello."},
    ]
    assert tokenizer.chatml(turns) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.llama3_chat(turns[1:], generation=False) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    )
    assert tokenizer.llama3_chat([]).endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PEERS = {
    "qwen3": ("Qwen3", {"head_dim": 12, "tie_word_embeddings": True}, {"rope_theta": 5e6}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": False}, {"rope_theta": 1e6}),
    "llama": ("Llama", {"tie_word_embeddings": True}, {"rope_theta": 5e5, **LLAMA3}),
}


@pytest.mark.parametrize("family", PEERS)
def test_agrees_with_transformers(family: str, tmp_path: Path) -> None:
    """Files that transformers wrote; weights of std 0.3 and 150 positions (the original context of
    the scaled Llama is 64), left padding, and its greedy text token for token.

    The same comparison must see a rotation base that is off by two.
    """
    torch = pytest.importorskip("torch", reason="peer torch is not installed (extra peers_lm)")
    peer = pytest.importorskip("transformers", reason="peer transformers is not installed")
    name, changes, rope = PEERS[family]
    settings = {k: v for k, v in HF.items() if k not in ("model_type", "rope_theta", "head_dim")}
    rope = {"rope_type": "default", **rope}
    torch.manual_seed(0)
    config = getattr(peer, f"{name}Config")(
        **settings | changes | {"num_hidden_layers": 3, "max_position_embeddings": 512},
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    other = getattr(peer, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, weight in other.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_(0.5 + torch.rand_like(weight) if "norm" in key else 0.3 * noise)
    other.save_pretrained(tmp_path)
    params, cfg = loading.load(tmp_path)
    assert cfg.rope_theta == rope["rope_theta"] and (cfg.llama3_factor > 1) == (family == "llama")
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 60, (2, 150))
    mask = np.ones((2, 150), bool)
    mask[1, :40] = False
    with torch.no_grad():
        want = other(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long()
        ).logits.numpy()

    def error(cfg: LMConfig) -> float:
        got = model.forward(params, cfg, jnp.asarray(ids), mask=mask).logits
        return float(np.abs(got - want)[mask].max() / np.abs(want[mask]).max())

    found = error(cfg)
    print(f"{family}: {found:.2e}")
    assert found < 2e-5
    assert error(LMConfig(**{**vars(cfg), "rope_theta": 2 * cfg.rope_theta})) > 1e-3
    prompts, prompt_mask = ids[:1, :20], np.ones((1, 20), bool)
    with torch.no_grad():
        text = other.generate(torch.tensor(prompts), max_new_tokens=24, do_sample=False).numpy()
    state = sampler.start(params, cfg, prompts, prompt_mask, capacity=44)
    greedy = sampler.Sampling(max_new=24, temperature=0)
    out = sampler.sample(params, cfg, state, jax.random.key(0), greedy)
    np.testing.assert_array_equal(out.ids, text[:, 20:])
