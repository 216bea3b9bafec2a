# SPDX-License-Identifier: Apache-2.0
"""Graphs stored as array records, in bounded memory; graphs taken over from OGB."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph import csr
from graph.data import npz, ogb_export, reading, tfds_builder
from graph.links import LinkData
from tests import ROOT
from tests.graph.files import RING, as_set, put, same, ten, whole


def never() -> LinkData:
    raise AssertionError("what is prepared is not made again")


@pytest.mark.parametrize("part", [8, 1 << 21])
def test_stored_graphs_read_back_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(tfds_builder, "PART", part)
    rng = np.random.default_rng(0)
    put(tmp_path, "plain.npz", whole())
    put(
        tmp_path,
        "rich.npz",
        whole(
            features=rng.normal(size=(13, 3)),
            names=np.array([f"ü\n{i}" for i in range(13)]),
            late=[[9, 10]],
            train_neg=[[0, 7]],
            directed=True,
        ),
    )
    ten(tmp_path)
    for i, (name, protocol) in enumerate(
        (("plain", "original"), ("plain", "heart"), ("rich", "ogb"), ("g", "original"))
    ):
        data = reading.read("npz", name, tmp_path, protocol=protocol)
        builder = tfds_builder.links_builder(lambda data=data: data, tmp_path / f"{part}-{i}")
        builder.download_and_prepare()
        back = tfds_builder.links_builder(never, tmp_path / f"{part}-{i}")
        same(tfds_builder.read_links(back), data)
        graph, rows = csr.build(data.split.graph, data.num_nodes), tfds_builder.read_csr(back)
        for a, b in zip(rows, graph, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        sizes = [len(r["values"]) // 4 for r in back.as_data_source("indices")]
        assert max(sizes) <= part and sum(sizes) == len(graph.indices)


MEASURE = """
import resource, sys
from graph.data import reading, tfds_builder
options = {"split": "random", "valid_share": 0.01, "test_share": 0.01}
builder = tfds_builder.links_builder(
    lambda: reading.read("chung_lu", sys.argv[2], **options), sys.argv[3]
)
if sys.argv[1] == "prepare":
    builder.download_and_prepare()
else:
    graph, data = tfds_builder.read_csr(builder), tfds_builder.read_links(builder)
    assert len(graph.indices) == 2 * len(data.split.graph) == 58_800_000
    if sys.argv[1] == "sample":
        from graph import sample
        config = sample.SampleConfig(hops=2, fanout=10, cap=64)
        pairs = data.split.graph[:: len(data.split.graph) // 8192][:8192]
        batch = sample.sample(sample.prepare(graph, "host"), pairs, 0, 0, config)
        assert len(batch.n) == 8192 and batch.n.mean() > 20, batch.n
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_thirty_million_edges_take_less_than_two_gigabytes(tmp_path: Path) -> None:
    for step in ("prepare", "load", "sample"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, step, "2900000-30000000-0", str(tmp_path)],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        peak = int(done.stdout.split("peak")[-1])
        print(f"{step}: {peak} MiB at the peak")
        assert peak < 1800


# ---------------------------------------------------------------------------------------------- OGB


def sides(**changed: Any) -> dict[str, dict[str, Any]]:
    return {
        "train": {"edge": RING[:9], "year": np.arange(2000, 2009), "weight": np.ones(9)},
        "valid": {"edge": RING[9:10], "edge_neg": [[0, 5]]},
        "test": {"edge": RING[10:], "edge_neg": [[1, 7], [3, 9]]},
    } | changed


def test_ogb_collab(tmp_path: Path) -> None:
    graph = {"num_nodes": 12, "node_feat": np.ones((12, 4))}
    test = {"edge": [[10, 11], [8, 7]], "edge_neg": [[1, 7]]}
    arrays = ogb_export.arrays_of("ogbl-collab", graph, sides(test=test))
    np.testing.assert_array_equal(arrays["train_pos"], [[8, 9]])
    assert arrays["train_left_out"] == 1, (
        "7-8, which is a test link; the years before 2007 are gone"
    )
    np.testing.assert_array_equal(arrays["late"], RING[9:10])
    npz.write(put(tmp_path, "collab.npz", ""), **arrays)
    data = reading.read("npz", "collab", tmp_path, protocol="ogb")
    assert data.features.shape == (12, 4) and len(data.split.late) == 1 and not data.directed


@pytest.mark.parametrize("name", ["ogbl-ppa", "ogbl-ddi", "ogbl-vessel"])
def test_ogb_shared_negatives(tmp_path: Path, name: str) -> None:
    train = (
        {"edge": RING[:9], "edge_neg": [[0, 3]]} if name == "ogbl-vessel" else {"edge": RING[:9]}
    )
    arrays = ogb_export.arrays_of(name, {"num_nodes": 12}, sides(train=train))
    npz.write(put(tmp_path, "g.npz", ""), **arrays)
    data = reading.read("npz", "g", tmp_path, protocol="ogb")
    assert as_set(data.split.graph) == as_set(RING[:9]) and not len(data.split.late)
    assert len(data.split.train_neg) == (name == "ogbl-vessel")
    np.testing.assert_array_equal(data.split.test.neg, [[1, 7], [3, 9]])


def test_ogb_citation2(tmp_path: Path) -> None:
    links_ = lambda rows, *neg: {
        "source_node": rows[:, 0], "target_node": rows[:, 1],
        **({"target_node_neg": np.array(neg)} if neg else {}),
    }  # fmt: skip
    split = {
        "train": links_(np.concatenate([RING[:9], [[1, 0]]])),
        "valid": links_(RING[9:10], [3, 4]),
        "test": links_(np.array([[10, 11], [2, 1]]), [5, 6], [7, 8]),
    }
    arrays = ogb_export.arrays_of("ogbl-citation2", {"num_nodes": 12, "node_feat": None}, split)
    npz.write(put(tmp_path, "cite.npz", ""), **arrays)
    data = reading.read("npz", "cite", tmp_path, protocol="ogb")
    assert data.directed and data.split.test.private
    assert as_set(data.split.graph) == as_set(RING[:9]) and len(data.split.train) == 10
    np.testing.assert_array_equal(data.split.test.neg, [[[10, 5], [10, 6]], [[2, 7], [2, 8]]])


def test_ogb_tool_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ogb", None)
    monkeypatch.setitem(sys.modules, "ogb.linkproppred", None)
    assert ogb_export.main(["ogbl-ddi", str(tmp_path / "x.npz")]) == 1
    assert "the package ogb is needed" in capsys.readouterr().err
    assert ogb_export.main(["ogbl-ddi", str(tmp_path / "x.txt")]) == 1
    assert "must be a new .npz file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'ogbl-biokg' is unknown; choose from ogbl-collab"):
        ogb_export.arrays_of("ogbl-biokg", {}, {})
