# SPDX-License-Identifier: Apache-2.0
"""SASRec: causality, padding, three losses against plain NumPy, rows of training, packed and not;
the optimizer."""

import dataclasses
import itertools
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.systems.rec import sasrec as system
from rec import training
from rec.data.sequences import pack
from rec.models import sasrec
from rec.models.config import OptimConfig, SASRecConfig
from rec.models.sasrec import SASRec

CONFIG = SASRecConfig(
    width=8,
    heads=2,
    mlp_width=16,
    layers=1,
    mlp="gelu",
    pre_norm=True,
    attention="softmax",
    dropout=0.0,
    loss="full",
    negatives=3,
    max_items=6,
    dtype="float32",
    scan=True,
    remat=False,
)
ITEMS = 11
# Packed rows: users, and how many items of a user follow, none of them at the end of a cut one.
SEGMENTS = np.array([[3, 3, 3, 1, 1, 5], [2, 7, 7, 7, 7, 7]], np.int32)
AGES = np.array([[2, 1, 0, 1, 0, 5], [0, 5, 5, 4, 3, 2]], np.int32)


def made(loss: str = "full", smoothing: float = 0.0) -> tuple[SASRec, Any]:
    """A model and parameters, which are the same whatever its loss."""
    return SASRec(dataclasses.replace(CONFIG, loss=loss, smoothing=smoothing), ITEMS), drawn()


@cache
def drawn() -> Any:
    some = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(SASRec(CONFIG, ITEMS).init)(jax.random.key(0), some, some == 0)["params"]
    return {**params, "items": 20 * params["items"]}


def rows() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    mask = np.arange(6)[None] < np.array([6, 3, 1])[:, None]
    history, targets = (rng.integers(0, ITEMS, (3, 6)).astype(np.int32) for _ in range(2))
    return {
        "history": jnp.asarray(history * mask),
        "mask": jnp.asarray(mask),
        "targets": jnp.asarray(targets * mask),
        "weights": jnp.asarray(mask, jnp.float32),
    }


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    model, params = made()
    batch = rows()
    return np.asarray(jax.jit(model.apply)({"params": params}, batch["history"], batch["mask"]))


def test_a_state_sees_its_past_alone(states: np.ndarray) -> None:
    """Changing item 3 leaves states 0 to 2 alone when nothing else moves, and changes the rest."""
    model, params = made()
    batch = rows()
    other = batch["history"].at[0, 3].set((batch["history"][0, 3] + 1) % ITEMS)
    moved = np.asarray(jax.jit(model.apply)({"params": params}, other, batch["mask"])) - states
    assert (moved[0, :3] == 0).all() and (np.abs(moved[0, 3:]).max(axis=1) > 1e-4).all()
    assert (moved[1:] == 0).all()


@cache
def jitted_scores() -> Any:
    return jax.jit(partial(sasrec.scores_of, made()[0]))


def test_padding_changes_nothing(states: np.ndarray) -> None:
    """Fewer columns, junk in the padding: the same scores of the catalogue."""
    params = made()[1]
    batch = rows()
    scores_of = jitted_scores()
    wanted = scores_of(params, batch["history"], batch["mask"])
    junk = jnp.where(batch["mask"], batch["history"], 7)
    np.testing.assert_allclose(scores_of(params, junk, batch["mask"]), wanted, atol=1e-5)
    short = scores_of(params, batch["history"][1:, :3], batch["mask"][1:, :3])
    np.testing.assert_allclose(short, wanted[1:], atol=1e-5)
    last = states[np.arange(3), [5, 2, 0]]
    np.testing.assert_allclose(last @ np.asarray(params["items"]).T, wanted, atol=1e-5)


def test_full_softmax_is_cross_entropy(states: np.ndarray) -> None:
    model, params = made()
    batch = rows()
    scores = states.astype(np.float64) @ np.asarray(params["items"], np.float64).T
    log_probs = scores - np.log(np.exp(scores).sum(axis=2, keepdims=True))
    picked = np.take_along_axis(log_probs, np.asarray(batch["targets"])[..., None], 2)[..., 0]
    wanted = -picked[np.asarray(batch["mask"])].mean()
    found = sasrec.loss(model, params, batch, jax.random.key(1))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sampled", "bce"])
def test_losses_with_negatives(kind: str, states: np.ndarray) -> None:
    """The drawn negatives are known from the key; those that hit the target do not count."""
    model, params = made(kind)
    batch, key = rows(), jax.random.key(4)
    draw = jax.random.split(key)[1]
    negatives = np.asarray(jax.random.randint(draw, (3, 6, 3), 0, ITEMS))
    scores = states.astype(np.float64) @ np.asarray(params["items"], np.float64).T
    total, hits = [], 0
    for b, t in np.argwhere(np.asarray(batch["mask"])):
        target = int(batch["targets"][b, t])
        others = [int(n) for n in negatives[b, t] if n != target]
        hits += 3 - len(others)
        positive = scores[b, t, target]
        if kind == "sampled":
            pool = np.exp([positive, *scores[b, t, others]]).sum()
            total.append(np.log(pool) - positive)
        else:
            away = np.log1p(np.exp(scores[b, t, others])).sum() / max(len(others), 1)
            total.append(np.log1p(np.exp(-positive)) + away)
    assert hits > 0
    np.testing.assert_allclose(sasrec.loss(model, params, batch, key), np.mean(total), rtol=1e-5)


def test_training_rows_pair_items_with_the_next() -> None:
    train = pack([[1, 2, 3, 4, 5], [6, 7], [8]], 9)
    found = system.make_position_rows(train, np.array([0, 1]), 3)
    assert found["history"].tolist() == [[2, 3, 4], [6, 0, 0]]
    assert found["targets"].tolist() == [[3, 4, 5], [7, 0, 0]]
    assert found["mask"].tolist() == [[True] * 3, [True, False, False]]


@cache
def jitted_packed_states() -> Any:
    model, params = made()
    return jax.jit(lambda *inputs: model.apply({"params": params}, *inputs, method="states"))


def packed_states(
    items: np.ndarray, segments: np.ndarray = SEGMENTS, ages: np.ndarray = AGES
) -> np.ndarray:
    return np.asarray(jitted_packed_states()(items, segments, ages))


def packed_items(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, ITEMS, (2, 6)).astype(np.int32)


def test_a_packed_position_reads_its_own_user_up_to_itself() -> None:
    """States of a row are those of every prefix asked alone, with the ages of the row."""
    items = packed_items()
    whole = packed_states(items)
    alone, segments, ages = np.zeros((3, 2, 6), np.int32)
    for row, t in itertools.product(range(2), range(6)):
        own = np.flatnonzero((SEGMENTS[row] == SEGMENTS[row, t]) & (np.arange(6) <= t))
        for array, values in ((alone, items), (segments, SEGMENTS), (ages, AGES)):
            array[:] = 0
            array[0, : len(own)] = values[row, own]
        state = packed_states(alone, segments, ages)[0, len(own) - 1]
        np.testing.assert_allclose(state, whole[row, t], atol=1e-5)


def test_a_user_packed_whole_is_a_history(states: np.ndarray) -> None:
    """Ages of the stream count as those of a history do: training reads what evaluation reads."""
    batch = rows()
    lengths = np.array([6, 3])
    ages = np.maximum(lengths[:, None] - 1 - np.arange(6), 0).astype(np.int32)
    mask = np.asarray(batch["mask"])[:2]
    found = packed_states(np.asarray(batch["history"])[:2], 4 * mask.astype(np.int32), ages)
    np.testing.assert_allclose(found[mask], states[:2][mask], atol=1e-5)


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_later_item_changes_no_earlier_packed_position(at: int) -> None:
    """At equal ages; nor one of another user."""
    items = packed_items()
    changed = items.copy()
    changed[:, at] = (changed[:, at] + 1) % ITEMS
    before, after = packed_states(items), packed_states(changed)
    for row in range(2):
        reads = (SEGMENTS[row] == SEGMENTS[row, at]) & (np.arange(6) >= at)
        np.testing.assert_array_equal(before[row, ~reads], after[row, ~reads])
        assert (np.abs(before[row, reads] - after[row, reads]).max(axis=1) > 1e-4).all()


def test_packed_loss_is_that_of_numpy() -> None:
    """Weighted mean over positions of the cross entropy against (1 - s) one-hot + s / N."""
    smoothing = 0.2
    model, params = made(smoothing=smoothing)
    rng = np.random.default_rng(3)
    targets = rng.integers(0, ITEMS, (2, 6)).astype(np.int32)
    weights = rng.random((2, 6)).astype(np.float32)
    table = np.asarray(params["items"], np.float64)
    states = packed_states(packed_items()).astype(np.float64)
    total = 0.0
    for row, t in itertools.product(range(2), range(6)):
        scores = table @ states[row, t]
        nats = np.log(np.exp(scores).sum()) - scores  # of every item
        wanted = np.full(ITEMS, smoothing / ITEMS)
        wanted[targets[row, t]] += 1 - smoothing
        total += weights[row, t] * (wanted * nats).sum()
    batch = {
        "items": packed_items(), "segments": SEGMENTS, "ages": AGES,
        "targets": targets, "weights": weights,
    }  # fmt: skip
    found = jax.jit(partial(sasrec.packed_loss, model))(params, batch, jax.random.key(0))
    np.testing.assert_allclose(found, total / weights.sum(), rtol=1e-5)


def test_packed_loss_with_negatives_is_that_of_histories() -> None:
    """A user a row in either form, the same key: the same loss, which NumPy has above."""
    model, params = made("sampled")
    batch, key = rows(), jax.random.key(4)
    ages = np.maximum(np.array([[6], [3], [1]]) - 1 - np.arange(6)[None], 0)
    packed = {**batch, "items": batch["history"], "segments": batch["mask"] * 2, "ages": ages}
    both = jax.jit(lambda *args: (sasrec.packed_loss(model, *args), sasrec.loss(model, *args)))
    np.testing.assert_allclose(*both(params, packed, key), rtol=1e-6)


def test_scores_of_runs_from_before_packed_rows() -> None:
    """Paths of parameters, and what they computed when runs were kept."""
    draw = np.random.default_rng(0)
    params: Any = jax.tree.map(lambda leaf: 0.3 * draw.normal(size=leaf.shape), drawn())
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }
    block = {"attn_norm/bias", "attn_norm/scale", "mlp_norm/bias", "mlp_norm/scale"}
    block |= {f"attn/{name}/{leaf}" for name in "qkvo" for leaf in ("kernel", "bias")}
    block |= {f"mlp/{name}/{leaf}" for name in ("up", "down") for leaf in ("kernel", "bias")}
    outside = {"items", "positions", "encoder/final_norm/bias", "encoder/final_norm/scale"}
    assert paths == outside | {f"encoder/blocks/{name}" for name in block}
    batch = rows()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    scores = jitted_scores()(params, batch["history"], batch["mask"])
    wanted = [
        [0.296481, -0.288456, 0.311705, -0.358966],
        [0.852927, -0.210839, 0.087022, -0.069673],
        [1.134489, -0.043283, -0.036463, -0.332582],
    ]
    np.testing.assert_allclose(scores[:, :4], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("constant", [0.25, 1.0, 1.0, 1.0]),
        ("cosine", [0.25, 1.0, 0.5, 0.0]),
        ("rsqrt", [0.25, 1.0, 1.0, 0.5]),
    ],
)
def test_learning_rates(kind: str, wanted: list[float]) -> None:
    """Warm-up of 4 updates, decay 12: at updates 0 and 4, and where each is known by heart."""
    cfg = OptimConfig(2.0, 4, kind, 12, 0.9, 0.98, 0.0, 1.0)
    at = {"constant": (0, 4, 8, 48), "cosine": (0, 4, 8, 12), "rsqrt": (0, 4, 12, 48)}[kind]
    rates = [float(training.schedule(cfg)(t)) for t in at]
    np.testing.assert_allclose(rates, [2.0 * w for w in wanted], atol=1e-6)


def test_norms_and_start_are_not_decayed() -> None:
    """With no gradient, weight decay shrinks matrices and leaves the rest alone."""
    params = made()[1]
    cfg = OptimConfig(0.1, 0, "constant", 1, 0.9, 0.98, 0.5, 1.0)
    tx = training.optimizer(cfg)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(lambda p: tx.update(zero, tx.init(p), p)[0])(params)
    moved = {
        jax.tree_util.keystr(p, simple=True, separator="/"): float(jnp.abs(u).max())
        for p, u in jax.tree_util.tree_flatten_with_path(updates)[0]
    }
    for name, size in moved.items():
        last = name.split("/")[-1]
        assert (size == 0) == (last in ("scale", "bias")), (name, size)
    assert moved["items"] > 0 and any("scale" in name for name in moved)
