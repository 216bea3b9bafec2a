# SPDX-License-Identifier: Apache-2.0
"""What a link predictor reads: links of every training batch, and their subgraphs.

Subgraphs come from the host (NumPy, padded to a bucket) or are drawn within the training step on
the device; both give the same ones.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runner.errors import UserError
from experiments.systems.graph.links.wiring import Loaded
from graph import csr, negatives, sample
from graph.csr import CSR, degrees
from graph.sample import LinkBatch
from graph.sampling import device, host

WORKERS = max(1, min(8, os.cpu_count() or 1))  # threads that sample a batch
WHOLE = ("features", "senders", "receivers")  # leaves that are the same for all links
Variables = dict[str, Any]
Labels = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(pairs int32 [B, 2], 1 or 0 [B] for positives and negatives) -> what is learned, float32 [B]."""


class Inputs(NamedTuple):
    """Holds what a predictor may read."""

    batch: LinkBatch
    """Subgraphs of the links."""
    pairs: jax.Array
    """int32 [B, 2], the links."""
    features: jax.Array
    """float32 [V, F] of all nodes, F = 0 without."""
    senders: jax.Array
    """int32 [2 E], edges of the whole graph, both ways, ascending."""
    receivers: jax.Array
    """int32 [2 E]."""


class Predictor(NamedTuple):
    """Holds a model of links as two pure functions, and what it reads."""

    init: Callable[[jax.Array, Inputs], Variables]
    """(key, inputs) -> {"params": .., "frozen": ..}."""
    logits: Callable[[Variables, Inputs, jax.Array | None], jax.Array]
    """(variables, inputs, key of dropout or None) -> float32 [B]."""
    subgraphs: bool
    """Whether `inputs.batch` is read, else it is empty."""
    whole: bool
    """Whether the whole graph is read, else it has no edges."""


def choose_backend(sampling: Any) -> str:
    """Chooses "host" or "device"."""
    if sampling.backend != "auto":
        return sampling.backend
    return "device" if jax.default_backend() != "cpu" and sampling.groups == 1 else "host"


class Stream:
    """Draws the links of every training batch: half positives, each once an epoch, half
    negatives."""

    def __init__(self, loaded: Loaded, sampling: Any, seed: int) -> None:
        split = loaded.data.split
        self._graph = loaded.graph
        self._train = split.train
        self._fixed_negatives = split.train_neg
        self._directed = loaded.data.directed
        self._sampling = sampling
        self._seed = seed
        if sampling.negatives == "fixed" and not len(self._fixed_negatives):
            raise UserError(
                f"config.sample.negatives='fixed': {loaded.data.name} brings no negatives of "
                "training; use 'drawn'"
            )
        self._avoided: CSR | None = None
        if sampling.avoid:
            held_out = np.concatenate([split.valid.pos, split.test.pos])
            nodes = loaded.data.num_nodes
            self._avoided = csr.build(csr.clean(held_out, nodes).edges, nodes)
        # A batch touches two epochs at most.
        self._positives = functools.lru_cache(maxsize=2)(self._draw_positives)
        self._negatives = functools.lru_cache(maxsize=2)(self._draw_negatives)

    def _draw_positives(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._train))
        return self._train[order]

    def _draw_negatives(self, epoch: int) -> np.ndarray:
        count = len(self._train)
        if self._sampling.negatives == "fixed":
            rng = np.random.default_rng([self._seed, epoch, 1])
            return self._fixed_negatives[rng.integers(0, len(self._fixed_negatives), count)]
        return negatives.negatives(self._graph, count, self._seed, epoch, avoid=self._avoided)

    def epoch(self, step: int) -> int:
        """Returns the epoch of the first link of a step."""
        return step * (self._sampling.rows // 2) // len(self._train)

    def links(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (pairs int32 [rows, 2], labels float32 [rows]): positives first."""
        half = self._sampling.rows // 2
        total = len(self._train)
        index = step * half + np.arange(half)
        epochs = np.unique(index // total).tolist()
        sides = []
        for draw_epoch in (self._positives, self._negatives):
            parts = [draw_epoch(epoch)[index[index // total == epoch] % total] for epoch in epochs]
            sides.append(np.concatenate(parts))
        pairs = np.concatenate(sides).astype(np.int32)
        if self._sampling.swap and not self._directed:
            pairs = sample.orient(pairs, self._seed, self.epoch(step))
        return pairs, np.repeat(np.array([1, 0], np.float32), half)


def whole_graph_leaves(graph: CSR, features: np.ndarray, edges: bool) -> dict[str, np.ndarray]:
    """Returns the leaves WHOLE of `Inputs`, without edges where they are not wanted."""
    senders = np.zeros(0, np.int32)
    receivers = np.zeros(0, np.int32)
    if edges:
        senders = np.repeat(np.arange(graph.num_nodes, dtype=np.int32), degrees(graph))
        receivers = np.asarray(graph.indices, np.int32)
    leaves = (np.asarray(features, np.float32), senders, receivers)
    return dict(zip(WHOLE, leaves, strict=True))


def empty_batch(rows: int) -> LinkBatch:
    """Makes the batch of predictors that read no subgraph."""
    return LinkBatch(
        np.zeros((rows, 2, 1), np.uint32),
        np.full(rows, 2, np.int32),
        np.full((rows, 2), -1, np.int32),
        np.zeros(rows, np.int32),
    )


class Feeder:
    """Makes the batches of a run, pure functions of (seed, step)."""

    def __init__(
        self, loaded: Loaded, sampling: Any, seed: int, predictor: Predictor, labels: Labels
    ) -> None:
        self.sampling = sampling
        self.config = sampling.config()
        self.stream = Stream(loaded, sampling, seed)
        self.on_device = predictor.subgraphs and choose_backend(sampling) == "device"
        self.steps = 0
        self._seed = seed
        self._labels = labels
        self._predictor = predictor
        # The same objects in every batch, so they are transferred once.
        self.fixed: dict[str, np.ndarray] = whole_graph_leaves(
            loaded.graph, loaded.data.features, predictor.whole
        )
        if predictor.subgraphs and not self.on_device:
            self._graph = host.prepare(loaded.graph)
        if self.on_device:
            graph = device.put(loaded.graph)
            self.steps = graph.steps
            self.fixed["indptr"] = np.asarray(graph.indptr)
            self.fixed["indices"] = np.asarray(graph.indices)
            if graph.dense is not None:
                self.fixed["dense"] = np.asarray(graph.dense)

    def batch(self, step: int, rows: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """Returns the links of a step with their subgraphs, or a host's rows of them."""
        pairs, labels = self.stream.links(step)
        labels = self._labels(pairs, labels)
        # Interleaved, so that every part of the batch has as many positives as negatives.
        order = np.arange(len(pairs)).reshape(2, -1).T.reshape(-1)
        if rows is not None:
            order = order[rows[0] : rows[1]]
        pairs = pairs[order]
        labels = labels[order]
        epoch = self.stream.epoch(step)
        if self.on_device:
            leaves = {"pairs": pairs, "labels": labels, "epoch": np.asarray(epoch, np.uint32)}
            return {**leaves, **self.fixed}
        if not self._predictor.subgraphs:
            return {"pairs": pairs, "labels": labels, **self.fixed}
        return self._with_subgraphs(pairs, labels, epoch, whole_batch=rows is None)

    def _with_subgraphs(
        self, pairs: np.ndarray, labels: np.ndarray, epoch: int, *, whole_batch: bool
    ) -> dict[str, np.ndarray]:
        """Samples on the host and pads each group of links to a bucket.

        Of several hosts each sees its rows only, so all pad to the largest bucket to agree.
        """
        subgraphs = host.sample(
            self._graph,
            pairs,
            self._seed,
            epoch,
            self.config,
            slots=self.sampling.slots,
            tight=whole_batch,
            workers=WORKERS,
        )
        sizes = self.config.sizes if whole_batch else self.config.sizes[-1:]
        groups = self.sampling.groups
        batch = dict(self.fixed)
        by_size = np.argsort(subgraphs.n, kind="stable") if groups > 1 else np.arange(len(pairs))
        for index, group in enumerate(np.split(by_size, groups)):
            members = LinkBatch(*(np.asarray(leaf)[group] for leaf in subgraphs))
            padded = sample.fit(members, sizes)
            leaves = {"pairs": pairs[group], "labels": labels[group], **padded._asdict()}
            suffix = f".{index}" if groups > 1 else ""
            batch |= {f"{name}{suffix}": leaf for name, leaf in leaves.items()}
        return batch

    def inputs(self, batch: Mapping[str, Any]) -> list[tuple[Inputs, jax.Array]]:
        """Returns (inputs, labels) of each group of a batch; on the device subgraphs are drawn
        here."""
        groups = []
        suffixes = [f".{i}" for i in range(self.sampling.groups)] if "n.0" in batch else [""]
        for suffix in suffixes:
            pairs = batch[f"pairs{suffix}"]
            if self.on_device:
                subgraphs = self._draw_on_device(batch, pairs)
            elif self._predictor.subgraphs:
                subgraphs = LinkBatch(*(batch[f"{name}{suffix}"] for name in LinkBatch._fields))
            else:
                subgraphs = LinkBatch(*(jnp.asarray(leaf) for leaf in empty_batch(len(pairs))))
            whole = (batch[name] for name in WHOLE)
            groups.append((Inputs(subgraphs, pairs, *whole), batch[f"labels{suffix}"]))
        return groups

    def _draw_on_device(self, batch: Mapping[str, Any], pairs: jax.Array) -> LinkBatch:
        graph = device.Graph(batch["indptr"], batch["indices"], batch.get("dense"), self.steps)
        seed = jnp.uint32(self._seed)
        return device.sample(
            graph, pairs, seed, batch["epoch"], self.config, slots=self.sampling.slots
        )
