# SPDX-License-Identifier: Apache-2.0
"""Which items a list of SIDs stands for.

With unique SIDs every leaf of the trie is one item. Where items share an SID, the leaf is a bucket
and a heuristic ranks inside it ("Semantic IDs at Snapchat" [secondary]): popularity, freshness,
relevance to the user, or chance. Few SIDs with many items each and many SIDs with few are the two
ends of `per_sid`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rec.names import POLICIES
from rec.sid.trie import Trie


def largest_bucket(trie: Trie) -> int:
    """Items of the SID that most items share."""
    return int(np.diff(np.asarray(trie.leaf_first)).max())


def expand(
    leaves: jax.Array,
    trie: Trie,
    values: jax.Array,
    *,
    per_sid: int,
    window: int,
    num_items: int,
) -> jax.Array:
    """Item lists of beams, best beam first: int32 [B, num_items], -1 for a place nothing fills.

    A beam that is no item keeps its place as one -1, so an invalid beam costs a rank.

    Args:
        leaves: int32 [B, M], -1 for beams that are no item.
        values: float32 [N], or [B, N] where they depend on the user: higher comes first inside a
            bucket, ties by the lower item id.
        per_sid: most items taken of one bucket, best first.
        window: static size of the largest bucket, see `largest_bucket`.
        num_items: length of the list.
    """
    B = leaves.shape[0]
    leaf = jnp.maximum(leaves, 0)
    first, count = trie.leaf_first[leaf], trie.leaf_first[leaf + 1] - trie.leaf_first[leaf]
    places = jnp.arange(window)[None, None]
    at = jnp.minimum(first[:, :, None] + places, len(trie.leaf_items) - 1)
    items = trie.leaf_items[at]  # [B, M, window]
    is_item = (places < count[:, :, None]) & (leaves >= 0)[:, :, None]
    if values.ndim == 1:
        item_values = values[items]
    else:
        item_values = jnp.take_along_axis(values, items.reshape(B, -1), axis=1).reshape(items.shape)
    order = jnp.argsort(jnp.where(is_item, -item_values, jnp.inf), axis=2, stable=True)[
        :, :, :per_sid
    ]
    items = jnp.take_along_axis(items, order, axis=2)
    is_item = jnp.take_along_axis(is_item, order, axis=2)
    items = jnp.where(is_item, items, -1)
    keeps_place = is_item | (
        (leaves < 0)[:, :, None] & (jnp.arange(items.shape[2]) == 0)[None, None]
    )
    flat, keeps_place = items.reshape(B, -1), keeps_place.reshape(B, -1)
    compact = jnp.argsort(~keeps_place, axis=1, stable=True)
    flat = jnp.take_along_axis(flat, compact, axis=1)[:, :num_items]
    return jnp.pad(flat, ((0, 0), (0, num_items - flat.shape[1])), constant_values=-1)


def bucket_values(
    policy: str,
    *,
    popularity: np.ndarray,
    last_seen: np.ndarray,
    features: np.ndarray,
    histories: np.ndarray,
    mask: np.ndarray,
    seed: int,
) -> np.ndarray:
    """What `expand` ranks by inside buckets: float32 [N], or [B, N] for "relevance".

    Args:
        policy: "first" (item id), "popularity", "freshness", "relevance" (cosine of an item with
            the mean of the history's features) or "random".
        popularity: [N] training counts; last_seen: [N] when an item was last bought in training.
        features: float32 [N, d] unit rows.
        histories, mask: [B, T] items and which of them are real.
        seed: of "random".

    Raises:
        ValueError: an unknown policy.
    """
    if policy == "first":
        return np.zeros(len(popularity), np.float32)
    if policy == "popularity":
        return popularity.astype(np.float32)
    if policy == "freshness":
        order = np.argsort(np.argsort(last_seen, kind="stable"), kind="stable")
        return order.astype(np.float32)  # ranks: seconds do not fit float32
    if policy == "random":
        return np.random.default_rng([seed, 0xB0C]).random(len(popularity), np.float32)
    if policy == "relevance":
        profile = (features[histories] * mask[:, :, None]).sum(axis=1)
        profile /= np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-12)
        return (profile @ features.T).astype(np.float32)
    raise ValueError(f"policy={policy!r}: must be one of {POLICIES}")


def unseen(items: np.ndarray, seen: np.ndarray, seen_mask: np.ndarray) -> np.ndarray:
    """Lists without items of the history, closed up: int32 [B, K], -1 at the end.

    Args:
        items: int32 [B, K], -1 for no item (kept where they are: they cost a rank).
        seen, seen_mask: [B, T].
    """
    seen_items = np.where(seen_mask, seen, -2)
    drop = (items[:, :, None] == seen_items[:, None, :]).any(axis=2)
    order = np.argsort(drop, axis=1, kind="stable")
    out = np.take_along_axis(items, order, axis=1)
    keep = np.take_along_axis(~drop, order, axis=1)
    return np.where(keep, out, -1)
