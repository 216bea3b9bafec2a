# SPDX-License-Identifier: Apache-2.0
"""Wiring of TIGER: SIDs as artifact, pairs drawn on the device or all of them packed in rows, beams
along the trie."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.systems.rec.recommenders import generators, streams, wiring
from experiments.systems.rec.recommenders.generators import (
    Catalogue,
    Decoder,
    Evaluation,
)
from experiments.systems.rec.recommenders.streams import Batches
from rec import augment, training
from rec.data import packing
from rec.data.sequences import Sequences
from rec.models import generators as models
from rec.models import packed, tiger
from rec.models.config import TigerConfig
from rec.models.packed import Packed
from rec.models.tiger import Tiger

RULES = (
    (r"(.*/)?attn/[qkv]/kernel", P(None, None, "model")),
    (r"(.*/)?cross/[qkv]/kernel", P(None, None, "model")),
    (r"(.*/)?mlp/(gate|up)/kernel", P(None, None, "model")),
    (r"(.*/)?(attn|cross)/o/kernel", P(None, "model")),
    (r"(.*/)?mlp/down/kernel", P(None, "model")),
)

prepare = generators.prepare


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config.

    Raises:
        ValueError: several seeds, or a SID table that does not match its hash.
    """
    settings.one_seed(config)
    groups = settings.groups(config)
    evaluation = make_evaluation(config, artifacts)
    catalogue = evaluation.decoder.catalogue
    model = models.make(groups["model"], catalogue.sizes)
    tx = training.optimizer(groups["optim"])
    exponents = generators.choose_exponents(config, artifacts)
    make_batches = make_packed_batches if isinstance(model, Packed) else make_pair_batches
    batch_rules = streams.RULES if isinstance(model, Packed) else wiring.PAIR_RULES
    return generators.make_experiment(
        config,
        artifacts,
        evaluation,
        init=generators.make_init(model, tx.init, catalogue),
        step=training.make_step(tx, make_loss(model, exponents, catalogue)),
        make_batches=lambda train: make_batches(config, train, catalogue.sids, exponents),
        rules=(*batch_rules, *RULES),
    )


def make_evaluation(config: ConfigDict, artifacts: Mapping[str, Any]) -> Evaluation:
    """Makes what computes metrics and answers of states of this config."""
    groups = settings.groups(config)
    catalogue = generators.load_catalogue(artifacts)
    model = models.make(groups["model"], catalogue.sizes)
    generator = generators.make_generator(
        model,
        catalogue,
        groups["eval"],
        max_items=model.cfg.max_items,
        softmax="full" if model.cfg.softmax == "full" else "digit",
    )
    return Evaluation(config, artifacts, Decoder(generator, catalogue, groups["eval"]))


def make_pair_batches(
    config: ConfigDict, train: Sequences, sids: np.ndarray, exponents: augment.Exponents
) -> Batches:
    """Makes what the device draws pairs from."""
    return generators.make_pair_batches(config, train, exponents, {"sids": sids})


def make_packed_batches(
    config: ConfigDict, train: Sequences, sids: np.ndarray, exponents: augment.Exponents
) -> Batches:
    """Makes batches of all pairs in rows, weighted by how often the strategy would draw them."""
    batches = streams.make_packed_batches(
        train,
        config.seed,
        rows=config.augment.rows,
        length=config.model.max_items,
        weights=packing.strategy_weights(train, config.augment.pairs, exponents),
    )
    return lambda step, rows: batches(step, rows) | {"sids": sids}


def make_loss(
    model: Tiger | Packed, exponents: augment.Exponents, catalogue: Catalogue
) -> Callable[[Any, Mapping[str, Any], jax.Array], jax.Array]:
    """Makes (params, batch, key) -> loss."""
    if isinstance(model, Packed):
        return make_packed_loss(model, catalogue)
    return make_pairs_loss(model, exponents)


def drops(cfg: TigerConfig) -> bool:
    """Tells whether training needs a key for dropout."""
    return bool(cfg.dropout or cfg.digit_dropout)


def make_pairs_loss(
    model: Tiger, exponents: augment.Exponents
) -> Callable[[Any, Mapping[str, Any], jax.Array], jax.Array]:
    """Makes the loss of pairs that are drawn, every row with a key of its own."""
    cfg = model.cfg

    def loss(params: Any, batch: Mapping[str, Any], key: jax.Array) -> jax.Array:
        pairs = generators.draw_pairs(key, batch, exponents, cfg.max_items)
        # Rows have the keys 0 to rows - 1, so dropout takes the next one.
        dropout_key = jax.random.fold_in(key, len(batch["row"])) if drops(cfg) else None
        return tiger.loss(model, params, pairs, dropout_key)

    return loss


def make_packed_loss(
    model: Packed, catalogue: Catalogue
) -> Callable[[Any, Mapping[str, Any], jax.Array], jax.Array]:
    """Makes the loss of packed rows."""

    def loss(params: Any, batch: Mapping[str, Any], key: jax.Array) -> jax.Array:
        sids = batch["sids"]
        rows = {**batch, "sids": sids[batch["items"]], "targets": sids[batch["targets"]]}
        dropout_key = key if drops(model.cfg) else None
        return packed.loss(model, params, rows, dropout_key, catalogue.trie, catalogue.shape)

    return loss
