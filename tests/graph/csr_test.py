# SPDX-License-Identifier: Apache-2.0
"""Graphs in rows against sets of pairs; bad ids and offsets that would wrap."""

import numpy as np
import pytest

from graph import csr


def noisy(seed: int, num_nodes: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_nodes, (count, 2))


def as_set(edges: np.ndarray) -> set[tuple[int, int]]:
    return {(min(u, v), max(u, v)) for u, v in edges.tolist() if u != v}


@pytest.fixture(params=[3, 1 << 22], ids=["chunks of 3", "one chunk"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csr, "CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("seed", range(8))
def test_clean_build_and_back(seed: int) -> None:
    num_nodes = 2 + seed * 3
    edges = noisy(seed, num_nodes, seed * 9)
    wanted = as_set(edges)
    cleaned = csr.clean(edges, num_nodes)
    assert cleaned.edges.dtype == np.int32
    assert [tuple(x) for x in cleaned.edges.tolist()] == sorted(wanted)
    assert cleaned.loops == sum(u == v for u, v in edges.tolist())
    assert cleaned.duplicates == len(edges) - cleaned.loops - len(wanted)
    graph = csr.build(cleaned.edges, num_nodes)
    assert graph.num_nodes == num_nodes and graph.indptr.dtype == graph.indices.dtype == np.int32
    for u in range(num_nodes):
        row = graph.indices[graph.indptr[u] : graph.indptr[u + 1]].tolist()
        assert row == sorted(v for v in range(num_nodes) if (min(u, v), max(u, v)) in wanted)
    assert csr.degrees(graph).sum() == 2 * len(wanted)
    np.testing.assert_array_equal(csr.edges_of(graph), cleaned.edges)


@pytest.mark.parametrize("seed", range(4))
def test_contains_is_membership(seed: int) -> None:
    num_nodes = 9
    edges = csr.clean(noisy(seed, num_nodes, 3 + 6 * seed), num_nodes).edges
    graph = csr.build(edges, num_nodes)
    every = np.stack(np.meshgrid(np.arange(num_nodes), np.arange(num_nodes)), axis=-1)
    found = csr.contains(graph, every)
    known = as_set(edges)
    for u, v in np.ndindex(num_nodes, num_nodes):
        a, b = every[u, v].tolist()
        assert found[u, v] == ((min(a, b), max(a, b)) in known)
    empty = csr.build(np.zeros((0, 2), np.int32), num_nodes)
    assert not csr.contains(empty, every).any() and len(csr.edges_of(empty)) == 0


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([[0, -1]], r"node id -1 is negative; ids are 0 \.\. 2"),
        ([[0, 5]], r"node id 5 in a graph of 3 nodes \(0 \.\. 2\)$"),
        ([[0, 3], [1, 2]], r"node id 3 in a graph of 3 nodes \(0 \.\. 2\)$"),
        ([[1, 3], [2, 1]], r"these ids count from 1: subtract 1"),
        ([[0.0, 1.0]], r"integers \[\.\., 2\] wanted, got float64"),
        ([[0, 1, 2]], r"integers \[\.\., 2\] wanted"),
    ],
)
def test_bad_ids_are_named(edges: list, message: str) -> None:
    for function in (csr.clean, csr.build):
        with pytest.raises(ValueError, match=message):
            function(np.array(edges), 3)


def test_build_refuses_what_clean_takes_out() -> None:
    with pytest.raises(ValueError, match="loop"):
        csr.build(np.array([[0, 1], [2, 2]]), 3)
    with pytest.raises(ValueError, match="repeats"):
        csr.build(np.array([[0, 1], [1, 0]]), 3)
    with pytest.raises(ValueError, match="does not fit int32"):
        csr.clean(np.zeros((0, 2), int), 2**31)
