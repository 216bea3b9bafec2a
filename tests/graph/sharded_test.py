# SPDX-License-Identifier: Apache-2.0
"""The graph spread over eight devices against the graph in one."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from graph import csr, sample
from graph.sampling import device, sharded
from graph.sampling.config import SampleConfig
from tests.tiers import deep


def mesh_of(shape: tuple[int, ...], *names: str) -> Mesh:
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))


def hubs(nodes: int = 120) -> csr.CSR:
    """A few nodes hold most of the edges; the last ten have none."""
    rng = np.random.default_rng(8)
    share = 1 / np.arange(1, nodes - 9)
    ends = rng.choice(nodes - 10, (700, 2), p=share / share.sum())
    return csr.build(csr.clean(ends, nodes).edges, nodes)


def links_of(graph: csr.CSR, count: int) -> np.ndarray:
    """Edges, links of isolated nodes, links of hubs."""
    rng = np.random.default_rng(9)
    some = rng.permutation(csr.edges_of(graph))[: count - 8]
    more = [[119, 118], [117, 0], [0, 116], [0, 1], [2, 0], [1, 0], [50, 3], [115, 114]]
    return np.concatenate([some, np.array(more)]).astype(np.int32)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("shape", "names", "config", "slack", "slots"),
    [
        deep((8,), ("graph",), SampleConfig(2, 3, cap=9), 2.0, "random"),
        deep((8,), ("graph",), SampleConfig(2, 3), 0.25, "sorted"),
        ((2, 4), ("data", "graph"), SampleConfig(2, 3, cap=9), 1.0, "random"),
        deep((4, 2), ("graph", "data"), SampleConfig(1, 5, reference_order=True), 8.0, "random"),
    ],
    ids=str,
)
def test_spread_equals_replicated(
    shape: tuple[int, ...],
    names: tuple[str, ...],
    config: SampleConfig,
    slack: float,
    slots: sample.Slots,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit, on several meshes, with room for all requests and with little."""
    monkeypatch.setattr(sharded, "PAIRS", 3 * config.size**2)  # several turns of links
    graph, mesh = hubs(), mesh_of(shape, *names)
    spread, pairs = sharded.put(graph, mesh), links_of(hubs(), 64)
    found = sharded.sample(spread, pairs, 5, 2, config, slots=slots, slack=slack)
    one = device.sample(device.put(graph), pairs, 5, 2, config, slots=slots)
    for ours, theirs in zip(found.batch, one, strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    retries = int(found.retries)
    assert retries == 0 if slack == 8 else retries > 0 if slack < 1 else retries >= 0
    for x in found.batch:
        assert x.sharding.shard_shape(x.shape)[0] == 8  # 64 links over 8 devices


def test_every_device_holds_its_own_rows_alone() -> None:
    graph = hubs()
    spread = sharded.put(graph, mesh_of((8,), "graph"))
    bounds = np.asarray(spread.bounds)
    assert bounds[0] == 0 and bounds[-1] == graph.num_nodes and (np.diff(bounds) >= 0).all()
    held = np.diff(graph.indptr[bounds])
    longest = int(csr.degrees(graph).max())
    assert held.sum() == len(graph.indices) and held.max() <= len(graph.indices) / 8 + longest
    for shard in spread.indices.addressable_shards:
        assert shard.data.shape == (1, held.max())
        part = shard.index[0].start or 0
        rows = graph.indices[graph.indptr[bounds[part]] : graph.indptr[bounds[part + 1]]]
        assert np.array_equal(np.asarray(shard.data)[0, : len(rows)], rows)


@pytest.mark.deep
def test_more_devices_than_nodes() -> None:
    graph = csr.build(np.array([[0, 1], [1, 2]], np.int32), 3)
    assert sharded.partition(graph, 8).tolist()[0] == 0
    spread = sample.prepare(graph, "sharded", mesh_of((8,), "graph"))
    pairs = np.tile(np.array([[0, 2]], np.int32), (8, 1))
    found = sample.sample(spread, pairs, 0, 0, SampleConfig(1, 2))
    assert (np.asarray(found.n) == 3).all()
    assert np.asarray(found.adj_bits)[0, :, 0].tolist() == [4, 4, 3, 0, 0, 0]


def test_what_does_not_fit_is_refused() -> None:
    graph = hubs()
    mesh, config = mesh_of((8,), "graph"), SampleConfig(1, 2)
    spread = sharded.put(graph, mesh)
    with pytest.raises(ValueError, match="one must be called 'graph'"):
        sharded.put(graph, mesh_of((8,), "data"))
    with pytest.raises(ValueError, match="9 links over 8 devices"):
        sharded.sample(spread, links_of(graph, 9), 0, 0, config)
    with pytest.raises(ValueError, match="slack=0"):
        sharded.sample(spread, links_of(graph, 16), 0, 0, config, slack=0.0)
    with pytest.raises(ValueError, match="node id 120"):
        sharded.sample(spread, links_of(graph, 16) + 1, 0, 0, config)
    entries = 1 << 31  # in the row of one node: a range cannot be cut finer
    huge = csr.CSR(np.array([0, entries], np.int64), np.broadcast_to(np.int32(0), entries))
    with pytest.raises(ValueError, match="2147483648 entries"):
        sharded.put(huge, mesh)
