# SPDX-License-Identifier: Apache-2.0
"""Learned link predictors in the frame: batches of links with their subgraphs, the update, scores.

A model is a `Predictor`; what differs between PENCIL and its peers is that alone. Subgraphs come
from the host (NumPy, padded to a bucket) or are drawn within the training step on the device;
both give the same ones.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments import settings
from experiments.contract import Experiment, Rows
from experiments.errors import UserError
from experiments.systems import links, links_figures
from experiments.systems.links import Loaded
from graph import csr, metrics, negatives, sample
from graph.csr import CSR, degrees
from graph.sample import LinkBatch
from graph.sampling import device
from graph.sampling.config import SampleConfig

EVAL_SEED = 20_260_202  # the same samples of the same links at every evaluation of every run
# Links are split over the data axis; the graph and node features are on every device.
RULES = (
    (r"batch/(pairs|labels|adj_bits|n|ids|dropped)(\.\d+)?", P("data")),
    (r"batch/.*", P()),
)
WHOLE = ("features", "senders", "receivers")  # leaves that are the same for all links
Variables = dict[str, Any]


Labels = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(pairs int32 [B, 2], 1 or 0 [B] for positives and negatives) -> what is learned, float32 [B]."""
LOSSES = {"bce": optax.sigmoid_binary_cross_entropy, "mse": optax.squared_error}


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
    rows = np.repeat(np.arange(graph.num_nodes, dtype=np.int32), degrees(graph))
    ends = (rows, np.asarray(graph.indices, np.int32)) if edges else (np.zeros(0, np.int32),) * 2
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
        self._graph = sample.prepare(loaded.graph, "host")
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
        found = sample.sample(
            self._graph, pairs, self._seed, epoch, self.config, slots=self.sampling.slots
        )
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


def optimizer(cfg: Any) -> optax.GradientTransformation:
    """AdamW at a constant rate, weight decay on everything trained (spec pencil 1.6)."""
    return optax.adamw(cfg.lr, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay)


def make_step(
    predictor: Predictor,
    feeder: Callable[[], Feeder],
    tx: optax.GradientTransformation,
    parts: int,
    loss_name: str,
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[dict, dict]]:
    """One update: mean of a loss of LOSSES over the links.

    Args:
        parts: microbatches of each group, whose gradients are added up one after the other.
    """

    def loss(params: Any, frozen: Any, inputs: Inputs, labels: jax.Array, key: jax.Array) -> Any:
        logits = predictor.logits({"params": params, "frozen": frozen}, inputs, key)
        return LOSSES[loss_name](logits, labels).mean(), logits

    def of_part(state: Mapping[str, Any], inputs: Inputs, labels: jax.Array, key: jax.Array) -> Any:
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(
            state["params"], state["frozen"], inputs, labels, key
        )
        right = {"accuracy": ((logits > 0) == (labels > 0.5)).mean()} if loss_name == "bce" else {}
        return {"loss": value, **right}, gradients

    def of_group(
        state: Mapping[str, Any], inputs: Inputs, labels: jax.Array, key: jax.Array
    ) -> Any:
        if parts == 1:
            return of_part(state, inputs, labels, key)
        cut = lambda x: x.reshape(parts, -1, *x.shape[1:])
        some = (jax.tree.map(cut, inputs.batch), cut(inputs.pairs), cut(labels))

        def one(total: Any, index_and_part: Any) -> tuple[Any, None]:
            index, (batch, pairs, own) = index_and_part
            part = inputs._replace(batch=batch, pairs=pairs)
            found = of_part(state, part, own, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, found), None

        like = jax.eval_shape(of_part, state, inputs, labels, key)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        total, _ = jax.lax.scan(one, zero, (jnp.arange(parts), some))
        return jax.tree.map(lambda leaf: leaf / parts, total)

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict, dict]:
        key = jax.random.fold_in(state["key"], state["step"])
        groups = feeder().inputs(batch)
        found = [
            of_group(state, inputs, labels, jax.random.fold_in(key, index))
            for index, (inputs, labels) in enumerate(groups)
        ]
        values, gradients = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)
        updates, opt_state = tx.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        if predictor.subgraphs:
            tokens = jnp.concatenate([inputs.batch.n for inputs, _ in groups])
            dropped = jnp.concatenate([inputs.batch.dropped for inputs, _ in groups])
            values |= {"tokens": tokens.mean(), "dropped": dropped.mean()}
        new = {"step": state["step"] + 1, "params": params, "opt_state": opt_state}
        return {**state, **new}, {name: jnp.float32(value) for name, value in values.items()}

    return step


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
            stop = start + len(part)
            if self._sampling.swap and not self._directed:
                part = sample.orient(part, EVAL_SEED, draw)
            for at, index, batch in self._batches(graph, part, draw, rows):
                found = np.asarray(self._logits(variables, batch, part[index], self._whole))
                logits[start + index[at]] = found[at]
                if self._predictor.subgraphs:
                    sizes[start + index[at]] = np.asarray(batch.n)[at]
                    drops[start + index[at]] = np.asarray(batch.dropped)[at]
            assert stop <= count
        return logits, sizes, drops

    def _batches(self, graph: Any, pairs: np.ndarray, draw: int, rows: int) -> Any:
        """(which rows are real, index of the link of every row, batch)."""
        config: SampleConfig = self._sampling.config()
        if not self._predictor.subgraphs:
            for start in range(0, len(pairs), rows):
                index = np.minimum(np.arange(start, start + rows), len(pairs) - 1)
                yield np.arange(rows) < len(pairs) - start, index, empty_batch(rows)
            return
        found = sample.sample(graph, pairs, EVAL_SEED, draw, config, slots=self._sampling.slots)
        found = LinkBatch(*(np.asarray(leaf) for leaf in found))
        for bucket in sample.group(found, config.sizes, rows):
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


def check_slots(config: ConfigDict, slots: int) -> None:
    """Raises ValueError: fewer slots than a link is sampled with."""
    most = settings.groups(config)["sample"].config().sizes[-1]
    if slots < most:
        raise ValueError(
            f"config.model.slots={slots}: config.sample gives links of up to {most} tokens; raise "
            "it to that"
        )


def one(graph: CSR, pair: np.ndarray, sampling: Any) -> LinkBatch:
    """The first draw of one link, int32 [1, 2], at the evaluation."""
    return sample.sample(
        sample.prepare(graph, "host"), pair, EVAL_SEED, 0, sampling.config(), slots=sampling.slots
    )


class Trained(NamedTuple):
    """What learns: three members of an Experiment, and the scores of its states."""

    init: Callable[[Any], dict[str, Any]]
    step: Callable[[Any, Any], tuple[dict, dict]]
    batch: Callable[..., dict[str, np.ndarray]]
    scorer: Scorer


def trained(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    predictor: Predictor,
    loaded: Callable[[], Loaded],
    labels: Labels,
    loss_name: str,
) -> Trained:
    """Training of one config and model.

    Raises:
        ValueError: several seeds; microbatches that do not divide a group of links.
    """
    settings.one_seed(config)
    groups = settings.groups(config)
    sampling, optim = groups["sample"], groups["optim"]
    if sampling.rows // sampling.groups % optim.microbatches:
        raise ValueError(
            f"config.optim.microbatches={optim.microbatches} must divide config.sample.rows / "
            f"config.sample.groups = {sampling.rows // sampling.groups}"
        )
    tx = optimizer(optim)
    feeder = functools.cache(lambda: Feeder(loaded(), sampling, config.seed, predictor, labels))
    graph = links.graph_of(artifacts)
    whole = whole_of(graph, np.asarray(artifacts["features"]), predictor.whole)

    def init(key: jax.Array) -> dict[str, Any]:
        some = LinkBatch(*(jnp.asarray(leaf) for leaf in empty_batch(1)))
        pair = jnp.zeros((1, 2), jnp.int32)
        inputs = Inputs(some, pair, *(jnp.asarray(whole[name]) for name in WHOLE))
        variables = predictor.init(jax.random.fold_in(key, 0), inputs)
        params, frozen = variables["params"], dict(variables.get("frozen", {}))
        state = {"step": jnp.int32(0), "key": key, "params": params, "frozen": frozen}
        return {**state, "opt_state": tx.init(params)}

    directed = artifacts["card"]["directed"]
    return Trained(
        init=init,
        step=make_step(predictor, feeder, tx, optim.microbatches, loss_name),
        batch=lambda step, rows=None: feeder().batch(step, rows),
        scorer=Scorer(predictor, sampling, groups["eval"].batch, directed, whole),
    )


def make(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    predictor: Predictor,
    around: Callable[[Any, np.ndarray], dict[str, bytes | Rows]] | None = None,
) -> Experiment:
    """Experiment of a link predictor.

    Args:
        around: see `links_figures.make_figures`.

    Raises:
        ValueError: see `trained`.
    """
    evaluation = settings.groups(config)["eval"]
    loaded = links.lazily(config, artifacts)
    learned = trained(config, artifacts, predictor, loaded, lambda _, labels: labels, "bce")
    judged = Evaluation(config, artifacts, loaded, learned.scorer)
    known = functools.cache(lambda: ready(links.graph_of(artifacts)))

    def score(state: Mapping[str, Any], pairs: np.ndarray) -> np.ndarray:
        draws = range(evaluation.draws)
        return np.mean([learned.scorer(state, known(), pairs, d)[0] for d in draws], axis=0)

    predict = links.make_predict(artifacts, evaluation.top, evaluation.candidates, score)
    return Experiment(
        init=learned.init,
        step=learned.step,
        batch=learned.batch,
        evaluate=judged.metrics,
        rules=RULES,
        selectable=links.selectable(artifacts),
        figures=links_figures.make_figures(config, artifacts, judged, around),
        actions={"predict": predict},
    )
