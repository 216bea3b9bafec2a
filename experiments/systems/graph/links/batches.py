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
    """What a predictor may read. batch: subgraphs of the links; pairs: int32 [B, 2]; features:
    float32 [V, F], F = 0 without; senders, receivers: int32 [2 E], the whole graph, both ways,
    ascending."""

    batch: LinkBatch
    pairs: jax.Array
    features: jax.Array
    senders: jax.Array
    receivers: jax.Array


class Predictor(NamedTuple):
    """init: (key, inputs) -> {"params": .., "frozen": ..}; logits: (variables, inputs, key of
    dropout or None) -> float32 [B]; subgraphs: whether `inputs.batch` is read, else it is empty;
    whole: whether the whole graph is, else it has no edges."""

    init: Callable[[jax.Array, Inputs], Variables]
    logits: Callable[[Variables, Inputs, jax.Array | None], jax.Array]
    subgraphs: bool
    whole: bool


def backend_of(sampling: Any) -> str:
    """ "host" or "device"."""
    if sampling.backend != "auto":
        return sampling.backend
    return "device" if jax.default_backend() != "cpu" and sampling.groups == 1 else "host"


class Stream:
    """Links of every training batch: half positives, each once an epoch, half negatives."""

    def __init__(self, loaded: Loaded, sampling: Any, seed: int) -> None:
        self._train, self._graph = loaded.data.split.train, loaded.graph
        self._fixed, self._sampling, self._seed = loaded.data.split.train_neg, sampling, seed
        self._directed = loaded.data.directed
        if sampling.negatives == "fixed" and not len(self._fixed):
            raise UserError(
                f"config.sample.negatives='fixed': {loaded.data.name} brings no negatives of "
                "training; use 'drawn'"
            )
        split, self._avoid = loaded.data.split, None
        if sampling.avoid:
            held = np.concatenate([split.valid.pos, split.test.pos])
            nodes = loaded.data.num_nodes
            self._avoid = csr.build(csr.clean(held, nodes).edges, nodes)
        self._positives = functools.lru_cache(maxsize=2)(self._draw_positives)
        self._negatives = functools.lru_cache(maxsize=2)(self._draw_negatives)

    def _draw_positives(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._train))
        return self._train[order]

    def _draw_negatives(self, epoch: int) -> np.ndarray:
        count = len(self._train)
        if self._sampling.negatives == "fixed":
            rng = np.random.default_rng([self._seed, epoch, 1])
            return self._fixed[rng.integers(0, len(self._fixed), count)]
        return negatives.negatives(self._graph, count, self._seed, epoch, avoid=self._avoid)

    def epoch(self, step: int) -> int:
        """Of the first link of a step."""
        return step * (self._sampling.rows // 2) // len(self._train)

    def links(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(pairs int32 [rows, 2], labels float32 [rows]): positives first."""
        half, total = self._sampling.rows // 2, len(self._train)
        at = step * half + np.arange(half)
        sides = []
        for made in (self._positives, self._negatives):
            parts = [made(e)[at[at // total == e] % total] for e in np.unique(at // total).tolist()]
            sides.append(np.concatenate(parts))
        pairs = np.concatenate(sides).astype(np.int32)
        if self._sampling.swap and not self._directed:
            pairs = sample.orient(pairs, self._seed, self.epoch(step))
        return pairs, np.repeat(np.array([1, 0], np.float32), half)


def whole_of(graph: CSR, features: np.ndarray, edges: bool) -> dict[str, np.ndarray]:
    """Leaves WHOLE of `Inputs`, without edges where they are not wanted."""
    ends = (np.zeros(0, np.int32),) * 2
    if edges:
        rows = np.repeat(np.arange(graph.num_nodes, dtype=np.int32), degrees(graph))
        ends = rows, np.asarray(graph.indices, np.int32)
    return dict(zip(WHOLE, (np.asarray(features, np.float32), *ends), strict=True))


def empty_batch(rows: int) -> LinkBatch:
    """For predictors that read no subgraph."""
    bits, some = np.zeros((rows, 2, 1), np.uint32), np.full(rows, 2, np.int32)
    return LinkBatch(bits, some, np.full((rows, 2), -1, np.int32), np.zeros(rows, np.int32))


class Feeder:
    """Batches of a run, pure functions of (seed, step)."""

    def __init__(
        self, loaded: Loaded, sampling: Any, seed: int, predictor: Predictor, labels: Labels
    ) -> None:
        self.sampling, self._seed, self._labels = sampling, seed, labels
        self._predictor, self.config = predictor, sampling.config()
        self.stream = Stream(loaded, sampling, seed)
        self.on_device = predictor.subgraphs and backend_of(sampling) == "device"
        if predictor.subgraphs and not self.on_device:
            self._graph = host.prepare(loaded.graph)
        self.fixed: dict[str, np.ndarray] = whole_of(
            loaded.graph, loaded.data.features, predictor.whole
        )
        self.steps = 0
        if self.on_device:
            put = device.put(loaded.graph)
            self.steps = put.steps
            self.fixed |= {"indptr": np.asarray(put.indptr), "indices": np.asarray(put.indices)}
            if put.dense is not None:
                self.fixed["dense"] = np.asarray(put.dense)

    def batch(self, step: int, rows: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """The links of a step with their subgraphs, or a host's rows of them."""
        pairs, labels = self.stream.links(step)
        labels = self._labels(pairs, labels)
        # Interleaved, so that every part of the batch has as many positives as negatives.
        order = np.arange(len(pairs)).reshape(2, -1).T.reshape(-1)
        pairs, labels = pairs[order], labels[order]
        if rows is not None:
            pairs, labels = pairs[rows[0] : rows[1]], labels[rows[0] : rows[1]]
        epoch = self.stream.epoch(step)
        if self.on_device:
            known = {"epoch": np.asarray(epoch, np.uint32), **self.fixed}
            return {"pairs": pairs, "labels": labels, **known}
        if not self._predictor.subgraphs:
            return {"pairs": pairs, "labels": labels, **self.fixed}
        found = host.sample(
            self._graph, pairs, self._seed, epoch, self.config, slots=self.sampling.slots,
            tight=rows is None, workers=WORKERS,
        )  # fmt: skip
        sizes = self.config.sizes if rows is None else self.config.sizes[-1:]
        groups, out = self.sampling.groups, dict(self.fixed)
        by_size = np.argsort(found.n, kind="stable") if groups > 1 else np.arange(len(pairs))
        for index, part in enumerate(np.split(by_size, groups)):
            own = sample.fit(LinkBatch(*(np.asarray(leaf)[part] for leaf in found)), sizes)
            named = {"pairs": pairs[part], "labels": labels[part], **own._asdict()}
            mark = f".{index}" if groups > 1 else ""
            out |= {f"{name}{mark}": leaf for name, leaf in named.items()}
        return out

    def inputs(self, batch: Mapping[str, Any]) -> list[tuple[Inputs, jax.Array]]:
        """(inputs, labels) of each group of a batch; subgraphs are drawn here on the device."""
        out = []
        for mark in [f".{i}" for i in range(self.sampling.groups)] if "n.0" in batch else [""]:
            pairs = batch[f"pairs{mark}"]
            if self.on_device:
                graph = device.Graph(
                    batch["indptr"], batch["indices"], batch.get("dense"), self.steps
                )
                seed = jnp.uint32(self._seed)
                found = device.sample(
                    graph, pairs, seed, batch["epoch"], self.config, slots=self.sampling.slots
                )
            elif self._predictor.subgraphs:
                found = LinkBatch(*(batch[f"{name}{mark}"] for name in LinkBatch._fields))
            else:
                found = LinkBatch(*(jnp.asarray(leaf) for leaf in empty_batch(len(pairs))))
            whole = (batch[name] for name in WHOLE)
            out.append((Inputs(found, pairs, *whole), batch[f"labels{mark}"]))
        return out
