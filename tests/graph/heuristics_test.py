# SPDX-License-Identifier: Apache-2.0
"""Heuristics against dense algebra, sets and breadth-first search."""

import math
from collections import deque

import numpy as np
import pytest

from graph import csr, heuristics
from graph.csr import CSR


def made(seed: int, num_nodes: int = 24, count: int = 40) -> tuple[CSR, np.ndarray]:
    """A random graph with isolated nodes and several components, and its dense adjacency."""
    edges = np.random.default_rng(seed).integers(0, num_nodes - 2, (count, 2))
    graph = csr.build(csr.clean(edges, num_nodes).edges, num_nodes)
    dense = np.zeros((num_nodes, num_nodes))
    for u, v in edges.tolist():
        if u != v:
            dense[u, v] = dense[v, u] = 1
    return graph, dense


def every(num_nodes: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(num_nodes)] * 2, indexing="ij"), axis=-1)


def search(dense: np.ndarray, root: int) -> list[float]:
    far = [math.inf] * len(dense)
    far[root], queue = 0, deque([root])
    while queue:
        u = queue.popleft()
        for v in np.flatnonzero(dense[u]).tolist():
            if far[v] == math.inf:
                far[v] = far[u] + 1
                queue.append(v)
    return far


@pytest.fixture(params=[1 << 22, 40], ids=["one chunk", "small chunks"])
def cells(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heuristics, "CELLS", request.param)
    monkeypatch.setattr(heuristics, "COLUMNS", min(request.param, heuristics.COLUMNS))


@pytest.mark.usefixtures("cells")
@pytest.mark.parametrize("seed", range(3))
def test_neighbourhood_scores_against_sets(seed: int) -> None:
    graph, dense = made(seed)
    rows = [set(np.flatnonzero(row).tolist()) for row in dense]
    found = {name: heuristics.scores(name, graph, every(24)) for name in heuristics.NAMES[:5]}
    for u, v in np.ndindex(24, 24):
        shared, union = rows[u] & rows[v], rows[u] | rows[v]
        logs = [math.log(len(rows[w])) for w in shared]
        assert found["cn"][u, v] == len(shared)
        assert found["aa"][u, v] == pytest.approx(sum(1 / x for x in logs if x > 0))
        assert found["ra"][u, v] == pytest.approx(sum(1 / len(rows[w]) for w in shared))
        assert found["pa"][u, v] == len(rows[u]) * len(rows[v])
        assert found["jaccard"][u, v] == pytest.approx(len(shared) / max(len(union), 1))


@pytest.mark.usefixtures("cells")
@pytest.mark.parametrize("seed", range(3))
def test_distance_is_breadth_first_search(seed: int) -> None:
    graph, dense = made(seed, 150, 180)
    pairs = every(150)
    wanted = np.array([search(dense, root) for root in range(150)])
    assert np.isinf(wanted).any() and wanted[np.isfinite(wanted)].max() > 4
    np.testing.assert_array_equal(
        heuristics.distances(graph, pairs.reshape(-1, 2)).reshape(150, 150), wanted
    )
    score = heuristics.scores("spd", graph, pairs)
    assert (score[np.isinf(wanted)] == 1 / 999).all() and (np.diag(score) == 999).all()
    near = np.isfinite(wanted) & (wanted > 0)
    np.testing.assert_array_equal(score[near], 1 / wanted[near])


@pytest.mark.usefixtures("cells")
def test_katz_is_the_closed_form_and_its_truncation_comes_near() -> None:
    graph, dense = made(1)
    largest = np.linalg.eigvalsh(dense).max()
    assert heuristics.largest_eigenvalue(graph) == pytest.approx(largest)
    for beta in (0.005, 0.9 / largest):
        inverse = np.linalg.inv(np.eye(24) - beta * dense) - np.eye(24)
        found = heuristics.scores("katz", graph, every(24), beta=beta)
        np.testing.assert_allclose(found, inverse, rtol=1e-9, atol=1e-13)
        errors = [
            np.abs(heuristics.scores("katz", graph, every(24), beta=beta, length=n) - inverse).max()
            for n in (1, 3, 8, 30)
        ]
        assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05 * errors[0]
    two = heuristics.scores("katz", graph, every(24), beta=0.1, length=2)
    np.testing.assert_allclose(two, 0.1 * dense + 0.01 * dense @ dense, atol=1e-15)


def test_katz_keeps_relative_accuracy_far_away() -> None:
    """The ends of a path of 40 nodes have beta^39 and little more: no inverse keeps that."""
    line = csr.build(np.stack([np.arange(39), np.arange(1, 40)], axis=1), 40)
    found = heuristics.scores("katz", line, np.array([[0, 39]]))
    assert 1 < found[0] / 0.005**39 < 1.01


def test_largest_eigenvalue_of_a_larger_graph() -> None:
    star = csr.build(np.stack([np.zeros(100, int), np.arange(1, 101)], axis=1), 101)
    assert heuristics.largest_eigenvalue(star) == pytest.approx(10)
    with pytest.raises(ValueError, match=r"choose beta below 0\.100000"):
        heuristics.scores("katz", star, np.array([[0, 1]]), beta=0.2)
    assert heuristics.scores("katz", star, np.array([[0, 1]]), beta=0.2, length=1) == 0.2
    with pytest.raises(ValueError, match="must be positive"):
        heuristics.scores("katz", star, np.array([[0, 1]]), beta=0.0)


@pytest.mark.usefixtures("cells")
@pytest.mark.parametrize("alpha", [0.15, 0.5])
def test_personalised_pagerank(alpha: float) -> None:
    graph, dense = made(2)
    degree = dense.sum(1)
    assert (degree == 0).any()
    walk = np.where(degree[:, None] > 0, dense / np.maximum(degree, 1)[:, None], np.eye(24))
    exact = alpha * np.linalg.inv(np.eye(24) - (1 - alpha) * walk)
    rows = heuristics.ppr_rows(graph, np.arange(24), alpha)
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(rows, exact, atol=1e-9)
    pairs = heuristics.scores("ppr", graph, every(24), alpha=alpha)
    np.testing.assert_allclose(pairs, exact + exact.T, atol=1e-8)
    for epsilon in (1e-2, 1e-5):
        pushed = heuristics.ppr_push(graph, np.arange(24), alpha, epsilon).toarray()
        short = exact - pushed
        assert short.min() > -1e-12
        assert (short <= epsilon * np.maximum(degree, 1)[None] + 1e-12).all()
    assert np.abs(exact - pushed).max() < 1e-4
    for bad in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            heuristics.scores("ppr", graph, every(24), alpha=bad)


def test_pagerank_is_stationary() -> None:
    graph, dense = made(4)
    rank = heuristics.pagerank(graph)
    degree = dense.sum(1)
    walk = np.where(degree[:, None] > 0, dense / np.maximum(degree, 1)[:, None], 1 / 24)
    np.testing.assert_allclose(rank, 0.85 * rank @ walk + 0.15 / 24, atol=1e-9)
    assert rank.sum() == pytest.approx(1)


def test_regression_targets() -> None:
    graph, dense = made(6)
    upper = np.triu_indices(24)
    for name in heuristics.TARGETS:
        target = heuristics.regression_targets(name, graph, every(24))
        np.testing.assert_array_equal(target, target.T)
        values = target[upper]
        if name in ("cn", "aa", "ra"):
            assert values.min() == 0 and values.max() == 1
            raw = np.log1p(heuristics.scores(name, graph, every(24)))
            middle = (target > 0) & (target < 1)
            slope = target[middle] / raw[middle]
            np.testing.assert_allclose(slope, slope[0])
        elif name == "spd":
            far = np.array([search(dense, root) for root in range(24)])
            longest = far[np.isfinite(far)].max()
            np.testing.assert_allclose(
                np.expm1(target), np.where(np.isinf(far), 1.5 * longest, far)
            )
        else:
            if name == "katz":
                raw = np.linalg.inv(np.eye(24) - 0.005 * dense) - np.eye(24)
            else:
                rank = heuristics.pagerank(graph)
                raw = rank[:, None] * rank[None]
            raw = np.log(np.maximum(raw, 0) + 1e-20)[upper]
            raw = (raw - raw.mean()) / raw.std()
            np.testing.assert_allclose(values, np.minimum(raw, np.quantile(raw, 0.99)), atol=1e-4)
    some = np.array([[5, 3], [3, 5]])
    whole = heuristics.regression_targets("ra", graph, every(24))
    np.testing.assert_array_equal(
        heuristics.regression_targets("ra", graph, some), [whole[3, 5]] * 2
    )
    with pytest.raises(ValueError, match="'pa' is unknown; choose from cn"):
        heuristics.regression_targets("pa", graph, some)


def test_targets_refuse_more_nodes_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heuristics, "DENSE", 23)
    with pytest.raises(ValueError, match="24 nodes are more than 23"):
        heuristics.regression_targets("cn", made(0)[0], np.array([[0, 1]]))


def test_shapes_and_bad_input() -> None:
    graph, _ = made(0)
    for name in heuristics.NAMES:
        found = heuristics.scores(name, graph, np.zeros((2, 3, 2), np.int32))
        assert found.shape == (2, 3) and found.dtype == np.float64
        assert heuristics.scores(name, graph, np.zeros((0, 2), np.int32)).shape == (0,)
        nothing = csr.build(np.zeros((0, 2), np.int32), 4)
        assert np.isfinite(heuristics.scores(name, nothing, np.array([[0, 1]]))).all()
    with pytest.raises(ValueError, match="'common' is unknown; choose from cn, aa"):
        heuristics.scores("common", graph, np.array([[0, 1]]))
    with pytest.raises(ValueError, match="node id 24 in a graph of 24"):
        heuristics.scores("cn", graph, np.array([[0, 24]]))
