# SPDX-License-Identifier: Apache-2.0
"""The language model: against NumPy, its masks, cache, taps, rewiring, adapters and new rows."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention import kinds
from attention.lm import lora, model, vocabulary
from attention.lm.config import PRESETS, LMConfig, preset
from tests.jitter import jittered
from tests.tiers import deep_unless

fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SIZES: dict[str, Any] = dict(
    vocab_size=40, layers=2, width=16, heads=4, kv_heads=2, head_dim=6, mlp_width=24
)
CFG = LMConfig(**SIZES, qk_norm=True, rope_theta=500.0)
RNG = np.random.default_rng(0)
IDS = jnp.asarray(RNG.integers(0, 40, (2, 9)), jnp.int32)


def loud(cfg: LMConfig, seed: int = 0) -> Any:
    """Parameters of standard deviation 0.4 (norms and knobs around 1)."""
    rng = np.random.default_rng(seed)

    def one(path: Any, leaf: Any) -> jax.Array:
        small = "norm" in jax.tree_util.keystr(path) and "bias" not in jax.tree_util.keystr(path)
        return jnp.asarray(rng.normal(0, 0.4, leaf.shape) + small, jnp.float32)

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), cfg))
    return jax.tree_util.tree_map_with_path(one, shapes)


PARAMS = loud(CFG)
run = fast(model.forward, static_argnums=1, static_argnames=("taps",))


def numpy_forward(params: Any, cfg: LMConfig, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Logits, hidden states and attention of one sequence, in float64 loops over heads."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    T, hd, group = len(ids), cfg.head_dim, cfg.heads // cfg.kv_heads

    def norm(x: np.ndarray, w: dict[str, np.ndarray] | np.ndarray) -> np.ndarray:
        scale = w["scale"] if isinstance(w, dict) else w
        if isinstance(w, dict) and "bias" in w:
            x = x - x.mean(-1, keepdims=True)
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * scale + w["bias"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * scale

    def turn(x: np.ndarray) -> np.ndarray:
        angle = np.arange(T)[:, None] * cfg.rope_theta ** (-np.arange(0, hd, 2) / hd)
        z = (x[:, : hd // 2] + 1j * x[:, hd // 2 :]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], -1)

    def heads(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
        out = x @ w[name] + w.get(f"{name}_bias", 0)
        parts = [out[:, i : i + hd] for i in range(0, out.shape[1], hd)]
        if name == "v":
            return parts
        return [turn(norm(p, w[f"{name}_norm"]) if cfg.qk_norm else p) for p in parts]

    x = params["embed"][ids]
    resid, maps, hidden_states = [x], [], []
    for layer in range(cfg.layers):
        block = jax.tree.map(lambda leaf, i=layer: leaf[i], params["blocks"])
        h, w = norm(x, block["attn_norm"]), block["attn"]
        q, k, v = (heads(h, w, name) for name in "qkv")
        outs, layer_maps = [], []
        for head in range(cfg.heads):
            s = q[head] @ k[head // group].T / np.sqrt(hd)
            A = np.exp(s - s.max(-1, keepdims=True)) * np.tril(np.ones((T, T)))
            A /= A.sum(-1, keepdims=True)
            layer_maps.append(A)
            outs.append(A @ v[head // group])
        x = x + np.concatenate(outs, -1) @ w["o"]
        h, w = norm(x, block["mlp_norm"]), block["mlp"]
        up = h @ w["up"]
        if cfg.mlp == "swiglu":
            gate = h @ w["gate"]
            hidden = gate / (1 + np.exp(-gate)) * up
        else:
            hidden = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + hidden @ w["down"]
        resid.append(x)
        maps.append(np.stack(layer_maps))
        hidden_states.append(hidden)
    table = params["embed"] if cfg.tied else params["head"]
    return {
        "logits": norm(x, params["final_norm"]) @ table.T,
        "resid": np.stack(resid),
        "attn": np.stack(maps),
        "mlp_hidden": np.stack(hidden_states),
    }


@pytest.mark.parametrize(
    "cfg",
    [
        CFG,
        LMConfig(**SIZES, qkv_bias=True, tied=False, norm="layer", mlp="gelu", norm_eps=1e-5),
    ],
    ids=["qwen3", "gpt2_qwen2"],
)
def test_forward_and_taps_against_numpy(cfg: LMConfig) -> None:
    params, taps = loud(cfg, 1), frozenset({"resid", "attn", "mlp_hidden"})
    out = run(params, cfg, IDS, taps=taps)
    for row in range(2):
        want = numpy_forward(params, cfg, np.asarray(IDS)[row])
        got = {"logits": out.logits[row], **{name: out.taps[name][:, row] for name in taps}}
        for name, value in want.items():
            error = np.abs(np.asarray(got[name]) - value).max() / np.abs(value).max()
            assert error < 1e-5, (name, error)
    assert set(out.taps) == taps


def test_taps_change_nothing_and_add_up() -> None:
    plain = run(PARAMS, CFG, IDS)
    taps = frozenset({"resid", "attn_out", "mlp_out"})
    tapped = run(PARAMS, CFG, IDS, taps=taps)
    np.testing.assert_allclose(tapped.logits, plain.logits, atol=1e-5)
    resid = tapped.taps["resid"]
    steps = tapped.taps["attn_out"] + tapped.taps["mlp_out"]
    np.testing.assert_allclose(resid[1:], resid[:-1] + steps, atol=1e-5)
    np.testing.assert_array_equal(resid[0], PARAMS["embed"][IDS])


CASES = {
    "softmax": CFG,
    "tda": LMConfig(**SIZES, attention="tda", beta=0.4, learn_beta=True, qkv_bias=True),
    "ssmax": LMConfig(**SIZES, attention="ssmax", norm="layer", mlp="relu", ntk_factor=4),
}


@pytest.mark.parametrize("case", deep_unless(lambda case: case == "tda", CASES))
def test_causality_padding_and_cache(case: str) -> None:
    cfg = CASES[case]
    params = loud(cfg, 2)
    close = 1e-4 if case == "tda" else 1e-5
    full = run(params, cfg, IDS).logits
    scale = float(jnp.abs(full).max())
    changed = run(params, cfg, IDS.at[:, 5].set((IDS[:, 5] + 1) % 40)).logits
    np.testing.assert_array_equal(changed[:, :5], full[:, :5])
    assert float(jnp.abs(changed[:, 5:] - full[:, 5:]).min(axis=-1).max()) > 1e-3
    for left in (0, 3):
        ids = jnp.full((2, 12), 7).at[:, left : left + 9].set(IDS)
        mask = jnp.zeros((2, 12), bool).at[:, left : left + 9].set(True)
        padded = run(params, cfg, ids, mask=mask).logits[:, left : left + 9]
        np.testing.assert_allclose(padded, full, atol=close * scale)
    # A cache filled by a left-padded prompt, then a chunk with a hole in row 0, then one token.
    cache = model.init_cache(cfg, 2, 16)
    ids = jnp.full((2, 6), 3).at[0, 1:].set(IDS[0, :5]).at[1, 2:].set(IDS[1, :4])
    mask = jnp.asarray([[False] + [True] * 5, [False] * 2 + [True] * 4])
    first = run(params, cfg, ids, mask=mask, cache=cache)
    ids = jnp.asarray([[9, IDS[0, 5], IDS[0, 6]], IDS[1, 4:7]])
    mask = jnp.asarray([[False, True, True], [True, True, True]])
    second = run(params, cfg, ids, mask=mask, cache=first.cache)
    third = run(params, cfg, IDS[:, 7:8], cache=second.cache)
    got = jnp.concatenate([first.logits[0, 1:], second.logits[0, 1:], third.logits[0]])
    np.testing.assert_allclose(got, full[0, :8], atol=close * scale)
    got = jnp.concatenate([first.logits[1, 2:], second.logits[1], third.logits[1]])
    np.testing.assert_allclose(got, full[1, :8], atol=close * scale)
    assert third.cache.tokens.tolist() == [8, 8] and int(third.cache.length) == 10


def test_packed_texts_are_isolated() -> None:
    segments = jnp.asarray([[1] * 4 + [2] * 5, [1] * 6 + [3] * 2 + [0]])
    packed = run(PARAMS, CFG, IDS, segment_ids=segments).logits
    full = run(PARAMS, CFG, IDS).logits
    shifted = run(PARAMS, CFG, jnp.roll(IDS, -4, axis=1)).logits
    np.testing.assert_allclose(packed[0, :4], full[0, :4], atol=1e-5)
    np.testing.assert_allclose(packed[0, 4:], shifted[0, :5], atol=1e-5)
    assert float(jnp.abs(packed[0, 4:] - full[0, 4:]).max()) > 0.1


def test_scan_unrolled_and_remat_agree() -> None:
    def loss(params: Any, cfg: LMConfig) -> jax.Array:
        return (model.forward(params, cfg, IDS).logits ** 2).mean()

    slope = fast(jax.value_and_grad(loss), static_argnums=1)
    results = [
        slope(PARAMS, dataclasses.replace(CFG, scan=s, remat=r))
        for s, r in ((True, False), (False, True))
    ]
    for want, got in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * float(jnp.abs(want).max()))


def test_rewiring_copies_at_once_before_chosen_blocks() -> None:
    """Against the residual stream: a chain a -> b -> c must not cascade, dead slots do nothing."""
    taps = frozenset({"resid"})
    dst, src = np.array([[2, 4, 2], [1, 5, 5]]), np.array([[0, 2, 7], [3, 1, 6]])
    valid = np.array([[True, True, False], [True, True, False]])
    both = model.Rewire(jnp.asarray(dst), jnp.asarray(src), jnp.asarray(valid), 0, 1)
    got = run(PARAMS, CFG, IDS, rewire=both, taps=taps).taps["resid"]
    # Copied embeddings equal those of other tokens; positions stay, so feed other ids instead.
    ids = np.asarray(IDS).copy()
    ids[0, [2, 4]], ids[1, [1, 5]] = ids[0, [0, 2]], ids[1, [3, 1]]
    want = run(PARAMS, CFG, jnp.asarray(ids), taps=taps).taps["resid"]
    np.testing.assert_allclose(got[1:], want[1:], atol=1e-5)
    never = run(PARAMS, CFG, IDS, rewire=both._replace(hi=0), taps=taps)
    np.testing.assert_array_equal(never.logits, run(PARAMS, CFG, IDS, taps=taps).logits)
    later = run(PARAMS, CFG, IDS, rewire=both._replace(lo=1, hi=2), taps=taps).taps["resid"]
    plain = run(PARAMS, CFG, IDS, taps=taps).taps["resid"]
    np.testing.assert_array_equal(later[1], plain[1])
    assert float(jnp.abs(later[2, 0, 4] - plain[2, 0, 4]).max()) > 0.1


def test_adapters() -> None:
    """B = 0 is the base model bit for bit; merged = applied; gradients stop at the adapters."""
    targets = ("q", "k", "v", "o", "gate", "up", "down")
    adapters = lora.init(jax.random.key(0), PARAMS, rank=3, targets=targets)
    inputs = {"q": 16, "k": 16, "v": 16, "o": 24, "gate": 16, "up": 16, "down": 24}
    outputs = {"q": 24, "k": 12, "v": 12, "o": 16, "gate": 24, "up": 24, "down": 16}
    assert lora.count(adapters) == sum(2 * 3 * (inputs[n] + outputs[n]) for n in targets)
    base = run(PARAMS, CFG, IDS).logits
    np.testing.assert_array_equal(run(PARAMS, CFG, IDS, lora=adapters, lora_scale=2.0).logits, base)
    rng = np.random.default_rng(3)
    for adapter in adapters.values():
        adapter["b"] = jnp.asarray(rng.normal(0, 0.1, adapter["b"].shape), jnp.float32)
    with_adapters = run(PARAMS, CFG, IDS, lora=adapters, lora_scale=2.0).logits
    merged = lora.merge(PARAMS, adapters, 2.0)
    assert float(jnp.abs(with_adapters - base).max()) > 1
    np.testing.assert_allclose(run(merged, CFG, IDS).logits, with_adapters, atol=1e-4)
    back = lora.unmerge(merged, adapters, 2.0)
    for want, got in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    with pytest.raises(ValueError, match="targets: 'embed' is no matrix"):
        lora.init(jax.random.key(0), PARAMS, rank=2, targets=("embed",))
    with pytest.raises(ValueError, match="rank=0"):
        lora.init(jax.random.key(0), PARAMS, rank=0)


@pytest.mark.trains
@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_and_frozen_rows(tied: bool) -> None:
    cfg = dataclasses.replace(CFG, tied=tied, layers=1)
    params = jittered(loud(cfg, 4))
    wide, bigger = vocabulary.extend_vocab(params, cfg, 3)
    assert bigger.vocab_size == 43
    logits, base = run(wide, bigger, IDS).logits, run(params, cfg, IDS).logits
    np.testing.assert_allclose(logits[..., :40], base, atol=1e-5)
    for name in ("embed",) if tied else ("embed", "head"):
        np.testing.assert_allclose(
            wide[name][40:], np.tile(params[name].mean(0), (3, 1)), rtol=1e-5
        )

    only_new = [("embed|head" if not tied else "embed", [40, 42])]
    mask = vocabulary.train_mask(wide, only_new)
    optimizer = vocabulary.only(
        optax.chain(optax.clip_by_global_norm(1e-3), optax.adamw(1e-2, weight_decay=0.5)), mask
    )

    @fast
    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            ids = IDS.at[:, 3].set(40).at[:, 5].set(42).at[:, 7].set(41)
            return (model.forward(params, bigger, ids).logits ** 2).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    new, state = wide, optimizer.init(wide)
    for _ in range(10):
        new, state = step(new, state)
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(wide), jax.tree.leaves(new), strict=True
    ):
        moved = np.zeros(before.shape[0], bool)
        if jax.tree_util.keystr(path, simple=True) in ("embed", "head"):
            moved[[40, 42]] = True
            assert (np.abs(after - before)[moved] > 1e-3).any(axis=1).all(), path
        assert np.asarray(before)[~moved].tobytes() == np.asarray(after)[~moved].tobytes(), path


def test_frozen_gradients_reach_no_norm() -> None:
    """Clipping to 1 sees the chosen row of length 2 alone, not the huge frozen ones."""
    params = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(2)}
    mask = vocabulary.train_mask(params, [("a", [1])])
    optimizer = vocabulary.only(optax.clip_by_global_norm(1.0), mask)
    grads = {"a": jnp.full((3, 4), 1e3).at[1].set(1.0), "b": jnp.full(2, 1e3)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [[0] * 4, [0.5] * 4, [0] * 4], rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], [0, 0])


def test_inits_of_new_rows() -> None:
    key, rows = jax.random.key(1), np.arange(32.0).reshape(2, 16)
    embed = PARAMS["embed"]
    noisy = vocabulary.extend_vocab(PARAMS, CFG, 2000, "vocab_mean_noise", key=key)[0]["embed"][40:]
    spread = np.asarray(noisy - embed.mean(0)[None]).std(0) / np.asarray(embed.std(0))
    np.testing.assert_allclose(spread, 1e-9**0.5, rtol=0.1)
    normal = vocabulary.extend_vocab(PARAMS, CFG, 2000, "normal", key=key)[0]["embed"][40:]
    np.testing.assert_allclose(np.asarray(normal).std(), 0.02, rtol=0.02)
    given = vocabulary.extend_vocab(PARAMS, CFG, 2, "rows", rows=rows)[0]["embed"]
    np.testing.assert_array_equal(given[40:], rows)
    cases: Any = (
        ({"num_new": 0}, "num_new=0"),
        ({"num_new": 1, "init": "zeros"}, "init='zeros'"),
        ({"num_new": 1, "init": "normal"}, "key: needed"),
        ({"num_new": 1, "key": key}, "key: not used"),
        ({"num_new": 1, "init": "rows"}, "rows: needed"),
        ({"num_new": 1, "init": "rows", "rows": rows}, "rows has shape"),
    )
    for options, named in cases:
        with pytest.raises(ValueError, match=named):
            vocabulary.extend_vocab(PARAMS, CFG, **options)
    with pytest.raises(ValueError, match="embed has rows 0 to 39"):
        vocabulary.train_mask(PARAMS, [("embed", [40])])
    with pytest.raises(ValueError, match="match no leaf"):
        vocabulary.train_mask(PARAMS, [("embed", True), ("embedding", True)])


def test_rules_cover_every_parameter_and_a_sharded_step_is_the_same() -> None:
    """On 8 devices as (data 2, model 4): logits as on one."""
    import re

    from jax.sharding import AxisType, NamedSharding

    cfg = dataclasses.replace(CFG, width=16, heads=8, kv_heads=4)
    params = loud(cfg, 5)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    used = set()

    def place(path: Any, leaf: jax.Array) -> jax.Array:
        name = "params/" + jax.tree_util.keystr(path, simple=True, separator="/")
        number, spec = next(
            (i, s) for i, (r, s) in enumerate(model.partition_rules()) if re.fullmatch(r, name)
        )
        used.add(number)
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    placed = jax.tree_util.tree_map_with_path(place, params)
    assert used == set(range(len(model.partition_rules()))) - {4}  # no qkv bias here
    assert placed["blocks"]["attn"]["q"].addressable_shards[0].data.shape == (2, 8, 12)
    for path, leaf in jax.tree_util.tree_leaves_with_path(placed):
        split = 1 if "norm" in jax.tree_util.keystr(path) else 8
        assert leaf.addressable_shards[0].data.size == leaf.size // split, path
    got, want = run(placed, cfg, IDS).logits, run(params, cfg, IDS).logits
    np.testing.assert_allclose(got, want, atol=1e-4)
    specs = model.cache_rules(cfg, 4)
    cache = jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)),
        model.init_cache(cfg, 2, 8),
        specs,
    )
    assert cache.k.addressable_shards[0].data.shape == (2, 1, 1, 8, 1, 6)
    assert model.cache_rules(cfg, 3).v[3] is None


def test_initial_values() -> None:
    """0.02, smaller where blocks write to the stream; lambda by depth; beta as configured."""
    cfg = LMConfig(
        **{**SIZES, "width": 96, "layers": 3},
        attention="tda",
        learn_beta=True,
        beta=0.6,
        lambda_init="depth",
        tied=False,
    )
    params = fast(model.init, static_argnums=1)(jax.random.key(0), cfg)
    attn, mlp = params["blocks"]["attn"], params["blocks"]["mlp"]
    for leaf in (params["embed"], params["head"], attn["q"], attn["v"], mlp["up"]):
        np.testing.assert_allclose(leaf.std(), 0.02, rtol=0.05)
    for leaf in (attn["o"], mlp["down"]):
        np.testing.assert_allclose(leaf.std(), 0.02 / 6**0.5, rtol=0.05)
    first = jax.tree.map(lambda leaf: leaf[2], attn)
    knobs = model.knobs(cfg, first)
    np.testing.assert_allclose(knobs["lam"], 0.8 - 0.6 * np.exp(-0.6), rtol=1e-5)
    np.testing.assert_allclose(knobs["beta"], 0.6, rtol=1e-5)
    assert attn["out_norm"].shape == (3, 4, 6) and (attn["out_norm"] == 1).all()


def parameters(cfg: LMConfig) -> int:
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), cfg))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_presets_have_their_sizes() -> None:
    """Published counts [secondary]; those of gpt2-162m by the formula of its matrices."""
    exact = {
        "qwen3-0.6b": 596_049_920,
        "qwen3-1.7b": 1_720_574_976,
        "qwen3-4b": 4_022_468_096,
        "qwen3-8b": 8_190_735_360,
        "qwen2.5-0.5b": 494_032_768,
        "qwen2.5-7b": 7_615_616_512,
        "llama-3.2-1b": 1_235_814_400,
        "gpt2-162m": 2 * 50304 * 768 + 12 * 12 * 768**2 + 25 * 2 * 768,
    }
    for name, number in exact.items():
        assert parameters(preset(name)) == number, name
    assert all(parameters(preset(name)) > 0 for name in set(PRESETS) - set(exact))
    assert preset("qwen3-4b-2507").rope_theta == 5e6 and preset("llama-3.2-1b").llama3_factor == 32
    two = preset("tiny", attention="tda")
    extra = 4 * (128 * 4 * 32 + 128 * 2 * 32 + 4 + 4 * 32)
    assert parameters(two) == parameters(preset("tiny")) + extra


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_kind_starts_alive(kind: str) -> None:
    """At its own initial values: loss near log V, a finite gradient with a part in every leaf."""
    cfg = LMConfig(
        **{**SIZES, "layers": 1},
        attention=kind,
        learn_beta=kind in ("tra", "tda"),
        lambda_init="depth",
        scan=False,
        beta=0.5,
    )
    params = model.init(jax.random.key(3), cfg)

    def loss(params: Any) -> jax.Array:
        logp = jax.nn.log_softmax(model.forward(params, cfg, IDS[:, :-1]).logits)
        return -jnp.take_along_axis(logp, IDS[:, 1:, None], axis=-1).mean()

    value, grads = fast(jax.value_and_grad(loss))(params)
    assert abs(float(value) - np.log(40)) < 0.1
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.isfinite(leaf).all() and jnp.abs(leaf).max() > 0, path


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention": "linear"}, "attention='linear': must be one of"),
        ({"heads": 3}, "heads=3: must be a multiple of kv_heads"),
        ({"head_dim": 5}, "head_dim=5: must be even"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"beta": 0.0}, "beta=0.0: must be > 0"),
        ({"ntk_factor": 0.5}, "ntk_factor=0.5"),
        ({"learn_beta": True}, "learn_beta=True: only for tra and tda"),
        ({"llama3_high": 1.0}, "llama3_high=1.0"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"implementation": "pallas_tpu"}, "implementation='pallas_tpu': softmax allows auto, ref"),
    ],
)
def test_bad_configs_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LMConfig(**{**SIZES, **changes})


def test_bad_calls_are_named() -> None:
    ones = np.ones((2, 9), np.int32)
    cache = model.init_cache(CFG, 2, 4)
    cases: Any = (
        ({"taps": frozenset({"logits"})}, "taps .'logits'.: must be among"),
        ({"mask": np.ones((2, 8), bool)}, "mask has shape"),
        ({"positions": ones[:1]}, "positions has shape"),
        ({"segment_ids": ones, "mask": ones > 0}, "segment_ids: not together"),
        ({"cache": cache}, "cache has 4 slots: ids has 9"),
        ({"cache": model.init_cache(CFG, 3, 16)}, "cache has 3 rows"),
    )
    for options, named in cases:
        with pytest.raises(ValueError, match=named):
            model.forward(PARAMS, CFG, IDS, **options)
    with pytest.raises(ValueError, match="ids is float32"):
        model.forward(PARAMS, CFG, jnp.ones((2, 9)))
    with pytest.raises(ValueError, match="preset 'huge'"):
        preset("huge")
