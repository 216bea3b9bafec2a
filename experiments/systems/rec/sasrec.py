# SPDX-License-Identifier: Apache-2.0
"""Wiring of SASRec: rows drawn on the device, the whole catalogue ranked at evaluation."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.systems.rec.recommenders import figures as recommenders_figures
from experiments.systems.rec.recommenders import wiring as recommenders
from rec import augment, metrics, training
from rec.data import sequences as seq
from rec.data.sequences import Sequences
from rec.models import sasrec
from rec.models.sasrec import SASRec

# The catalogue may be split over the model axis; the training sequences are on every device.
RULES = (
    (r"batch/row", P("data")),
    (r"batch/.*", P()),
    (r"(.*/)?items", P("model")),
)
EVAL_ROWS = 256


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Items, data card, and the rows without training."""
    loaded = recommenders.load(config)
    return recommenders.prepare(config, loaded, recommenders.features(config, loaded))


def positions(train: Sequences, users: np.ndarray, limit: int) -> dict[str, np.ndarray]:
    """Rows of users: history, mask, targets after every position, weights; all [U, limit]."""
    own = seq.select(train, users)
    zero, ends = np.zeros_like(own.lengths), own.lengths
    history, mask = seq.newest(seq.take(own, zero, ends - 1), limit)
    targets, _ = seq.newest(seq.take(own, np.minimum(zero + 1, ends), ends), limit)
    return {"history": history, "mask": mask, "targets": targets}


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config.

    Raises:
        ValueError: several seeds.
    """
    settings.one_seed(config)
    groups = settings.groups(config)
    cfg, evaluation, pairs = groups["model"], groups["eval"], groups["augment"]
    loaded = recommenders.lazily(config, artifacts)
    model = SASRec(cfg, len(artifacts["items"]))
    tx = training.optimizer(groups["optim"])

    def init(key: jax.Array) -> dict[str, Any]:
        some = jnp.zeros((1, 1), jnp.int32)
        params = model.init(jax.random.fold_in(key, 0), some, some == 0)["params"]
        return {"step": jnp.int32(0), "key": key, "params": params, "opt_state": tx.init(params)}

    draw = _positions_of if pairs.pairs == "positions" else _pair_of
    exponents = recommenders.exponents_of(pairs)

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict, dict]:
        key = jax.random.fold_in(state["key"], state["step"])
        rows = jax.vmap(
            lambda row: draw(jax.random.fold_in(key, row), batch, exponents, cfg.max_items)
        )(batch["row"])
        loss_key = jax.random.fold_in(key, len(batch["row"]))
        params, opt_state, found = training.update(
            lambda p: sasrec.loss(model, p, rows, loss_key), state["params"],
            state["opt_state"], tx,
        )  # fmt: skip
        new = {"step": state["step"] + 1, "key": state["key"]}
        return {**new, "params": params, "opt_state": opt_state}, found

    @functools.cache
    def tables() -> dict[str, np.ndarray]:
        train = loaded().split.train
        if pairs.pairs == "positions":
            users = np.flatnonzero(train.lengths >= 2)
            if not len(users):
                raise recommenders.UserError("no user has two training items")
            row = np.arange(pairs.rows, dtype=np.int32)
            return {"row": row, **positions(train, users, cfg.max_items)}
        return recommenders.pair_batch(
            augment.strategy(train, pairs.pairs, exponents)[0], pairs.rows
        )

    score = jax.jit(functools.partial(sasrec.scores_of, model))
    ranker = Ranker(score, cfg.max_items)

    def evaluate(state: Mapping[str, Any], split: str) -> dict[str, Any]:
        parts = loaded().split
        queries = recommenders.queries_of(parts, split, evaluation.rows)
        scores = ranker(state["params"], queries.history)
        ranks = metrics.ranks(scores, queries.targets, queries.history)
        lists = metrics.top(scores, 10, queries.history)
        out = recommenders.judge(split, queries, ranks, lists, artifacts, parts, evaluation.draws)
        if split == "test":
            raw = metrics.ranks(scores, queries.targets)
            out |= metrics.summarise(raw, recommenders.KS, "test/", "/unmasked")
            sampled = metrics.uniform_ranks(scores, queries.targets, queries.history)
            out |= metrics.summarise(sampled, recommenders.KS, "test/", "/uni100")
        return out

    def answer(state: Mapping[str, Any], history: np.ndarray) -> recommenders.Answer:
        one = seq.pack([history], len(artifacts["items"]))
        scores = ranker(state["params"], one)[0]
        order = np.argsort(-scores, kind="stable")[: evaluation.top + len(history)]
        return recommenders.leave_out(order.astype(np.int32), scores[order], history)

    lists = recommenders.make_lists(loaded, answer)
    return Experiment(
        init=init,
        step=step,
        batch=lambda step, rows=None: recommenders.rows_of(tables(), rows),
        evaluate=evaluate,
        rules=RULES,
        selectable=recommenders.SELECTABLE,
        figures=recommenders_figures.make_ranker_figures(config, artifacts, lists),
        actions={
            "recommend": recommenders.make_recommend(
                artifacts, evaluation.top, cfg.max_items, answer
            )
        },
    )


def _positions_of(
    key: jax.Array, batch: Mapping[str, Any], exponents: Any, limit: int
) -> dict[str, jax.Array]:
    """All positions of a user drawn uniformly."""
    del exponents, limit
    user = jax.random.randint(key, (), 0, batch["history"].shape[0])
    row = {name: batch[name][user] for name in ("history", "mask", "targets")}
    return {**row, "weights": row["mask"].astype(jnp.float32)}


def _pair_of(
    key: jax.Array, batch: Mapping[str, Any], exponents: augment.Exponents, limit: int
) -> dict[str, jax.Array]:
    """One pair: only the newest position counts."""
    tables = augment.Tables(**{name: batch[name] for name in augment.Tables._fields})
    row = augment.example(key, tables, exponents, batch["longest"].shape[0], limit)
    last = jnp.arange(limit) == row["mask"].sum() - 1
    targets = jnp.where(last, row["target"], 0)
    weights = last.astype(jnp.float32)
    return {"history": row["items"], "mask": row["mask"], "targets": targets, "weights": weights}


class Ranker:
    """Scores of the catalogue, float32 [Q, N], for histories in batches of one compiled size."""

    def __init__(self, score: Any, limit: int) -> None:
        self._score, self._limit = score, limit

    def __call__(self, params: Any, history: Sequences) -> np.ndarray:
        items, mask = seq.newest(history, self._limit)
        size = min(EVAL_ROWS, len(items))
        out = []
        for start in range(0, len(items), size):
            part, real = items[start : start + size], mask[start : start + size]
            missing = ((0, size - len(part)), (0, 0))
            found = self._score(params, np.pad(part, missing), np.pad(real, missing))
            out.append(np.asarray(found)[: len(part)])
        return np.concatenate(out)
