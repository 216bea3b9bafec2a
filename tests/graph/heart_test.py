# SPDX-License-Identifier: Apache-2.0
"""Hard negatives: who stands where, who is left out, and what of the shipped file comes out."""

from pathlib import Path

import numpy as np
import pytest

from graph import csr
from graph.csr import CSR
from graph.data import heart, made, reading


def graph_of(seed: int = 0) -> tuple[CSR, np.ndarray]:
    """A graph of 60 nodes, 40 of them linked, without the five pairs that are asked for."""
    edges = made.planted(seed, 40, 6, 0.0).edges
    return csr.build(edges[5:], 60), edges[:5]


def dense(graph: CSR) -> np.ndarray:
    matrix = np.zeros((graph.num_nodes,) * 2)
    edges = csr.edges_of(graph)
    matrix[edges[:, 0], edges[:, 1]] = matrix[edges[:, 1], edges[:, 0]] = 1
    return matrix


def places(scores: np.ndarray, barred: set[int]) -> dict[int, int]:
    """Rank from 1 of every node with a score that is not barred, ties the smallest."""
    left = {w: x for w, x in enumerate(scores.tolist()) if x > 0 and w not in barred}
    return {w: 1 + sum(y > x for y in left.values()) for w, x in left.items()}


def test_structure_and_exclusions() -> None:
    graph, pos = graph_of()
    extra = csr.build(csr.clean(np.concatenate([csr.edges_of(graph), [[0, 59]]]), 60).edges, 60)
    pos = np.concatenate([pos, [[0, 1]]]).astype(np.int32)
    out = heart.negatives(graph, pos, extra, count=20)
    assert out.shape == (6, 40, 2) and out.dtype == np.int32
    assert (out[:, :20, 0] == pos[:, :1]).all() and (out[:, 20:, 1] == pos[:, 1:]).all()
    for (u, v), pairs in zip(pos.tolist(), out.tolist(), strict=True):
        for half, end in ((pairs[:20], 0), (pairs[20:], 1)):
            others = [pair[1 - end] for pair in half]
            node = (u, v)[end]
            row = extra.indices[extra.indptr[node] : extra.indptr[node + 1]].tolist()
            assert len(set(others)) == 20
            assert not {u, v, *row} & set(others)
    free = 58 - int(csr.degrees(graph)[0])  # all nodes but 0, 58 and the neighbours of 0
    asked = np.array([[0, 58]], np.int32)
    assert 59 in heart.negatives(graph, asked, count=free)[0, :free, 1]
    with pytest.raises(ValueError, match=f"an end that has {free - 1} nodes"):
        heart.negatives(graph, asked, extra, count=free)


def test_the_nearest_by_the_better_rank_are_taken() -> None:
    graph, pos = graph_of(1)
    matrix = dense(graph)
    degree = matrix.sum(1)
    inverse = np.divide(1, degree, out=np.zeros(60), where=degree > 0)
    walk = np.where(degree[:, None] > 0, matrix * inverse[:, None], np.eye(60))
    pagerank = 0.15 * np.linalg.inv(np.eye(60) - 0.85 * walk)
    allocation = matrix @ np.diag(inverse) @ matrix
    out = heart.negatives(graph, pos, count=12, epsilon=1e-12)
    for (u, v), pairs in zip(pos.tolist(), out, strict=True):
        for half, node, end in ((pairs[:12, 1], u, 0), (pairs[12:, 0], v, 1)):
            barred = {u, v, *np.flatnonzero(matrix[node]).tolist()}
            both = [places(x[node], barred) for x in (allocation, pagerank)]
            best = {w: min(p.get(w, 999) for p in both) for w in both[0].keys() | both[1].keys()}
            chosen = [best[w] for w in half.tolist()]
            assert chosen == sorted(best.values())[:12], (u, v, end)


def test_nodes_without_a_score_fill_up() -> None:
    """Of an isolated node every negative is drawn; the same seed draws the same."""
    graph, _ = graph_of()
    pos = np.array([[50, 51]], np.int32)
    out = heart.negatives(graph, pos, count=30)
    assert len(set(out[0, :30, 1].tolist())) == 30 and not {50, 51} & set(out[0, :30, 1].tolist())
    np.testing.assert_array_equal(out, heart.negatives(graph, pos, count=30))
    assert (out != heart.negatives(graph, pos, count=30, seed=1)).any()
    assert heart.negatives(graph, pos, count=58).shape == (1, 116, 2)
    with pytest.raises(ValueError, match="59 negatives are wanted for an end that has 58"):
        heart.negatives(graph, pos, count=59)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, pos = graph_of(2)
    whole = heart.negatives(graph, pos, count=6)
    monkeypatch.setattr(heart, "BATCH", 3)
    parts = heart.negatives(graph, pos, count=6)
    np.testing.assert_array_equal(parts, whole)


def test_overlap_counts_pairs() -> None:
    theirs = np.array([[[0, 1], [0, 2], [0, 3], [0, 4]]])
    assert heart.overlap(np.array([[[0, 1], [0, 9], [0, 4], [1, 0]]]), theirs, 10) == 0.5


def test_reading_makes_them_where_a_file_has_none() -> None:
    data = reading.read("planted", "0", split="random", protocol="heart", hard=20)
    assert data.protocol == "heart"
    for links in (data.split.valid, data.split.test):
        assert links.private and links.neg.shape == (len(links.pos), 40, 2)
    plain = reading.read("planted", "0", split="random")
    np.testing.assert_array_equal(plain.split.test.pos, data.split.test.pos)
    valid = data.split.valid.pos
    known = csr.build(csr.clean(np.concatenate([data.split.graph, valid]), 200).edges, 200)
    assert not csr.contains(known, data.split.test.neg).any()


@pytest.mark.data
def test_overlap_with_the_shipped_file(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not claimed to be equal: the published negatives also rank by features. Drawing 250
    of 3,327 nodes would find 7.5%."""
    data = reading.read("npz", "citeseer", data_root, protocol="heart")
    graph = csr.build(data.split.graph, data.num_nodes)
    some = slice(0, 455, 12)
    pos, theirs = data.split.test.pos[some], data.split.test.neg[some]
    ours = heart.negatives(graph, pos, None, 250, 1e-6)
    share = heart.overlap(ours, theirs, data.num_nodes)
    print(f"overlap with the shipped Citeseer negatives: {share:.1%}")
    assert 0.12 < share < 1
    assert ours.shape == theirs.shape
    for half, end in ((slice(250), 0), (slice(250, None), 1)):
        assert (theirs[:, half, end] == ours[:, half, end]).all()


@pytest.mark.data
@pytest.mark.slow
def test_the_tool_prints_the_overlap(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert heart.main(["citeseer", f"--root={data_root}"]) == 0
    assert capsys.readouterr().out.count("% of the shipped negatives") == 2
    assert heart.main(["pubmed", f"--root={data_root}"]) == 1
    assert "holds no heart_test_neg" in capsys.readouterr().err
