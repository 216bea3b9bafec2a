# SPDX-License-Identifier: Apache-2.0
"""Threshold differential attention on a mesh with axes "data" and "model".

`tda_attention` splits its kernels by itself where a mesh is in use, and computes on all devices
what does not divide. `sharded_tda` is the stricter form for every backend: batch is split over
"data" and heads over "model", nothing is communicated, and what does not divide is refused.
`sequence_parallel_tda` splits the keys: without a normalizer the results of disjoint key sets
simply add, o(K u K') = o(K) + o(K'), so one psum joins them, with no log-sum-exp to merge.
Thresholds come from global row lengths.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from attention import masks
from attention.kernels import Spec
from attention.tda import check_tda_arguments, dispatch, normalize, tda_attention, threshold


def _axis(mesh: Mesh, name: str, size: int, what: str) -> str | None:
    """The mesh axis to split `what` over, None if the mesh lacks it.

    Raises:
        ValueError: size is not divisible by the axis.
    """
    if name not in mesh.shape:
        return None
    if size % mesh.shape[name]:
        raise ValueError(f"{what} is {size}, not a multiple of mesh axis {name}={mesh.shape[name]}")
    return name


def _per_head(x: Any, H: int) -> jax.Array:
    """A scalar or [H] as [H]."""
    return jnp.broadcast_to(jnp.asarray(x, jnp.float32), (H,))


def sharded_tda(
    mesh: Mesh,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lam: jax.Array,
    *,
    beta: Any = 1.0,
    kappa: Any = 1.0,
    q_segment_ids: masks.Ids = None,
    kv_segment_ids: masks.Ids = None,
    q_offset: masks.Offset = None,
    **options: Any,
) -> jax.Array:
    """`tda_attention` with batch split over "data" and heads over "model", [B, T, H, Dv].

    Arguments are those of `tda_attention`, of global shape; differentiable like it. A mesh may
    lack one of the axes.

    Raises:
        ValueError: B is not a multiple of "data", or Hkv of "model"; or as tda_attention.
    """
    # Here, where beta and kappa are numbers yet: inside shard_map they are traced.
    check_tda_arguments(
        q,
        k,
        v,
        lam,
        beta=beta,
        kappa=kappa,
        q_segment_ids=q_segment_ids,
        kv_segment_ids=kv_segment_ids,
        q_offset=q_offset,
    )
    data = _axis(mesh, "data", v.shape[0], "q: batch B")
    model = _axis(mesh, "model", v.shape[2], "k: number of heads Hkv")
    P = PartitionSpec
    heads = P(model)
    arrays = {"beta": _per_head(beta, q.shape[3]), "kappa": _per_head(kappa, q.shape[3])}
    specs = {"beta": heads, "kappa": heads}
    if q_segment_ids is not None and kv_segment_ids is not None:
        arrays |= {"q_segment_ids": jnp.asarray(q_segment_ids)}
        arrays |= {"kv_segment_ids": jnp.asarray(kv_segment_ids)}
        specs |= {"q_segment_ids": P(data), "kv_segment_ids": P(data)}
    if isinstance(q_offset, int | None):
        options["q_offset"] = q_offset
    else:
        arrays["q_offset"] = jnp.broadcast_to(jnp.asarray(q_offset, jnp.int32), (v.shape[0],))
        specs["q_offset"] = P(data)

    def local(q: Any, k: Any, v: Any, lam: Any, arrays: Any) -> jax.Array:
        return tda_attention(q, k, v, lam, **arrays, **options)

    views = P(None, data, None, model)
    values = P(data, None, model)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(views, views, values, heads, specs),
        out_specs=values,
        check_vma=False,  # Pallas calls carry no types of varying axes
    )(q, k, v, lam, arrays)


def sequence_parallel_tda(
    mesh: Mesh,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lam: jax.Array,
    *,
    axis: str = "data",
    beta: Any = 1.0,
    kappa: Any = 1.0,
    p: int | float = 2,
    causal: bool = True,
    q_segment_ids: masks.Ids = None,
    kv_segment_ids: masks.Ids = None,
    implementation: str | None = None,
) -> jax.Array:
    """`tda_attention` with keys and values split over a mesh axis, [B, T, H, Dv].

    Every device holds S / n keys and all queries, computes its part of every row and one psum adds
    the parts. Causal rows need q_offset - start of the shard, which differs per device: the kernels
    take static offsets, so causality runs on "xla"; the full mask takes any backend.

    Args:
        axis: mesh axis that splits S; all arguments are of global shape.

    Raises:
        ValueError: S is not a multiple of the axis; or as tda_attention.
    """
    check_tda_arguments(
        q,
        k,
        v,
        lam,
        beta=beta,
        kappa=kappa,
        p=p,
        q_segment_ids=q_segment_ids,
        kv_segment_ids=kv_segment_ids,
        implementation=implementation,
    )
    B, T, H, D = q.shape[1:]
    S = k.shape[2]
    if axis not in mesh.shape:
        raise ValueError(f"axis={axis!r} is not one of the mesh, {tuple(mesh.shape)}")
    _axis(mesh, axis, S, "k: number of keys S")
    lengths = masks.row_lengths(
        T, S, causal=causal, q_segment_ids=q_segment_ids, kv_segment_ids=kv_segment_ids
    )
    tau = threshold(lengths, D, beta, kappa, dtype=jnp.promote_types(v.dtype, jnp.float32))
    tau = jnp.broadcast_to(tau, (B, H, T))
    P = PartitionSpec
    ids = None
    ids_specs = None
    if q_segment_ids is not None and kv_segment_ids is not None:
        ids = (jnp.asarray(q_segment_ids), jnp.asarray(kv_segment_ids))
        ids_specs = (P(), P(None, axis))

    def local(q: Any, k: Any, v: Any, tau: Any, lam: Any, ids: Any) -> jax.Array:
        offset: Any = 0
        if causal:
            start = lax.axis_index(axis) * k.shape[2]
            offset = jnp.broadcast_to(jnp.asarray(S - T - start, jnp.int32), (B,))
        segments = (None, None) if ids is None else ids
        arguments = (normalize(q), normalize(k), v, tau, lam, *segments)
        o = dispatch(implementation, arguments, offset, Spec(causal=causal, p=p))
        # Parts are added in float32: a bfloat16 sum would round once per device.
        return lax.psum(o.astype(tau.dtype), axis).astype(o.dtype)

    keys = P(None, None, axis)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), keys, P(None, axis), P(), P(), ids_specs),
        out_specs=P(),
        check_vma=False,
    )(q, k, v, tau, lam, ids)
