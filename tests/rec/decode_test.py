# SPDX-License-Identifier: Apache-2.0
"""Beam search and the exact scorer against brute force, and what SIDs mean as items."""

import dataclasses
import itertools
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec.decode import beam, exact
from rec.decode import items as policies
from rec.models.digits import level_offsets
from rec.models.tiger import Tiger
from rec.sid import trie as tries
from tests.rec.tiger_test import SIZES, SMALL, histories
from tests.tiers import deep, deep_unless

ROWS = 3


@cache
def made() -> tuple[Tiger, Any]:
    """A small generator with logits that are far from uniform."""
    model = Tiger(dataclasses.replace(SMALL, layers=1, tied=False), SIZES)
    inputs = histories(1)
    params = jax.jit(model.init)(jax.random.key(1), *inputs, jnp.zeros((1, 3), jnp.int32))
    return model, {**params["params"], "head": 3.0 * params["params"]["head"]}


@cache
def step_logits() -> np.ndarray:
    """Logits [rows, 6 * 5, 3, sum(SIZES)] of all two-digit prefixes: what brute force works on."""
    model, params = made()
    prefixes = np.array(list(itertools.product(range(6), range(5))), np.int32)
    target = np.tile(np.pad(prefixes, ((0, 0), (0, 1))), (ROWS, 1))
    out: Any = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))(
        *histories(ROWS), jnp.asarray(target)
    )
    return np.asarray(out, np.float64).reshape(ROWS, len(prefixes), 3, -1)


def brute(sids: set[tuple[int, ...]], normaliser: str) -> np.ndarray:
    """Log-probability of every SID, [rows, len(sids)] in sorted order, by plain loops."""
    logits, offsets = step_logits(), level_offsets(SIZES)
    out = np.zeros((ROWS, len(sids)))
    for row in range(ROWS):
        for column, sid in enumerate(sorted(sids)):
            for level in range(3):
                z = logits[row, sid[0] * 5 + (sid[1] if level == 2 else 0), level]
                start, stop = offsets[level], offsets[level + 1]
                if normaliser == "full":
                    pool = z
                elif normaliser == "digit":
                    pool = z[start:stop]
                else:
                    next_ = {s[level] for s in sids if s[:level] == sid[:level]}
                    pool = z[[start + code for code in sorted(next_)]]
                out[row, column] += z[start + sid[level]] - np.log(np.exp(pool).sum())
    return out


def catalogue(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    every = np.array(list(itertools.product(*map(range, SIZES))), np.int32)
    return every[rng.permutation(len(every))[:count]]


@partial(jax.jit, static_argnames=("model", "shape", "beams", "normaliser", "constrained"))
def search(model: Tiger, params: Any, inputs: Any, trie: Any, **options: Any) -> beam.Beams:
    return beam.search(model, params, *inputs, trie, **options)


def run(sids: np.ndarray, beams: int, rows: int = ROWS, **options: Any) -> beam.Beams:
    model, params = made()
    trie, shape = tries.build(sids, SIZES)
    found = search(model, params, histories(rows), trie, shape=shape, beams=beams, **options)
    return beam.Beams(*map(np.asarray, found))


@pytest.mark.parametrize(
    ("normaliser", "seed", "count"),
    [deep("full", 0, 40), ("digit", 2, 17), deep("children", 0, 40), ("children", 1, 1)],
)
def test_wide_beams_are_the_brute_force_order(normaliser: str, seed: int, count: int) -> None:
    """As many beams as items: all items, in the order of their probabilities, under each rule;
    with one item too, and with more beams than items."""
    sids = catalogue(seed, count)
    known = {tuple(s) for s in sids.tolist()}
    wanted = brute(known, normaliser)
    found = run(sids, beams=50, normaliser=normaliser)
    for row in range(ROWS):
        order = np.argsort(-wanted[row], kind="stable")
        listed = [tuple(c) for c in found.codes[row, :count].tolist()]
        assert listed == [sorted(known)[i] for i in order]
        np.testing.assert_allclose(found.scores[row, :count], wanted[row][order], atol=1e-4)
    assert (found.scores[:, count:] == -np.inf).all() and (found.leaves[:, count:] == -1).all()
    total = np.exp(wanted).sum(axis=1)
    if normaliser == "children":
        np.testing.assert_allclose(total, 1.0, atol=1e-6)
    else:
        assert (total <= 1 + 1e-9).all()


@pytest.mark.parametrize("normaliser", deep_unless(lambda n: n == "digit", beam.NORMALISERS))
def test_exact_scores_are_the_brute_force(normaliser: str) -> None:
    sids = catalogue(3, 70)  # more than a chunk
    model, params = made()
    trie, shape = tries.build(sids, SIZES)
    found = exact.exact_scores(
        model, params, *histories(ROWS), jnp.asarray(sids), normaliser=normaliser, trie=trie,
        shape=shape,
    )  # fmt: skip
    known = {tuple(s) for s in sids.tolist()}
    place = {sid: i for i, sid in enumerate(sorted(known))}
    wanted = brute(known, normaliser)[:, [place[tuple(s)] for s in sids.tolist()]]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_narrow_beams_keep_the_best_prefixes() -> None:
    """Four beams equal a search by loops that keeps four prefixes, invalid ones never appear."""
    sids = catalogue(4, 40)
    known = {tuple(s) for s in sids.tolist()}
    found = run(sids, beams=4)
    logits, offsets = step_logits(), level_offsets(SIZES)
    for row in range(ROWS):
        held: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        for level in range(3):
            longer = []
            for score, prefix in held:
                at = prefix[0] * 5 + (prefix[1] if level == 2 else 0) if level else 0
                z = logits[row, at, level][offsets[level] : offsets[level + 1]]
                logp = z - np.log(np.exp(z).sum())
                for code in range(SIZES[level]):
                    new = (*prefix, code)
                    if any(s[: level + 1] == new for s in known):
                        longer.append((score + logp[code], new))
            held = sorted(longer, key=lambda h: -h[0])[:4]
        assert [tuple(c) for c in found.codes[row].tolist()] == [h[1] for h in held]


def test_free_beams_are_looked_up() -> None:
    """Without the trie all 120 sequences compete; those that are no item have leaf -1."""
    sids = catalogue(5, 30)
    every = {tuple(s) for s in itertools.product(*map(range, SIZES))}
    wanted = brute(every, "digit")
    found = run(sids, beams=120, constrained=False)
    leaf = {sid: i for i, sid in enumerate(sorted(tuple(s) for s in sids.tolist()))}
    for row in range(ROWS):
        order = np.argsort(-wanted[row], kind="stable")
        listed = [tuple(c) for c in found.codes[row].tolist()]
        assert listed == [sorted(every)[i] for i in order]
        assert found.leaves[row].tolist() == [leaf.get(sid, -1) for sid in listed]


@pytest.mark.deep
def test_results_do_not_depend_on_the_batch() -> None:
    sids = catalogue(6, 40)
    model, params = made()
    trie, shape = tries.build(sids, SIZES)
    inputs = histories(ROWS)
    whole = search(model, params, inputs, trie, shape=shape, beams=7)
    alone = tuple(x[1:2] for x in inputs)
    one = search(model, params, alone, trie, shape=shape, beams=7)
    np.testing.assert_array_equal(whole.codes[1:2], one.codes)
    np.testing.assert_allclose(whole.scores[1:2], one.scores, atol=1e-5)
    padded = tuple(
        jnp.pad(x, ((0, 2), *(((0, 0),) * (x.ndim - 1)))) for x in inputs
    )  # users of padding alone
    more = search(model, params, padded, trie, shape=shape, beams=7)
    np.testing.assert_array_equal(more.codes[:ROWS], whole.codes)


def test_dense_and_windowed_levels_agree() -> None:
    sids = catalogue(7, 60)
    model, params = made()
    results = []
    for limit in (0, 10_000):
        trie, shape = tries.build(sids, SIZES, limit)
        results.append(search(model, params, histories(ROWS), trie, shape=shape, beams=9))
        assert any(shape.dense) == bool(limit)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"normaliser": "some"}, "normaliser"),
        ({"normaliser": "children", "constrained": False}, "trie"),
        ({"beams": 0}, "beams"),
    ],
)
def test_bad_searches_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(catalogue(0, 5), **{"beams": 3, **options})


# ---------------------------------------------------------------------------------------- items


def buckets() -> tuple[tries.Trie, np.ndarray]:
    """Leaves 0, 1, 2 with items (0, 3, 5), (1), (2, 4)."""
    sids = np.array([[0, 0], [1, 0], [2, 1], [0, 0], [2, 1], [0, 0]], np.int32)
    return tries.build(sids, (3, 2))[0], np.array([5.0, 1.0, 2.0, 7.0, 3.0, 5.0], np.float32)


def test_items_of_beams_by_policy() -> None:
    trie, counts = buckets()
    leaves = jnp.asarray([[2, 0, -1, 1], [0, 1, 2, -1]])
    assert policies.largest_bucket(trie) == 3

    def listed(values: np.ndarray, per_sid: int, num: int = 7) -> list[list[int]]:
        found = policies.expand(
            leaves, trie, jnp.asarray(values), per_sid=per_sid, window=3, num_items=num
        )
        return np.asarray(found).tolist()

    first = np.zeros(6, np.float32)
    assert listed(first, 1) == [[2, 0, -1, 1, -1, -1, -1], [0, 1, 2, -1, -1, -1, -1]]
    assert listed(counts, 1, 4) == [[4, 3, -1, 1], [3, 1, 4, -1]]
    assert listed(counts, 3) == [[4, 2, 3, 0, 5, -1, 1], [3, 0, 5, 1, 4, 2, -1]]
    by_user = np.stack([counts, -counts])
    assert listed(by_user, 2)[1] == [0, 5, 1, 2, 4, -1, -1]


def test_values_of_the_policies() -> None:
    features = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    options: dict[str, Any] = dict(
        popularity=np.array([3, 1, 2, 9]),
        last_seen=np.array([10**12, 10**12 + 1, 5, 7]),
        features=features,
        histories=np.array([[0, 0], [1, 2]]),
        mask=np.array([[True, False], [True, True]]),
        seed=0,
    )
    get = partial(policies.bucket_values, **options)
    assert get("first").tolist() == [0] * 4
    assert get("popularity").argsort().tolist() == [1, 2, 0, 3]
    assert get("freshness").tolist() == [2, 3, 0, 1]  # seconds apart although float32 is not
    relevance = get("relevance")
    assert relevance.shape == (2, 4) and relevance[0].argmax() == 0
    assert relevance[1, 1] == pytest.approx(0.5**0.5) and relevance[1, 0] == 0
    np.testing.assert_array_equal(get("random"), get("random"))
    with pytest.raises(ValueError, match="policy='best'"):
        get("best")


def test_seen_items_leave_a_list() -> None:
    items = np.array([[4, 2, -1, 0], [1, 1, 3, 2]], np.int32)
    seen = np.array([[2, 7], [0, 0]])
    mask = np.array([[True, True], [True, False]])
    assert policies.unseen(items, seen, mask).tolist() == [[4, -1, 0, -1], [1, 1, 3, 2]]
