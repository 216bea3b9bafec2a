# SPDX-License-Identifier: Apache-2.0
"""Sampling from a language model with a static cache, many prompts at once.

    ids, mask = pad_prompts(prompts)                              # left-padded to a power of two
    state = start(params, cfg, ids, mask, capacity=ids.shape[1] + 64)
    out = sample(params, cfg, state, key, max_new=64, stop_ids=(eos,))
    state = append(params, cfg, out.state, tool_ids, tool_mask)   # next turn, same cache

What a row draws depends on (key, row number, step) and its own tokens only, not on its neighbours.
Generated tokens are in the returned cache, so a further turn continues from ids, never from text.
All functions are jitted with the config static. Beam search is in `attention.lm.beam`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention.lm.config import LMConfig
from attention.lm.model import Adapters, Cache, Params, forward, init_cache


class State(NamedTuple):
    """logits: float32 [B, V] of the next token of every row; cache: of what was read."""

    logits: jax.Array
    cache: Cache


class Samples(NamedTuple):
    """What was drawn, N = max_new.

    ids: int32 [B, N], pad_id after a row's stop token; logp: float32 [B, N], log-probability under
    the sampling temperature before top-k, top-p and constraint, 0 after the stop; lengths: int32
    [B], tokens drawn, the stop token among them; state: to go on from.
    """

    ids: jax.Array
    logp: jax.Array
    lengths: jax.Array
    state: State


class Constraint(NamedTuple):
    """Which tokens may come next, as functions of a carried array tree of B rows.

    allowed: carry -> bool [B, V], at least one per row; advance: (carry, tokens [B]) -> carry.
    """

    allowed: Callable[[Any], jax.Array]
    advance: Callable[[Any, jax.Array], Any]


def pad_prompts(
    prompts: Sequence[Sequence[int]], pad_id: int = 0, *, least: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """int32 ids and bool mask [B, P], prompts at the right; P a power of two, at least `least`.

    Few lengths mean few compilations.

    Raises:
        ValueError: no prompts, or an empty one.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("prompts: need at least one, and one token in each")
    length = max(least, max(len(prompt) for prompt in prompts))
    length = 1 << (length - 1).bit_length()
    ids = np.full((len(prompts), length), pad_id, np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = True
    return ids, mask


@partial(jax.jit, static_argnames=("cfg", "capacity"))
def start(
    params: Params,
    cfg: LMConfig,
    ids: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray,
    *,
    capacity: int,
    lora: Adapters | None = None,
    lora_scale: int | float | jax.Array = 1.0,
) -> State:
    """Reads left-padded prompts into a new cache of `capacity` slots a row.

    Args:
        ids, mask: [B, P]; the last column holds the last token of every row.
        capacity: slots for prompts and all that will be appended or drawn, >= P.

    Raises:
        ValueError: capacity < P.
    """
    if capacity < ids.shape[1]:
        raise ValueError(f"capacity={capacity}: the prompts alone take {ids.shape[1]} slots")
    cache = init_cache(cfg, ids.shape[0], capacity)
    out = forward(params, cfg, ids, mask=mask, cache=cache, lora=lora, lora_scale=lora_scale)
    return State(out.logits[:, -1], out.cache)


@partial(jax.jit, static_argnames=("cfg",))
def append(
    params: Params,
    cfg: LMConfig,
    state: State,
    ids: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray,
    *,
    lora: Adapters | None = None,
    lora_scale: int | float | jax.Array = 1.0,
) -> State:
    """Reads left-padded tokens [B, P] after what is cached; rows without any keep their logits."""
    out = forward(params, cfg, ids, mask=mask, cache=state.cache, lora=lora, lora_scale=lora_scale)
    return State(jnp.where(jnp.asarray(mask)[:, -1:], out.logits[:, -1], state.logits), out.cache)


@partial(
    jax.jit,
    static_argnames=(
        "cfg",
        "max_new",
        "temperature",
        "top_k",
        "top_p",
        "stop_ids",
        "pad_id",
        "constraint",
    ),
)
def sample(
    params: Params,
    cfg: LMConfig,
    state: State,
    key: jax.Array,
    *,
    max_new: int,
    temperature: int | float = 1.0,
    top_k: int = 0,
    top_p: int | float = 1.0,
    stop_ids: tuple[int, ...] = (),
    pad_id: int = 0,
    rows: jax.Array | np.ndarray | None = None,
    constraint: Constraint | None = None,
    carry: Any = None,
    lora: Adapters | None = None,
    lora_scale: int | float | jax.Array = 1.0,
) -> Samples:
    """Draws up to max_new tokens for every row; ends early once all rows have stopped.

    Args:
        key: typed key; row r draws its step s from fold_in(fold_in(key, r), s).
        max_new: >= 1; must fit in the capacity of the cache beside what it holds.
        temperature: >= 0; 0 takes the most likely token (logp is then that of temperature 1).
        top_k: keep the k most likely tokens (and ties); 0 keeps all.
        top_p: keep the most likely tokens until their mass reaches p in (0, 1]; at least one.
        stop_ids: tokens after which a row ends.
        rows: int [B], row numbers for the random draws; None is 0 .. B - 1.
        constraint, carry: which tokens may be drawn, and its first carry.

    Raises:
        ValueError: a value out of range, or max_new above the capacity of the cache.
    """
    _check(cfg, state, max_new, temperature, top_k, top_p, constraint, carry)
    B = state.logits.shape[0]
    rows = jnp.arange(B) if rows is None else jnp.asarray(rows)
    row_keys = jax.vmap(partial(jax.random.fold_in, key))(rows)
    stops = jnp.asarray(stop_ids, jnp.int32).reshape(1, -1)

    def going(loop: dict[str, Any]) -> jax.Array:
        return (loop["step"] < max_new) & ~loop["done"].all()

    def draw(loop: dict[str, Any]) -> dict[str, Any]:
        state, done, step, carry = loop["state"], loop["done"], loop["step"], loop["carry"]
        allowed = None if constraint is None else constraint.allowed(carry)
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, step)
        token, logp = _choose(state.logits, keys, temperature, top_k, top_p, allowed)
        token = jnp.where(done, pad_id, token)
        out = forward(
            params,
            cfg,
            token[:, None],
            mask=~done[:, None],
            cache=state.cache,
            lora=lora,
            lora_scale=lora_scale,
        )
        return {
            "step": step + 1,
            "state": State(jnp.where(done[:, None], state.logits, out.logits[:, 0]), out.cache),
            "done": done | (token[:, None] == stops).any(axis=1),
            "ids": loop["ids"].at[:, step].set(token),
            "logp": loop["logp"].at[:, step].set(jnp.where(done, 0.0, logp)),
            "lengths": loop["lengths"] + ~done,
            "carry": carry if constraint is None else constraint.advance(carry, token),
        }

    first = {
        "step": jnp.zeros((), jnp.int32),
        "state": state,
        "done": jnp.zeros((B,), bool),
        "ids": jnp.full((B, max_new), pad_id, jnp.int32),
        "logp": jnp.zeros((B, max_new), jnp.float32),
        "lengths": jnp.zeros((B,), jnp.int32),
        "carry": carry,
    }
    last = jax.lax.while_loop(going, draw, first)
    return Samples(last["ids"], last["logp"], last["lengths"], last["state"])


def _choose(
    logits: jax.Array,
    keys: jax.Array,
    temperature: int | float,
    top_k: int,
    top_p: int | float,
    allowed: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Tokens int32 [B] and their log-probability [B] before any truncation."""
    scaled = logits / temperature if temperature > 0 else logits
    logp = jax.nn.log_softmax(scaled, axis=-1)
    work = scaled if allowed is None else jnp.where(allowed, scaled, -jnp.inf)
    if temperature == 0:
        token = jnp.argmax(work, axis=-1)
    else:
        token = jax.vmap(jax.random.categorical)(keys, truncate(work, top_k, top_p))
    token = token.astype(jnp.int32)
    return token, jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]


def truncate(logits: jax.Array, top_k: int = 0, top_p: int | float = 1.0) -> jax.Array:
    """Logits [B, V] with -inf for what top-k, then top-p of what is left, removes."""
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p < 1:
        descending = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        mass = jax.nn.softmax(descending, axis=-1)
        kept = jnp.cumsum(mass, axis=-1) - mass < top_p  # mass before this token
        least = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def _check(
    cfg: LMConfig,
    state: State,
    max_new: int,
    temperature: int | float,
    top_k: int,
    top_p: int | float,
    constraint: Constraint | None,
    carry: Any,
) -> None:
    if max_new < 1 or max_new > state.cache.valid.shape[1]:
        raise ValueError(
            f"max_new={max_new}: must be 1 to {state.cache.valid.shape[1]}, the cache's capacity"
        )
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: must be >= 0")
    if not 0 <= top_k <= cfg.vocab_size:
        raise ValueError(f"top_k={top_k}: must be 0 to {cfg.vocab_size}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: must be in (0, 1]")
    if constraint is None and carry is not None:
        raise ValueError("carry: given without a constraint")
