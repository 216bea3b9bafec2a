# SPDX-License-Identifier: Apache-2.0
"""Choosing the exponents of the pair sampler without training (GenPAS, [secondary]).

Two stages: of all configurations those whose target distribution is nearest to the validation
targets (KL) are kept; they are ranked by how alike the histories of pairs are that share a target,
against pairs that do not. The second score is [our choice], its definition was not found: with
binary history vectors h, alignment is the mean cosine(h_train, h_valid) over pairs with the same
target, discrimination that over pairs with different ones, and the score is their ratio.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from rec import augment
from rec.augment import INFINITE, Exponents
from rec.data.sequences import Queries, Sequences, newest

ALPHAS = (0.0, 0.5, 1.0, 2.0)
BETAS = (0.0, 1.0, 2.0, INFINITE)
GAMMAS = (-INFINITE, -1.0, 0.0, 1.0)
DRAWS = 4096  # training pairs a configuration is judged by


class Ranked(NamedTuple):
    """A configuration and its two scores; ratio is nan for those stage one dropped."""

    exponents: Exponents
    kl: float
    ratio: float


def grid() -> list[Exponents]:
    """All configurations, 64."""
    return [Exponents(*e) for e in itertools.product(ALPHAS, BETAS, GAMMAS)]


def histories(items: np.ndarray, mask: np.ndarray, num_items: int) -> scipy.sparse.csr_array:
    """Binary history vectors of unit length, [P, N] sparse, of int [P, T] items."""
    rows = np.repeat(np.arange(len(items)), mask.sum(axis=1))
    counts = scipy.sparse.csr_array(
        (np.ones(len(rows)), (rows, items[mask])), shape=(len(items), num_items)
    )
    counts.data[:] = 1.0  # an item twice is one
    norms = np.sqrt(np.asarray(counts.sum(axis=1)).ravel())
    return scipy.sparse.csr_array(counts.multiply((1 / np.maximum(norms, 1e-12))[:, None]))


@partial(jax.jit, static_argnames=("longest", "max_items"))
def _draw(
    keys: jax.Array, tables: augment.Tables, exponents: Exponents, longest: int, max_items: int
) -> dict[str, jax.Array]:
    """Training rows, one per key."""
    draw = lambda key: augment.example(key, tables, exponents, longest, max_items)
    return jax.vmap(draw)(keys)


def ratio(
    train: Sequences, valid: Queries, exponents: Exponents, max_items: int, seed: int
) -> float:
    """Alignment over discrimination of DRAWS pairs of a configuration; inf where discrimination
    is 0, nan where no validation pair shares a target."""
    tables = augment.genpas_tables(train, exponents.alpha)
    longest = int(tables.lengths.max())
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    traced = Exponents(*map(jnp.float32, exponents))  # one program for all configurations
    rows = _draw(keys, tables, traced, longest, max_items)
    drawn = {k: np.asarray(v) for k, v in rows.items()}
    ours = histories(drawn["items"], drawn["mask"], train.num_items)
    limit = int(valid.history.lengths.max())
    theirs = histories(*newest(valid.history, limit), train.num_items)
    rng = np.random.default_rng([seed, 0x6E9])
    same = _partners(drawn["target"], valid.targets, rng)
    has_partner = same >= 0
    if not has_partner.any():
        return math.nan
    alignment = float(ours[has_partner].multiply(theirs[same[has_partner]]).sum(axis=1).mean())
    other = rng.integers(len(valid.targets), size=DRAWS)
    apart = valid.targets[other] != drawn["target"]
    discrimination = float(ours[apart].multiply(theirs[other[apart]]).sum(axis=1).mean())
    return alignment / discrimination if discrimination > 0 else math.inf


def _partners(targets: np.ndarray, valid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each target a random row of `valid` with the same one, -1 where there is none."""
    order = np.argsort(valid, kind="stable")
    low = np.searchsorted(valid[order], targets, "left")
    high = np.searchsorted(valid[order], targets, "right")
    pick = low + (rng.random(len(targets)) * (high - low)).astype(np.int64)
    partner = order[np.minimum(pick, len(order) - 1)]
    return np.where(high > low, partner, -1)


def search(
    train: Sequences,
    valid: Queries,
    *,
    max_items: int,
    keep: float = 0.2,
    seed: int = 0,
    epsilon: int | float = 1e-8,
    configurations: Sequence[Exponents] = (),
) -> list[Ranked]:
    """All configurations, the best to train first.

    Stage one keeps the share `keep` with the least KL(validation targets ‖ training targets), ties
    by order of the grid; stage two ranks those by `ratio`, higher first. The dropped follow by KL.
    Only validation targets are looked at, never test items.
    """
    wanted = np.bincount(valid.targets, minlength=train.num_items).astype(np.float64)
    configurations = list(configurations) or grid()
    kls: dict[Any, float] = {}
    for alpha, beta, _ in configurations:
        if (alpha, beta) not in kls:
            shares = augment.target_shares(train, alpha, beta)
            kls[alpha, beta] = augment.divergence(wanted, shares, epsilon)
    by_kl = sorted(configurations, key=lambda e: kls[e.alpha, e.beta])
    passing = max(1, math.ceil(keep * len(by_kl)))
    ranked = [
        Ranked(e, kls[e.alpha, e.beta], ratio(train, valid, e, max_items, seed))
        for e in by_kl[:passing]
    ]
    ranked.sort(key=lambda r: -r.ratio if not math.isnan(r.ratio) else math.inf)
    return ranked + [Ranked(e, kls[e.alpha, e.beta], math.nan) for e in by_kl[passing:]]
