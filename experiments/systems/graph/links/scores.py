# SPDX-License-Identifier: Apache-2.0
"""Scores of any links by a predictor, and the metrics made of them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.systems.graph.links import wiring as links
from experiments.systems.graph.links.batches import WHOLE, Inputs, Predictor, empty_batch
from graph import metrics, sample
from graph.csr import CSR
from graph.sample import LinkBatch
from graph.sampling import host

EVAL_SEED = 20_260_202  # the same samples of the same links at every evaluation of every run


class Scorer:
    """Scores of any links, on one compiled program for each bucket."""

    def __init__(
        self, predictor: Predictor, sampling: Any, rows: int, directed: bool, whole: dict[str, Any]
    ) -> None:
        self._predictor, self._sampling, self._rows = predictor, sampling, rows
        self._directed, self._whole = directed, whole

        def logits(variables: Any, batch: Any, pairs: jax.Array, whole: Mapping[str, Any]) -> Any:
            inputs = Inputs(batch, pairs, *(whole[name] for name in WHOLE))
            return predictor.logits(variables, inputs, None)

        self._logits = jax.jit(logits)

    def __call__(
        self, state: Mapping[str, Any], graph: Any, pairs: np.ndarray, draw: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(logits float32 [U], tokens int32 [U], dropped int32 [U]) of one draw of the samples."""
        variables = {"params": state["params"], "frozen": state["frozen"]}
        count, rows = len(pairs), min(self._rows, len(pairs))
        logits = np.zeros(count, np.float32)
        sizes, drops = np.zeros((2, count), np.int32)
        for start in range(0, count, rows * 8):  # subgraphs of some batches at a time
            part = np.asarray(pairs[start : start + rows * 8], np.int32)
            if self._sampling.swap and not self._directed:
                part = sample.orient(part, EVAL_SEED, draw)
            for at, index, batch in self._batches(graph, part, draw, rows):
                found = np.asarray(self._logits(variables, batch, part[index], self._whole))
                logits[start + index[at]] = found[at]
                if self._predictor.subgraphs:
                    sizes[start + index[at]] = np.asarray(batch.n)[at]
                    drops[start + index[at]] = np.asarray(batch.dropped)[at]
        return logits, sizes, drops

    def _batches(self, graph: Any, pairs: np.ndarray, draw: int, rows: int) -> Any:
        """(which rows are real, index of the link of every row, batch)."""
        config, slots = self._sampling.config(), self._sampling.slots
        if not self._predictor.subgraphs:
            for start in range(0, len(pairs), rows):
                index = np.minimum(np.arange(start, start + rows), len(pairs) - 1)
                yield np.arange(rows) < len(pairs) - start, index, empty_batch(rows)
            return
        if isinstance(graph, host.Graph):
            buckets = host.bucketed(graph, pairs, EVAL_SEED, draw, config, rows, slots=slots)
        else:
            found = sample.sample(graph, pairs, EVAL_SEED, draw, config, slots=slots)
            buckets = sample.group(jax.tree.map(np.asarray, found), config.sizes, rows)
        for bucket in buckets:
            yield bucket.weight > 0, bucket.index, bucket.batch


class Evaluation:
    """Metrics of a predictor on the links of a side."""

    def __init__(
        self, config: ConfigDict, artifacts: Mapping[str, Any], loaded: Any, scorer: Scorer
    ) -> None:
        self._eval, self._rows = settings.groups(config)["eval"], artifacts["rows"]
        self.loaded, self.scorer = loaded, scorer

    @functools.cached_property
    def _graphs(self) -> dict[str, Any]:
        """Ready to sample from, of validation and of the test."""
        loaded = self.loaded()
        valid = ready(loaded.graph)
        return {
            "valid": valid,
            "test": valid if loaded.late is loaded.graph else ready(loaded.late),
        }

    def draws(
        self, state: Mapping[str, Any], side: str, pairs: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(logits [count, U], tokens [U], dropped [U]) of the draws; the last two of the first."""
        found = [self.scorer(state, self._graphs[side], pairs, draw) for draw in range(count)]
        return np.stack([logits for logits, _, _ in found]), found[0][1], found[0][2]

    def metrics(self, state: Mapping[str, Any], split: str) -> dict[str, float]:
        """Of the mean logit over the draws; at the test also of one draw, and the rows without
        training."""
        loaded = self.loaded()
        test = split == "test"
        asked = links.some(loaded.links(split), 0 if test else self._eval.rows)
        pairs, scatter = metrics.unique_pairs(asked.pos, asked.neg, directed=loaded.data.directed)
        logits, tokens, dropped = self.draws(state, split, pairs, self._eval.draws if test else 1)
        out = links.judge(*scatter(logits.mean(0)), f"{split}/")
        if not test:
            return out
        one = links.judge(*scatter(logits[0]), "")
        out |= {f"test/{name}/one_draw": value for name, value in one.items()}
        if tokens.any():
            out |= {
                "test/tokens": float(tokens.mean()),
                "test/tokens/max": float(tokens.max()),
                "test/dropped": float(dropped.mean()),
                "test/dropped/links": float((dropped > 0).mean()),
            }
        return out | dict(self._rows)


def ready(graph: CSR) -> Any:
    """A graph as the evaluation samples from it: on the host where JAX runs on the CPU."""
    return sample.prepare(graph, "host" if jax.default_backend() == "cpu" else "device")


def one(graph: CSR, pair: np.ndarray, sampling: Any) -> LinkBatch:
    """The first draw of one link, int32 [1, 2], at the evaluation."""
    return sample.sample(
        sample.prepare(graph, "host"), pair, EVAL_SEED, 0, sampling.config(), slots=sampling.slots
    )
