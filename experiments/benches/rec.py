# SPDX-License-Identifier: Apache-2.0
"""TIGER: a training step, and beam search against the way a general library does it.

The peer is generate of transformers on PyTorch, the same parameters; beside it stands its emulation
in JAX (benches/generation.py), whose beams must equal ours before anything is timed, where ours are
free and normalised alike, so that the two differ in cost alone; `flop` is what XLA counts in either
program. Sizes are TIGER's (4 + 4 layers, 4.6M parameters), 20 items of history, 4 digits.

`free` is our search without the trie, `trie-N` along a catalogue of N random SIDs. Steps are whole
batches, of `envs` histories.

`train-VARIANT` is one update of a variant of configs/rec/tiger.py on a ready batch of its size,
with dropout as it trains; `-threefry` the same with a random word for every element of every mask,
as it is usually done, and `-plain` without dropout.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from attention import dropout
from experiments.benches.decode import make_transformers
from experiments.benches.generation import (
    BEAMS,
    CONFIG,
    ITEMS,
    OPTIM,
    ROWS,
    SIZES,
    check_agreement,
    flop,
    initial,
    inputs,
    library_beams,
    random_catalogue,
)
from experiments.configs.rec import tiger as tiger_config
from experiments.runner import settings
from experiments.runner.bench import Case, Missing
from rec import augment, training
from rec.data.sequences import pack
from rec.decode import beam
from rec.models import generators, packed, tiger
from rec.models.packed import Packed
from rec.models.tiger import Tiger
from rec.sid import trie as tries

CATALOGUES = (10_000, 1_000_000)
TRAINED = ("base", "t5")  # variants of configs/rec/tiger.py
TRAINED_SIZES = (64, 64, 64)  # of their codes


def cases() -> Iterator[Case | Missing]:
    """Search first, then training."""
    model = Tiger(CONFIG, SIZES)
    params = initial(model)
    batch = inputs(ROWS, ITEMS, SIZES)
    check_agreement(model, params)
    search = functools.partial(beam.search, model, beams=BEAMS, normaliser="full")
    library = functools.partial(library_beams, model, beams=BEAMS)
    yield _case("beams-library", jax.jit(library).lower(params, *batch).compile(), params, *batch)
    yield _case("beams-free", jax.jit(search).lower(params, *batch).compile(), params, *batch)
    yield make_transformers("beams-transformers")
    for count in CATALOGUES:
        trie, shape = tries.build(random_catalogue(count), SIZES)
        along = jax.jit(functools.partial(search, shape=shape))
        compiled = along.lower(params, *batch, trie).compile()
        yield _case(f"beams-trie-{count}", compiled, params, *batch, trie)
    yield from _training(model, params, batch)
    for variant in TRAINED:
        yield from _dropout_cases(variant)


def _case(name: str, compiled: Any, *arguments: Any) -> Case:
    def run(repeat: int) -> None:
        del repeat
        jax.block_until_ready(compiled(*arguments))

    columns = {"beams": BEAMS, "flop": flop(compiled)}
    return Case(name, ROWS, 1.0, run, columns)


def _training(model: Tiger, params: Any, batch: Any) -> Iterator[Case]:
    """Our step, which draws its pairs on the device, and an optax loop on a ready batch."""
    tx = training.optimizer(OPTIM)
    rng = np.random.default_rng(2)
    sids = jnp.asarray(random_catalogue(10_000))
    train = pack([rng.integers(0, 10_000, 8).astype(np.int32) for _ in range(2000)], 10_000)
    tables, exponents = augment.strategy(train, "prefixes")
    keys = jax.random.split(jax.random.key(1), ROWS)
    ready = dict(zip(("history", "mask", "users"), batch, strict=True)) | {"target": sids[:ROWS]}

    def update(params: Any, opt: Any, rows: dict[str, jax.Array]) -> Any:
        return training.update(lambda p: tiger.loss(model, p, rows), params, opt, tx)

    @jax.jit
    def drawn(params: Any, opt: Any, keys: jax.Array) -> Any:
        found = jax.vmap(lambda k: augment.example(k, tables, exponents, 8, ITEMS))(keys)
        rows = {"history": sids[found["items"]], "mask": found["mask"], "users": found["user"]}
        return update(params, opt, rows | {"target": sids[found["target"]]})

    def run(step: Any, *last: Any) -> Any:
        state = [params, tx.init(params)]

        def once(repeat: int) -> None:
            del repeat
            state[0], state[1], found = step(*state, *last)
            jax.block_until_ready(found)

        return once

    yield Case("train-step", ROWS, 1.0, run(drawn, keys), {})
    yield Case("train-optax", ROWS, 1.0, run(jax.jit(update), ready), {})


def draw_words(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """A mask of dropout from a random word for every element."""
    return jax.random.bernoulli(key, 1 - rate, shape)


def make_update(variant: str) -> tuple[Callable[..., Any], Any, int]:
    """Makes one update of a variant on a ready batch: ((state, key) -> state, state, rows)."""
    groups = settings.groups(tiger_config.get_config(variant))
    cfg = groups["model"]
    rows = groups["augment"].rows
    model = generators.make(cfg, TRAINED_SIZES)
    tx = training.optimizer(groups["optim"])
    history, mask, users = inputs(rows, cfg.max_items, TRAINED_SIZES)
    params = jax.jit(model.init)(jax.random.key(0), history, mask, users, history[:, 0])["params"]
    row = jnp.ones(mask.shape, jnp.int32)
    stream = {"sids": history, "targets": history, "segments": row, "ages": row * 0, "weights": row}
    pairs = {"history": history, "mask": mask, "users": users, "target": history[:, 0]}

    def loss(params: Any, key: jax.Array) -> jax.Array:
        if isinstance(model, Packed):
            return packed.loss(model, params, stream, key)
        return tiger.loss(model, params, pairs, key)

    def update(state: Any, key: jax.Array) -> Any:
        params, opt_state = state
        params, opt_state, _ = training.update(lambda p: loss(p, key), params, opt_state, tx)
        return params, opt_state

    return update, (params, tx.init(params)), rows


def _dropout_cases(variant: str) -> Iterator[Case]:
    """An update with masks from the bank, with masks drawn word by word, and without dropout."""
    masks = {
        "": dropout.keep_mask,
        "-threefry": draw_words,
        "-plain": lambda key, rate, shape: jnp.ones(shape, bool),
    }
    for suffix, keep_mask in masks.items():
        update, state, rows = make_update(variant)
        with mock.patch.object(dropout, "keep_mask", keep_mask):
            compiled = jax.jit(update).lower(state, jax.random.key(0)).compile()
        yield Case(f"train-{variant}{suffix}", rows, 1.0, _repeat(compiled, state), {})


def _repeat(update: Callable[..., Any], state: Any) -> Callable[[int], None]:
    """Makes a call that goes on from where the last one ended."""
    held = [state]

    def once(repeat: int) -> None:
        held[0] = update(held[0], jax.random.key(repeat))
        jax.block_until_ready(held[0])

    return once


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Times against each other; above 1 the first named is faster, `cost` and `growth` are times
    as many."""
    rate = {row["row"]: row["steps_per_s"] for row in rows}
    flops = {row["row"]: row["flop"] for row in rows if "flop" in row}
    small, large = (f"beams-trie-{count}" for count in CATALOGUES)
    dropped = {
        f"tiger:{variant}, {what}": rate[f"train-{variant}"] / rate[f"train-{variant}-{other}"]
        for variant in TRAINED
        for what, other in (
            ("masks of a bank / drawn word by word", "threefry"),
            ("masks of a bank / no dropout", "plain"),
        )
    }
    peer = "beams-transformers"
    library = {"constrained beams / transformers": rate[small] / rate[peer]} if peer in rate else {}
    return {
        **library,
        "constrained beams / library": rate[small] / rate["beams-library"],
        "free beams / library": rate["beams-free"] / rate["beams-library"],
        "flop of library / constrained": flops["beams-library"] / flops[small],
        "cost of the trie (time constrained / free)": rate["beams-free"] / rate[small],
        "growth of time, 1e4 to 1e6 SIDs": rate[small] / rate[large],
        "train step / bare optax": rate["train-step"] / rate["train-optax"],
        **dropped,
    }
