# SPDX-License-Identifier: Apache-2.0
"""Scores of the whole catalogue: what beam search approximates, and its oracle in tests."""

from typing import Any

import jax
import jax.numpy as jnp

from rec.models.digits import side_by_side, target_log_probs
from rec.models.generators import Model
from rec.names import NORMALISERS
from rec.sid import trie as tries
from rec.sid.trie import Trie, TrieShape

CHUNK = 64  # SIDs scored at once


def exact_scores(
    model: Model,
    params: Any,
    history: jax.Array,
    mask: jax.Array,
    users: jax.Array,
    sids: jax.Array,
    *,
    normaliser: str = "digit",
    trie: Trie | None = None,
    shape: TrieShape | None = None,
) -> jax.Array:
    """Log-probability of every SID after every history, float32 [B, N].

    The encoder runs once per history; SIDs are scored in chunks, teacher forced.

    Args:
        history, mask, users: see `Tiger.__call__`.
        sids: int32 [N, L].
        normaliser: see `rec.decode.beam`; "children" needs the trie.

    Raises:
        ValueError: "children" without a trie, or an unknown normaliser.
    """
    if normaliser not in NORMALISERS:
        raise ValueError(f"normaliser={normaliser!r}: must be one of {NORMALISERS}")
    allowed = None
    if normaliser == "children":
        if trie is None or shape is None:
            raise ValueError('normaliser="children" needs a trie')
        allowed = allowed_codes(trie, shape, sids)
    variables: Any = {"params": params}
    memory, ids = model.apply(variables, history, mask, users, method="read")  # type: ignore[misc]
    B, (N, L) = len(history), sids.shape
    chunks = -(-N // CHUNK)
    pad = ((0, chunks * CHUNK - N), (0, 0))
    parts: dict[str, Any] = {"sids": jnp.pad(sids, pad).reshape(chunks, CHUNK, L)}
    if allowed is not None:
        filled = jnp.pad(allowed, (*pad, (0, 0)), constant_values=True)
        parts["allowed"] = filled.reshape(chunks, CHUNK, L, -1)

    def score(part: dict[str, jax.Array]) -> jax.Array:
        target = jnp.tile(part["sids"], (B, 1))  # row i belongs to history i // CHUNK
        logits: Any = model.apply(variables, memory, ids, target, method="write")
        if "allowed" in part:
            logits = jnp.where(jnp.tile(part["allowed"], (B, 1, 1)), logits, -jnp.inf)
        softmax = "full" if normaliser == "full" else "digit"
        return target_log_probs(logits, target, model.sizes, softmax).sum(axis=1).reshape(B, CHUNK)

    by_chunk = jax.lax.map(score, parts)  # [chunks, B, CHUNK]
    return jnp.moveaxis(by_chunk, 0, 1).reshape(B, -1)[:, :N]


def allowed_codes(trie: Trie, shape: TrieShape, sids: jax.Array) -> jax.Array:
    """bool [N, L, sum(sizes)]: codes of level l that continue the first l digits of an SID."""
    return side_by_side(tries.continuations(trie, shape, sids), shape.sizes)
