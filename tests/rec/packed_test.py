# SPDX-License-Identifier: Apache-2.0
"""The packed generator: its size, what a position reads, digits by heads, decoding, its loss."""

import dataclasses
import itertools
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs.rec import tiger as tiger_config
from rec.decode import beam, exact
from rec.models import packed
from rec.models.config import TigerConfig
from rec.models.packed import Packed
from rec.sid import trie as tries

SIZES = (6, 5, 4)
SMALL = dataclasses.replace(
    tiger_config.PACKED,
    width=16,
    heads=2,
    head_dim=8,
    mlp_width=24,
    fusion_width=20,
    max_items=10,
    dropout=0.0,
    digit_dropout=0.0,
)
SEGMENTS = np.array([[3, 3, 3, 3, 1, 1, 1, 5, 5, 5], [2, 2, 7, 7, 7, 7, 7, 7, 7, 7]], np.int32)
AGES = np.array([[5, 4, 3, 2, 2, 1, 0, 9, 8, 7], [1, 0, 9, 9, 6, 5, 4, 3, 2, 1]], np.int32)


@cache
def made(**changes: Any) -> tuple[Packed, Any]:
    """A small model with parameters that are far from their small initial ones."""
    model = Packed(dataclasses.replace(SMALL, **changes), SIZES)
    history = jnp.zeros((1, 2, 3), jnp.int32)
    init = jax.jit(model.init)
    params = init(jax.random.key(0), history, history[..., 0] == 0, jnp.zeros(1), history[:, 0])
    draw = np.random.default_rng(0)
    drawn = lambda leaf: jnp.asarray(leaf + 0.3 * draw.normal(size=leaf.shape), jnp.float32)
    return model, jax.tree.map(drawn, params["params"])


def rows(seed: int = 0) -> np.ndarray:
    """int32 [2, 10, 3] SIDs."""
    return np.random.default_rng(seed).integers(0, SIZES, (2, 10, 3)).astype(np.int32)


@cache
def jitted_states() -> Any:
    model, params = made()
    return jax.jit(lambda *inputs: model.apply({"params": params}, *inputs, method="states"))


def states(sids: np.ndarray, segments: np.ndarray = SEGMENTS, ages: np.ndarray = AGES) -> Any:
    return np.asarray(jitted_states()(sids, segments, ages))


def test_size_of_base() -> None:
    """289,408 parameters at three levels of 64 codes, by the sum of its parts."""
    model = Packed(tiger_config.PACKED, (64, 64, 64))
    history = jnp.zeros((1, 2, 3), jnp.int32)
    inputs = (history, jnp.ones((1, 2), bool), jnp.zeros(1, jnp.int32), history[:, 0])
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    D, hidden = 64, 192
    join = lambda features: features * hidden + hidden + hidden * D + D
    attention = 4 * (D * D + D)
    block = attention + D * 256 + 256 + 256 * D + D + 2 * D
    tables = 2 * 192 * D + 192 + 64 * D
    heads = join(3 * D) + join(D) + join(2 * D) + join(3 * D)
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert found == tables + heads + 2 * block + D == 289_408


def test_a_position_reads_its_own_user_up_to_itself() -> None:
    """States of a row are those of every prefix asked alone, with the ages of the row: ages count
    from the user's end, so a prefix asked as a history has others, by design."""
    sids = rows()
    whole = states(sids)
    for row, t in itertools.product(range(2), range(10)):
        own = np.flatnonzero((SEGMENTS[row] == SEGMENTS[row, t]) & (np.arange(10) <= t))
        alone = np.zeros((1, 10, 3), np.int32)
        segments, ages = np.zeros((2, 1, 10), np.int32)
        alone[0, : len(own)] = sids[row, own]
        segments[0, : len(own)] = 1
        ages[0, : len(own)] = AGES[row, own]
        found = states(alone, segments, ages)[0, len(own) - 1]
        np.testing.assert_allclose(found, whole[row, t], atol=1e-5)


@pytest.mark.parametrize("at", [2, 5, 9])
def test_a_later_item_changes_no_earlier_position(at: int) -> None:
    sids = rows()
    changed = sids.copy()
    changed[:, at] = (changed[:, at] + 1) % SIZES
    before, after = states(sids), states(changed)
    for row in range(2):
        reads = (SEGMENTS[row] == SEGMENTS[row, at]) & (np.arange(10) >= at)
        np.testing.assert_array_equal(before[row, ~reads], after[row, ~reads])
        assert (np.abs(before[row, reads] - after[row, reads]).max(axis=1) > 1e-4).all()


def test_a_history_is_read_as_a_segment_of_its_own() -> None:
    """`read` takes right-padded histories: ages count back from the newest item."""
    model, params = made()
    sids = rows(1)
    mask = np.arange(10)[None] < np.array([[10], [4]])
    inputs = (jnp.asarray(sids), jnp.asarray(mask), jnp.zeros(2, jnp.int32))
    read = model.apply({"params": params}, *inputs, method="read")
    memory: Any = read[0]
    wanted = states(sids, np.ones((2, 10), np.int32), np.tile(np.arange(10)[::-1], (2, 1)))[0, 9]
    np.testing.assert_allclose(memory[0, 0], wanted, atol=1e-5)
    ages = np.tile(np.maximum(3 - np.arange(10), 0), (2, 1))
    wanted = states(sids, mask.astype(np.int32), ages)[1, 3]
    np.testing.assert_allclose(memory[1, 0], wanted, atol=1e-5)


def brute(sids: np.ndarray, memory: np.ndarray, params: Any, normaliser: str) -> np.ndarray:
    """Log-probability of every SID in sorted order, [rows, N], in float64 by plain loops."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    offsets = np.cumsum([0, *SIZES])
    known = sorted({tuple(s) for s in sids.tolist()})

    def join(name: str, x: np.ndarray) -> np.ndarray:
        layer = p[name]
        z = x @ layer["up"]["kernel"] + layer["up"]["bias"]
        z = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        return z @ layer["down"]["kernel"] + layer["down"]["bias"]

    out = np.zeros((len(memory), len(known)))
    for row, column in itertools.product(range(len(memory)), range(len(known))):
        h, sid = memory[row].astype(np.float64), known[column]
        codes = [p["write"][offsets[j] + sid[j]] * 4 for j in range(3)]  # sqrt(16)
        for level in range(3):
            hidden = h + join(f"heads_{level}", np.concatenate([h, *codes[:level]]))
            table = slice(offsets[level], offsets[level + 1])
            z = p["write"][table] @ hidden + p["bias"][table]
            pool = z
            if normaliser == "children":
                pool = z[sorted({s[level] for s in known if s[:level] == sid[:level]})]
            out[row, column] += z[sid[level]] - np.log(np.exp(pool).sum())
    return out


@pytest.mark.parametrize("normaliser", ["digit", "children"])
def test_wide_beams_and_exact_scores_are_the_brute_force(normaliser: str) -> None:
    model, params = made()
    every = np.array(list(itertools.product(*map(range, SIZES))), np.int32)
    sids = every[np.random.default_rng(3).permutation(len(every))[:30]]
    sids = sids[np.lexsort(sids.T[::-1])]
    trie, shape = tries.build(sids, SIZES)
    mask = np.arange(10)[None] < np.array([[10], [4]])
    inputs = (jnp.asarray(rows(2)), jnp.asarray(mask), jnp.zeros(2, jnp.int32))
    memory: Any = model.apply({"params": params}, *inputs, method="read")[0]
    wanted = brute(sids, np.asarray(memory)[:, 0], params, normaliser)
    search = partial(beam.search, model, shape=shape, beams=40, normaliser=normaliser)
    found = jax.jit(search)(params, *inputs, trie)
    scores = exact.exact_scores(
        model, params, *inputs, jnp.asarray(sids), normaliser=normaliser, trie=trie, shape=shape
    )
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    for row in range(2):
        order = np.argsort(-wanted[row])
        np.testing.assert_array_equal(found.codes[row, :30], sids[order])
        np.testing.assert_allclose(found.scores[row, :30], wanted[row][order], atol=1e-4)
    with pytest.raises(ValueError, match="scores level by level"):
        jax.eval_shape(partial(search, normaliser="full"), params, *inputs, trie)


@pytest.mark.parametrize(
    ("softmax", "smoothing"), [("digit", 0.0), ("digit", 0.2), ("children", 0.1)]
)
def test_loss_is_that_of_numpy(softmax: str, smoothing: float) -> None:
    """Weighted mean over positions of -sum_c q_c log p_c, q = (1 - s) one-hot + s / allowed."""
    model, params = made(softmax=softmax, smoothing=smoothing)
    every = np.array(list(itertools.product(*map(range, SIZES))), np.int32)
    sids = every[np.random.default_rng(4).permutation(len(every))[:40]]
    trie, shape = tries.build(sids, SIZES)
    rng = np.random.default_rng(5)
    targets = sids[rng.integers(0, 40, (2, 10))]
    weights = rng.random((2, 10)).astype(np.float32)
    batch = {
        "sids": rows(6), "segments": SEGMENTS, "ages": AGES, "targets": targets, "weights": weights
    }  # fmt: skip
    variables: Any = {"params": params}
    read = jnp.asarray(states(batch["sids"]).reshape(20, -1))
    flat = targets.reshape(20, 3)
    logits: Any = model.apply(variables, read, jnp.asarray(flat), method="digit_logits")
    expected = np.zeros(20)
    for level, position in itertools.product(range(3), range(20)):
        z = np.asarray(logits[level][position], np.float64)
        prefix = flat[position, :level]
        allowed = np.ones(SIZES[level], bool)
        if softmax == "children":
            allowed = np.bincount(
                sids[(sids[:, :level] == prefix).all(axis=1), level], minlength=SIZES[level]
            ) > 0  # fmt: skip
        log_p = z - np.log(np.exp(z[allowed]).sum())
        q = smoothing * allowed / allowed.sum()
        q[flat[position, level]] += 1 - smoothing
        expected[position] -= (q[allowed] * log_p[allowed]).sum()
    expected = (expected * weights.reshape(20)).sum() / weights.sum()
    loss = jax.jit(lambda params, batch: packed.loss(model, params, batch, None, trie, shape))
    assert float(loss(params, batch)) == pytest.approx(expected, rel=1e-5)


def test_dropout_drops_whole_digits_of_items() -> None:
    """With everything else silent a state is the sum of the vectors of the digits that are left."""
    model, params = made(digit_dropout=0.5)
    batch = tuple(map(jnp.asarray, (rows(7), SEGMENTS, AGES)))

    def mean_state(key: jax.Array) -> jax.Array:
        rngs = {"dropout": key}
        return model.apply(  # type: ignore[return-value]
            {"params": params}, *batch, deterministic=False, rngs=rngs, method="states"
        )

    drawn = jax.jit(jax.vmap(mean_state))(jax.random.split(jax.random.key(0), 3))
    assert float(jnp.abs(drawn[0] - drawn[1]).max()) > 0.1
    again = jax.jit(mean_state)(jax.random.split(jax.random.key(0), 3)[0])
    np.testing.assert_allclose(again, drawn[0], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion_width": 0}, "fusion_width=0: must be at least 1 for packed"),
        ({"position": "rope"}, "position='rope': packed has only 'none'"),
        ({"tied": True}, "tied=True: packed has only False"),
        ({"softmax": "full"}, "softmax='full': packed has 'digit' or 'children'"),
        ({"layout": "decoder_only"}, "fusion_width=20: is of layout='packed', give 0"),
        ({"smoothing": 1.0}, r"smoothing=1.0: must be in \[0, 1\)"),
    ],
)
def test_configs_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TigerConfig(**{**dataclasses.asdict(SMALL), **changes})
