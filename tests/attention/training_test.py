# SPDX-License-Identifier: Apache-2.0
"""Training pieces of the language model, texts and the passkey task, against loops in NumPy."""

import gzip
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention import data, masks, survivors
from attention.lm import heads, model, passkey, training
from attention.lm.config import LMConfig, preset
from attention.lm.optim_config import OptimConfig
from tests import jitter

CFG = preset(
    "tiny", vocab_size=11, layers=2, width=16, heads=2, kv_heads=2, head_dim=8, mlp_width=32
)
OPTIM: dict[str, Any] = dict(
    lr=0.01, min_lr=0.001, warmup=4, decay=20, b1=0.9, b2=0.99, weight_decay=0.1, clip=1.0,
    microbatches=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def params() -> model.Params:
    return model.init(jax.random.key(0), CFG)


def test_loss_against_a_loop(params: model.Params) -> None:
    ids = np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)
    weights = np.random.default_rng(1).integers(0, 2, (3, 5)).astype(np.float32)
    logits = np.asarray(model.forward(params, CFG, ids[:, :-1]).logits, np.float64)
    nats = np.zeros((3, 5))
    for row in range(3):
        for t in range(5):
            scores = logits[row, t]
            nats[row, t] = np.log(np.exp(scores - scores[ids[row, t + 1]]).sum())
    got = training.loss(params, CFG, jnp.asarray(ids))
    np.testing.assert_allclose(got, nats.mean(), rtol=1e-5)
    got = training.loss(params, CFG, jnp.asarray(ids), jnp.asarray(weights))
    np.testing.assert_allclose(got, (nats * weights).sum() / weights.sum(), rtol=1e-5)
    assert float(training.loss(params, CFG, jnp.asarray(ids), jnp.zeros((3, 5)))) == 0.0


@pytest.mark.trains
def test_microbatches_add_up(params: model.Params) -> None:
    tx = training.optimizer(OptimConfig(**OPTIM))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 11, (4, 9)), jnp.int32)
    run = jax.jit(training.update, static_argnums=(2, 3, 5))
    whole = run(params, tx.init(params), CFG, tx, {"ids": ids}, 1)
    parts = run(params, tx.init(params), CFG, tx, {"ids": ids}, 4)
    jitter.close("parameters and moments", parts, whole, rtol=2e-4, atol=1e-6)
    with pytest.raises(ValueError, match="microbatches=3 do not divide a batch of 4"):
        training.update(params, tx.init(params), CFG, tx, {"ids": ids}, 3)


@pytest.mark.deep
@pytest.mark.trains
def test_optimizer_follows_its_schedule_and_decays_matrices_alone(params: model.Params) -> None:
    """With zero gradients AdamW only decays: by lr(t) * weight_decay, matrices alone."""
    tx = training.optimizer(OptimConfig(**OPTIM))
    state, now = tx.init(params), params
    zero = jax.tree.map(jnp.zeros_like, params)
    factor = 1.0
    for t in range(25):
        updates, state = tx.update(zero, state, now)
        now = optax.apply_updates(now, updates)
        rate = (
            0.01 * t / 4
            if t < 4
            else 0.001 + 0.009 * (1 + math.cos(math.pi * min(1, (t - 4) / 16))) / 2
        )
        factor *= 1 - 0.1 * rate
    kept = model.init(jax.random.key(0), CFG)
    np.testing.assert_allclose(now["embed"], factor * kept["embed"], rtol=1e-5)
    np.testing.assert_allclose(
        now["blocks"]["attn"]["q"], factor * kept["blocks"]["attn"]["q"], rtol=1e-5
    )
    assert factor < 0.99
    before = jax.tree.leaves(params)
    for (path, leaf), start in zip(jax.tree_util.tree_leaves_with_path(now), before, strict=True):
        if path[-1].key in ("scale", "q_norm", "k_norm"):
            np.testing.assert_array_equal(leaf, start)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 0), ("min_lr", 1), ("decay", 4), ("b2", 1.0), ("clip", 0), ("microbatches", 0)],
)
def test_optimizer_numbers_out_of_range(key: str, value: float | int) -> None:
    with pytest.raises(ValueError, match=rf"{key}={value}.*out of range.*{key}"):
        OptimConfig(**{**OPTIM, key: value})


def test_windows_are_pure_and_splittable() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    whole = training.windows(tokens, 3, 7, (0, 6), 10)
    np.testing.assert_array_equal(whole, training.windows(tokens, 3, 7, (0, 6), 10))
    np.testing.assert_array_equal(whole[2:5], training.windows(tokens, 3, 7, (2, 5), 10))
    assert whole.shape == (6, 11) and (np.diff(whole) == 1).all() and whole.dtype == np.int32
    assert not np.array_equal(whole, training.windows(tokens, 3, 8, (0, 6), 10))
    starts = np.concatenate([training.windows(tokens, 0, t, (0, 50), 98)[:, 0] for t in range(4)])
    assert set(starts) == {0, 1}  # both stretches of 99 tokens that 100 have, and no other


def test_counting_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    train, valid = rng.integers(0, 5, 300), rng.integers(0, 6, 80)
    ones, twos = Counter(train.tolist()), Counter(itertools.pairwise(train.tolist()))
    share = {x: (ones[x] + 1) / (300 + 6) for x in range(6)}
    follows = Counter(train[:-1].tolist())
    uni = [-math.log(share[x]) for x in valid[1:].tolist()]
    bi = []
    for a, b in zip(valid[:-1].tolist(), valid[1:].tolist(), strict=True):
        bi.append(-math.log((twos[(a, b)] + 10 * share[b]) / (follows[a] + 10)))
    got = training.ngram_losses(train, valid, 6)
    np.testing.assert_allclose(got["loss/unigram"], np.mean(uni), rtol=1e-9)
    np.testing.assert_allclose(got["loss/bigram"], np.mean(bi), rtol=1e-9)


@pytest.mark.deep
def test_head_statistics_of_a_batch() -> None:
    """Means over rows of what survivors says of the whole batch; a mute head is dead."""
    cfg = preset("tiny", vocab_size=11, layers=2, width=16, heads=2, kv_heads=2, head_dim=8,
                 mlp_width=32, attention="rela", qk_norm=False)  # fmt: skip
    params = model.init(jax.random.key(1), cfg)
    q = params["blocks"]["attn"]["q"]
    params["blocks"]["attn"]["q"] = q.at[1, :, 8:].set(0.0)  # layer 2, head 2: all scores 0
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 24)), jnp.int32)
    found = jax.jit(heads.statistics, static_argnums=1)(params, cfg, ids)
    maps = model.forward(params, cfg, ids, taps={"attn"}).taps["attn"]
    mask = masks.visible(
        24, 24, causal=True, q_segment_ids=None, kv_segment_ids=None, q_offset=None
    )[:, None]
    for layer in range(2):
        want = survivors.statistics(maps[layer], mask, block_q=16, block_kv=16)
        for name, value in want.items():
            np.testing.assert_allclose(found[name][layer], value, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(found["dead_heads"], [0.0, 0.5])
    assert 0.2 < float(found["zeros"][0]) < 0.8  # ReLU of centered scores: neither all nor none
    np.testing.assert_allclose(found["entropy_uniform"], np.log(np.arange(1, 25)).mean(), rtol=1e-5)
    named = heads.named("valid", jax.device_get(found), layers=True)
    assert {"valid/zeros", "valid/zeros/layer2", "valid/first_token/pooled/layer1"} <= set(named)
    assert "valid/first_token/uniform/layer1" not in named
    np.testing.assert_allclose(named["valid/zeros"], np.mean(found["zeros"]))


def test_stretched_frequencies() -> None:
    assert heads.stretched(CFG, 4.0).ntk_factor == 4.0
    assert isinstance(heads.stretched(CFG, 2), LMConfig)


# ----------------------------------------------------------------------------------------- texts


def test_text_files(tmp_path: Path) -> None:
    text = "Grüße,\nline two"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    packed = gzip.compress(text.encode())
    (tmp_path / "b.gz").write_bytes(packed)
    assert data.read_text(tmp_path / "a.txt") == data.read_text(tmp_path / "b.gz") == text
    (tmp_path / "c.gz").write_bytes(packed[:-9])
    with pytest.raises(ValueError, match=r"c\.gz is a truncated or damaged gzip"):
        data.read_text(tmp_path / "c.gz")
    (tmp_path / "d.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"d\.txt: byte 3 is no UTF-8"):
        data.read_text(tmp_path / "d.txt")
    assert data.split("abcdefghij", 0.2) == ("abcdefgh", "ij")
    with pytest.raises(ValueError, match="leave nothing"):
        data.split("ab", 0.1)


def test_made_text() -> None:
    text = data.made_text(0, 5000)
    assert len(text) == 5000 and text == data.made_text(0, 5000) != data.made_text(1, 5000)
    for line in text.splitlines()[:-1]:
        words = line.rstrip(".").split()
        nouns = [w for w in words if w in data._NOUNS]
        first = data._NOUNS.index(nouns[0])
        assert nouns[1] == data._NOUNS[(first + 1) % len(data._NOUNS)]


@pytest.mark.data
def test_tiny_shakespeare(data_root: Path) -> None:
    text = data.read_text(data_root / "tinyshakespeare" / "input.txt.gz")
    (entry,) = data.FILES.values()
    assert data.sha256(text) == entry[0]
    assert len(text) == 1_115_394 and len(set(text)) == 65


# --------------------------------------------------------------------------------------- passkey


@pytest.mark.parametrize("needles", [1, 3])
def test_needles_can_be_found(needles: int) -> None:
    task = passkey.Task(digits=4, needles=needles, names=4, noise=16)
    made = passkey.rows(task, np.random.default_rng(0), 200, 60)
    assert made.ids.shape == (200, 60) and made.ids.max() < task.vocab_size == 32
    np.testing.assert_array_equal(passkey.solve(task, made.ids), made.ids[:, -4:])
    key = task.vocab_size - 2
    assert ((made.ids == key).sum(1) == needles).all()  # none overwritten by another
    digits = (made.ids >= 16) & (made.ids < 26)
    assert (digits.sum(1) == 4 * needles + 4).all()  # noise never looks like a digit
    np.testing.assert_array_equal(made.weights.sum(1), 4)
    assert (made.weights[:, -4:] == 1).all()
    assert made.depth.min() < 0.1 and made.depth.max() > 0.9


def test_depth_is_where_the_needle_stands() -> None:
    task = passkey.Task(digits=2, needles=1, names=2, noise=4)
    made = passkey.rows(task, np.random.default_rng(0), 3, 40, np.array([0.0, 0.5, 1.0]))
    at = np.argmax(made.ids == task.vocab_size - 2, axis=1)
    np.testing.assert_array_equal(at, [0, 16, 32])
    shortest = passkey.rows(task, np.random.default_rng(0), 5, task.shortest)
    np.testing.assert_array_equal(passkey.solve(task, shortest.ids), shortest.ids[:, -2:])
    with pytest.raises(ValueError, match="length=7: needles and question alone take 8"):
        passkey.rows(task, np.random.default_rng(0), 1, 7)
