# SPDX-License-Identifier: Apache-2.0
"""Threshold differential attention against softmax, against two launches, and its own sparsity.

On a Hopper GPU, correctness first, then timing, both kept:

    python -m attention.gpu_check --json=gpu_check.json \\
        && python experiments/bench.py attention --json=bench_attention_h200.json

Shapes are B T = 16384 tokens and H D = 2048, causal, bfloat16, T 2k to 16k on a GPU; elsewhere a
tiny one in float32. Steps are calls; a GPU queues ten before it is waited for, so that Python's
dispatch hides behind the device. TFLOP/s count 6 D a visible pair forward and 16 D backward for
TDA, 4 D and 10 D for softmax, whatever a kernel really executes: what it skips counts as done.

Sparsity is never quoted alone: every TDA row carries `density`, the share of visible pairs with a
weight in some view, and `live_tile_share`, the share of visible 64 x 64 tiles with one, of the very
tensors timed. `dense`: nearly every tile full of weights. `planted`: some weights in nearly every
tile. `clustered`: all weights within 50 blocks on the diagonal, almost all tiles empty.
`temp_bytes` are the temporaries of the compiled program. Softmax is jax.nn with is_causal=True
(cuDNN on a GPU), never with a mask array; its XLA path forms the whole square and skips nothing,
so that a ratio against it says little about the operators.
"""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attention import decode, gpu_check, masks
from attention.kernels import Spec, pallas_gpu, power, xla
from attention.tda import normalize, threshold
from experiments.runner.bench import Case, Missing

SPEC = Spec(causal=True, p=2)
KINDS = ("dense", "planted", "clustered")
CLUSTERS = 50
TILE = 64
REFUSALS = (jax.errors.JaxRuntimeError, NotImplementedError, ValueError)
FLOP = {"tda": (6, 16), "softmax": (4, 10)}  # per visible pair and unit of D: forward, backward


class Shape(NamedTuple):
    """Self-attention: B sequences of T tokens, H heads of size D, no grouping."""

    B: int
    T: int
    H: int
    D: int

    @property
    def name(self) -> str:
        return f"T{self.T}-d{self.D}"

    @property
    def pairs(self) -> float:
        """Visible pairs of all heads."""
        return self.B * self.H * self.T * (self.T + 1) / 2


GPU_SHAPES = tuple(
    Shape(16384 // T, T, 2048 // D, D)
    for T, D in ((16384, 128), (16384, 64), (8192, 128), (4096, 128), (4096, 64), (2048, 64))
)
CPU_SHAPES = (Shape(1, 1024, 2, 64),)
LONG = Shape(1, 65536, 16, 128)  # only for its memory and time on a GPU
ALL_KINDS = {shape for shape in (*GPU_SHAPES, *CPU_SHAPES) if shape.T in (1024, 16384)}


def inputs(shape: Shape, kind: str, dtype: Any, seed: int = 0) -> tuple[jax.Array, ...]:
    """q, k [2, B, T, H, D] of unit norm, v [B, T, H, D], tau [B, H, T], lam [H], dL/do."""
    B, T, H, D = shape

    @jax.jit
    def make() -> tuple[jax.Array, ...]:
        keys = jax.random.split(jax.random.key(seed), 6)
        centres = jax.random.normal(keys[0], (max(CLUSTERS, 8), D))
        if kind == "clustered":
            pick = jnp.arange(T, dtype=jnp.int32) * CLUSTERS // T
            lean = [2.0 * centres[pick][None, None, :, None]] * 2
        elif kind == "planted":
            pick = [jax.random.randint(key, (2, B, T, H), 0, 8) for key in keys[1:3]]
            lean = [1.3 * centres[x] for x in pick]
        else:  # all of one cluster
            lean = [1.3 * jnp.broadcast_to(centres[0], (2, B, T, H, D))] * 2
        noise = jax.random.split(keys[3], 2)
        q, k = (
            normalize(jax.random.normal(n, (2, B, T, H, D)) + x)
            for n, x in zip(noise, lean, strict=True)
        )
        n = masks.row_lengths(
            T, T, causal=True, q_segment_ids=None, kv_segment_ids=None, q_offset=0
        )
        beta = {"dense": 0.2, "planted": 0.75, "clustered": 1.2}[kind]
        tau = jnp.broadcast_to(threshold(n, D, beta, 1.0), (B, H, T))
        v, g = (jax.random.normal(key, (B, T, H, D)).astype(dtype) for key in keys[4:])
        lam = jnp.full((H,), 0.5, jnp.float32)
        return q.astype(dtype), k.astype(dtype), v, tau, lam, g

    return make()


@functools.partial(jax.jit, static_argnames="width")
def sparsity(q: jax.Array, k: jax.Array, tau: jax.Array, width: int = TILE) -> jax.Array:
    """Share of visible pairs, and of visible tiles of width^2, with a weight in some view: [2].

    T a multiple of width; causal.
    """
    T = q.shape[2]
    num = T // width
    cols = jnp.arange(T, dtype=jnp.int32)

    def rows(i: jax.Array) -> jax.Array:
        cut = lambda x, axis: lax.dynamic_slice_in_dim(x, i * width, width, axis)
        s = jnp.einsum("vbthd,vbshd->vbhts", cut(q, 2), k, preferred_element_type=jnp.float32)
        mask = cols[None] <= (i * width + jnp.arange(width, dtype=jnp.int32))[:, None]
        live = ((s - cut(tau, 2)[None, ..., None]).max(0) > 0) & mask[None, None]
        tiles = live.reshape(*live.shape[:3], num, width).any((2, 4))
        return jnp.stack([live.sum(dtype=jnp.float32), tiles.sum(dtype=jnp.float32)])

    counts = lax.map(rows, jnp.arange(num, dtype=jnp.int32)).sum(0)
    heads = tau.shape[0] * tau.shape[1]
    return counts / jnp.asarray([heads * T * (T + 1) / 2, heads * num * (num + 1) / 2])


def one_view(q: jax.Array, k: jax.Array, v: jax.Array, tau: jax.Array) -> jax.Array:
    """Threshold rectified attention of one view, [B, T, H, D], chunked as the xla backend is."""
    T = q.shape[1]
    block = min(xla.BLOCK, q.shape[1])
    rows, keys, values = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    cut = lambda x, n: lax.dynamic_slice_in_dim(x, n * block, block, 2)
    iota = jnp.arange(block, dtype=jnp.int32)

    def row(i: jax.Array) -> jax.Array:
        def add(j: jax.Array, acc: jax.Array) -> jax.Array:
            s = jnp.einsum(
                "bhtd,bhsd->bhts", cut(rows, i), cut(keys, j), preferred_element_type=jnp.float32
            )
            mask = (j * block + iota)[None] <= (i * block + iota)[:, None]
            e = jnp.where(mask[None, None], jnp.maximum(s - cut(tau, i)[..., None], 0), 0)
            return lax.cond(
                jnp.max(e) > 0,
                lambda acc: (
                    acc
                    + jnp.einsum(
                        "bhts,bhsd->bhtd",
                        power(e, SPEC.p).astype(v.dtype),
                        cut(values, j),
                        preferred_element_type=jnp.float32,
                    )
                ),
                lambda acc: acc,
                acc,
            )

        acc = jnp.zeros((*rows.shape[:2], block, v.shape[-1]), jnp.float32)
        return lax.fori_loop(jnp.int32(0), i + 1, add, acc).astype(v.dtype)

    blocks = lax.map(row, jnp.arange(T // block, dtype=jnp.int32))  # [n, B, H, block, D]
    return jnp.moveaxis(blocks, 0, 2).reshape(*rows.shape[:2], T, -1).swapaxes(1, 2)


def tda(module: Any) -> Callable[..., jax.Array]:
    return lambda q, k, v, tau, lam: module.tda(q, k, v, tau, lam, None, None, 0, SPEC)


def two_launches(single: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """What the fused kernel replaces: one call per view, then a subtraction."""

    def run(q: Any, k: Any, v: Any, tau: Any, lam: Any) -> jax.Array:
        first, second = (single(q[t], k[t], v, tau) for t in range(2))
        weight = lam[None, None, :, None]
        return (first.astype(jnp.float32) - weight * second.astype(jnp.float32)).astype(v.dtype)

    return run


def softmax(implementation: Any) -> Callable[..., jax.Array]:
    """The peer of the same T, H and D, on the first view."""
    attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    return lambda q, k, v, tau, lam: attend(q[0], k[0], v, is_causal=True)


def mosaic_peer(D: int) -> Callable[..., jax.Array]:
    """jax's own FlashAttention-3 kernel for Hopper."""
    from jax.experimental.pallas.ops.gpu import attention_mgpu as peer

    config = peer.TuningConfig(
        block_q=64 if D == 128 else 128,
        block_kv=128,
        max_concurrent_steps=2 if D == 128 else 3,
        causal=True,
    )
    return lambda q, k, v, tau, lam: peer.attention(q[0], k[0], v, config)


def case(
    name: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    calls: int,
    columns: Mapping[str, Any],
    differentiate: bool = False,
) -> Case | Missing:
    """A row of `calls` calls, with the backward pass where asked; Missing if it cannot compile."""
    *inputs, g = arguments
    if differentiate:

        def run(g: jax.Array, *inputs: jax.Array) -> Any:
            o, pull = jax.vjp(function, *inputs)
            return o, pull(g)

        inputs = [g, *inputs]
    else:
        run = function
    began = time.perf_counter()
    try:
        compiled = jax.jit(run).lower(*inputs).compile()
        jax.block_until_ready(compiled(*inputs))
    except REFUSALS as error:  # a peer that refuses a shape must not end the whole table
        return Missing(name, f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")
    memory = compiled.memory_analysis()
    columns = {
        **columns,
        "temp_bytes": getattr(memory, "temp_size_in_bytes", None),
        "compile_s": round(time.perf_counter() - began, 2),
    }

    def repeat(_: int) -> None:
        out = None
        for _ in range(calls):
            out = compiled(*inputs)
        jax.block_until_ready(out)

    return Case(name, 0, calls, repeat, columns)


def cases() -> Iterable[Case | Missing]:
    """Forward and forward + backward of every shape and kind of input, then decoding."""
    gpu = gpu_check.hopper() is not None
    if gpu:
        yield from operators(GPU_SHAPES, jnp.bfloat16, calls=10, gpu=True)
        yield from long_text()
    else:
        reason = "no Hopper GPU"
        for peer in (
            "pallas_gpu",
            "softmax cudnn",
            "softmax attention_mgpu",
            "two-launch pallas_gpu",
        ):
            yield Missing(peer, reason)
        yield Missing(f"{LONG.name}", reason)
        yield from operators(CPU_SHAPES, jnp.float32, calls=1, gpu=False)
    yield Missing("two-launch fwd+bwd", "the single-view kernels have no backward pass")
    yield from decoding(gpu)


def operators(
    shapes: Sequence[Shape], dtype: Any, calls: int, gpu: bool
) -> Iterator[Case | Missing]:
    backend = "pallas_gpu" if gpu else "xla"
    fused = tda(pallas_gpu if gpu else xla)
    single = one_view
    if gpu:
        single = lambda q, k, v, tau: pallas_gpu.single_view(q, k, v, tau, SPEC)
    for shape in shapes:
        unit = shape.pairs * shape.D
        flop = {  # of a forward pass, and of both
            kind: {"fwd": f * unit, "fwd+bwd": (f + b) * unit} for kind, (f, b) in FLOP.items()
        }
        about = {"shape": dict(shape._asdict()), "dtype": jnp.dtype(dtype).name}
        x: tuple[jax.Array, ...] = ()
        for kind in KINDS if shape in ALL_KINDS else ("planted",):
            x = inputs(shape, kind, dtype)
            density, tiles = (float(y) for y in sparsity(x[0], x[1], x[3]))
            told = about | {"inputs": kind, "density": density, "live_tile_share": tiles}
            row = f"{shape.name} {kind}"
            for way in ("fwd", "fwd+bwd"):
                more = told | {"flop": flop["tda"][way]}
                yield case(f"{row} {way} tda {backend}", fused, x, calls, more, way != "fwd")
                if gpu and shape.T <= 4096:
                    name = f"{row} {way} tda xla"
                    yield case(name, tda(xla), x, calls, more, way != "fwd")
            more = told | {"flop": flop["tda"]["fwd"]}
            name = f"{row} fwd two-launch {backend}"
            yield case(name, two_launches(single), x, calls, more)
        name = "cudnn" if gpu else "xla"
        for way in ("fwd", "fwd+bwd"):
            more = about | {"flop": flop["softmax"][way]}
            row = f"{shape.name} softmax {way} {name}"
            yield case(row, softmax(name), x, calls, more, way != "fwd")
        if gpu:
            row = f"{shape.name} softmax fwd attention_mgpu"
            try:
                peer = mosaic_peer(shape.D)
            except ImportError as error:
                yield Missing(row, str(error))
                continue
            yield case(row, peer, x, calls, about | {"flop": flop["softmax"]["fwd"]})


def long_text() -> Iterator[Case | Missing]:
    """T = 65536 forward and backward: what it needs above its inputs and outputs is temp_bytes."""
    x = inputs(LONG, "planted", jnp.bfloat16)
    columns = {"shape": dict(LONG._asdict()), "flop": sum(FLOP["tda"]) * LONG.pairs * LONG.D}
    name = f"{LONG.name} planted fwd+bwd tda pallas_gpu"
    yield case(name, tda(pallas_gpu), x, 1, columns, differentiate=True)


def decoding(gpu: bool) -> Iterator[Case | Missing]:
    """One token against a full cache at beta = 1: all keys, their int8 sketch, and softmax."""
    sizes = ((65536, 8, 32, 128), (262144, 8, 32, 128)) if gpu else ((8192, 2, 4, 64),)
    dtype = jnp.bfloat16 if gpu else jnp.float32
    for S, K, H, D in sizes:
        keys = jax.random.split(jax.random.key(0), 3)
        k = jax.random.normal(keys[0], (2, 1, S, K, D)).astype(dtype)
        v = jax.random.normal(keys[1], (1, S, K, D)).astype(dtype)
        # Every head looks for one key of its own among many that are nothing to it.
        at = jnp.arange(H, dtype=jnp.int32) * (S // H)
        wanted = k[:, :, at, jnp.arange(H, dtype=jnp.int32) * K // H]
        q = wanted + 0.3 * jax.random.normal(keys[2], wanted.shape).astype(dtype)
        cache = decode.append(decode.empty_cache(1, S, K, D, D, dtype), k, v)
        lam = jnp.full((H,), 0.5, jnp.float32)
        statistics = jax.jit(decode.sketch_decode)(q, cache, lam)[1]
        name = f"S{S}-d{D} decode"
        told = {
            "shape": {"S": S, "K": K, "H": H, "D": D},
            "dtype": jnp.dtype(dtype).name,
            "candidates_per_kv_head": float(np.mean(statistics.candidates)),
            "survivors_per_head": float(np.mean(statistics.survivors)),
            "fell_back_to_dense": bool(statistics.dense),
        }
        calls = 10 if gpu else 5
        sketch = lambda q, cache, lam: decode.sketch_decode(q, cache, lam)[0]
        yield case(f"{name} tda dense", decode.dense_decode, (q, cache, lam, None), calls, told)
        yield case(f"{name} tda sketch", sketch, (q, cache, lam, None), calls, told)
        plain = lambda q, cache, lam: jax.nn.dot_product_attention(
            q[0][:, None], cache.k[0], cache.v, implementation="cudnn" if gpu else "xla"
        )
        about = {key: told[key] for key in ("shape", "dtype")}
        backend = "cudnn" if gpu else "xla"
        yield case(f"{name} softmax {backend}", plain, (q, cache, lam, None), calls, about)


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Times over times, below 1 is faster; named with what was timed and how full it was."""
    found = {row["row"]: row for row in rows}
    seconds = {name: 1 / row["steps_per_s"] for name, row in found.items()}
    out: dict[str, float] = {}

    def add(name: str, above: float | None, below: float | None) -> None:
        if above is not None and below is not None and below > 0:
            out[name] = above / below

    def backward(name: str) -> float | None:
        both, forward = (seconds.get(name.replace("fwd ", f"{way} ")) for way in ("fwd+bwd", "fwd"))
        return None if both is None or forward is None else both - forward

    for name, row in found.items():
        if " decode tda sketch" in name:
            base = name.removesuffix(" tda sketch")
            add(f"{base}: sketch / dense", seconds[name], seconds.get(f"{base} tda dense"))
            for peer in ("cudnn", "xla"):
                below = seconds.get(f"{base} softmax {peer}")
                add(f"{base}: sketch / softmax {peer}", seconds[name], below)
        if " fwd tda " not in name:
            continue
        shape, kind, _, _, backend = name.split(" ")
        full = f" at density {row['density']:.3g}, live tiles {row['live_tile_share']:.3g}"
        title = f"{shape} {kind} {{}}: tda {backend} / {{}}{full}"
        for peer in ("cudnn", "xla", "attention_mgpu"):
            other = f"{shape} softmax fwd {peer}"
            label = f"softmax {peer}" + " (whole square)" * (peer == "xla")
            add(title.format("fwd", label), seconds[name], seconds.get(other))
            add(title.format("bwd", label), backward(name), backward(other))
        launches = seconds.get(f"{shape} {kind} fwd two-launch {backend}")
        add(title.format("fwd", "two launches"), seconds[name], launches)
        if kind != "dense":
            both = f"{shape} {{}} fwd+bwd tda {backend}"
            add(
                title.format("fwd+bwd", "own dense"),
                seconds.get(both.format(kind)),
                seconds.get(both.format("dense")),
            )
    return out
