# SPDX-License-Identifier: Apache-2.0
"""jraph and what stands in for it, and links taken out of a graph."""

import ast
import importlib.util
import sys
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from graph import plain_tuples, tuples
from tests import ROOT
from tests.graph import graphs

BACKENDS = {"jraph": jraph, "plain": plain_tuples}


def test_one_module_knows_jraph() -> None:
    """It is imported nowhere else, and used by the names listed, which both backends have."""
    for path in sorted(ROOT.glob("*/**/*.py")):
        rooms = path.relative_to(ROOT).parts
        if rooms[0] not in ("banyan", "rec", "graph", "attention", "experiments"):
            continue
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import)]
        words = {alias.name.split(".")[0] for node in nodes for alias in node.names}
        assert ("jraph" in words) is (rooms == ("graph", "tuples.py")), path
    tree = ast.parse((ROOT / "graph" / "tuples.py").read_text())
    of = lambda n: isinstance(n.value, ast.Name) and n.value.id in ("backend", "jraph")
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and of(n)}
    assert used == set(tuples.NAMES)
    for backend in BACKENDS.values():
        assert all(callable(getattr(backend, name)) for name in tuples.NAMES)
    assert tuples.backend is jraph


def test_plain_functions_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where jraph does not import, the module does."""
    monkeypatch.setitem(sys.modules, "jraph", None)
    spec = importlib.util.spec_from_file_location("tuples_again", ROOT / "graph" / "tuples.py")
    assert spec is not None and spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.backend is plain_tuples and again.GraphsTuple is plain_tuples.GraphsTuple
    made = again.from_links(graphs.links(graphs.cycle(6), [(0, 2), (0, 3)]), 20, 30)
    want = tuples.from_links(graphs.links(graphs.cycle(6), [(0, 2), (0, 3)]), 20, 30)
    for name in want._fields:
        a, b = getattr(made, name), getattr(want, name)
        assert (a is b is None) or np.array_equal(a, b), name


def two(backend: Any) -> Any:
    """A triangle's two edges and a single edge, with features of two kinds."""
    rng = np.random.default_rng(0)
    rows = []
    for nodes, senders, receivers in ((3, [0, 1, 2], [1, 2, 0]), (2, [1], [0])):
        rows.append(
            backend.GraphsTuple(
                nodes={"x": rng.normal(size=(nodes, 2)).astype(np.float32)},
                edges=rng.normal(size=len(senders)).astype(np.float32),
                senders=np.array(senders, np.int32),
                receivers=np.array(receivers, np.int32),
                globals=np.full((1, 1), float(nodes), np.float32),
                n_node=np.array([nodes], np.int32),
                n_edge=np.array([len(senders)], np.int32),
            )
        )
    return backend.batch_np(rows)


def test_batch_pad_and_masks() -> None:
    """Written out once, and the same from both backends."""
    for backend in BACKENDS.values():
        joined = two(backend)
        assert joined.senders.tolist() == [0, 1, 2, 4]
        assert joined.receivers.tolist() == [1, 2, 0, 3]
        assert joined.n_node.tolist() == [3, 2] and joined.globals.tolist() == [[3.0], [2.0]]
        padded = backend.pad_with_graphs(joined, 8, 6, 5)
        assert padded.n_node.tolist() == [3, 2, 3, 0, 0]
        assert padded.n_edge.tolist() == [3, 1, 2, 0, 0]
        assert padded.senders.tolist() == [0, 1, 2, 4, 5, 5]
        assert padded.receivers.tolist() == [1, 2, 0, 3, 5, 5]
        assert np.array_equal(padded.nodes["x"][:5], joined.nodes["x"])
        assert not np.any(padded.nodes["x"][5:]) and not np.any(padded.edges[4:])
        assert padded.globals.shape == (5, 1)
        assert backend.get_graph_padding_mask(padded).tolist() == [True] * 2 + [False] * 3
        assert backend.get_node_padding_mask(padded).tolist() == [True] * 5 + [False] * 3
        assert backend.get_edge_padding_mask(padded).tolist() == [True] * 4 + [False] * 2
        for small in ((5, 6, 5), (8, 3, 5), (8, 6, 2)):
            with pytest.raises(RuntimeError):
                backend.pad_with_graphs(joined, *small)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_segments(backend: Any) -> None:
    """Against loops, gradients too."""
    rng = np.random.default_rng(1)
    x, ids = rng.normal(size=(7, 2)).astype(np.float32), np.array([0, 3, 3, 1, 0, 3, 1])
    total, soft = np.zeros((4, 2)), np.zeros((7, 2))
    for i, at in enumerate(ids):
        total[at] += x[i]
        soft[i] = np.exp(x[i]) / sum(np.exp(x[j]) for j in range(7) if ids[j] == at)
    np.testing.assert_allclose(backend.segment_sum(jnp.asarray(x), ids, 4), total, atol=1e-6)
    np.testing.assert_allclose(backend.segment_softmax(jnp.asarray(x), ids, 4), soft, atol=1e-6)
    grad = jax.grad(lambda x: (backend.segment_softmax(x, ids, 4)[:, 0] * jnp.arange(7.0)).sum())
    step = np.zeros((7, 2), np.float32)
    step[2, 0] = 1e-2
    score = lambda x: (np.asarray(backend.segment_softmax(x, ids, 4))[:, 0] * np.arange(7)).sum()
    slope = (score(x + step) - score(x - step)) / 2e-2
    np.testing.assert_allclose(grad(jnp.asarray(x))[2, 0], slope, rtol=1e-3)


def matrix(graph: Any, nodes: int) -> np.ndarray:
    out = np.zeros((nodes, nodes))
    np.add.at(out, (np.asarray(graph.senders), np.asarray(graph.receivers)), graph.edges)
    return out


def test_from_csr_and_without() -> None:
    """Weights are the adjacency; both directions of each pair go, other pairs change nothing."""
    adj = graphs.random_graph(17, 0.3, 2)
    graph = tuples.from_csr(graphs.to_csr(adj))
    assert np.array_equal(matrix(graph, 17), adj)
    assert graph.nodes.shape == (17, 0) and graph.n_edge.tolist() == [adj.sum()]
    edges, none = np.argwhere(np.triu(adj)), np.argwhere(np.triu(~adj, 1))
    take = jax.jit(tuples.without)
    for pairs in (edges[:5], edges[-3:, ::-1], none, np.r_[edges[4:7], none[:4], edges[4:5]]):
        want = adj.copy()
        for u, v in pairs.tolist():
            want[u, v] = want[v, u] = False
        got = take(graph, jnp.asarray(pairs))
        assert np.array_equal(matrix(got, 17), want)
    padded = tuples.pad_with_graphs(graph, 20, len(graph.senders) + 9)
    got = take(padded, jnp.asarray(edges[:5]))
    want = adj.copy()
    want[edges[:5, 0], edges[:5, 1]] = want[edges[:5, 1], edges[:5, 0]] = False
    assert np.array_equal(matrix(got, 20)[:17, :17], want)
    empty = tuples.from_csr(graphs.to_csr(np.zeros((3, 3), bool)))
    assert len(tuples.without(empty, jnp.array([[0, 1]])).edges) == 0


def test_from_links() -> None:
    """Subgraphs side by side are the dense ones, in order, and padding is masked."""
    batch = graphs.links(graphs.random_graph(9, 0.4, 5), [(0, 1), (4, 2), (7, 8)], slots=10)
    made = tuples.from_links(batch, 40, 200)
    adj, at = graphs.dense(batch), 0
    whole = matrix(made, 40)
    for b, n in enumerate(batch.n.tolist()):
        assert np.array_equal(whole[at : at + n, at : at + n], adj[b, :n, :n])
        assert made.nodes[at : at + n].tolist() == batch.ids[b, :n].tolist()
        at += n
    assert whole.sum() == adj.sum() and int(tuples.get_node_padding_mask(made).sum()) == at
    with pytest.raises(RuntimeError):
        tuples.from_links(batch, int(batch.n.sum()), 200)
