# SPDX-License-Identifier: Apache-2.0
"""Subgraphs around links: the host's sampler, the device's, and what they cost beside a step.

Steps are links; `envs` is the number of links sampled together, half of them edges and half pairs
of any nodes, another epoch every repeat. Before anything is timed both samplers must give the same
batch, bit for bit, so that they differ in cost alone. The device is told the size of a batch
(`slots`) beforehand and pads to it; the host does so too, and `host-tight` in the smallest bucket
that holds the batch.

Columns: `tokens` and `dropped` per link; `shipped_per_8192`, bytes that reach the device for 8192
links: packed batches from the host, two ids a link for the device. `step` rows are PENCIL, two
layers of width 64, forward and backward on a batch that lies ready (16 links at a time on a CPU);
the share of a sampler is its time over the time of both.

Citeseer and Pubmed (training edges), USAir and BlogCatalog are read from $BANYAN_DATA/graph; the
graph of 2.9 million nodes and 30 million edges is generated (Chung-Lu, exponent 2.3), which takes a
minute and 2 GB. The peer is the C++ sampler behind PyG's ShaDowKHopSampler (torch_sparse): its ego
samples of all roots, not yet merged per link, so less than its loader does.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runner.bench import Case, Missing
from graph import csr, sample
from graph.config import PencilConfig
from graph.data import made, npz
from graph.pencil import Pencil
from graph.sampling import device, host
from graph.sampling.config import SampleConfig, ladder

SCALE = (2_900_000, 30_000_000)  # nodes, edges
EXPONENT = 2.3
WIDTH = 64
LAYERS = 2
SIZE_ON_CPU = 256  # links together
SIZE = 8192
STEP_ON_CPU = 16  # of them in a step
LINKS = 8192  # that bytes are counted for


class Setting(NamedTuple):
    """A graph and how it is sampled: hops, fan-out, slots."""

    graph: str
    hops: int
    fanout: int
    slots: int

    @property
    def config(self) -> SampleConfig:
        return SampleConfig(self.hops, self.fanout, self.slots, ladder(self.slots))


SETTINGS = (
    Setting("citeseer", 2, 20, 192),
    Setting("pubmed", 2, 20, 512),
    Setting("USAir", 1, 75, 152),
    Setting("BlogCatalog", 1, 75, 152),
    Setting("chung-lu", 1, 40, 82),
)


def read(name: str, root: Path | None) -> csr.CSR | Missing:
    """A graph of the data folder, or the generated one."""
    if name == "chung-lu":
        nodes, count = SCALE
        edges = made.chung_lu(nodes, count, 0, EXPONENT)
        return csr.build(edges, nodes)
    path = root / "graph" / f"{name}.npz" if root else None
    if path is None or not path.is_file():
        return Missing(name, f"no graph/{name}.npz in $BANYAN_DATA")
    arrays, nodes = npz.checked(npz.load(path), path)
    edges = arrays["train_pos" if "train_pos" in arrays else "edges"]
    return csr.build(csr.clean(edges, nodes).edges, nodes)


def links(graph: csr.CSR, count: int) -> np.ndarray:
    """int32 [count, 2]: edges, each by the same chance, then pairs of any nodes."""
    rng = np.random.default_rng(0)
    entry = rng.integers(0, len(graph.indices), count - count // 2)
    row = np.searchsorted(graph.indptr, entry, side="right") - 1
    edges = np.stack([row, graph.indices[entry]], 1)
    first = rng.integers(0, graph.num_nodes, count // 2)
    shift = rng.integers(1, graph.num_nodes, count // 2)
    others = np.stack([first, (first + shift) % graph.num_nodes], 1)
    return np.concatenate([edges, others]).astype(np.int32)


def trained(size: int) -> tuple[Any, Any]:
    """PENCIL of two layers of width 64: (its variables, gradients of a loss on a batch)."""
    model = Pencil(
        PencilConfig(size, WIDTH, 4, 2 * WIDTH, LAYERS, dropout=0.0, attention_dropout=0.0)
    )
    bits = np.zeros((1, 2, 1), np.uint32)
    ids = np.full((1, 2), -1, np.int32)
    one = sample.LinkBatch(bits, np.full(1, 2, np.int32), ids, np.zeros(1, np.int32))

    def loss(params: Any, frozen: Any, batch: sample.LinkBatch) -> jax.Array:
        logits: Any = model.apply({"params": params, "frozen": frozen}, batch)
        return jax.nn.softplus(-logits).mean()

    return jax.jit(model.init)({"params": jax.random.key(0)}, one), jax.jit(jax.grad(loss))


def peer(graph: csr.CSR, setting: Setting, pairs: np.ndarray) -> Callable[[int], None] | str:
    """A call of torch_sparse's sampler, or why there is none."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "torch_sparse")):
        return "torch_sparse is not installed"
    torch = importlib.import_module("torch")
    importlib.import_module("torch_sparse")
    offsets, columns, roots = (
        torch.from_numpy(np.asarray(x, np.int64))
        for x in (graph.indptr, graph.indices, pairs.reshape(-1))
    )
    call = torch.ops.torch_sparse.ego_k_hop_sample_adj

    def run(repeat: int) -> None:
        del repeat
        call(offsets, columns, roots, setting.hops, setting.fanout, False)

    return run


def size_of(batch: sample.LinkBatch) -> int:
    return sum(np.asarray(x).nbytes for x in batch)


def cases() -> Iterator[Case | Missing]:
    """Graph by graph: host, host in buckets, device, peer, step."""
    root = os.environ.get("BANYAN_DATA")
    for setting in SETTINGS:
        graph = read(setting.graph, Path(root) if root else None)
        if isinstance(graph, Missing):
            yield graph
        else:
            yield from _of(graph, setting)


def _of(graph: csr.CSR, setting: Setting) -> Iterator[Case | Missing]:
    count = SIZE_ON_CPU if jax.default_backend() == "cpu" else SIZE
    pairs = links(graph, count)
    config = setting.config
    name = setting.graph
    workers = max(1, min(8, os.cpu_count() or 1))
    on_host = host.prepare(graph)
    on_device = device.put(graph)
    sent = jnp.asarray(pairs)
    batch = host.sample(on_host, pairs, 0, 0, config)
    for ours, theirs in zip(batch, device.sample(on_device, sent, 0, 0, config), strict=True):
        if not np.array_equal(ours, theirs):
            raise ValueError(f"{name}: host and device differ: the comparison would be void")
    columns = {"slots": config.size, "tokens": float(np.mean(batch.n)),
               "dropped": float(np.mean(batch.dropped))}  # fmt: skip

    def bytes_of(found: sample.LinkBatch) -> dict[str, float]:
        return {**columns, "shipped_per_8192": size_of(found) * LINKS / count}

    def by_host(repeat: int, *, tight: bool = False, workers: int = 1) -> None:
        host.sample(on_host, pairs, 0, repeat, config, tight=tight, workers=workers)

    @jax.jit
    def drawn(graph: device.Graph, pairs: jax.Array, epoch: jax.Array) -> sample.LinkBatch:
        return device.sample(graph, pairs, 0, epoch, config)

    def by_device(repeat: int) -> None:
        jax.block_until_ready(drawn(on_device, sent, np.uint32(repeat)))

    few = STEP_ON_CPU if jax.default_backend() == "cpu" else count
    ready = jax.tree.map(lambda x: jnp.asarray(x[-few:]), batch)
    variables, step = trained(config.size)

    def stepped(repeat: int) -> None:
        del repeat
        jax.block_until_ready(step(variables["params"], variables["frozen"], ready))

    in_bucket = host.sample(on_host, pairs, 0, 0, config, tight=True)
    yield Case(f"host-{name}", count, count, by_host, bytes_of(batch))
    run = functools.partial(by_host, tight=True)
    yield Case(f"host-tight-{name}", count, count, run, bytes_of(in_bucket))
    if count > host.CHUNK and workers > 1:
        run = functools.partial(by_host, workers=workers)
        more = {**bytes_of(batch), "threads": workers}
        yield Case(f"host-threads-{name}", count, count, run, more)
    shipped = {**columns, "shipped_per_8192": pairs.nbytes * LINKS / count}
    yield Case(f"device-{name}", count, count, by_device, shipped)
    run = peer(graph, setting, pairs)
    row = f"torch_sparse-{name}"
    yield Missing(row, run) if isinstance(run, str) else Case(row, count, count, run)
    yield Case(f"step-{name}", few, few, stepped, {"slots": config.size})


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Device over host, host over the peer, and the share of time that sampling takes."""
    rate = {row["row"]: row["steps_per_s"] for row in rows}
    found = {}
    for name in (setting.graph for setting in SETTINGS if f"host-{setting.graph}" in rate):
        found[f"device / host, {name}"] = rate[f"device-{name}"] / rate[f"host-{name}"]
        if f"torch_sparse-{name}" in rate:
            found[f"host / torch_sparse, {name}"] = (
                rate[f"host-{name}"] / rate[f"torch_sparse-{name}"]
            )
        for where in ("host", "device"):
            seconds = 1 / rate[f"{where}-{name}"]
            share = seconds / (seconds + 1 / rate[f"step-{name}"])
            found[f"share of {where} sampler in a step, {name}"] = share
    return found
