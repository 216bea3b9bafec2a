# SPDX-License-Identifier: Apache-2.0
"""Sampling from a language model with a static cache, many prompts at once.

    ids, mask = pad_prompts(prompts)                              # left-padded to a power of two
    state = start(params, cfg, ids, mask, capacity=ids.shape[1] + 64)
    out = sample(params, cfg, state, key, Sampling(max_new=64, stop_ids=(eos,)))
    state = append(params, cfg, out.state, tool_ids, tool_mask)   # next turn, same cache

What a row draws depends on (key, row number, step) and its own tokens only, not on its neighbors.
Generated tokens are in the returned cache, so a further turn continues from ids, never from text.
All functions are jitted with the config static. Beam search is in `attention.lm.beam`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention.lm.config import LMConfig
from attention.lm.model import Adapters, Cache, Params, forward, init_cache


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, checked; hashable, so that it is static under jit.

    Attributes:
        max_new: most tokens drawn for a row, >= 1; they must fit in the cache beside what is there.
        temperature: >= 0; 0 takes the most likely token (its logp is then that of temperature 1).
        top_k: keep the k most likely tokens (and ties), 0 to the vocabulary's size; 0 keeps all.
        top_p: keep the most likely tokens until their mass reaches p in (0, 1]; at least one.
        stop_ids: tokens after which a row ends, >= 0.
        pad_id: what stands in `Samples.ids` after a row's stop token, >= 0.
    """

    max_new: int
    temperature: int | float = 1.0
    top_k: int = 0
    top_p: int | float = 1.0
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0

    def __post_init__(self) -> None:
        rules = {
            "max_new": (self.max_new >= 1, "must be at least 1"),
            "temperature": (self.temperature >= 0, "must be >= 0 (0 takes the most likely token)"),
            "top_k": (self.top_k >= 0, "must be >= 0 (0 keeps all tokens)"),
            "top_p": (0 < self.top_p <= 1, "must be in (0, 1] (1 keeps all tokens)"),
            "stop_ids": (all(token >= 0 for token in self.stop_ids), "must be token ids >= 0"),
            "pad_id": (self.pad_id >= 0, "must be a token id >= 0"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r}: {rule}")


class State(NamedTuple):
    """Where every row stands: what it may go on with."""

    logits: jax.Array  # float32 [B, V], of the next token
    cache: Cache  # of the tokens that were read


class Samples(NamedTuple):
    """Tokens that were drawn, N = max_new."""

    ids: jax.Array  # int32 [B, N], pad_id after a row's stop token
    # float32 [B, N], log-probability under the temperature before top-k, top-p and constraint; 0
    # after the stop.
    logp: jax.Array
    lengths: jax.Array  # int32 [B], tokens drawn, the stop token among them
    state: State  # to go on from


class _Loop(NamedTuple):
    """What a step of `sample` carries to the next."""

    step: jax.Array  # int32 [], tokens drawn so far
    state: State
    done: jax.Array  # bool [B], rows that have drawn a stop token
    ids: jax.Array  # int32 [B, N]
    logp: jax.Array  # float32 [B, N]
    lengths: jax.Array  # int32 [B]
    carry: Any  # of the constraint


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


@partial(jax.jit, static_argnames=("cfg", "sampling", "constraint"))
def sample(
    params: Params,
    cfg: LMConfig,
    state: State,
    key: jax.Array,
    sampling: Sampling,
    *,
    rows: jax.Array | np.ndarray | None = None,
    constraint: Constraint | None = None,
    carry: Any = None,
    lora: Adapters | None = None,
    lora_scale: int | float | jax.Array = 1.0,
) -> Samples:
    """Draws up to `sampling.max_new` tokens for every row; ends early once all rows have stopped.

    Args:
        key: typed key; row r draws its step s from fold_in(fold_in(key, r), s).
        rows: int [B], row numbers for the random draws; None is 0 .. B - 1.
        constraint, carry: which tokens may be drawn, and its first carry.

    Raises:
        ValueError: max_new above the capacity of the cache, top_k above the vocabulary, or a carry
            without a constraint.
    """
    _check(cfg, state, sampling, constraint, carry)
    row_keys = _row_keys(key, rows, state.logits.shape[0])
    stop_ids = jnp.asarray(sampling.stop_ids, jnp.int32).reshape(1, -1)

    def is_running(loop: _Loop) -> jax.Array:
        return (loop.step < sampling.max_new) & ~loop.done.all()

    def draw_token(loop: _Loop) -> _Loop:
        allowed = None if constraint is None else constraint.allowed(loop.carry)
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, loop.step)
        token, logp = _choose(loop.state.logits, keys, sampling, allowed)
        token = jnp.where(loop.done, sampling.pad_id, token)
        out = forward(
            params,
            cfg,
            token[:, None],
            mask=~loop.done[:, None],
            cache=loop.state.cache,
            lora=lora,
            lora_scale=lora_scale,
        )
        # A row that is done keeps its logits: what is appended later continues from its stop token.
        logits = jnp.where(loop.done[:, None], loop.state.logits, out.logits[:, 0])
        return _Loop(
            step=loop.step + 1,
            state=State(logits, out.cache),
            done=loop.done | (token[:, None] == stop_ids).any(axis=1),
            ids=loop.ids.at[:, loop.step].set(token),
            logp=loop.logp.at[:, loop.step].set(jnp.where(loop.done, 0.0, logp)),
            lengths=loop.lengths + ~loop.done,
            carry=loop.carry if constraint is None else constraint.advance(loop.carry, token),
        )

    last = jax.lax.while_loop(is_running, draw_token, _first_loop(state, sampling, carry))
    return Samples(last.ids, last.logp, last.lengths, last.state)


def _row_keys(key: jax.Array, rows: jax.Array | np.ndarray | None, count: int) -> jax.Array:
    """A key for each of `count` rows, by its row number."""
    numbers = jnp.arange(count) if rows is None else jnp.asarray(rows)
    return jax.vmap(partial(jax.random.fold_in, key))(numbers)


def _first_loop(state: State, sampling: Sampling, carry: Any) -> _Loop:
    batch = state.logits.shape[0]
    return _Loop(
        step=jnp.zeros((), jnp.int32),
        state=state,
        done=jnp.zeros((batch,), bool),
        ids=jnp.full((batch, sampling.max_new), sampling.pad_id, jnp.int32),
        logp=jnp.zeros((batch, sampling.max_new), jnp.float32),
        lengths=jnp.zeros((batch,), jnp.int32),
        carry=carry,
    )


def _choose(
    logits: jax.Array, keys: jax.Array, sampling: Sampling, allowed: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Tokens int32 [B] and their log-probability [B] before any truncation."""
    is_greedy = sampling.temperature == 0
    scaled = logits if is_greedy else logits / sampling.temperature
    logp = jax.nn.log_softmax(scaled, axis=-1)
    permitted = scaled if allowed is None else jnp.where(allowed, scaled, -jnp.inf)
    if is_greedy:
        token = jnp.argmax(permitted, axis=-1)
    else:
        truncated = truncate(permitted, sampling.top_k, sampling.top_p)
        token = jax.vmap(jax.random.categorical)(keys, truncated)
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
        mass_before = jnp.cumsum(mass, axis=-1) - mass
        is_in_nucleus = mass_before < top_p  # the token that crosses p is in, so one always is
        least = jnp.min(jnp.where(is_in_nucleus, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def _check(
    cfg: LMConfig, state: State, sampling: Sampling, constraint: Constraint | None, carry: Any
) -> None:
    """ValueError where the knobs do not fit this model and cache."""
    capacity = state.cache.valid.shape[1]
    if sampling.max_new > capacity:
        raise ValueError(
            f"max_new={sampling.max_new}: must be 1 to {capacity}, the cache's capacity; "
            "start with a larger one"
        )
    if sampling.top_k > cfg.vocab_size:
        raise ValueError(f"top_k={sampling.top_k}: must be 0 to {cfg.vocab_size}, the vocabulary")
    if constraint is None and carry is not None:
        raise ValueError("carry: given without a constraint, which alone reads it")
