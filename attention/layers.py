# SPDX-License-Identifier: Apache-2.0
"""Layers without parameters of their own: norms, rotary and relative positions, activations.

Everything here is computed in float32 (float64 where the input is) and returned in the dtype of
the input, so bfloat16 activations keep exact positions and stable norms.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def along_last(scale: jax.Array, like: jax.Array) -> jax.Array:
    """`scale` with leading axes of length 1, as wide as `like`."""
    return scale.astype(like.dtype).reshape((1,) * (like.ndim - scale.ndim) + scale.shape)


def rms_norm(x: jax.Array, scale: jax.Array | None = None, eps: int | float = 1e-6) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis (Zhang and Sennrich 2019).

    Args:
        x: [..., D].
        scale: [D], or [H, D] for x of [..., H, D]; None is 1.
        eps: inside the square root, > 0.
    """
    wide = _wide(x)
    out = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    if scale is not None:
        out = out * along_last(scale, out)
    return out.astype(x.dtype)


def layer_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    eps: int | float = 1e-5,
) -> jax.Array:
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis (Ba et al. 2016).

    Args:
        x: [..., D].
        scale: [D]; None is 1.
        bias: [D]; None is 0.
        eps: inside the square root, > 0.
    """
    wide = _wide(x)
    centered = wide - jnp.mean(wide, axis=-1, keepdims=True)
    out = centered * jax.lax.rsqrt(jnp.mean(centered * centered, axis=-1, keepdims=True) + eps)
    if scale is not None:
        out = out * along_last(scale, out)
    if bias is not None:
        out = out + along_last(bias, out)
    return out.astype(x.dtype)


class Llama3Scaling(NamedTuple):
    """Frequency scaling of Llama 3.1 and later: long wavelengths are stretched by `factor`, short
    ones kept, those between `original / high` and `original / low` blended."""

    factor: int | float = 8.0
    low: int | float = 1.0
    high: int | float = 4.0
    original: int = 8192  # context length of pre-training, in tokens


def rope_frequencies(
    dim: int,
    theta: int | float = 10000.0,
    *,
    ntk_factor: int | float = 1.0,
    llama3: Llama3Scaling | None = None,
) -> np.ndarray:
    """Angular frequencies of rotary embeddings, [dim / 2] float32 in radians per token.

    Args:
        dim: width of a head, even.
        theta: base; frequency j is theta^(-2 j / dim) (Su et al. 2021).
        ntk_factor: context extension s >= 1 by the NTK-aware rule [secondary]: theta becomes
            theta * s^(dim / (dim - 2)), which keeps the fastest frequency and divides the slowest
            by s.
        llama3: scaling of Llama 3.1 and later, or None.

    Raises:
        ValueError: dim odd or < 2; theta <= 0; ntk_factor < 1, or > 1 with dim = 2; high <= low.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"dim={dim}: must be even and at least 2")
    if theta <= 0:
        raise ValueError(f"theta={theta}: must be > 0")
    if ntk_factor < 1 or (ntk_factor > 1 and dim == 2):
        raise ValueError(f"ntk_factor={ntk_factor}: must be >= 1 (and 1 where dim is 2)")
    base = float(theta) * (float(ntk_factor) ** (dim / (dim - 2)) if ntk_factor > 1 else 1.0)
    frequencies = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if llama3 is not None:
        if llama3.high <= llama3.low:
            raise ValueError(f"llama3={llama3}: high must be > low")
        turns = llama3.original * frequencies / (2 * math.pi)  # over the original context
        share_as_is = np.clip((turns - llama3.low) / (llama3.high - llama3.low), 0.0, 1.0)
        frequencies = frequencies * (share_as_is + (1.0 - share_as_is) / llama3.factor)
    return frequencies.astype(np.float32)


def rope(x: jax.Array, positions: jax.Array, frequencies: np.ndarray | jax.Array) -> jax.Array:
    """Rotates pairs (j, j + D/2) of each head by position * frequency_j ("rotate half").

    Args:
        x: [..., B, T, H, D].
        positions: int [B, T] or [1, T], explicit: restart them per packed document.
        frequencies: [D / 2], from `rope_frequencies`.

    Raises:
        ValueError: frequencies do not have D / 2 entries.
    """
    half = x.shape[-1] // 2
    if x.shape[-1] % 2 or frequencies.shape != (half,):
        raise ValueError(f"frequencies of shape {frequencies.shape}: x has D={x.shape[-1]}")
    frequencies = jnp.asarray(frequencies).reshape(1, 1, 1, half)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequencies
    angle = angle.reshape((1,) * (x.ndim - 4) + angle.shape)  # [..., B, T, 1, D / 2]
    wide = _wide(x)
    cos = jnp.cos(angle).astype(wide.dtype)
    sin = jnp.sin(angle).astype(wide.dtype)
    # A split, not two slices: the gradient of a split is one concatenation.
    first, second = jax.lax.split(wide, (half, half), axis=wide.ndim - 1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def segment_positions(segment_ids: jax.Array | None, length: int) -> jax.Array:
    """Place of every token in its segment, int32 [B, T]; without segments [1, T].

    Args:
        segment_ids: int [B, T]; a segment is a run of equal ids, 0 is padding (its places mean
            nothing). None is one segment of `length` tokens.
    """
    index = jnp.arange(length, dtype=jnp.int32)[None]
    if segment_ids is None:
        return index
    starts = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = jnp.where(jnp.pad(starts, ((0, 0), (1, 0))), index, 0)
    return index - jax.lax.cummax(starts, axis=1)


def relative_buckets(
    num_queries: int,
    num_keys: int,
    *,
    bidirectional: bool,
    num_buckets: int = 32,
    max_distance: int = 128,
    q_offset: int | jax.Array = 0,
) -> jax.Array:
    """Bucket of each (query, key) distance, int32 [num_queries, num_keys] (Raffel et al. 2020).

    Half of the buckets (of each direction) are exact distances, the rest grow logarithmically up
    to `max_distance`, beyond which all distances share the last bucket. Bidirectional: the upper
    half of the buckets is for keys after the query; else such keys share bucket 0.

    Args:
        q_offset: index of query 0 among the keys (decode), int or int32 scalar.

    Raises:
        ValueError: num_buckets too small or odd where bidirectional; max_distance not beyond the
            exact distances.
    """
    if num_buckets < (4 if bidirectional else 2) or (bidirectional and num_buckets % 2):
        raise ValueError(f"num_buckets={num_buckets}: at least 2 of each direction, and even")
    per_side = num_buckets // 2 if bidirectional else num_buckets
    exact = per_side // 2
    if max_distance <= exact:
        raise ValueError(f"max_distance={max_distance}: must be > {exact}")
    queries = jnp.arange(num_queries, dtype=jnp.int32)[:, None] + q_offset
    ahead = jnp.arange(num_keys, dtype=jnp.int32)[None, :] - queries
    distance = jnp.abs(ahead) if bidirectional else jnp.maximum(-ahead, 0)
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
    steps = ratio / math.log(max_distance / exact) * (per_side - exact)
    logarithmic = exact + steps.astype(jnp.int32)
    bucket = jnp.where(distance < exact, distance, jnp.minimum(logarithmic, per_side - 1))
    return bucket + jnp.where(ahead > 0, per_side, 0) if bidirectional else bucket


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x W over the last axis: [..., F] of x [..., D] and a kernel [D, F].

    The product is jnp.matmul's. Its gradient is written out because the one that JAX derives forms
    (g^T x)^T, and XLA then writes g a second time, transposed, to undo it: a third of a training
    step of small transformers on a CPU.
    """
    return x @ kernel


def _matmul_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _matmul_backward(
    operands: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    dx = jax.lax.dot_general(grad, kernel, (((grad.ndim - 1,), (1,)), ((), ())))
    x_rows = x.reshape(-1, x.shape[-1])
    grad_rows = grad.reshape(-1, grad.shape[-1])
    dkernel = jax.lax.dot_general(x_rows, grad_rows, (((0,), (0,)), ((), ())))
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def dense_product(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """`matmul` as the `dot_general` of a linen Dense, which contracts the same axes."""
    return matmul(x, kernel)


def class_logits(x: jax.Array, table: jax.Array) -> jax.Array:
    """Scores of all classes, float32 [..., V], of states [..., D] and a table [V, D] of any dtype,
    summed in float32."""
    table = table.astype(x.dtype)
    if x.dtype == jnp.float32:
        return matmul(x, table.T)
    return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)


@jax.custom_vjp
def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Negative log-likelihood -log softmax(logits)[target] in nats, float32 [...].

    The gradient, softmax - one_hot, is one pass over the logits: neither a one-hot nor a scatter
    of the targets is formed.

    Args:
        logits: [..., V] floating.
        targets: int [...], in [0, V).
    """
    return _cross_entropy_forward(logits, targets)[0]


def _cross_entropy_forward(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any]:
    wide = _wide(logits)
    top = jnp.max(wide, axis=-1, keepdims=True)
    log_total = top + jnp.log(jnp.sum(jnp.exp(wide - top), axis=-1, keepdims=True))
    chosen = jnp.take_along_axis(wide, targets[..., None], axis=-1)
    return (log_total - chosen)[..., 0], (logits, targets, log_total)


def _cross_entropy_backward(residuals: Any, grad: jax.Array) -> tuple[jax.Array, None]:
    logits, targets, log_total = residuals
    probabilities = jnp.exp(_wide(logits) - log_total)
    classes = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    is_target = classes == targets[..., None]
    return ((probabilities - is_target) * grad[..., None]).astype(logits.dtype), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def smoothed_cross_entropy(
    logits: jax.Array, targets: jax.Array, smoothing: float, allowed: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy of a target of which a share is spread evenly over all classes, in nats,
    float32 [...] (Szegedy et al. 2016).

    Args:
        logits: [..., V] floating; targets: int [...], in [0, V).
        smoothing: in [0, 1); 0 without `allowed` is `cross_entropy`.
        allowed: bool [..., V], the classes there are, the target among them; None is all.
    """
    if allowed is None and not smoothing:
        return cross_entropy(logits, targets)
    wide = _wide(logits)
    counted = wide if allowed is None else jnp.where(allowed, wide, -jnp.inf)
    log_total = jax.nn.logsumexp(counted, axis=-1)
    chosen = jnp.take_along_axis(wide, targets[..., None], axis=-1)[..., 0]
    if allowed is None:
        mean = wide.mean(axis=-1)
    else:
        mean = jnp.where(allowed, wide, 0.0).sum(axis=-1) / allowed.sum(axis=-1)
    return log_total - (1 - smoothing) * chosen - smoothing * mean


def gelu(x: jax.Array, *, approximate: bool = True) -> jax.Array:
    """Gaussian error linear unit (Hendrycks and Gimpel 2016); approximate: the tanh form."""
    return jax.nn.gelu(x, approximate=approximate)


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up (Shazeer 2020), both [..., F]."""
    return jax.nn.silu(gate) * up
