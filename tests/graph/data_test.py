# SPDX-License-Identifier: Apache-2.0
"""Readers of graphs, splits, made-up graphs, and what bad files get."""

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph import csr, links
from graph.data import made, reading, splits
from graph.data.raw import raw
from tests.graph.files import RING, as_set, put, same, ten, whole

# -------------------------------------------------------------------------------------- npz files


def test_a_file_of_split_links(tmp_path: Path) -> None:
    names = np.array([f"n{i}" for i in range(13)])
    features = np.arange(26, dtype=np.float64).reshape(13, 2)
    put(tmp_path, "mine.npz", whole(features=features, names=names))
    data = reading.read("npz", "mine", tmp_path)
    assert as_set(data.split.graph) == as_set(RING[:9]) and data.split.train is data.split.graph
    assert data.split.graph.dtype == np.int32 and data.split.train_neg.shape == (0, 2)
    assert data.split.test.neg.tolist() == [[1, 7], [3, 9]] and not data.split.test.private
    assert data.names[3] == "n3" and data.features.dtype == np.float32 and data.features[4, 1] == 9
    heart = reading.read("npz", "mine", tmp_path, protocol="heart")
    assert heart.protocol == "heart" and heart.split.test.private
    assert heart.split.test.neg.tolist()[1] == [[12, 3], [4, 0]]
    assert heart.split.valid.neg.shape == (1, 2, 2)
    with pytest.raises(ValueError, match="has one split: index=1 must be 0"):
        reading.read("npz", "mine", tmp_path, index=1)
    again = reading.read("npz", "mine", tmp_path, split="random", test_share=0.2, valid_share=0.1)
    every = [again.split.graph, again.split.valid.pos, again.split.test.pos]
    assert as_set(np.concatenate(every)) == as_set(RING[:11]) | {(0, 12)}
    directly = tmp_path / "elsewhere"
    directly.mkdir()
    np.savez(directly / "mine.npz", **whole())
    bare = reading.read("npz", "mine", directly)
    same(bare, data._replace(features=np.zeros((13, 0), np.float32), names=bare.names))
    assert bare.names == [str(i) for i in range(13)]


def test_loops_and_repeats_are_counted(tmp_path: Path) -> None:
    train = np.concatenate([RING[:9], [[3, 3], [4, 3], [7, 7], [3, 4]]])
    put(tmp_path, "mine.npz", whole(train_pos=train))
    data = reading.read("npz", "mine", tmp_path)
    assert data.dropped == {"loops": 2, "duplicates": 2}
    assert as_set(data.split.graph) == as_set(RING[:9]) and len(data.split.train) == 9


def test_ten_fixed_splits(tmp_path: Path) -> None:
    arrays = ten(tmp_path)
    for index in (0, 7):
        data = reading.read("npz", "g", tmp_path, index=index, valid_share=0.1, seed=3)
        split, train = data.split, arrays[f"split{index}_train_pos"]
        assert data.num_nodes == 41, "of the graph's file, where a node has no edge in the splits"
        assert as_set(split.graph) == as_set(train), "held-out links stay in the graph"
        assert as_set(split.train) | as_set(split.valid.pos) == as_set(train)
        assert not as_set(split.train) & as_set(split.valid.pos)
        assert len(split.valid.pos) == len(split.valid.neg) == round(len(train) * 0.1)
        assert len(as_set(split.valid.neg)) == len(split.valid.neg)
        assert not as_set(split.valid.neg) & (as_set(train) | as_set(split.train_neg))
        np.testing.assert_array_equal(split.test.pos, arrays[f"split{index}_test_pos"])
        np.testing.assert_array_equal(split.test.neg, arrays[f"split{index}_test_neg"])
        np.testing.assert_array_equal(split.train_neg, arrays[f"split{index}_train_neg"])
        same(data, reading.read("npz", "g", tmp_path, index=index, valid_share=0.1, seed=3))
        other = reading.read("npz", "g", tmp_path, index=index, valid_share=0.1, seed=4)
        assert as_set(other.split.valid.pos) != as_set(split.valid.pos)
    with pytest.raises(ValueError, match=r"split 10 is not there; choose from \[0, 1, 2"):
        reading.read("npz", "g", tmp_path, index=10)
    with pytest.raises(ValueError, match=r"valid_share=0\.001 of \d+ training links"):
        reading.read("npz", "g", tmp_path, valid_share=0.001)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_pos": RING[:9] - 1}, r"mine\.npz: node id -1 is negative; ids are 0 \.\. 12"),
        ({"test_neg": [[1, 40]]}, r"mine\.npz: node id 40 in a graph of 13 nodes \(0 \.\. 12\)$"),
        (
            {"test_pos": [[10, 11], [2, 1]]},
            r"test link \[2, 1\] stands in the training graph, as 1",
        ),
        ({"test_pos": np.zeros((0, 2), int)}, "the test split has no positive link"),
        ({"valid_neg": np.zeros((0, 2), int)}, "the valid split has no negative link"),
        ({"test_pos": [[5, 5]]}, r"test link \[5, 5\] is a loop"),
        ({"train_pos": np.zeros((0, 2), int)}, "the train split has no positive link"),
        ({"train_pos": [[1, 1]]}, "the train split has no positive link"),
        ({"test_neg": [[[1, 7]]]}, "1 rows of negatives for 2 positives of test"),
        ({"features": np.zeros((12, 3))}, r"mine\.npz: features \[12, 3\] do not fit 13 nodes"),
        ({"features": np.zeros(13)}, r"features \[13\] do not fit"),
        ({"features": np.full((13, 1), np.nan)}, "features of node 0 are not finite"),
        ({"features": np.full((13, 1), "x")}, "features are <U1, numbers are expected"),
        ({"names": np.array(["a"] * 13)}, "two nodes have the name 'a'"),
        ({"names": np.array(["a", "b"])}, "2 names for 13 nodes"),
        ({"train_pos": RING[:9] * 1.0}, r"train_pos is float64 \[9, 2\], integers"),
        ({"train_pos": np.zeros((4, 3), int)}, r"train_pos is int64 \[4, 3\], integers"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    put(tmp_path, "mine.npz", whole(**changed))
    with pytest.raises(ValueError, match=message):
        reading.read("npz", "mine", tmp_path)


def test_ids_that_count_from_one_are_named(tmp_path: Path) -> None:
    links_ = {k: np.asarray(v) + 1 for k, v in whole().items() if k != "num_nodes"}
    put(tmp_path, "mine.npz", links_ | {"num_nodes": 13})
    with pytest.raises(ValueError, match=r"mine\.npz: node id 13 .* these ids count from 1"):
        reading.read("npz", "mine", tmp_path)
    put(tmp_path, "mine.npz", links_)
    with pytest.raises(ValueError, match=r"mine\.npz: the smallest id is 1 .*count from 1"):
        reading.read("npz", "mine", tmp_path)
    arrays = ten(tmp_path)  # each split alone might lack the last node; the file does not
    put(tmp_path, "g_splits.npz", {k: v + 1 for k, v in arrays.items()})
    with pytest.raises(ValueError, match=r"g_splits\.npz: the smallest id is 1"):
        reading.read("npz", "g", tmp_path)


def test_missing_damaged_and_unfit_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing file .*graph/no\.npz: no\.npz or no_splits"):
        reading.read("npz", "no", tmp_path)
    path = put(tmp_path, "mine.npz", whole())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"mine\.npz cannot be read as a \.npz file"):
        reading.read("npz", "mine", tmp_path)
    put(tmp_path, "mine.npz", {"train_pos": np.array([{}], object), "num_nodes": 3})
    with pytest.raises(ValueError, match=r"mine\.npz cannot be read"):
        reading.read("npz", "mine", tmp_path)
    put(tmp_path, "plain.npz", {"edges": RING, "num_nodes": 12})
    with pytest.raises(ValueError, match=r"has no fixed split .*choose split='random'"):
        reading.read("npz", "plain", tmp_path)
    with pytest.raises(ValueError, match="a temporal split wants a time for each of 12 edges"):
        reading.read("npz", "plain", tmp_path, split="temporal")
    put(tmp_path, "plain.npz", {"edges": RING, "num_nodes": 12, "times": np.arange(11)})
    with pytest.raises(ValueError, match=r"plain\.npz: times \[11\] for 12 edges"):
        reading.read("npz", "plain", tmp_path, split="temporal")
    put(tmp_path, "plain.npz", {"edges": RING, "num_nodes": 12, "times": -np.arange(12)})
    data = reading.read("npz", "plain", tmp_path, split="temporal", valid_share=0.1, test_share=0.2)
    assert as_set(data.split.test.pos) == {(0, 1), (1, 2)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"format": "xyz"}, "format='xyz' is unknown; choose from npz, linqs"),
        ({"split": "all"}, "split='all' is unknown; choose from fixed, random, temporal"),
        ({"protocol": "hard"}, "protocol='hard' is unknown; choose from original, heart, ogb"),
        ({"split": "random", "protocol": "ogb"}, "protocol='ogb' is that of a fixed split"),
        ({"format": "planted", "split": "fixed"}, "format='planted' has no fixed splits"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            reading.read(**({"format": "npz", "name": "plain", "root": tmp_path} | options))


# -------------------------------------------------------------------------------------- text files


def test_linqs(tmp_path: Path) -> None:
    lines = [f"p{i} {i % 2} {i} label{i % 3}" for i in range(12)]
    cites = [f"p{u}\tp{v}" for u, v in RING.tolist()] + ["p0 p1", "p5 p5", "p3 gone", "gone p4"]
    put(tmp_path, "toy/toy.content", "\n".join(lines))
    put(tmp_path, "toy/toy.cites.gz", gzip.compress("\n".join(cites).encode()))
    data = reading.read("linqs", "toy", tmp_path, split="random", test_share=0.2)
    assert data.dropped == {"loops": 1, "duplicates": 1, "dangling": 2}
    assert data.names[10] == "p10" and data.features[:3].tolist() == [[0, 0], [1, 1], [0, 2]]
    every = [data.split.graph, data.split.valid.pos, data.split.test.pos]
    assert as_set(np.concatenate(every)) == as_set(RING)
    for content, message in (
        ("a 1 x\nb 1 2 x", r"toy\.content:2: a node, 1 numbers and a label"),
        ("a 1 x\na 1 x", r"toy\.content:2: node 'a' has a line already"),
        ("a z x", r"toy\.content:1: could not convert"),
        ("", r"toy\.content is empty"),
    ):
        put(tmp_path, "toy/toy.content", content)
        with pytest.raises(ValueError, match=message):
            reading.read("linqs", "toy", tmp_path, split="random")
    put(tmp_path, "toy/toy.content", "a 1 x")
    put(tmp_path, "toy/toy.cites.gz", gzip.compress(b"a b" * 500)[:-9])
    with pytest.raises(ValueError, match=r"toy\.cites\.gz is a truncated or damaged gzip"):
        reading.read("linqs", "toy", tmp_path, split="random")


def test_snap(tmp_path: Path) -> None:
    rows = "".join(f"{100 * u}\t{100 * v}\n" for u, v in RING.tolist())
    put(tmp_path, "web.txt.gz", gzip.compress(f"# a comment\n# x y z\n\n{rows}".encode()))
    data = reading.read("snap", "web", tmp_path, split="random", test_share=0.2)
    assert data.num_nodes == 12 and data.names[11] == "1100", "numbers in their order, not as text"
    every = [data.split.graph, data.split.valid.pos, data.split.test.pos]
    assert as_set(np.concatenate(every)) == as_set(RING)
    put(tmp_path, "timed.txt", "".join(f"{u} {v} {9 - u}\n" for u, v in RING[:9].tolist()))
    shares: Any = {"valid_share": 0.1, "test_share": 0.2}
    split = reading.read("snap", "timed", tmp_path, split="temporal", **shares).split
    assert as_set(split.test.pos) == {(0, 1), (1, 2)} and as_set(split.valid.pos) == {(2, 3)}
    for content, message in (
        ("0 1\n0 1 2", r"bad\.txt:2: two fields"),
        ("0", r"bad\.txt:1: two fields"),
        ("0 1\n\n0 -2", r"bad\.txt:3: node id -2 is negative"),
        ("0 1 noon", r"bad\.txt:1: time 'noon' is no number"),
        ("# nothing", r"bad\.txt has no edges"),
        (b"\xff\xfe 1", r"bad\.txt:1: not utf-8 text"),
    ):
        put(tmp_path, "bad.txt", content)
        with pytest.raises(ValueError, match=message):
            reading.read("snap", "bad", tmp_path, split="random")


def test_a_table_of_your_own(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    names = [chr(ord("a") + i) for i in range(12)]
    rows = [(names[u], names[v]) for u, v in RING.tolist()]
    csv = "source,target,time\n" + "".join(f"{u},{v},{i}\n" for i, (u, v) in enumerate(rows))
    put(tmp_path, "mine.csv", csv)
    data = reading.read("own", "mine", tmp_path, split="temporal", valid_share=0.1, test_share=0.25)
    assert data.names == names and data.features.shape == (12, 0)
    assert as_set(data.split.test.pos) == as_set(RING[9:]) and as_set(data.split.valid.pos) == {
        (8, 9)
    }
    assert as_set(data.split.graph) == as_set(RING[:8])
    # A table of nodes: its order counts, and z, without an edge, stays.
    order = [*names[::-1], "z"]
    put(
        tmp_path,
        "mine_nodes.csv",
        "node,x,y\n" + "".join(f"{n},{i},2\n" for i, n in enumerate(order)),
    )
    data = reading.read("own", "mine", tmp_path, split="random", test_share=0.2)
    assert data.names == order and data.features.tolist() == [[i, 2] for i in range(13)]
    every = np.concatenate([data.split.graph, data.split.valid.pos, data.split.test.pos])
    assert as_set(every) == as_set(11 - RING)
    table = pa.table({"source": pa.array(RING[:, 0]), "target": pa.array(RING[:, 1])})
    parquet.write_table(table, put(tmp_path, "numbers.parquet", ""))
    np.save(tmp_path / "graph" / "numbers_features.npy", np.eye(13))
    data = reading.read("own", "numbers", tmp_path, split="random", test_share=0.2)
    assert data.num_nodes == 13 and data.features[12, 12] == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"t.csv": "source,end\na,b"}, r"t\.csv: no column is known as the target; .*target=end"),
        ({"t.csv": "source,target\na,b\nc,"}, r"t\.csv: column 'target' is empty in row 2"),
        ({"t.csv": "source,target\n"}, r"t\.csv has no edges"),
        ({"t.csv": "source,target,time\na,b,x"}, r"t\.csv: column 'time' is string"),
        ({"t.csv": "source,target\na,b,c"}, r"t\.csv cannot be read"),
        ({"t.parquet": "no"}, r"t\.parquet cannot be read"),
        ({"t.csv": "source,target\na,b", "t_nodes.csv": "node,x\na,1"}, r"node 'b' has no row in"),
        (
            {"t.csv": "source,target\na,b", "t_nodes.csv": "node,x\na,1\nb,red"},
            r"t_nodes\.csv: column 'x' holds no numbers",
        ),
        (
            {"t.csv": "source,target\na,b", "t_nodes.csv": "node,x\na,1\nb,2\na,3"},
            "two nodes have the name 'a'",
        ),
        ({"t.csv": "source,target\na,b", "t_features.npy": "x"}, r"t_features\.npy cannot be read"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        put(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        reading.read("own", "t", tmp_path, split="random")


def test_features_in_node_order_need_numbers_that_fit(tmp_path: Path) -> None:
    np.save(put(tmp_path, "t_features.npy", ""), np.zeros((3, 2)))
    for rows, message in (
        ("0,3", r"t\.csv: node id 3 in a graph of 3 nodes \(0 \.\. 2\)$"),
        ("1,3\n2,1", r"t\.csv: node id 3 .* these ids count from 1"),
        ("0,-1", r"t\.csv: node id -1 is negative"),
        ("a,1", r"t\.csv: with t_features\.npy nodes are the numbers 0 \.\. 2"),
    ):
        put(tmp_path, "t.csv", f"source,target\n{rows}")
        with pytest.raises(ValueError, match=message):
            reading.read("own", "t", tmp_path, split="random")


# ------------------------------------------------------------------------------------------ splits


def test_random_split_shares_everything_once() -> None:
    graph = made.planted(1).edges[:1160]
    split = splits.random(graph, 200, 0, 0.05, 0.1)
    parts = [split.graph, split.valid.pos, split.test.pos]
    assert [len(p) for p in parts] == [986, 58, 116] and split.train is split.graph
    assert as_set(np.concatenate(parts)) == as_set(graph)
    negs = np.concatenate([split.valid.neg, split.test.neg])
    assert [len(split.valid.neg), len(split.test.neg)] == [58, 116]
    assert len(as_set(negs)) == 174 and not as_set(negs) & as_set(graph)
    assert (negs[:, 0] < negs[:, 1]).all()
    again, other = splits.random(graph, 200, 0, 0.05, 0.1), splits.random(graph, 200, 1, 0.05, 0.1)
    np.testing.assert_array_equal(again.test.neg, split.test.neg)
    assert as_set(other.test.pos) != as_set(split.test.pos)
    for shares in ((0.0, 0.1), (0.5, 0.5), (0.1, 1.0)):
        with pytest.raises(ValueError, match="must be positive and leave something"):
            splits.random(graph, 200, 0, *shares)
    with pytest.raises(ValueError, match="5 edges give an empty split"):
        splits.random(graph[:5], 200, 0, 0.05, 0.1)


def test_non_edges_are_uniform_and_can_be_all() -> None:
    edges = np.array([[0, 1], [1, 2]])
    rng = np.random.default_rng(0)
    all_ = {(u, v) for u in range(6) for v in range(u + 1, 6)} - {(0, 1), (1, 2)}
    assert as_set(splits.non_edges(edges, 6, 13, rng)) == all_
    counts = dict.fromkeys(all_, 0)
    for _ in range(1300):
        for pair in as_set(splits.non_edges(edges, 6, 2, rng)):
            counts[pair] += 1
    expected = 2600 / 13
    assert sum((x - expected) ** 2 / expected for x in counts.values()) < 32.9, "p > 0.001, 12 df"
    also = np.array([[3, 2], [4, 4], [0, 1], [2, 3]])
    assert as_set(splits.non_edges(edges, 6, 12, rng, also)) == all_ - {(2, 3)}
    with pytest.raises(ValueError, match="6 nodes and 2 edges has 12: choose smaller"):
        splits.non_edges(edges, 6, 13, rng, also)


def test_temporal_split_keeps_equal_times_together() -> None:
    times = np.array([0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 9, 9.0])
    edges = csr.clean(RING, 12).edges
    split = splits.temporal(edges, times, 12, 0, 0.1, 0.2)
    np.testing.assert_array_equal(split.test.pos, edges[10:])
    np.testing.assert_array_equal(split.valid.pos, edges[7:10])
    np.testing.assert_array_equal(split.graph, edges[:7])
    with pytest.raises(ValueError, match="1 distinct times are too few"):
        splits.temporal(edges, np.ones(12), 12, 0, 0.1, 0.2)


def test_of_an_edge_given_twice_the_earliest_time_counts() -> None:
    found = raw(np.array([[2, 1], [0, 1], [1, 2], [1, 1]]), 3, np.array([5.0, 7, 3, 1]))
    assert found.edges.tolist() == [[0, 1], [1, 2]] and found.times.tolist() == [7, 3]
    assert found.dropped == {"loops": 1, "duplicates": 1}


def test_isolated_ends_and_directed_links_pass_the_check(tmp_path: Path) -> None:
    put(tmp_path, "mine.npz", whole(test_pos=[[2, 1], [12, 0]], directed=True))
    data = reading.read("npz", "mine", tmp_path, protocol="ogb")
    assert data.directed and data.protocol == "ogb"
    assert csr.degrees(csr.build(data.split.graph, 13))[12] == 0
    np.testing.assert_array_equal(data.split.train, RING[:9])
    with pytest.raises(ValueError, match="stands in the training graph"):
        links.check(data._replace(directed=False))
    put(tmp_path, "mine.npz", whole(test_pos=[[1, 2], [12, 0]], directed=True))
    with pytest.raises(ValueError, match=r"test link \[1, 2\] stands in the training graph"):
        reading.read("npz", "mine", tmp_path)


def test_features_of_the_wrong_length_are_refused_by_the_check(tmp_path: Path) -> None:
    put(tmp_path, "mine.npz", whole())
    data = reading.read("npz", "mine", tmp_path)
    with pytest.raises(ValueError, match="13 names and 12 rows of features for 13 nodes"):
        links.check(data._replace(features=np.zeros((12, 1), np.float32)))


# ---------------------------------------------------------------------------------- made-up graphs


def test_planted_links_have_common_neighbours() -> None:
    from graph import heuristics, metrics

    for seed in range(3):
        split = reading.read("planted", str(seed), split="random").split
        graph = csr.build(split.graph, 200)
        values = [heuristics.scores("cn", graph, x) for x in split.test]
        assert metrics.auc(*values) > 0.9
    assert len(made.planted(0, 50, 6).edges) <= 150
    with pytest.raises(ValueError, match="num_nodes=2 >= 3"):
        made.planted(0, 2)
    with pytest.raises(ValueError, match="is its seed"):
        reading.read("planted", "x", split="random")


def test_chung_lu_degrees_follow_a_power_law() -> None:
    edges = made.chung_lu(20_000, 100_000, 0)
    assert edges.shape == (100_000, 2) and edges.dtype == np.int32
    np.testing.assert_array_equal(edges, csr.clean(edges, 20_000).edges)
    degree = csr.degrees(csr.build(edges, 20_000))
    tail = degree[degree >= 20]
    exponent = 1 + len(tail) / np.log(tail / 19.5).sum()  # maximum likelihood
    assert 2.1 < exponent < 2.5
    assert np.sqrt(2 * 100_000) * 0.7 < degree.max() < np.sqrt(2 * 100_000) * 1.2
    assert abs(np.corrcoef(np.arange(20_000), degree)[0, 1]) < 0.05, "ids say nothing of degrees"
    np.testing.assert_array_equal(edges, made.chung_lu(20_000, 100_000, 0))
    assert (edges != made.chung_lu(20_000, 100_000, 1)).any()
    flat = csr.degrees(csr.build(made.chung_lu(20_000, 100_000, 0, 4.0), 20_000))
    assert flat.max() < degree.max() / 2
    data = reading.read("chung_lu", "500-2000-1", split="random")
    assert data.num_nodes == 500 and len(data.split.graph) == 1700
    for name, message in (
        ("500", "named <nodes>-<edges>-<seed>"),
        ("10-40-0", "num_edges=40 must be positive and at most a quarter"),
    ):
        with pytest.raises(ValueError, match=message):
            reading.read("chung_lu", name, split="random")
    with pytest.raises(ValueError, match="must be above 2"):
        made.chung_lu(10, 5, 0, 2.0)


def test_the_door_is_cheap_to_open() -> None:
    """Configs look at FORMATS before JAX is there."""
    code = (
        "import sys; from graph.data import reading; "
        "print({'jax', 'pyarrow', 'tensorflow_datasets'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
