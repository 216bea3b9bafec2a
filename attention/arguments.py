# SPDX-License-Identifier: Apache-2.0
"""The one check of what attention functions are given: before anything is traced or compiled.

Every error names the argument, its value, what is allowed and, where it is not obvious, the remedy.
Arrays may be anything with a shape and a dtype, ShapeDtypeStructs too.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from attention.names import BIASED, KNOBS, check_kind, implementations, views

Number = int | float | np.integer | np.floating
LEAST = {"logit_scale": 0, "p": 1}  # knobs that are compiled in: numbers, and their least value


def check_arguments(
    kind: str,
    q: Any,
    k: Any,
    v: Any = None,
    *,
    bias: Any = None,
    q_segment_ids: Any = None,
    kv_segment_ids: Any = None,
    q_offset: Any = None,
    implementation: str | None = None,
) -> None:
    """Checks the operands of `attention.kinds.attention`, as which they are documented there.

    Args:
        v: None where there are no values, as for a map.

    Raises:
        ValueError: the first argument whose kind, shape, dtype or value is not allowed.
    """
    check_implementation(kind, implementation)
    _check_queries_and_keys(kind, q, k)
    _, B, T, H, _ = q.shape
    S, kv_heads = k.shape[2:4]
    if v is not None:
        _check_values(v, (B, S, kv_heads))
    _check_dtypes(q, k, v)
    if bias is not None:
        _check_bias(kind, bias, (B, H, T, S))
    _check_segments(q_segment_ids, kv_segment_ids, (B, T), (B, S))
    _check_offset(q_offset, B)


def check_implementation(kind: str, implementation: str | None) -> None:
    """Raises ValueError naming the implementations of the kind."""
    check_kind(kind)
    if implementation is not None and implementation not in implementations(kind):
        allowed = ", ".join(implementations(kind))
        raise ValueError(f"implementation={implementation!r}: {kind} allows None, {allowed}")


def check_per_head(name: str, value: Any, heads: int) -> None:
    """Raises ValueError unless `value` has one entry for each of `heads` heads."""
    if np.shape(value) != (heads,):
        raise ValueError(f"{name} has shape {np.shape(value)}: must be [{heads}], one per head")


def check_knobs(kind: str, knobs: Mapping[str, Any], heads: int, *, group: str = "knobs") -> None:
    """Checks knobs of a kind by name: which there are, their shapes and, where known, their values.

    Args:
        group: the argument that holds them, for messages; "" where each is an argument.

    Raises:
        ValueError: the first knob that is not allowed.
    """
    unknown = sorted(set(knobs) - KNOBS[kind])
    if unknown:
        raise ValueError(f"knobs {unknown}: {kind} allows {', '.join(sorted(KNOBS[kind]))}")
    for name, value in knobs.items():
        label = f"{group}[{name!r}]" if group else name
        if name in LEAST:
            # `not >=` refuses NaN too.
            if not isinstance(value, Number) or not value >= LEAST[name]:
                raise ValueError(f"{label}={value!r}: must be a number >= {LEAST[name]}")
        elif np.shape(value) not in ((), (heads,)):
            raise ValueError(f"{label} has shape {np.shape(value)}: must be a scalar or [{heads}]")
        elif name in ("beta", "kappa") and not _is_positive(value):
            raise ValueError(f"{label}={value}: must be > 0")


def _is_positive(value: Any) -> bool:
    """Whether all entries are > 0 as far as is known: a traced value has none yet."""
    return isinstance(value, Tracer) or bool(np.all(np.asarray(value) > 0))


def _check_queries_and_keys(kind: str, q: Any, k: Any) -> None:
    num_views = views(kind)
    if q.ndim != 5 or q.shape[0] != num_views:
        remedy = "add the axis of its view, q[None]"
        if num_views == 2:
            remedy = "stack its two views in front, jnp.stack([q1, q2])"
        raise ValueError(f"q has shape {q.shape}: {kind} takes [{num_views}, B, T, H, D]; {remedy}")
    _, B, _, H, D = q.shape
    if k.ndim != 5 or (*k.shape[:2], k.shape[4]) != (num_views, B, D):
        raise ValueError(
            f"k has shape {k.shape}: {kind} takes [{num_views}, {B}, S, Hkv, {D}] to match q"
        )
    for name, x in (("q", q), ("k", k)):
        _check_not_empty(name, x)
    kv_heads = k.shape[3]
    if H % kv_heads:
        raise ValueError(
            f"q has H={H} heads: must be a multiple of the Hkv={kv_heads} heads of k; "
            "head h of q reads head h // (H / Hkv)"
        )


def _check_values(v: Any, leading: tuple[int, int, int]) -> None:
    if v.ndim != 4 or v.shape[:3] != leading:
        B, S, kv_heads = leading
        raise ValueError(f"v has shape {v.shape}: must be [{B}, {S}, {kv_heads}, Dv] to match k")
    _check_not_empty("v", v)


def _check_not_empty(name: str, x: Any) -> None:
    if 0 in x.shape:
        raise ValueError(f"{name} has shape {x.shape}: no dimension may be empty")


def _check_dtypes(q: Any, k: Any, v: Any) -> None:
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"q has dtype {q.dtype}: must be floating; cast it with .astype")
    for name, x in (("k", k), ("v", v)):
        if x is not None and x.dtype != q.dtype:
            raise ValueError(
                f"{name} has dtype {x.dtype}: must be {q.dtype} as q; cast one of them with .astype"
            )


def _check_bias(kind: str, bias: Any, shape: tuple[int, int, int, int]) -> None:
    if kind not in BIASED:
        raise ValueError(f"bias: {kind} adds none to its scores; allowed for {', '.join(BIASED)}")
    B, H, T, S = shape
    if bias.shape not in (shape, (1, H, T, S)):
        raise ValueError(f"bias has shape {bias.shape}: must be [{B} or 1, {H}, {T}, {S}]")


def _check_segments(
    q_ids: Any, kv_ids: Any, q_shape: tuple[int, int], kv_shape: tuple[int, int]
) -> None:
    if (q_ids is None) != (kv_ids is None):
        missing = "q_segment_ids" if q_ids is None else "kv_segment_ids"
        raise ValueError(f"{missing} is missing: give both segment ids or neither")
    if q_ids is None:
        return
    for name, ids, shape in (
        ("q_segment_ids", q_ids, q_shape),
        ("kv_segment_ids", kv_ids, kv_shape),
    ):
        if ids.shape != shape:
            raise ValueError(f"{name} has shape {ids.shape}: must be {list(shape)}")
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"{name} has dtype {ids.dtype}: must be integers, 0 for padding; "
                "cast it with .astype"
            )


def _check_offset(q_offset: Any, batch: int) -> None:
    if q_offset is None:
        return
    allowed = f"must be an int or integers [{batch}]"
    if np.shape(q_offset) not in ((), (batch,)):
        raise ValueError(f"q_offset has shape {np.shape(q_offset)}: {allowed}")
    dtype = getattr(q_offset, "dtype", None) or np.asarray(q_offset).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"q_offset has dtype {dtype}: {allowed}")
