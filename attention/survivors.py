# SPDX-License-Identifier: Apache-2.0
"""What attention maps do: exact zeros, survivors, live tiles, mute rows, the first token, entropy.

Works on any map, signed and unnormalized ones included: a [.., T, S] of weights (o = a @ v) and
`mask`, bool, broadcastable to it, of visible pairs. An entry survives if it is not exactly 0.
A share of zeros is no speed-up: only a tile without survivors can be skipped, so quote
`live_tile_share` of the very tensors timed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from attention.tda import threshold

Array = jax.Array | np.ndarray
FIRST_ROWS = 8  # rows left out of ratios: with few keys the first one is large by arithmetic


def expected_survivors(
    n: Array | int, dim: int, beta: Array | int | float = 1.0, kappa: Array | int | float = 1.0
) -> jax.Array:
    """Expected survivors of a row of n keys, for independent uniform unit vectors.

    The cosine c of two of them has P(c > tau) = I_{1 - tau^2}((dim - 1) / 2, 1 / 2) / 2, the
    regularized incomplete beta function: the area of a spherical cap. Sharper than the
    sub-Gaussian bound n^(1 - beta^2) kappa^(beta^2) of the paper's theorem [secondary].

    Returns:
        n * P, in the shape of n. Two independent views keep a key together n * P^2 times.
    """
    lengths = jnp.atleast_1d(jnp.asarray(n))
    tau = threshold(lengths.reshape(1, -1), dim, beta, kappa).reshape(lengths.shape)
    chance = 0.5 * jax.scipy.special.betainc((dim - 1) / 2, 0.5, jnp.maximum(1 - tau * tau, 0.0))
    return (lengths * chance).reshape(np.shape(n))


def _visible(a: Array, mask: Array) -> tuple[jax.Array, jax.Array]:
    """|a| where visible, else 0, in float32; and the mask in full."""
    full = jnp.broadcast_to(jnp.asarray(mask), a.shape)
    return jnp.where(full, jnp.abs(jnp.asarray(a)).astype(jnp.float32), 0.0), full


def _is_from(first: int, x: jax.Array) -> jax.Array:
    """Whether a row is `first` or later, bool in the shape of x [.., T]."""
    return jnp.broadcast_to(jnp.arange(x.shape[-1]) >= first, x.shape)


def zero_share(a: Array, mask: Array) -> jax.Array:
    """Share of exact zeros among visible entries, [..]."""
    size, full = _visible(a, mask)
    seen = full.sum((-2, -1))
    return (full & (size == 0)).sum((-2, -1)) / jnp.maximum(seen, 1)


def survivors_per_row(a: Array, mask: Array) -> jax.Array:
    """Entries of each row that are not zero, int32 [.., T]."""
    return (_visible(a, mask)[0] > 0).sum(-1, dtype=jnp.int32)


def live_tile_share(a: Array, mask: Array, block_q: int = 128, block_kv: int = 128) -> jax.Array:
    """Share of tiles with a survivor, among tiles with a visible entry, [..].

    The last tiles may be smaller than block_q x block_kv.
    """
    size, full = _visible(a, mask)

    def tiles(x: jax.Array) -> jax.Array:
        T, S = x.shape[-2:]
        pad = [(0, 0)] * (x.ndim - 2) + [(0, -T % block_q), (0, -S % block_kv)]
        x = jnp.pad(x, pad)
        num_rows = x.shape[-2] // block_q
        num_cols = x.shape[-1] // block_kv
        return x.reshape(*x.shape[:-2], num_rows, block_q, num_cols, block_kv).any((-3, -1))

    live = tiles(size > 0)
    seen = tiles(full)
    return live.sum((-2, -1)) / jnp.maximum(seen.sum((-2, -1)), 1)


def dead_row_share(a: Array, mask: Array, first: int = FIRST_ROWS) -> jax.Array:
    """Share of rows without a survivor among rows >= first that see a key, [..]."""
    size, full = _visible(a, mask)
    seen = full.any(-1)
    seen = seen & _is_from(first, seen)
    return (seen & ~(size > 0).any(-1)).sum(-1) / jnp.maximum(seen.sum(-1), 1)


def dead_heads(a: Array, mask: Array) -> jax.Array:
    """Heads without any survivor in the whole batch, bool [H], of a map [B, H, T, S]."""
    return ~(_visible(a, mask)[0] > 0).any((0, 2, 3))


def first_token_mass(a: Array, mask: Array, first: int = FIRST_ROWS) -> jax.Array:
    """Mean over rows >= first with mass of |a_i0| / sum_j |a_ij|, [..]; 0 if no row has mass.

    Rows that do not see key 0 (other segments) are left out. [our choice] of a definition that
    suits signed rows without a sum; the paper's own was not found.
    """
    size, full = _visible(a, mask)
    mass = size.sum(-1)
    rows = full[..., 0] & (mass > 0) & _is_from(first, mass)
    ratio = jnp.where(rows, size[..., 0] / jnp.where(rows, mass, 1.0), 0.0)
    return ratio.sum(-1) / jnp.maximum(rows.sum(-1), 1)


def pooled_first_token_mass(a: Array, mask: Array, first: int = FIRST_ROWS) -> jax.Array:
    """sum_i |a_i0| / sum_ij |a_ij| over the same rows as `first_token_mass`, [..].

    Steady where rows are nearly empty and their ratios are noise.
    """
    size, full = _visible(a, mask)
    rows = full[..., 0] & _is_from(first, full[..., 0])
    total = jnp.where(rows, size.sum(-1), 0.0).sum(-1)
    return jnp.where(rows, size[..., 0], 0.0).sum(-1) / jnp.where(total > 0, total, 1.0)


def uniform_first_token_mass(mask: Array, first: int = FIRST_ROWS) -> jax.Array:
    """The same mean for a map that gives all visible keys the same weight: mean of 1 / n_i, [..].

    The line to compare `first_token_mass` and its pooled version with.
    """
    full = jnp.asarray(mask)
    return first_token_mass(full.astype(jnp.float32), full, first)


def pooled_uniform_first_token_mass(mask: Array, first: int = FIRST_ROWS) -> jax.Array:
    """The pooled mass of a map whose rows each spread the same mass evenly, [..]."""
    full = jnp.asarray(mask)
    even = full / jnp.maximum(full.sum(-1, keepdims=True), 1)
    return pooled_first_token_mass(even, full, first)


def row_entropy(a: Array, mask: Array) -> jax.Array:
    """Entropy in nats of |a_i| / sum_j |a_ij|, [.., T]; 0 for rows without mass."""
    size, _ = _visible(a, mask)
    mass = size.sum(-1, keepdims=True)
    share = size / jnp.where(mass > 0, mass, 1.0)
    return -jax.scipy.special.xlogy(share, jnp.where(share > 0, share, 1.0)).sum(-1)


def statistics(
    a: Array, mask: Array, *, block_q: int = 128, block_kv: int = 128, first: int = FIRST_ROWS
) -> dict[str, jax.Array]:
    """Computes all of the above as scalars of one layer, for logging.

    Args:
        a: [B, H, T, S]; mask: bool, broadcastable to it, e.g. masks.visible(..)[:, None].
    """
    full = jnp.broadcast_to(jnp.asarray(mask), a.shape)
    seen = full.any(-1)
    over_rows = lambda x: jnp.where(seen, x, 0).sum() / jnp.maximum(seen.sum(), 1)
    return {
        "zeros": zero_share(a, full).mean(),
        "survivors": over_rows(survivors_per_row(a, full)),
        "live_tiles": live_tile_share(a, full, block_q, block_kv).mean(),
        "dead_rows": dead_row_share(a, full, first).mean(),
        "dead_heads": dead_heads(a, full).mean(dtype=jnp.float32),
        "first_token": first_token_mass(a, full, first).mean(),
        "first_token_pooled": pooled_first_token_mass(a, full, first).mean(),
        "first_token_uniform": uniform_first_token_mass(full, first).mean(),
        "entropy": over_rows(row_entropy(a, full)),
    }
