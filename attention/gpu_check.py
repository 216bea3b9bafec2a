# SPDX-License-Identifier: Apache-2.0
"""Numbers of the Hopper kernels on a Hopper GPU: correctness before any timing.

    python -m attention.gpu_check [--json=FILE]

Compares `pallas_gpu` with the float32 `xla` backend on the same rounded bfloat16 inputs, over
T in {1000, 4096, 8192}, head sizes 64 and 128, four query heads per key head, causal, inputs with
planted matches of 1 to 20 % live entries, in
all tiles and, clustered, in few. Relative root mean square errors: at most 5e-3 forward,
1e-2 for every gradient; two runs must agree in every bit. Exit codes: 0 all passed, 1 something
failed, 2 there is no Hopper GPU and nothing ran. Timing follows with
`python experiments/bench.py attention --json=FILE`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention import masks
from attention.kernels import Spec, pallas_gpu, xla
from attention.tda import normalize, threshold

FORWARD = 5e-3
GRADIENT = 1e-2
BETA = 0.75
NAMES = ("dq", "dk", "dv", "dtau", "dlam")
SPEC = Spec(causal=True, p=2)


class Shape(NamedTuple):
    T: int
    D: int
    H: int = 8
    K: int = 2
    clustered: bool = False  # most tiles have no survivor, and are skipped


SHAPES = (
    *(Shape(T, D) for T in (1000, 4096, 8192) for D in (64, 128)),
    *(Shape(4096, D, clustered=True) for D in (64, 128)),
)


def hopper() -> Any:
    """The first GPU of compute capability 9, or None."""
    try:
        devices = jax.devices("gpu")
    except RuntimeError:
        return None
    hoppers = (d for d in devices if str(getattr(d, "compute_capability", "")).startswith("9."))
    return next(hoppers, None)


@partial(jax.jit, static_argnums=(0, 1))
def planted(shape: Shape, seed: int = 0) -> tuple[jax.Array, ...]:
    """q, k, v in bfloat16, tau and lam in float32, and dL/do in bfloat16.

    Every query and key leans towards one of eight directions, so that in every part of the matrix
    a few per cent of the pairs exceed the threshold; clustered, directions change with position
    and only tiles around the diagonal are live.
    """
    T, D, H, K, clustered = shape
    keys = jax.random.split(jax.random.key(seed), 6)
    centers = jax.random.normal(keys[0], (8, D))

    def near_a_center(key: jax.Array, heads: int) -> jax.Array:
        which, noise = jax.random.split(key)
        pick = jax.random.randint(which, (2, 1, T, heads), 0, 8)
        if clustered:
            at = jnp.arange(T, dtype=jnp.int32)[:, None] * 8 // T
            pick = jnp.broadcast_to(at, pick.shape)
        return jax.random.normal(noise, (*pick.shape, D)) + 1.3 * centers[pick]

    q = near_a_center(keys[1], H)
    k = near_a_center(keys[2], K)
    half = lambda x: x.astype(jnp.bfloat16)
    n = masks.row_lengths(T, T, causal=True, q_segment_ids=None, kv_segment_ids=None, q_offset=0)
    tau = jnp.broadcast_to(threshold(n, D, BETA, 1.0), (1, H, T))
    return (
        half(normalize(q)),
        half(normalize(k)),
        half(jax.random.normal(keys[3], (1, T, K, D))),
        tau,
        jax.random.uniform(keys[4], (H,), minval=0.2, maxval=0.8),
        half(jax.random.normal(keys[5], (1, T, H, D))),
    )


def oracle(q: Any, k: Any, v: Any, tau: Any, lam: Any) -> jax.Array:
    """The xla backend in float32 on whatever it is given."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    return xla.tda(q, k, v, tau, lam, None, None, 0, SPEC)


def kernel(q: Any, k: Any, v: Any, tau: Any, lam: Any) -> jax.Array:
    return pallas_gpu.tda(q, k, v, tau, lam, None, None, 0, SPEC)


@jax.jit
def density(q: jax.Array, k: jax.Array, tau: jax.Array) -> jax.Array:
    """Share of visible pairs above the threshold in either view, by blocks of rows."""
    T, H, K = q.shape[2], q.shape[3], k.shape[3]
    keys = jnp.repeat(k, H // K, axis=3)[:, 0]
    cols = jnp.arange(T, dtype=jnp.int32)

    def count(i: jax.Array) -> jax.Array:
        s = jnp.einsum("vhd,vshd->vhs", q[:, 0, i], keys, preferred_element_type=jnp.float32)
        seen = jnp.broadcast_to(cols <= i, s.shape)
        return jnp.sum((s > tau[None, 0, :, i, None]) & seen, dtype=jnp.int32)

    counts = jax.lax.map(count, cols, batch_size=64)
    return jnp.sum(counts.astype(jnp.float32)) / (2 * H * (T * (T + 1) / 2))


def compare(shape: Shape, implementation: Callable[..., jax.Array]) -> dict[str, Any]:
    """Errors of an implementation, density, and whether two runs have the same bits."""
    *inputs, g = planted(shape)

    @partial(jax.jit, static_argnums=0)
    def run(function: Callable[..., jax.Array], g: jax.Array, *inputs: jax.Array) -> Any:
        o, pull = jax.vjp(function, *inputs)
        return o, *pull(g.astype(o.dtype))

    wide = [x.astype(jnp.float32) for x in inputs]
    wanted = run(oracle, g, *wide)
    results, repeated = (run(implementation, g, *inputs) for _ in range(2))
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))))
    errors = {
        name: float(norm(a.astype(jnp.float32) - b) / norm(b))
        for name, a, b in zip(("o", *NAMES), results, wanted, strict=True)
    }
    same = all(bool(jnp.array_equal(a, b)) for a, b in zip(results, repeated, strict=True))
    return {
        **shape._asdict(),
        "density": float(density(inputs[0], inputs[1], inputs[3])),
        "errors": errors,
        "bit_equal": same,
    }


def failures(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row of `compare`; NaN fails."""
    bars = {"o": FORWARD, **dict.fromkeys(NAMES, GRADIENT)}
    wrong = [
        f"{name}: {error:.1e} > {bars[name]:.1e}"
        for name, error in row["errors"].items()
        if not error <= bars[name]
    ]
    if not row["bit_equal"]:
        wrong.append("two runs differ")
    if not 0.01 <= row["density"] <= 0.2:
        wrong.append(f"density {row['density']:.3f} is not within 1 to 20 %: the check is void")
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    args = parser.parse_args(argv)
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json={args.json}: no folder {args.json.parent}")
    device = hopper()
    if device is None:
        print("not run: no Hopper GPU")
        return 2
    rows = []
    with jax.default_device(device):
        for shape in SHAPES:
            row = compare(shape, kernel)
            row["failures"] = failures(row)
            rows.append(row)
            numbers = " ".join(f"{k} {v:.1e}" for k, v in row["errors"].items())
            name = f"T={shape.T} D={shape.D}{' clustered' * shape.clustered}"
            verdict = "; ".join(row["failures"]) or "ok"
            print(f"{name} density {row['density']:.3f}: {numbers} {verdict}", flush=True)
    if args.json:
        versions = {"jax": jax.__version__, "device": device.device_kind}
        args.json.write_text(json.dumps({**versions, "rows": rows}, indent=1) + "\n")
    return int(any(row["failures"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
