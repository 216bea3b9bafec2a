# SPDX-License-Identifier: Apache-2.0
"""Which (history, target) pairs of the training sequences a generator is trained on.

A pair is (user u, start j, target k), positions from 0, 0 <= j < k < n_u: items j to k - 1 are read
and item k is written. Three fixed strategies list their pairs exactly:

    last_target   the last item after everything before it
    prefixes      every item after everything before it ("multi target")
    windows       every item after every contiguous stretch before it ("sliding windows")

The GenPAS family [secondary: a reading note] draws pairs with three exponents, positions from 1:

    p(u) ∝ (n_u - 1)^alpha     p(k | u) ∝ (k - 1)^beta, k in 2..n_u     p(j | k) ∝ j^gamma, j < k

(0, ∞, -∞) is last_target and (1, 0, -∞) is prefixes. (2, 1, 0) is windows only for long sequences:
exact windows have p(u) ∝ n_u (n_u - 1), which `windows_tables` uses. Exponents of 1e6 stand for ∞:
in float32 nothing but the extreme position has any weight then.

`Tables` and `draw` sample on the device with static shapes; `law` is the same distribution in
closed form, for tests. Training sequences hold neither validation nor test items, so no pair does.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec.data.sequences import Sequences
from rec.names import STRATEGIES

INFINITE = 1e6


class Pairs(NamedTuple):
    """Listed pairs, each int32 [P]: items[start] to items[target - 1] of the user, then target."""

    users: np.ndarray
    starts: np.ndarray
    targets: np.ndarray


def last_target(train: Sequences) -> Pairs:
    """One pair per user with two items or more."""
    users = np.flatnonzero(train.lengths >= 2).astype(np.int32)
    last = (train.lengths[users] - 1).astype(np.int32)
    return Pairs(users, np.zeros_like(users), last)


def prefixes(train: Sequences) -> Pairs:
    """n - 1 pairs per user of n items."""
    counts = np.maximum(train.lengths - 1, 0)
    users = np.repeat(np.arange(train.num_users, dtype=np.int32), counts)
    begins = np.repeat(np.cumsum(counts) - counts, counts)
    targets = (np.arange(len(users)) - begins + 1).astype(np.int32)
    return Pairs(users, np.zeros_like(users), targets)


def windows(train: Sequences) -> Pairs:
    """n (n - 1) / 2 pairs per user of n items."""
    outer = prefixes(train)
    users, targets = (np.repeat(x, outer.targets) for x in (outer.users, outer.targets))
    begins = np.repeat(np.cumsum(outer.targets) - outer.targets, outer.targets)
    return Pairs(users, (np.arange(len(users)) - begins).astype(np.int32), targets)


class Tables(NamedTuple):
    """What the sampler reads on the device, for the users with two items or more.

    offsets, lengths: int32 [U'] of a user's stretch of `items`; keep: float32 [U'] and other:
    int32 [U'], an alias table of p(u) (Walker 1977), exact for any number of users where inverting
    a float32 cumulative sum would not be; users: int32 [U'] their ids; items: int32 [E].
    """

    users: jax.Array | np.ndarray
    offsets: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    keep: jax.Array | np.ndarray
    other: jax.Array | np.ndarray
    items: jax.Array | np.ndarray


class Exponents(NamedTuple):
    """(alpha, beta, gamma) of the module's law: numbers, or traced scalars for `draw`."""

    alpha: Any
    beta: Any
    gamma: Any


LAST_TARGET = Exponents(0.0, INFINITE, -INFINITE)
PREFIXES = Exponents(1.0, 0.0, -INFINITE)
WINDOWS = Exponents(2.0, 1.0, 0.0)


def tables(train: Sequences, weights: np.ndarray) -> Tables:
    """Tables of a sampler that draws user u with probability proportional to weights[u].

    Raises:
        ValueError: nobody has two items.
    """
    fit = np.flatnonzero(train.lengths >= 2)
    if not len(fit):
        raise ValueError("no user has two training items: there is nothing to predict")
    keep, other = alias_table(np.asarray(weights, np.float64)[fit])
    return Tables(
        fit.astype(np.int32),
        train.offsets[fit].astype(np.int32),
        train.lengths[fit].astype(np.int32),
        keep.astype(np.float32),
        other.astype(np.int32),
        train.items.astype(np.int32),
    )


def strategy(train: Sequences, name: str, genpas: Exponents = PREFIXES) -> tuple[Tables, Exponents]:
    """Tables and exponents of one of STRATEGIES; "windows" is exact, see `windows_tables`.

    Raises:
        ValueError: another name.
    """
    if name == "windows":
        return windows_tables(train), WINDOWS
    chosen = {"last_target": LAST_TARGET, "prefixes": PREFIXES, "genpas": genpas}
    if name not in chosen:
        raise ValueError(f"strategy {name!r}: must be one of {STRATEGIES}")
    return genpas_tables(train, chosen[name].alpha), chosen[name]


def genpas_tables(train: Sequences, alpha: int | float) -> Tables:
    """p(u) ∝ (n_u - 1)^alpha."""
    return tables(train, np.maximum(train.lengths - 1, 1).astype(np.float64) ** alpha)


def windows_tables(train: Sequences) -> Tables:
    """p(u) ∝ n_u (n_u - 1): with beta 1 and gamma 0 uniform over all windows."""
    return tables(train, (train.lengths * (train.lengths - 1)).astype(np.float64))


def alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(keep [n], other [n]): cell i is uniform; it means i with probability keep[i], else
    other[i] (Walker 1977, Vose 1991)."""
    n = len(weights)
    scaled = weights * n / weights.sum()
    keep, other = np.ones(n), np.arange(n)
    small = [i for i in range(n) if scaled[i] < 1]
    large = [i for i in range(n) if scaled[i] >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        keep[low], other[low] = scaled[low], high
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    return keep, other


def draw(
    key: jax.Array, tables: Tables, exponents: Exponents, longest: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One pair: (index into tables.users, start, target), int32 scalars, positions from 0.

    Args:
        longest: static, at least the largest of tables.lengths.
    """
    pick, flip, late, early = jax.random.split(key, 4)
    cell = jax.random.randint(pick, (), 0, len(tables.keep))
    stay = jax.random.uniform(flip) < jnp.asarray(tables.keep)[cell]
    user = jnp.where(stay, cell, jnp.asarray(tables.other)[cell])
    length = jnp.asarray(tables.lengths)[user]
    position = jnp.arange(1, longest, dtype=jnp.float32)  # k - 1, and j: 1 to longest - 1
    log_position = jnp.log(position)
    weights = jnp.where(position < length, exponents.beta * log_position, -jnp.inf)
    target = jax.random.categorical(late, weights) + 1
    weights = jnp.where(position <= target, exponents.gamma * log_position, -jnp.inf)
    start = jax.random.categorical(early, weights)
    return user.astype(jnp.int32), start.astype(jnp.int32), target.astype(jnp.int32)


def example(
    key: jax.Array, tables: Tables, exponents: Exponents, longest: int, max_items: int
) -> dict[str, jax.Array]:
    """One drawn pair as a training row.

    Returns: {"user": int32 [], "items": int32 [max_items] right-padded, the newest ones, "mask":
    bool [max_items], "target": int32 []}.
    """
    user, start, target = draw(key, tables, exponents, longest)
    items, offset = jnp.asarray(tables.items), jnp.asarray(tables.offsets)[user]
    first = jnp.maximum(start, target - max_items)
    mask = jnp.arange(max_items) < target - first
    at = jnp.where(mask, offset + first + jnp.arange(max_items), 0)
    return {
        "user": jnp.asarray(tables.users)[user],
        "items": jnp.where(mask, items[at], 0),
        "mask": mask,
        "target": items[offset + target],
    }


def law(lengths: np.ndarray, exponents: Exponents) -> dict[tuple[int, int, int], float]:
    """{(user, start, target): probability} in closed form, float64; for few and short sequences."""
    alpha, beta, gamma = exponents
    users = [u for u, n in enumerate(lengths) if n >= 2]
    by_user = _shares(np.array([lengths[u] - 1 for u in users]), alpha)
    out: dict[tuple[int, int, int], float] = {}
    for share, u in zip(by_user, users, strict=True):
        late = _shares(np.arange(1, lengths[u]), beta)
        for k, p_target in enumerate(late, 1):
            for j, p_start in enumerate(_shares(np.arange(1, k + 1), gamma)):
                if p_start > 0:
                    out[u, j, k] = float(share * p_target * p_start)
    return out


def _shares(base: np.ndarray, power: int | float) -> np.ndarray:
    logs = power * np.log(base.astype(np.float64))
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def place_shares(
    train: Sequences, alpha: int | float, beta: int | float
) -> tuple[np.ndarray, np.ndarray]:
    """Places int64 [P] in train.items that are targets, and how often the law with these exponents
    draws each, float64 [P]; gamma does not matter."""
    fit = np.flatnonzero(train.lengths >= 2)
    by_user = _shares(train.lengths[fit] - 1, alpha)
    counts = train.lengths[fit] - 1
    ends = np.cumsum(counts)
    position = np.arange(ends[-1]) - np.repeat(ends - counts, counts) + 1  # k - 1
    longest = np.repeat(counts, counts)
    logs = beta * (np.log(position) - np.log(longest))  # the largest weight of a user is 1
    weights = np.exp(logs)
    weights *= np.repeat(by_user / np.add.reduceat(weights, ends - counts), counts)
    return np.repeat(train.offsets[fit], counts) + position, weights


def target_shares(train: Sequences, alpha: int | float, beta: int | float) -> np.ndarray:
    """p(target item), float64 [N], of the law with these exponents; gamma does not matter."""
    places, weights = place_shares(train, alpha, beta)
    return np.bincount(train.items[places], weights, train.num_items)


def window_shares(train: Sequences) -> np.ndarray:
    """p(target item), float64 [N], of exact windows."""
    pairs = windows(train)
    counts = np.bincount(
        train.items[train.offsets[pairs.users] + pairs.targets], minlength=train.num_items
    )
    return counts / counts.sum()


def divergence(wanted: np.ndarray, offered: np.ndarray, epsilon: int | float = 1e-8) -> float:
    """KL(wanted ‖ offered) in nats of two distributions [N], with epsilon added to every share of
    `offered` before it is normalised. The constant decides orders, so it belongs to the figure."""
    smooth = (offered + epsilon) / (offered + epsilon).sum()
    wanted = wanted / wanted.sum()
    occurs = wanted > 0
    return float((wanted[occurs] * np.log(wanted[occurs] / smooth[occurs])).sum())
