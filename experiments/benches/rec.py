# SPDX-License-Identifier: Apache-2.0
"""TIGER: a training step, and beam search against the way a general library does it.

The peer is an emulation in JAX of generation with a stock encoder-decoder: encoder states and their
keys and values copied for every beam and reordered with the beams, all beams at the first digit,
logits over the whole vocabulary, no trie. Before anything is timed its beams must equal ours where
ours are free and normalised alike, so that the two differ in cost alone; `flop` is what XLA counts
in either program. Sizes are TIGER's (4 + 4 layers, 4.6M parameters), 20 items of history, 4 digits.

`free` is our search without the trie, `constrained` along a catalogue of 10,000 or 1,000,000 random
SIDs. Steps are whole batches, of `envs` histories. What a real library takes is in benches/decode.py.

`train-VARIANT` is one update of a variant of configs/rec/tiger.py on a ready batch of its size, with
dropout as it trains; `-threefry` the same with a random word for every element of every mask, as it
is usually done, and `-plain` without dropout.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from attention import dropout, transformer
from experiments.configs.rec import tiger as tiger_config
from experiments.runner import settings
from experiments.runner.bench import Case
from rec import augment, training
from rec.data.sequences import pack
from rec.decode import beam
from rec.models import generators, packed, tiger
from rec.models.config import OptimConfig, TigerConfig
from rec.models.digits import level_offsets
from rec.models.packed import Packed
from rec.models.tiger import Tiger
from rec.sid import trie as tries

SIZES = (256,) * 4
ROWS = 32
BEAMS = 50
ITEMS = 20
END = 0  # the token that stands for the end of a sequence where one is asked for
CATALOGUES = (10_000, 1_000_000)
TRAINED = ("base", "t5")  # variants of configs/rec/tiger.py
TRAINED_SIZES = (64, 64, 64)  # of their codes
CONFIG = TigerConfig(
    layout="encoder_decoder",
    width=128,
    heads=6,
    head_dim=64,
    mlp_width=1024,
    layers=4,
    mlp="relu",
    position="t5",
    attention="softmax",
    dropout=0.0,
    user_tokens=0,
    separators=False,
    tied=True,
    softmax="full",
    max_items=ITEMS,
    dtype="float32",
    scan=False,  # XLA counts the body of a scan once
    remat=False,
)
OPTIM = OptimConfig(1e-3, 0, "constant", 1, 0.9, 0.98, 0.0, 1.0)


def library_beams(
    model: Tiger,
    params: Any,
    history: jax.Array,
    mask: jax.Array,
    users: jax.Array,
    beams: int,
    *,
    copies_memory: bool = True,
    has_end: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Beams as a general library finds them: (codes int32 [B, M, L], scores float32 [B, M]).

    Args:
        copies_memory: a copy of the encoder's states, and of their keys and values, for every beam,
            reordered with the beams; else one for a history.
        has_end: every beam is scored once more, for a token that ends it. Here one of the others
            stands for it, so the order of beams may change, but not which there are.
    """
    B = len(history)
    L = len(model.sizes)
    inner = model.cfg.transformer()
    vocabulary = sum(model.sizes)
    offsets = [*level_offsets(model.sizes), vocabulary]

    def call(method: Any, *inputs: Any) -> Any:
        return model.apply({"params": params}, *inputs, method=method)

    def first(module: Tiger, memory: jax.Array, ids: jax.Array) -> Any:
        start = jnp.broadcast_to(module.start_vector, (B * beams, 1, model.cfg.width))
        cache = transformer.init_cache(inner, B * beams, L + has_end)
        out, cache = module.decoder(start, memory, ids, cache=cache)
        return out[:, 0], cache

    memory, ids = call(Tiger.read, history, mask, users)
    copies = beams if copies_memory else 1
    hidden, cache = call(first, jnp.repeat(memory, copies, axis=0), jnp.repeat(ids, copies, axis=0))
    scores = jnp.where(jnp.arange(beams) == 0, 0.0, -1e9) * jnp.ones((B, 1))
    codes = jnp.zeros((B, beams, 0), jnp.int32)
    for level in range(L + has_end):
        log_probs = jax.nn.log_softmax(call(Tiger.logits, hidden), axis=-1)
        token = jnp.arange(vocabulary)
        own = (token >= int(offsets[level])) & (token < int(offsets[level + 1]))
        if level == L:
            own = token == END
        log_probs = jnp.where(own[None], log_probs, -jnp.inf).reshape(B, beams, vocabulary)
        total = (scores[:, :, None] + log_probs).reshape(B, -1)
        scores, best = jax.lax.top_k(total, beams)
        parent = best // vocabulary
        codes = jnp.take_along_axis(codes, parent[:, :, None], axis=1)
        if level == L:
            break
        digit = (best % vocabulary - int(offsets[level])).astype(jnp.int32)
        codes = jnp.concatenate([codes, digit[:, :, None]], axis=2)
        if level + 1 < L + has_end:
            rows = (jnp.arange(B)[:, None] * beams + parent).reshape(-1)
            cache = cache.take(rows)
            if copies_memory:
                cache = cache._replace(
                    memory_k=jnp.take(cache.memory_k, rows, axis=2),
                    memory_v=jnp.take(cache.memory_v, rows, axis=1),
                    memory_ids=cache.memory_ids[rows],
                )
            advance = functools.partial(Tiger.advance, level=level)
            hidden, cache = call(advance, cache, digit.reshape(-1))
    return codes, scores


def inputs(rows: int, items: int, sizes: Sequence[int]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random histories int32 [rows, items, L] of 5 items and more, their mask, users."""
    rng = np.random.default_rng(0)
    history = rng.integers(0, sizes, (rows, items, len(sizes))).astype(np.int32)
    mask = np.arange(items)[None] < rng.integers(min(5, items), items + 1, rows)[:, None]
    return jnp.asarray(history), jnp.asarray(mask), jnp.zeros(rows, jnp.int32)


def initial(model: Tiger) -> Any:
    """Random parameters."""
    one = inputs(1, 2, model.sizes)
    target = jnp.zeros((1, len(model.sizes)), jnp.int32)
    return jax.jit(model.init)(jax.random.key(0), *one, target)["params"]


def random_catalogue(count: int) -> np.ndarray:
    """int32 [count, 4] distinct random SIDs."""
    rng = np.random.default_rng(1)
    numbers = rng.choice(256**4, size=count + count // 100 + 100, replace=True)
    numbers = np.unique(numbers)
    numbers = rng.permutation(numbers)[:count]
    return np.stack([numbers // 256 ** (3 - i) % 256 for i in range(4)], axis=1).astype(np.int32)


def flop(compiled: Any) -> float:
    """Floating-point operations XLA counts in a program."""
    found = compiled.cost_analysis()
    return float((found[0] if isinstance(found, list) else found)["flops"])


def check_agreement(model: Tiger, params: Any, beams: int = 5, **options: bool) -> None:
    """Raises ValueError unless the peer's beams are our free ones; options: of `library_beams`."""
    some = inputs(3, 4, model.sizes)
    theirs, _ = library_beams(model, params, *some, beams, **options)
    ours = beam.search(model, params, *some, beams=beams, normaliser="full").codes
    if options.get("has_end"):  # the same beams in another order
        theirs, ours = (np.sort(_numbers(codes, model.sizes)) for codes in (theirs, ours))
    if not np.array_equal(theirs, ours):
        raise ValueError("the peer finds other beams than ours: the comparison would be void")


def _numbers(codes: jax.Array, sizes: Sequence[int]) -> np.ndarray:
    """One number for each row of codes, int64 [B, M] of int32 [B, M, L]."""
    numbers = np.zeros(codes.shape[:2], np.int64)
    for level, size in enumerate(sizes):
        numbers = numbers * size + np.asarray(codes[:, :, level])
    return numbers


def cases() -> Iterator[Case]:
    """Search first, then training."""
    model = Tiger(CONFIG, SIZES)
    params = initial(model)
    batch = inputs(ROWS, ITEMS, SIZES)
    check_agreement(model, params)
    search = functools.partial(beam.search, model, beams=BEAMS, normaliser="full")
    library = functools.partial(library_beams, model, beams=BEAMS)
    yield _case("beams-library", jax.jit(library).lower(params, *batch).compile(), params, *batch)
    yield _case("beams-free", jax.jit(search).lower(params, *batch).compile(), params, *batch)
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
        params, opt_state, _ = training.update(lambda p: loss(p, key), *state, tx)
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
    return {
        "constrained beams / library": rate[small] / rate["beams-library"],
        "free beams / library": rate["beams-free"] / rate["beams-library"],
        "flop of library / constrained": flops["beams-library"] / flops[small],
        "cost of the trie (time constrained / free)": rate["beams-free"] / rate[small],
        "growth of time, 1e4 to 1e6 SIDs": rate[small] / rate[large],
        "train step / bare optax": rate["train-step"] / rate["train-optax"],
        **dropped,
    }
