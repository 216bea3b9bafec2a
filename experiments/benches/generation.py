# SPDX-License-Identifier: Apache-2.0
"""What benches of generative recommenders share: a generator of TIGER's sizes, random histories and
catalogues, and beams as a general library finds them.

The library is an emulation in JAX of generation with a stock encoder-decoder: encoder states and
their keys and values copied for every beam and reordered with the beams, all beams at the first
digit, logits over the whole vocabulary, no trie.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention import transformer
from rec.decode import beam
from rec.models.config import OptimConfig, TigerConfig
from rec.models.digits import level_offsets
from rec.models.tiger import Tiger

SIZES = (256,) * 4
ROWS = 32
BEAMS = 50
ITEMS = 20
END = 0  # the token that stands for the end of a sequence where one is asked for
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
    offsets = level_offsets(model.sizes)

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
    scores = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, -1e9)[None], (B, beams))
    codes = jnp.zeros((B, beams, 0), jnp.int32)
    for level in range(L + has_end):
        log_probs = jax.nn.log_softmax(call(Tiger.logits, hidden), axis=-1)
        token = jnp.arange(vocabulary)
        first_token, stop = (END, END + 1) if level == L else map(int, offsets[level : level + 2])
        own = (token >= first_token) & (token < stop)
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
    search = functools.partial(beam.search, model, beams=beams, normaliser="full")
    library = functools.partial(library_beams, model, beams=beams, **options)
    theirs, _ = jax.jit(library)(params, *some)
    ours = jax.jit(search)(params, *some).codes
    if options.get("has_end"):  # the same beams in another order
        theirs, ours = (np.sort(number_codes(codes, model.sizes)) for codes in (theirs, ours))
    if not np.array_equal(theirs, ours):
        raise ValueError("the peer finds other beams than ours: the comparison would be void")


def number_codes(codes: jax.Array, sizes: Sequence[int]) -> np.ndarray:
    """One number for each row of codes, int64 [B, M] of int32 [B, M, L]."""
    numbers = np.zeros(codes.shape[:2], np.int64)
    for level, size in enumerate(sizes):
        numbers = numbers * size + np.asarray(codes[:, :, level])
    return numbers
