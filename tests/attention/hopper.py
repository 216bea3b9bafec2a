# SPDX-License-Identifier: Apache-2.0
"""The Hopper kernels without Hopper: their tile loops over plain arrays, data, and an oracle.

`emulate` walks the same tiles in the same order as attention/kernels/pallas_gpu*.py, with the same
casts, the same skipping and the same lists of live tiles, calling the same functions of
attention/kernels/hopper.py. `dense` is float64 NumPy and shares no line with the package.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention.kernels import Spec, hopper, pallas_gpu, pallas_gpu_backward, power
from attention.kernels.mosaic import ROWS, WARPGROUPS


class Case(NamedTuple):
    """One problem; B is 1."""

    name: str
    T: int = 200
    S: int = 200
    H: int = 2
    K: int = 1
    D: int = 64
    Dv: int = 64
    causal: bool = True
    packed: bool = False
    offset: int | None = None
    p: int = 2
    dtype: Any = jnp.bfloat16
    shift: float = 0.0  # added to tau


class Inputs(NamedTuple):
    q: jax.Array
    k: jax.Array
    v: jax.Array
    tau: jax.Array
    lam: jax.Array
    ids: tuple[jax.Array, jax.Array] | None
    offset: int
    g: jax.Array


NAMES = ("q", "k", "v", "tau", "lam")


def problem(case: Case, seed: int = 0) -> Inputs:
    """Unit vectors in clusters: block i of 64 rows matches one block of keys, another per view."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(2, 1, case.T, case.H, case.D))
    k = rng.normal(size=(2, 1, case.S, case.K, case.D))
    centres = 1.6 * rng.normal(size=(case.T // ROWS + 1, case.D))
    for view in range(2):
        for i, centre in enumerate(centres):
            q[view, :, i * ROWS : (i + 1) * ROWS] += centre
            j = max(0, i - 1) if view else i  # its own keys in view 1, those before in view 2
            k[view, :, j * ROWS : (j + 1) * ROWS] += centre
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    offset = case.S - case.T if case.offset is None else case.offset
    ids = None
    if case.packed:
        cut = [np.where(np.arange(n) < n // 2, 7, 3) for n in (case.T, case.S)]
        end = [np.where(np.arange(len(c)) < len(c) - 9, c, 0)[None] for c in cut]
        ids = (jnp.asarray(end[0], jnp.int32), jnp.asarray(end[1], jnp.int32))
    tau = rng.uniform(0.25, 0.45, (1, case.H, case.T)) + case.shift
    cast = lambda x: jnp.asarray(x, jnp.float32).astype(case.dtype)
    return Inputs(
        q=cast(unit(q)),
        k=cast(unit(k)),
        v=cast(rng.normal(size=(1, case.S, case.K, case.Dv))),
        tau=jnp.asarray(tau, jnp.float32),
        lam=jnp.asarray(rng.uniform(0.3, 0.8, case.H), jnp.float32),
        ids=ids,
        offset=offset,
        g=cast(rng.normal(size=(1, case.T, case.H, case.Dv))),
    )


def dense(case: Case, x: Inputs) -> dict[str, np.ndarray]:
    """o, its gradients, and e [2, B, H, T, S] with the mask `seen` [B, H, T, S], in float64."""
    q, k, v, tau, lam, g = (
        np.asarray(y.astype(jnp.float32), np.float64) for y in (x.q, x.k, x.v, x.tau, x.lam, x.g)
    )
    group = case.H // case.K
    rows, cols = np.arange(case.T)[:, None], np.arange(case.S)[None]
    seen = np.ones((case.T, case.S), bool)
    if case.causal:
        seen &= cols <= rows + x.offset
    if x.ids is not None:
        a, b = (np.asarray(y)[0] for y in x.ids)
        seen &= (a[:, None] == b[None]) & (a != 0)[:, None]
    keys, values = k.repeat(group, axis=3), v.repeat(group, axis=2)
    s = np.einsum("vbihd,vbjhd->vbhij", q, keys) - tau[None, ..., None]
    e = np.where(seen & (s > 0), s, 0)
    w, slope = e**case.p, case.p * e ** (case.p - 1) * (e > 0)
    L = lam[:, None, None]
    dp = np.einsum("bihd,bjhd->bhij", g, values)
    ds = np.stack([dp * slope[0], -L * dp * slope[1]])
    over = lambda y: y.reshape(*y.shape[:-2], case.K, group, y.shape[-1]).sum(-2)
    a = w[0] - L * w[1]
    return dict(
        o=np.einsum("bhij,bjhd->bihd", a, values),
        q=np.einsum("vbhij,vbjhd->vbihd", ds, keys),
        k=over(np.einsum("vbhij,vbihd->vbjhd", ds, q)),
        v=over(np.einsum("bhij,bihd->bjhd", a, g)),
        tau=-ds.sum((0, 4)),
        lam=-(dp * w[1]).sum((0, 2, 3)),
        mass=np.einsum("bhij,bjhd->bihd", np.abs(a), np.abs(values)),
        e=e,
        seen=np.broadcast_to(seen, a.shape),
    )


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Operands of two bytes, sums in float32: what wgmma does."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def masked(
    x: jax.Array, first: jax.Array, first_key: jax.Array, axis: int, ids: Any, offset: int | None
) -> jax.Array:
    """The mask of a tile whose query rows lie along `axis`, always applied."""
    iota = lambda along, start: start + jax.lax.broadcasted_iota(jnp.int32, x.shape, along)
    spread = lambda y, along: jax.lax.broadcast_in_dim(y, x.shape, [along])
    pair = (None, None) if ids is None else (spread(ids[0], axis), spread(ids[1], 1 - axis))
    return hopper.mask_tile(x, iota(axis, first), iota(1 - axis, first_key), *pair, offset)


@partial(jax.jit, static_argnames=("spec", "offset"))
def forward_tile(q, k, v, tau, lam, ids, first, first_key, acc, *, spec: Spec, offset: int | None):
    xs = [dot(q[t], k[t].T) - tau[:, None] for t in range(2)]
    xs = [masked(x, first, first_key, 0, ids, offset) for x in xs]
    es = [hopper.rectify(x) for x in xs]
    a = hopper.weights(es[0], 1.0, spec.p) + hopper.weights(es[1], -lam, spec.p)
    live = jnp.max(hopper.may_survive(jnp.maximum(*xs), q.shape[-1])) > 0
    added = acc + dot(a.astype(v.dtype), v)
    return jnp.where(live, added, acc) if spec.skip else added, live


@partial(jax.jit, static_argnames=("spec", "offset"))
def dq_tile(q, k, v, tau, lam, g, ids, first, first_key, sums, *, spec: Spec, offset: int | None):
    *dqs, dtau, dlam = sums
    dp = dot(g, v.T)
    for t, coefficient in enumerate((1.0, -lam)):
        x = dot(q[t], k[t].T) - tau[:, None]
        e = hopper.rectify(masked(x, first, first_key, 0, ids, offset))
        ds = hopper.score_gradients(dp, e, coefficient, spec.p)
        dtau = dtau - jnp.sum(ds, axis=1)
        dqs[t] = dqs[t] + dot(ds.astype(q.dtype), k[t])
        if t == 1:
            dlam = dlam - jnp.sum(dp * power(e, spec.p), axis=1)
    return *dqs, dtau, dlam


@partial(jax.jit, static_argnames=("spec", "offset"))
def dkv_tile(q, k, v, tau, c, g, ids, first, first_key, sums, *, spec: Spec, offset: int | None):
    """One view: what warpgroup t does with coefficient c."""
    dk, dv = sums
    dp = dot(v, g.T)
    x = dot(k, q.T) - tau[None]
    e = hopper.rectify(masked(x, first, first_key, 1, ids, offset))
    dv = dv + dot(hopper.weights(e, c, spec.p).astype(q.dtype), g)
    return dk + dot(hopper.score_gradients(dp, e, c, spec.p).astype(q.dtype), q), dv


def emulate(
    case: Case, x: Inputs, spec: Spec, tiles: hopper.Tiling | None = None
) -> dict[str, np.ndarray]:
    """o, gradients and the flags of live tiles, as the kernels compute them."""
    tiles = tiles or hopper.tiling(case.D, case.Dv)
    offset = x.offset if spec.causal else None
    operands = pallas_gpu.pad(x.q, x.k, x.v, x.tau, x.ids, tiles.keys)
    # NumPy from here on: slices of it compile nothing.
    q, k, v, tau, ids = jax.tree.map(np.asarray, operands)
    g = np.pad(np.asarray(x.g), ((0, 0), (0, q.shape[2] - case.T), (0, 0), (0, 0)))
    lam = np.asarray(x.lam)
    T, S, group = q.shape[2], k.shape[2], case.H // case.K
    static = dict(spec=spec, offset=offset)
    at = lambda y, axis, n, size=ROWS: y.take(range(n * size, (n + 1) * size), axis=axis)
    zeros = lambda *shape: np.zeros(shape, np.float32)
    cast = lambda y: np.asarray(y).astype(case.dtype)
    rows_of = lambda h, i: (at(q[:, 0, :, h], 1, i), at(tau[0, h], 0, i), at(g[0, :, h], 0, i))
    pair = lambda i, j, size: (
        None if ids is None else (at(ids[0][0], 0, i), at(ids[1][0], 0, j, size))
    )
    live = np.zeros((1, case.H, T // ROWS, S // tiles.keys), bool)
    o = np.zeros((1, T, case.H, case.Dv), np.float32)
    for h, i in np.ndindex(live.shape[1:3]):
        rows, threshold, _ = rows_of(h, i)
        acc, first = np.zeros((ROWS, case.Dv), np.float32), np.int32(i * ROWS)
        stop = int(hopper.key_tiles(jnp.int32(first), ROWS, tiles.keys, live.shape[3], offset))
        for j in range(stop):
            keys = at(k[:, 0, :, h // group], 1, j, tiles.keys)
            values = at(v[0, :, h // group], 0, j, tiles.keys)
            args = (rows, keys, values, threshold, lam[h], pair(i, j, tiles.keys), first)
            acc, flag = forward_tile(*args, np.int32(j * tiles.keys), acc, **static)
            live[0, h, i, j] = flag if spec.skip else True
        o[0, i * ROWS : (i + 1) * ROWS, h] = cast(acc)
    settings = (spec, offset, tiles, None)
    fine = pallas_gpu_backward.fine(jnp.asarray(live), settings)
    by_rows, by_keys = pallas_gpu_backward.live_lists(fine, case.K)
    dq, dtau = np.zeros((2, T, case.H, case.D), np.float32), np.zeros((case.H, T), np.float32)
    dlam = np.zeros(case.H, np.float32)
    for h, i in np.ndindex(case.H, T // ROWS):
        rows, threshold, cotangent = rows_of(h, i)
        sums = (*(zeros(ROWS, case.D),) * 2, zeros(ROWS), zeros(ROWS))
        for n in range(int(by_rows[0][0, h, i // WARPGROUPS])):
            j = int(by_rows[1][0, h, i // WARPGROUPS, n])
            keys, values = at(k[:, 0, :, h // group], 1, j), at(v[0, :, h // group], 0, j)
            args = (rows, keys, values, threshold, lam[h], cotangent, pair(i, j, ROWS))
            sums = dq_tile(*args, np.int32(i * ROWS), np.int32(j * ROWS), sums, **static)
        own = slice(i * ROWS, (i + 1) * ROWS)
        dq[:, own, h] = [cast(y) for y in sums[:2]]
        dtau[h, own], dlam[h] = sums[2], dlam[h] + np.asarray(sums[3]).sum()
    dk, dv = (np.zeros(y.shape, np.float32) for y in (k[:, 0], v[0]))
    for head, j in np.ndindex(case.K, S // ROWS):
        own, parts = slice(j * ROWS, (j + 1) * ROWS), []
        values = at(v[0, :, head], 0, j)
        for t in range(WARPGROUPS):
            sums = (zeros(ROWS, case.D), zeros(ROWS, case.Dv))
            for n in range(int(by_keys[0][0, head, j])):
                g_, i = divmod(int(by_keys[1][0, head, j, n]), T // ROWS)
                h = head * group + g_
                rows, threshold, cotangent = rows_of(h, i)
                c = -lam[h] if t else np.float32(1)
                args = (rows[t], at(k[t, 0, :, head], 0, j), values, threshold, c, cotangent)
                at_ = (pair(i, j, ROWS), np.int32(i * ROWS), np.int32(j * ROWS))
                sums = dkv_tile(*args, *at_, sums, **static)
            dk[t, own, head] = cast(sums[0])
            parts.append(np.asarray(sums[1]))
        dv[own, head] = cast(parts[0] + parts[1])
    return dict(
        o=o[:, : case.T],
        q=dq[:, None, : case.T],
        k=dk[:, None, : case.S],
        v=dv[None, : case.S],
        tau=dtau[None, :, : case.T],
        lam=dlam,
        live=live,
        fine=np.asarray(fine),
    )


def relative(found: Any, wanted: Any) -> float:
    """Root mean square of the error over that of what is wanted."""
    found, wanted = (np.asarray(y, np.float64) for y in (found, wanted))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
