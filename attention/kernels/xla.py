# SPDX-License-Identifier: Apache-2.0
"""Chunked backend in plain XLA: any device, memory linear in T, gradients by recomputation.

A tile is [2, B, Hkv, H / Hkv, block_q, block_kv] in float32; key blocks that causality hides from
a whole query block are never visited. There is no running maximum and no normalizer: partial
results of key blocks simply add, and the residuals of the backward pass are the inputs.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from attention import masks
from attention.kernels import Spec, power, power_slope

BLOCK = 512


def covers(
    q: Any, k: Any, v: Any, *, q_segment_ids: Any, kv_segment_ids: Any, q_offset: Any, spec: Spec
) -> str:
    """Covers everything."""
    return ""


def tda(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    tau: jax.Array,
    lam: jax.Array,
    q_segment_ids: masks.Ids,
    kv_segment_ids: masks.Ids,
    q_offset: masks.Offset,
    spec: Spec,
    *,
    block_q: int = BLOCK,
    block_kv: int = BLOCK,
) -> jax.Array:
    """Output [B, T, H, Dv] in v's dtype; the contract is in attention/kernels/__init__.py."""
    T, S = q.shape[2], k.shape[2]
    block = (min(block_q, T), min(block_kv, S))
    offset = jnp.atleast_1d(jnp.asarray(masks.resolve_offset(T, S, q_offset), jnp.int32))
    ids = None
    if q_segment_ids is not None and kv_segment_ids is not None:
        ids = (jnp.asarray(q_segment_ids), jnp.asarray(kv_segment_ids))
    return _core(q, k, v, tau, lam, ids, offset, spec, block)


class _Tiles:
    """Views of the operands cut into blocks, with heads split into (Hkv, group).

    q [2, B, K, G, T', D], k [2, B, K, S', D], v [B, K, S', Dv], tau [B, K, G, T']; T' and S' are
    multiples of the blocks, what is added is zero.
    """

    def __init__(
        self,
        q: Any,
        k: Any,
        v: Any,
        tau: Any,
        lam: Any,
        ids: Any,
        offset: Any,
        spec: Spec,
        block: Any,
    ) -> None:
        self.block_q, self.block_kv = block
        self.T, self.S, self.heads = q.shape[2], k.shape[2], k.shape[3]
        self.pad_q, self.pad_kv = -self.T % self.block_q, -self.S % self.block_kv
        # Tiles of float16 are computed in float32: squares of small excesses would underflow.
        self.dtype = jnp.float32 if v.dtype == jnp.float16 else v.dtype
        self.sums = jnp.promote_types(self.dtype, jnp.float32)
        # TF32 or bfloat16 passes would move borderline scores across the threshold.
        exact = jnp.issubdtype(self.dtype, jnp.floating) and self.dtype != jnp.bfloat16
        self.precision = "highest" if exact else "default"
        self.q, self.k, self.v = self.rows(q), self.keys(k), self.keys(v)
        pad = ((0, 0), (0, 0), (0, self.pad_q))
        self.tau = self.split(jnp.pad(tau.astype(self.sums), pad), 1)
        self.lam = lam.astype(self.sums).reshape(self.heads, -1)[None, :, :, None, None]
        self.offset, self.spec, self.ids = offset, spec, ids
        if ids is not None:
            self.q_ids = jnp.pad(ids[0], ((0, 0), (0, self.pad_q)))
            self.kv_ids = jnp.pad(ids[1], ((0, 0), (0, self.pad_kv)))
        self.num_q = (self.T + self.pad_q) // self.block_q
        self.num_kv = (self.S + self.pad_kv) // self.block_kv

    def split(self, x: jax.Array, axis: int) -> jax.Array:
        """Query heads to (Hkv, group)."""
        return x.reshape(*x.shape[:axis], self.heads, -1, *x.shape[axis + 1 :])

    def rows(self, x: jax.Array) -> jax.Array:
        """[.., T, H, D] to [.., K, G, T', D]."""
        pad = [(0, 0)] * (x.ndim - 3) + [(0, self.pad_q), (0, 0), (0, 0)]
        return self.split(jnp.moveaxis(jnp.pad(x.astype(self.dtype), pad), -3, -2), x.ndim - 3)

    def unrows(self, x: jax.Array) -> jax.Array:
        """Inverse of `rows`."""
        heads = x.reshape(*x.shape[:-4], -1, *x.shape[-2:])
        return jnp.moveaxis(heads, -3, -2)[..., : self.T, :, :]

    def keys(self, x: jax.Array) -> jax.Array:
        """[.., S, K, D] to [.., K, S', D]."""
        pad = [(0, 0)] * (x.ndim - 3) + [(0, self.pad_kv), (0, 0), (0, 0)]
        return jnp.moveaxis(jnp.pad(x.astype(self.dtype), pad), -3, -2)

    def unkeys(self, x: jax.Array) -> jax.Array:
        """Inverse of `keys`."""
        return jnp.moveaxis(x, -3, -2)[..., : self.S, :, :]

    def cut(self, x: jax.Array, i: jax.Array, axis: int) -> jax.Array:
        """Block i of the rows of x along axis -2 or -1 (q side)."""
        return lax.dynamic_slice_in_dim(x, i * self.block_q, self.block_q, axis)

    def cut_kv(self, x: jax.Array, j: jax.Array, axis: int) -> jax.Array:
        return lax.dynamic_slice_in_dim(x, j * self.block_kv, self.block_kv, axis)

    def stop(self, i: jax.Array) -> jax.Array:
        """Number of key blocks that some row of query block i may see."""
        if not self.spec.causal:
            return jnp.int32(self.num_kv)
        last = (i + 1) * self.block_q - 1 + jnp.max(self.offset)
        return jnp.clip(lax.div(last + self.block_kv, jnp.int32(self.block_kv)), 0, self.num_kv)

    def mask(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """Visibility of the tile, bool [B or 1, 1, 1, block_q, block_kv]."""
        rows = i * self.block_q + jnp.arange(self.block_q, dtype=jnp.int32)
        cols = j * self.block_kv + jnp.arange(self.block_kv, dtype=jnp.int32)
        mask = jnp.broadcast_to(cols < self.S, (1, self.block_q, self.block_kv))
        if self.spec.causal:
            last = rows[None] + self.offset[:, None]
            mask = mask & (cols[None, None] <= last[:, :, None])
        if self.ids is not None:
            q_ids, kv_ids = self.cut(self.q_ids, i, 1), self.cut_kv(self.kv_ids, j, 1)
            mask = mask & (q_ids[:, :, None] == kv_ids[:, None, :]) & (q_ids != 0)[:, :, None]
        return mask[:, None, None]

    def dot(self, equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(
            equation, a, b, precision=self.precision, preferred_element_type=self.sums
        )

    def excess(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """e of both views on a tile, [2, B, K, G, block_q, block_kv]."""
        rows, cols = self.cut(self.q, i, 4), self.cut_kv(self.k, j, 3)
        e = self.dot("vbkgtd,vbksd->vbkgts", rows, cols) - self.cut(self.tau, i, 3)[None, ..., None]
        # The mask comes after the rectifier: a masked key must be 0 whatever the sign of tau.
        return jnp.where(self.mask(i, j)[None], jnp.maximum(e, 0), 0)

    def when_live(self, e: jax.Array, function: Any, carry: Any) -> Any:
        """Returns function(carry), or carry where no entry of the tile survives or is NaN."""
        if not self.spec.skip:
            return function(carry)
        # Not a maximum over the tile: on CPUs it drops NaN.
        return lax.cond(jnp.all(e <= 0), lambda kept: kept, function, carry)


@partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _core(
    q: Any, k: Any, v: Any, tau: Any, lam: Any, ids: Any, offset: Any, spec: Spec, block: Any
):
    tiles = _Tiles(q, k, v, tau, lam, ids, offset, spec, block)

    def row(i: jax.Array) -> jax.Array:
        def add(j: jax.Array, acc: jax.Array) -> jax.Array:
            e = tiles.excess(i, j)

            def live(acc: jax.Array) -> jax.Array:
                w = power(e, spec.p)
                a = (w[0] - tiles.lam * w[1]).astype(tiles.dtype)
                return acc + tiles.dot("bkgts,bksd->bkgtd", a, tiles.cut_kv(tiles.v, j, 2))

            return tiles.when_live(e, live, acc)

        shape = (*tiles.tau.shape[:-1], tiles.block_q, v.shape[-1])
        acc = lax.fori_loop(jnp.int32(0), tiles.stop(i), add, jnp.zeros(shape, tiles.sums))
        return acc.astype(v.dtype)

    blocks = lax.map(row, jnp.arange(tiles.num_q, dtype=jnp.int32))
    return tiles.unrows(_join(blocks, -2))


def _join(blocks: jax.Array, axis: int) -> jax.Array:
    """[blocks, ..] with the block index merged into the leading side of `axis` (negative)."""
    moved = jnp.moveaxis(blocks, 0, axis - 1)
    at = moved.ndim + axis
    return moved.reshape(*moved.shape[: at - 1], -1, *moved.shape[at + 1 :])


def _forward(
    q: Any, k: Any, v: Any, tau: Any, lam: Any, ids: Any, offset: Any, spec: Any, block: Any
):
    return _core(q, k, v, tau, lam, ids, offset, spec, block), (q, k, v, tau, lam, ids, offset)


def _backward(spec: Spec, block: Any, residuals: Any, g: Any):
    q, k, v, tau, lam, ids, offset = residuals
    tiles = _Tiles(q, k, v, tau, lam, ids, offset, spec, block)
    grads_out = tiles.rows(g)

    def row(sums: Any, i: jax.Array):
        rows, grads = tiles.cut(tiles.q, i, 4), tiles.cut(grads_out, i, 3)

        def add(j: jax.Array, carry: Any) -> Any:
            e = tiles.excess(i, j)

            def live(carry: Any) -> Any:
                dq, dtau, dlam, dk, dv = carry
                keys, values = tiles.cut_kv(tiles.k, j, 3), tiles.cut_kv(tiles.v, j, 2)
                dp = tiles.dot("bkgtd,bksd->bkgts", grads, values)
                w, slope = power(e, spec.p), power_slope(e, spec.p)
                ds = jnp.stack([dp * slope[0], -tiles.lam * dp * slope[1]])
                dtau = dtau - ds.sum((0, -1))
                dlam = dlam - (dp * w[1]).sum((0, 3, 4))
                ds = ds.astype(tiles.dtype)
                dq = dq + tiles.dot("vbkgts,vbksd->vbkgtd", ds, keys)
                a = (w[0] - tiles.lam * w[1]).astype(tiles.dtype)
                dk = _add(dk, tiles.dot("vbkgts,vbkgtd->vbksd", ds, rows), j * tiles.block_kv, 3)
                dv = _add(dv, tiles.dot("bkgts,bkgtd->bksd", a, grads), j * tiles.block_kv, 2)
                return dq, dtau, dlam, dk, dv

            return tiles.when_live(e, live, carry)

        dlam, dk, dv = sums
        zeros = jnp.zeros(rows.shape, tiles.sums)
        carry = (zeros, zeros[0, ..., 0], dlam, dk, dv)
        dq, dtau, *sums = lax.fori_loop(jnp.int32(0), tiles.stop(i), add, carry)
        return tuple(sums), (dq.astype(q.dtype), dtau)

    zeros = (
        jnp.zeros(tiles.lam.shape[1:3], tiles.sums),
        jnp.zeros(tiles.k.shape, tiles.sums),
        jnp.zeros(tiles.v.shape, tiles.sums),
    )
    (dlam, dk, dv), (dq, dtau) = lax.scan(row, zeros, jnp.arange(tiles.num_q, dtype=jnp.int32))
    dtau = _join(dtau, -1)[..., : tiles.T].reshape(tau.shape).astype(tau.dtype)
    return (
        tiles.unrows(_join(dq, -2)).astype(q.dtype),
        tiles.unkeys(dk).astype(k.dtype),
        tiles.unkeys(dv).astype(v.dtype),
        dtau,
        dlam.reshape(lam.shape).astype(lam.dtype),
        None,
        None,
    )


def _add(x: jax.Array, block: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    """x with block added at start along axis."""
    old = lax.dynamic_slice_in_dim(x, start, block.shape[axis], axis)
    return lax.dynamic_update_slice_in_dim(x, old + block, start, axis)


_core.defvjp(_forward, _backward)
