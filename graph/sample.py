# SPDX-License-Identifier: Apache-2.0
"""Subgraphs around links: the contract that host and device samplers keep, and their one door.

    graph = sample.prepare(csr, "host")        # or "device", or "sharded" with a mesh
    batch = sample.sample(graph, pairs, seed, epoch, SampleConfig(hops=2, fanout=20, cap=128))

A link (s, t) is taken out of the graph before anything is drawn, so whether it is an edge cannot be
told from its sample. Then each hop takes all neighbours of a node of the frontier, or `fanout` of
them without replacement; nodes reached are tokens, and all edges among them are kept (ShaDow-KHop,
as in PENCIL). A node other than s and t always has an edge: the one it was reached by.

A sample depends on (seed, epoch, s, t) alone: not on the batch, its order, devices or workers, and
all backends give the same bits. As `epoch`, evaluation passes the number of the draw.
"""

import time
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from graph.bits import pack, unpack
from graph.csr import CSR
from graph.sampling import device, host, sharded
from graph.sampling.batch import Array, LinkBatch, check_pairs
from graph.sampling.buckets import Bucket, fit, group, repad
from graph.sampling.config import SampleConfig, Slots, num_slots
from graph.sampling.draws import orient

__all__ = [
    "Array",
    "Backend",
    "Bucket",
    "Graph",
    "LinkBatch",
    "SampleConfig",
    "Slots",
    "check_pairs",
    "faster",
    "fit",
    "group",
    "num_slots",
    "orient",
    "pack",
    "prepare",
    "repad",
    "sample",
    "unpack",
]

Backend = Literal["host", "device", "sharded"]
Graph = host.Graph | device.Graph | sharded.Graph


def prepare(graph: CSR, backend: Backend, mesh: Mesh | None = None) -> Graph:
    """The graph as a backend wants it. mesh: of "sharded", with an axis "graph".

    Raises:
        ValueError: an unknown backend; a mesh missing or not wanted; as the backend's own.
    """
    if backend == "host" and mesh is None:
        return host.prepare(graph)
    if backend == "device" and mesh is None:
        return device.put(graph)
    if backend == "sharded" and mesh is not None:
        return sharded.put(graph, mesh)
    raise ValueError(
        f"backend={backend!r}, mesh={mesh}: 'host' and 'device' take no mesh, 'sharded' does"
    )


def sample(
    graph: Graph,
    pairs: Any,
    seed: int,
    epoch: int,
    config: SampleConfig,
    *,
    slots: Slots = "random",
) -> LinkBatch:
    """Subgraphs of links int32 [B, 2], in N = `config.size` slots.

    seed, epoch: 0 .. 2^32 - 1. slots: tokens after the roots in a uniformly random order, or
    "sorted" by id (the released code's evaluation, which makes the numbering of nodes a feature).

    Raises:
        ValueError: ids out of range, s = t, seed or epoch out of range.
    """
    if isinstance(graph, host.Graph):
        return host.sample(graph, pairs, seed, epoch, config, slots=slots)
    if isinstance(graph, device.Graph):
        return device.sample(graph, pairs, seed, epoch, config, slots=slots)
    return sharded.sample(graph, pairs, seed, epoch, config, slots=slots).batch


def faster(graph: CSR, pairs: np.ndarray, config: SampleConfig) -> Literal["host", "device"]:
    """Which of the two samples links like `pairs` in less time here; their samples are equal, so
    nothing but time hangs on the answer. Each is run twice, once to compile."""
    seconds: dict[Literal["host", "device"], float] = {}
    names: tuple[Literal["host", "device"], ...] = ("host", "device")
    for name in names:
        ready = prepare(graph, name)
        for turn in range(2):
            began = time.perf_counter()
            jax.block_until_ready(sample(ready, pairs, 0, turn, config))
            seconds[name] = time.perf_counter() - began
    return min(names, key=lambda name: seconds[name])
