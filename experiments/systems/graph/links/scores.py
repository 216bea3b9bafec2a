# SPDX-License-Identifier: Apache-2.0
"""Scores of any links by a predictor, and the metrics made of them."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.systems.graph.links import wiring
from experiments.systems.graph.links.batches import WHOLE, Inputs, Predictor, empty_batch
from experiments.systems.graph.links.wiring import Loaded
from graph import metrics, sample
from graph.csr import CSR
from graph.sample import LinkBatch
from graph.sampling import host

EVAL_SEED = 20_260_202  # the same samples of the same links at every evaluation of every run
BATCHES_AT_ONCE = 8  # whose subgraphs are in memory together


class Scores(NamedTuple):
    """Holds what one draw of the samples gives for U links."""

    logits: np.ndarray
    """float32 [U]."""
    tokens: np.ndarray
    """int32 [U], nodes of each subgraph; 0 where none is read."""
    dropped: np.ndarray
    """int32 [U], nodes that had no slot."""


class Scorer:
    """Scores any links, on one compiled program for each bucket."""

    def __init__(
        self, predictor: Predictor, sampling: Any, rows: int, directed: bool, whole: dict[str, Any]
    ) -> None:
        self._predictor = predictor
        self._sampling = sampling
        self._rows = rows
        self._directed = directed
        self._whole = whole

        def logits(variables: Any, batch: Any, pairs: jax.Array, whole: Mapping[str, Any]) -> Any:
            inputs = Inputs(batch, pairs, *(whole[name] for name in WHOLE))
            return predictor.logits(variables, inputs, None)

        self._logits = jax.jit(logits)

    def __call__(
        self, state: Mapping[str, Any], graph: Any, pairs: np.ndarray, draw: int
    ) -> Scores:
        """Scores links int32 [U, 2] on one draw of the samples."""
        variables = {"params": state["params"], "frozen": state["frozen"]}
        count = len(pairs)
        rows = min(self._rows, count)
        scores = Scores(
            np.zeros(count, np.float32), np.zeros(count, np.int32), np.zeros(count, np.int32)
        )
        for start in range(0, count, rows * BATCHES_AT_ONCE):
            part = np.asarray(pairs[start : start + rows * BATCHES_AT_ONCE], np.int32)
            if self._sampling.swap and not self._directed:
                part = sample.orient(part, EVAL_SEED, draw)
            for is_link, index, batch in self._batches(graph, part, draw, rows):
                logits = np.asarray(self._logits(variables, batch, part[index], self._whole))
                places = start + index[is_link]
                scores.logits[places] = logits[is_link]
                if self._predictor.subgraphs:
                    scores.tokens[places] = np.asarray(batch.n)[is_link]
                    scores.dropped[places] = np.asarray(batch.dropped)[is_link]
        return scores

    def _batches(
        self, graph: Any, pairs: np.ndarray, draw: int, rows: int
    ) -> Iterator[tuple[Any, Any, LinkBatch]]:
        """Yields (which rows are links and no padding, index of the link of every row, batch)."""
        config = self._sampling.config()
        slots = self._sampling.slots
        if not self._predictor.subgraphs:
            for start in range(0, len(pairs), rows):
                index = np.minimum(np.arange(start, start + rows), len(pairs) - 1)
                yield np.arange(rows) < len(pairs) - start, index, empty_batch(rows)
            return
        if isinstance(graph, host.Graph):
            buckets = host.bucketed(graph, pairs, EVAL_SEED, draw, config, rows, slots=slots)
        else:
            subgraphs = sample.sample(graph, pairs, EVAL_SEED, draw, config, slots=slots)
            buckets = sample.group(jax.tree.map(np.asarray, subgraphs), config.sizes, rows)
        for bucket in buckets:
            yield bucket.weight > 0, bucket.index, bucket.batch


class Evaluation:
    """Evaluates a predictor on the links of a side."""

    def __init__(
        self,
        config: ConfigDict,
        artifacts: Mapping[str, Any],
        loaded: Callable[[], Loaded],
        scorer: Scorer,
    ) -> None:
        self._eval = settings.groups(config)["eval"]
        self._rows_without_training = artifacts["rows"]
        self.loaded = loaded
        self.scorer = scorer

    @functools.cached_property
    def _graphs(self) -> dict[str, Any]:
        """Graphs of validation and of the test, ready to sample from."""
        loaded = self.loaded()
        valid = make_ready(loaded.graph)
        return {
            "valid": valid,
            "test": valid if loaded.late is loaded.graph else make_ready(loaded.late),
        }

    def draws(
        self, state: Mapping[str, Any], side: str, pairs: np.ndarray, count: int
    ) -> tuple[np.ndarray, Scores]:
        """Scores links on `count` draws of the samples: (logits [count, U], the first draw)."""
        graph = self._graphs[side]
        draws = [self.scorer(state, graph, pairs, draw) for draw in range(count)]
        return np.stack([scores.logits for scores in draws]), draws[0]

    def metrics(self, state: Mapping[str, Any], split: str) -> dict[str, float]:
        """Computes the metrics of the mean logit over the draws; at the test also of one draw, and
        adds the rows without training."""
        loaded = self.loaded()
        is_test = split == "test"
        links = wiring.subsample(loaded.links(split), 0 if is_test else self._eval.rows)
        pairs, scatter = metrics.unique_pairs(links.pos, links.neg, directed=loaded.data.directed)
        logits, first = self.draws(state, split, pairs, self._eval.draws if is_test else 1)
        out = wiring.summarize(*scatter(logits.mean(0)), f"{split}/")
        if not is_test:
            return out
        one_draw = wiring.summarize(*scatter(logits[0]), "")
        out |= {f"test/{name}/one_draw": value for name, value in one_draw.items()}
        if first.tokens.any():
            out |= {
                "test/tokens": float(first.tokens.mean()),
                "test/tokens/max": float(first.tokens.max()),
                "test/dropped": float(first.dropped.mean()),
                "test/dropped/links": float((first.dropped > 0).mean()),
            }
        return out | dict(self._rows_without_training)


def make_ready(graph: CSR) -> Any:
    """Prepares a graph as the evaluation samples from it: on the host where JAX runs on the CPU."""
    return sample.prepare(graph, "host" if jax.default_backend() == "cpu" else "device")


def sample_link(graph: CSR, pair: np.ndarray, sampling: Any) -> LinkBatch:
    """Samples around one link, int32 [1, 2], as the first draw of an evaluation does."""
    return sample.sample(
        sample.prepare(graph, "host"), pair, EVAL_SEED, 0, sampling.config(), slots=sampling.slots
    )
