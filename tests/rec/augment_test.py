# SPDX-License-Identifier: Apache-2.0
"""Training pairs: samplers against closed forms, listings against brute force, golden KL."""

import gzip
import math
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rec import augment, genpas
from rec.augment import INFINITE, Exponents
from rec.data.sequences import Queries, Sequences, leave_one_out, pack

# (last target, prefixes, windows) at epsilon 1e-8 and 1e-6: spec rec_core section 2.5.
KL = {
    "beauty": ((1.668, 0.569, 0.894), (0.919, 0.546, 0.850)),
    "sports": ((1.571, 0.487, 0.610), (0.825, 0.456, 0.562)),
}
PAIRS = {"beauty": (131_413, 1_197_012), "sports": (189_543, 1_255_069)}


def made(lengths: list[int]) -> Sequences:
    """Users with these many different items each."""
    ends = np.cumsum(lengths)
    rows = [np.arange(end - n, end) for n, end in zip(lengths, ends, strict=True)]
    return pack(rows, int(ends[-1]))


def read(root: Path, name: str) -> Sequences:
    text = gzip.decompress((root / "amazon2014" / name / "sequences_int.txt.gz").read_bytes())
    rows = [[int(i) - 1 for i in line.split()[1:]] for line in text.decode().splitlines()]
    return pack(rows, 1 + max(max(row) for row in rows))


def listed(pairs: augment.Pairs) -> set[tuple[int, int, int]]:
    found = list(zip(*(x.tolist() for x in pairs), strict=True))
    assert len(found) == len(set(found))
    return set(found)


def test_listings_are_what_they_say() -> None:
    train = made([1, 4, 2, 0, 3])
    users = {u: n for u, n in enumerate([1, 4, 2, 0, 3])}
    every = {(u, j, k) for u, n in users.items() for k in range(1, n) for j in range(k)}
    assert listed(augment.windows(train)) == every
    assert listed(augment.prefixes(train)) == {p for p in every if p[1] == 0}
    assert listed(augment.last_target(train)) == {(1, 0, 3), (2, 0, 1), (4, 0, 2)}


@partial(jax.jit, static_argnames="longest")
def sample(keys: jax.Array, tables: augment.Tables, exponents: Exponents, longest: int):
    return jax.vmap(lambda key: augment.draw(key, tables, exponents, longest))(keys)


def draws(train: Sequences, tables: augment.Tables, exponents: Exponents, count: int) -> Counter:
    keys = jax.random.split(jax.random.key(3), count)
    traced = Exponents(*map(jnp.float32, exponents))  # one program for all exponents
    users, starts, targets = sample(keys, tables, traced, int(np.asarray(tables.lengths).max()))
    users = np.asarray(tables.users)[np.asarray(users)]
    return Counter(
        zip(users.tolist(), np.asarray(starts).tolist(), np.asarray(targets).tolist(), strict=True)
    )


@pytest.mark.parametrize("number", range(20))
def test_draws_follow_the_law(number: int) -> None:
    """10^5 draws against the closed form for random exponents: chi-squared."""
    rng = np.random.default_rng([5, number])
    exponents = Exponents(*rng.uniform(-1.5, 2.5, 3).tolist())
    train = made([5, 2, 1, 7, 3])
    found = draws(train, augment.genpas_tables(train, exponents.alpha), exponents, 100_000)
    law = augment.law(train.lengths, exponents)
    assert math.isclose(sum(law.values()), 1.0, rel_tol=1e-12)
    assert set(found) <= set(law)
    expected = np.array([law[p] for p in law]) * 100_000
    seen = np.array([found[p] for p in law], float)
    rare = expected < 5  # the approximation wants five in every cell
    if rare.any():
        expected = np.append(expected[~rare], expected[rare].sum())
        seen = np.append(seen[~rare], seen[rare].sum())
    assert scipy.stats.chisquare(seen, expected).pvalue > 1e-4


def test_extreme_exponents_are_the_listings() -> None:
    train = made([5, 2, 1, 7, 3])
    for name, pairs in (
        ("last_target", augment.last_target(train)),
        ("prefixes", augment.prefixes(train)),
        ("windows", augment.windows(train)),
    ):
        tables, exponents = augment.strategy(train, name)
        found = draws(train, tables, exponents, 100_000)
        assert set(found) == listed(pairs), name
        counts = np.array(list(found.values()), float)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4, name  # uniform over the listing


def test_squared_lengths_are_not_windows() -> None:
    """(2, 1, 0) only tends to windows: total variation is positive, and less for long users."""

    def distance(lengths: list[int]) -> float:
        train = made(lengths)
        law = augment.law(train.lengths, augment.WINDOWS)
        exact = listed(augment.windows(train))
        return 0.5 * sum(abs(law[p] - 1 / len(exact)) for p in exact)

    short, long = distance([2, 3, 5]), distance([20, 30, 50])
    print(f"total variation of (2, 1, 0) to windows: {short:.4f} short, {long:.4f} long")
    assert 1e-3 < long < short


def test_rows_hold_the_newest_items_before_the_target() -> None:
    train = made([9, 3])
    tables, exponents = augment.strategy(train, "windows")
    rows = jax.vmap(lambda key: augment.example(key, tables, exponents, 9, 4))(
        jax.random.split(jax.random.key(0), 300)
    )
    for user, items, mask, target in zip(
        *(np.asarray(rows[k]) for k in ("user", "items", "mask", "target")), strict=True
    ):
        read = items[mask]
        assert 1 <= len(read) <= 4 and not items[~mask].any()
        assert list(mask) == sorted(mask, reverse=True)
        assert target not in read and read[-1] == target - 1  # items are numbered in order
        assert set([*read.tolist(), int(target)]) <= set(train.of(int(user)).tolist())


def test_target_shares_equal_the_law_and_the_listings() -> None:
    train = pack([[0, 1, 2, 0], [2, 1], [3], [1, 0, 3, 2, 1]], 4)
    for exponents in (Exponents(0.5, 2.0, 1.0), augment.PREFIXES, augment.LAST_TARGET):
        wanted = np.zeros(4)
        for (u, _, k), p in augment.law(train.lengths, exponents).items():
            wanted[train.of(u)[k]] += p
        shares = augment.target_shares(train, exponents.alpha, exponents.beta)
        np.testing.assert_allclose(shares, wanted, atol=1e-12)
    pairs = augment.windows(train)
    counted = Counter(int(train.of(u)[k]) for u, k in zip(pairs.users, pairs.targets, strict=True))
    shares = augment.window_shares(train)
    np.testing.assert_allclose(shares * len(pairs.users), [counted[i] for i in range(4)])


def test_alias_table_is_exact() -> None:
    weights = np.random.default_rng(0).random(50) ** 4
    keep, other = augment.alias_table(weights)
    found = keep.copy()
    np.add.at(found, other, 1 - keep)
    np.testing.assert_allclose(found / 50, weights / weights.sum(), rtol=1e-9)


def test_nothing_to_predict_is_refused() -> None:
    with pytest.raises(ValueError, match="two training items"):
        augment.strategy(made([1, 1]), "prefixes")
    with pytest.raises(ValueError, match="must be one of"):
        augment.strategy(made([2]), "all")


def test_search_prefers_what_looks_like_validation() -> None:
    """Planted: late targets are what validation wants; of those, long histories match best."""
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(200):  # an early world of items 0-19, a late one of 20-39 with pairs
        first = int(rng.integers(10)) * 2
        late = 20 + (first + np.arange(5)) % 20
        rows.append([*rng.permutation(20)[:5].tolist(), *late.tolist()])
    train = pack(rows, 40)
    targets = np.array([20 + (row[-1] - 20 + 1) % 20 for row in rows], np.int32)
    valid = Queries(np.arange(200, dtype=np.int32), train, targets)
    ranked = genpas.search(train, valid, max_items=8)
    assert len(ranked) == 64 and len({r.exponents for r in ranked}) == 64
    judged = [r for r in ranked if not math.isnan(r.ratio)]
    assert len(judged) == 13  # a fifth, rounded up
    assert max(r.kl for r in judged) <= min(r.kl for r in ranked[13:])
    assert {r.exponents.beta for r in judged} <= {2.0, INFINITE}
    assert [r.ratio for r in judged] == sorted((r.ratio for r in judged), reverse=True)
    again = genpas.search(train, valid, max_items=8)
    assert [r.exponents for r in again] == [r.exponents for r in ranked]


@pytest.mark.data
@pytest.mark.parametrize("name", KL)
def test_golden_divergences(name: str, data_root: Path) -> None:
    split = leave_one_out(read(data_root, name))
    pairs = (augment.prefixes(split.train), augment.windows(split.train))
    assert tuple(len(p.users) for p in pairs) == PAIRS[name]
    wanted = np.bincount(split.valid.targets, minlength=split.train.num_items)
    offered = (
        augment.target_shares(split.train, 0.0, INFINITE),
        augment.target_shares(split.train, 1.0, 0.0),
        augment.target_shares(split.train, 2.0, 1.0),
    )
    for epsilon, golden in zip((1e-8, 1e-6), KL[name], strict=True):
        found = [augment.divergence(wanted.astype(float), o, epsilon) for o in offered]
        np.testing.assert_allclose(found, golden, atol=0.005)
