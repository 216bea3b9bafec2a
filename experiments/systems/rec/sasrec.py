# SPDX-License-Identifier: Apache-2.0
"""Wiring of SASRec: all pairs packed in rows, or rows drawn on the device; the whole catalogue
ranked at evaluation."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment, State
from experiments.runner.errors import UserError
from experiments.systems.rec.recommenders import figures, recommend, streams, wiring
from experiments.systems.rec.recommenders.streams import Batches
from experiments.systems.rec.recommenders.wiring import Ranking
from rec import augment, metrics, training
from rec.data import sequences as seq
from rec.data.sequences import Sequences
from rec.models import sasrec
from rec.models.sasrec import SASRec

RULES = ((r"(.*/)?items", P("model")),)  # the catalogue may be split over the model axis
EVAL_ROWS = 256  # histories ranked at once


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Makes items, data card, and the rows without training."""
    loaded = wiring.load(config)
    return wiring.prepare(loaded, wiring.load_features_if_any(config, loaded))


def make_position_rows(train: Sequences, users: np.ndarray, limit: int) -> dict[str, np.ndarray]:
    """Makes the rows of users: history, mask, and the target after every position, [U, limit]."""
    rows = seq.select(train, users)
    ends = rows.lengths
    zero = np.zeros_like(ends)
    history, mask = seq.newest(seq.take(rows, zero, ends - 1), limit)
    targets, _ = seq.newest(seq.take(rows, np.minimum(zero + 1, ends), ends), limit)
    return {"history": history, "mask": mask, "targets": targets}


def make_batches(
    config: ConfigDict, train: Sequences, exponents: augment.Exponents, limit: int
) -> Batches:
    """Makes batches of all pairs in rows, or what the device draws rows from, the same at every
    step."""
    pairs = config.augment
    if pairs.pairs == "packed":
        return streams.make_packed_batches(train, config.seed, rows=pairs.rows, length=limit)
    whole = make_whole_batch(train, pairs, exponents, limit)
    return lambda step, rows: wiring.take_rows(whole, rows)


def make_whole_batch(
    train: Sequences, pairs: Any, exponents: augment.Exponents, limit: int
) -> dict[str, np.ndarray]:
    """Makes what the device draws rows from.

    Raises:
        UserError: no user has a position to learn.
    """
    if pairs.pairs != "positions":
        tables, _ = augment.strategy(train, pairs.pairs, exponents)
        return wiring.make_pair_batch(tables, pairs.rows)
    users = np.flatnonzero(train.lengths >= 2)
    if not len(users):
        raise UserError("no user has two training items")
    row = np.arange(pairs.rows, dtype=np.int32)
    return {"row": row, **make_position_rows(train, users, limit)}


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config.

    Raises:
        ValueError: several seeds.
    """
    settings.one_seed(config)
    groups = settings.groups(config)
    cfg = groups["model"]
    eval_config = groups["eval"]
    pairs = groups["augment"]
    loaded = wiring.load_lazily(config, artifacts)
    model = SASRec(cfg, len(artifacts["items"]))
    exponents = wiring.choose_exponents(pairs)
    score = jax.jit(functools.partial(sasrec.scores_of, model))
    ranker = Ranker(score, cfg.max_items)

    is_packed = pairs.pairs == "packed"
    batches = functools.cache(
        lambda: make_batches(config, loaded().split.train, exponents, cfg.max_items)
    )

    def evaluate(state: Mapping[str, Any], split: str) -> dict[str, Any]:
        parts = loaded().split
        queries = wiring.select_queries(parts, split, eval_config.rows)
        scores = ranker(state["params"], queries.history)
        ranks = metrics.ranks(scores, queries.targets, queries.history)
        ranking = Ranking(queries, ranks, metrics.top(scores, 10, queries.history))
        out = wiring.evaluate_ranking(split, ranking, artifacts, parts, eval_config.draws)
        if split == "test":
            unmasked = metrics.ranks(scores, queries.targets)
            out |= metrics.summarize(unmasked, wiring.KS, "test/", "/unmasked")
            out |= wiring.summarize_sampled(scores, queries)
        return out

    def answer(state: Mapping[str, Any], history: np.ndarray) -> wiring.Answer:
        rows = seq.pack([history], len(artifacts["items"]))
        scores = ranker(state["params"], rows)[0]
        return recommend.rank_scores(scores[None], rows, eval_config.top)[0]

    def rank(state: State, histories: Sequences, wanted: int) -> list[wiring.Answer]:
        return recommend.rank_scores(ranker(state["params"], histories), histories, wanted)

    lists = wiring.make_lists(loaded, answer)
    action = recommend.make_recommend(
        artifacts, loaded, config.data.columns, eval_config.top, rank, max_items=cfg.max_items
    )
    tx = training.optimizer(groups["optim"])
    return Experiment(
        init=make_init(model, tx),
        step=training.make_step(tx, make_loss(model, pairs.pairs, exponents)),
        batch=lambda step, rows=None: batches()(step, rows),
        evaluate=evaluate,
        rules=(*(streams.RULES if is_packed else wiring.PAIR_RULES), *RULES),
        selectable=wiring.SELECTABLE,
        figures=figures.make_ranker_figures(config, artifacts, lists),
        actions={"recommend": action},
    )


def make_init(
    model: SASRec, tx: optax.GradientTransformation
) -> Callable[[jax.Array], dict[str, Any]]:
    """Makes key -> state."""

    def init(key: jax.Array) -> dict[str, Any]:
        history = jnp.zeros((1, 1), jnp.int32)
        mask = history == 0
        params = model.init(jax.random.fold_in(key, 0), history, mask)["params"]
        return {"step": jnp.int32(0), "key": key, "params": params, "opt_state": tx.init(params)}

    return init


Loss = Callable[[Any, Mapping[str, Any], jax.Array], jax.Array]
"""(params, batch, key) -> loss in nats."""


def make_loss(model: SASRec, pairs: str, exponents: augment.Exponents) -> Loss:
    """Makes the loss of a batch.

    Args:
        pairs: "packed", "positions" or a strategy of rec.augment.
    """
    if pairs == "packed":
        return lambda params, batch, key: sasrec.packed_loss(model, params, dict(batch), key)
    draw = _draw_positions if pairs == "positions" else _draw_pair
    return make_drawn_loss(model, draw, exponents)


def make_drawn_loss(model: SASRec, draw: Any, exponents: augment.Exponents) -> Loss:
    """Makes the loss of rows that are drawn, every row with a key of its own.

    Args:
        draw: (key, batch, exponents, newest items that are read) -> one row.
    """
    limit = model.cfg.max_items

    def loss(params: Any, batch: Mapping[str, Any], key: jax.Array) -> jax.Array:
        rows = jax.vmap(lambda row: draw(jax.random.fold_in(key, row), batch, exponents, limit))(
            batch["row"]
        )
        # Rows have the keys 0 to rows - 1, so the loss takes the next one.
        return sasrec.loss(model, params, rows, jax.random.fold_in(key, len(batch["row"])))

    return loss


def _draw_positions(
    key: jax.Array, batch: Mapping[str, Any], exponents: Any, limit: int
) -> dict[str, jax.Array]:
    """Draws a user uniformly and takes all positions."""
    del exponents, limit
    user = jax.random.randint(key, (), 0, batch["history"].shape[0])
    row = {name: batch[name][user] for name in ("history", "mask", "targets")}
    return {**row, "weights": row["mask"].astype(jnp.float32)}


def _draw_pair(
    key: jax.Array, batch: Mapping[str, Any], exponents: augment.Exponents, limit: int
) -> dict[str, jax.Array]:
    """Draws one pair: only the newest position counts."""
    tables = augment.Tables(**{name: batch[name] for name in augment.Tables._fields})
    row = augment.example(key, tables, exponents, batch["longest"].shape[0], limit)
    is_last = jnp.arange(limit) == row["mask"].sum() - 1
    return {
        "history": row["items"],
        "mask": row["mask"],
        "targets": jnp.where(is_last, row["target"], 0),
        "weights": is_last.astype(jnp.float32),
    }


class Ranker:
    """Scores the catalogue, float32 [Q, N], for histories in batches of one compiled size."""

    def __init__(self, score: Any, limit: int) -> None:
        self._score = score
        self._limit = limit

    def __call__(self, params: Any, history: Sequences) -> np.ndarray:
        items, mask = seq.newest(history, self._limit)
        size = min(EVAL_ROWS, len(items))
        scores = []
        for start in range(0, len(items), size):
            batch_items = items[start : start + size]
            batch_mask = mask[start : start + size]
            count = len(batch_items)
            missing = ((0, size - count), (0, 0))
            padded = self._score(params, np.pad(batch_items, missing), np.pad(batch_mask, missing))
            scores.append(np.asarray(padded)[:count])
        return np.concatenate(scores)
