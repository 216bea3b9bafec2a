# SPDX-License-Identifier: Apache-2.0
"""Negatives: what may come up, how often, and that host and device agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from graph import csr
from graph.negatives import negatives, negatives_on_device
from graph.sampling import device


def graph_of(edges: list[list[int]], nodes: int) -> csr.CSR:
    return csr.build(np.array(edges, np.int32).reshape(-1, 2), nodes)


TRAIN = graph_of([[0, 1], [0, 2], [0, 3], [1, 2], [4, 5]], 7)
LATER = graph_of([[0, 4], [2, 6], [3, 5]], 7)


def allowed(*graphs: csr.CSR) -> list[tuple[int, int]]:
    """Ordered pairs of different nodes that are edges of none of the graphs."""
    edges = {frozenset(edge) for graph in graphs for edge in csr.edges_of(graph).tolist()}
    nodes = range(graphs[0].num_nodes)
    return [(u, v) for u in nodes for v in nodes if u != v and frozenset((u, v)) not in edges]


@pytest.mark.parametrize("avoid", [None, LATER], ids=["all", "avoid"])
def test_uniform_over_the_pairs_that_are_left(avoid: csr.CSR | None) -> None:
    """Held-out positives come up unless they are avoided."""
    found = negatives(TRAIN, 20_000, 1, 0, avoid=avoid)
    assert found.dtype == np.int32 and found.shape == (20_000, 2)
    left = allowed(TRAIN) if avoid is None else allowed(TRAIN, avoid)
    names = {pair: i for i, pair in enumerate(left)}
    counts = np.bincount([names[tuple(pair)] for pair in found.tolist()], minlength=len(left))
    mean = len(found) / len(left)
    assert chi2.sf(((counts - mean) ** 2 / mean).sum(), len(left) - 1) > 1e-3


def test_a_negative_depends_on_seed_epoch_and_its_number_alone() -> None:
    found = negatives(TRAIN, 300, 3, 4)
    assert np.array_equal(negatives(TRAIN, 100, 3, 4), found[:100])
    for seed, epoch in ((3, 5), (4, 4), (4, 3)):
        assert (negatives(TRAIN, 300, seed, epoch) == found).all(1).mean() < 0.1
    assert negatives(TRAIN, 0, 3, 4).shape == (0, 2)


@pytest.mark.parametrize("avoid", [None, LATER], ids=["all", "avoid"])
def test_device_equals_host(avoid: csr.CSR | None) -> None:
    graph, other = device.put(TRAIN), None if avoid is None else device.put(avoid)
    found = negatives_on_device(graph, 500, 3, 4, avoid=other)
    assert found.dtype == jnp.int32
    assert np.array_equal(found, negatives(TRAIN, 500, 3, 4, avoid=avoid))
    inside = jax.jit(lambda g, e: negatives_on_device(g, 500, 3, e))
    assert np.array_equal(inside(graph, jnp.uint32(7)), negatives(TRAIN, 500, 3, 7))


def test_refusals() -> None:
    full = graph_of([[u, v] for u in range(4) for v in range(u + 1, 4)], 4)
    for draw, ready in ((negatives, full), (negatives_on_device, device.put(full))):
        with pytest.raises(ValueError, match="no negative"):
            draw(ready, 1, 0, 0)
        with pytest.raises(ValueError, match="seed=-3"):
            draw(TRAIN if ready is full else device.put(TRAIN), 1, -3, 0)
    with pytest.raises(ValueError, match="4 nodes"):
        negatives(TRAIN, 1, 0, 0, avoid=full)
    nearly = graph_of([[0, 1], [0, 2]], 3)
    assert {tuple(x) for x in negatives(nearly, 50, 0, 0).tolist()} == {(1, 2), (2, 1)}
