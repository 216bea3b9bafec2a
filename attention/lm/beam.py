# SPDX-License-Identifier: Apache-2.0
"""Beam search over a language model, free or along a trie of allowed sequences."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention.lm.config import LMConfig
from attention.lm.model import Adapters, Params, forward, take_rows
from attention.lm.sampler import start


class Beams(NamedTuple):
    """Best first, W beams of N tokens.

    ids: int32 [B, W, N], pad_id after the end; scores: float32 [B, W], sum of log-probabilities,
    -inf for a beam that does not exist (fewer than W sequences are allowed); lengths: int32 [B, W].
    """

    ids: jax.Array
    scores: jax.Array
    lengths: jax.Array


def make_trie(sequences: Iterable[Sequence[int]], vocab_size: int) -> np.ndarray:
    """Child table of a set of sequences: int32 [nodes, V], -1 where there is no child, root 0.

    nodes * V * 4 bytes: for small vocabularies or few sequences.

    Raises:
        ValueError: no sequences, an empty one, or a token outside the vocabulary.
    """
    children: list[dict[int, int]] = [{}]
    for sequence in sequences:
        node = 0
        if not len(sequence) or not all(0 <= token < vocab_size for token in sequence):
            raise ValueError(f"sequence {list(sequence)}: needs tokens in 0 to {vocab_size - 1}")
        for token in sequence:
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
            node = children[node][token]
    if len(children) == 1:
        raise ValueError("sequences: need at least one")
    table = np.full((len(children), vocab_size), -1, np.int32)
    for node, found in enumerate(children):
        for token, child in found.items():
            table[node, token] = child
    return table


@partial(
    jax.jit, static_argnames=("cfg", "beams", "max_new", "stop_ids", "length_penalty", "pad_id")
)
def beam_search(
    params: Params,
    cfg: LMConfig,
    ids: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray,
    *,
    beams: int,
    max_new: int,
    trie: jax.Array | np.ndarray | None = None,
    stop_ids: tuple[int, ...] = (),
    length_penalty: int | float = 0.0,
    pad_id: int = 0,
    lora: Adapters | None = None,
    lora_scale: int | float | jax.Array = 1.0,
) -> Beams:
    """The `beams` most likely continuations found by keeping that many at every step.

    A beam ends at a stop token, at a trie node without children, or after max_new tokens; ended
    beams keep their place by score. Log-probabilities are those of the model over the whole
    vocabulary, also along a trie (no renormalization).

    Args:
        ids, mask: left-padded prompts [B, P].
        beams: 1 to V.
        trie: child table of `make_trie`: int32 [nodes, V].
        length_penalty: the result is sorted by score / length^penalty; scores are as they are.

    Raises:
        ValueError: a value out of range, or a trie of another vocabulary.
    """
    V, B = cfg.vocab_size, ids.shape[0]
    if not 1 <= beams <= V:
        raise ValueError(f"beams={beams}: must be 1 to {V}, the vocabulary")
    if max_new < 1:
        raise ValueError(f"max_new={max_new}: must be at least 1")
    if trie is not None and (trie.ndim != 2 or trie.shape[1] != V):
        raise ValueError(f"trie has shape {trie.shape}: must be [nodes, {V}]")
    child = None if trie is None else jnp.asarray(trie)
    leaf = None if child is None else (child < 0).all(axis=1)
    stops = jnp.asarray(stop_ids, jnp.int32).reshape(1, 1, -1)
    adapters = {"lora": lora, "lora_scale": lora_scale}
    state = start(params, cfg, ids, mask, capacity=ids.shape[1] + max_new, **adapters)
    only_pad = jnp.where(jnp.arange(V) == pad_id, 0.0, -jnp.inf)

    def choose(logits: jax.Array, held: dict[str, Any], step: Any) -> tuple[Any, jax.Array]:
        """Extends the held beams by one token: the new beams, and which old one each came from."""
        logp = jax.nn.log_softmax(logits, axis=-1)
        if child is not None:
            logp = jnp.where(child[held["node"]] >= 0, logp, -jnp.inf)
        logp = jnp.where(held["done"][:, :, None], only_pad[None, None], logp)
        total = (held["scores"][:, :, None] + logp).reshape(B, -1)
        scores, best = jax.lax.top_k(total, beams)
        parent, token = best // V, (best % V).astype(jnp.int32)
        held = {k: _pick(v, parent) for k, v in held.items() if k != "scores"} | {"scores": scores}
        done = held["done"] | (scores == -jnp.inf)
        out = {
            "scores": scores,
            "ids": held["ids"].at[:, :, step].set(jnp.where(done, pad_id, token)),
            "lengths": held["lengths"] + ~done,
            "done": done | (token[:, :, None] == stops).any(axis=2),
        }
        if child is not None and leaf is not None:
            node = jnp.where(done, held["node"], child[held["node"], token])
            out |= {"node": node, "done": out["done"] | leaf[node]}
        return out, parent

    def advance(step: jax.Array, loop: tuple[Any, Any]) -> tuple[Any, Any]:
        held, cache = loop
        token = jax.lax.dynamic_index_in_dim(held["ids"], step - 1, axis=2, keepdims=False)
        out = forward(
            params,
            cfg,
            token.reshape(-1, 1),
            mask=~held["done"].reshape(-1, 1),
            cache=cache,
            **adapters,
        )
        held, parent = choose(out.logits.reshape(B, beams, V), held, step)
        rows = jnp.arange(B)[:, None] * beams + parent
        return held, take_rows(out.cache, rows.reshape(-1))

    held = {
        "scores": jnp.zeros((B, 1)),
        "ids": jnp.full((B, 1, max_new), pad_id, jnp.int32),
        "lengths": jnp.zeros((B, 1), jnp.int32),
        "done": jnp.zeros((B, 1), bool),
    }
    if child is not None:
        held["node"] = jnp.zeros((B, 1), jnp.int32)
    held, _ = choose(state.logits[:, None], held, 0)
    cache = take_rows(state.cache, jnp.repeat(jnp.arange(B), beams))
    held, _ = jax.lax.fori_loop(1, max_new, advance, (held, cache))
    dead = held["scores"] == -jnp.inf
    found = jnp.where(dead[:, :, None], pad_id, held["ids"])
    lengths = jnp.where(dead, 0, held["lengths"])
    ranked = held["scores"] / jnp.maximum(lengths, 1).astype(jnp.float32) ** length_penalty
    order = jnp.argsort(-ranked, axis=1, stable=True)
    return Beams(_pick(found, order), _pick(held["scores"], order), _pick(lengths, order))


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[b, index[b, w], ...]."""
    return jax.vmap(lambda row, i: row[i])(x, index)
