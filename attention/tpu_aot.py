# SPDX-License-Identifier: Apache-2.0
"""Compiles the TPU kernels for real chips on a machine that has none.

    pip install 'banyan-stack[tpu_aot]'
    python -m attention.tpu_aot [--json=FILE]

libtpu holds the whole compiler: what is too large for vector memory, or is no instruction, fails
here as it would on the chip. Compiled are forward and forward + backward for v5e and v6e at
T = 32768, and memory figures for growing T beside the dense reference. Nothing is executed: there
are no times of kernels here, `seconds` are those of the compiler. Exits 2 without libtpu.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}
T, H, K = 32768, 8, 4
HEAD_DIMS = (64, 128)
# Large enough for the chip's 128 MiB of vector memory, which the compiler also uses for arrays, to
# be a small part of the whole.
MEMORY = dict(H=32, K=32, D=128)
MEMORY_T = (8192, 16384, 32768)
DENSE = dict(H=1, K=1, D=128)
DENSE_T = (8192, 16384)
VERSIONS = ("jax", "jaxlib", "libtpu")


def compiled(chip: str, T: int, H: int, K: int, D: int, backward: bool, implementation: str) -> Any:
    """The executable of one case for one core, batch 1, bfloat16, causal."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from attention.tda import tda_attention

    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    place = NamedSharding(Mesh(np.array(topology.devices)[:1], ("x",)), PartitionSpec())
    shape = lambda *dims, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(dims, dtype, sharding=place)
    arguments = (
        shape(2, 1, T, H, D),
        shape(2, 1, T, K, D),
        shape(1, T, K, D),
        shape(H, dtype=jnp.float32),
        shape(1, T, H, D),
    )

    def forward(*x: Any) -> Any:
        return tda_attention(*x[:4], implementation=implementation)

    def both(*x: Any) -> Any:
        o, pull = jax.vjp(forward, *x[:4])
        return o, pull(x[4])

    return jax.jit(both if backward else forward).trace(*arguments).lower().compile()


def memory(executable: Any) -> dict[str, int]:
    stats = executable.memory_analysis()
    return {
        "temporary_bytes": stats.temp_size_in_bytes,
        "argument_bytes": stats.argument_size_in_bytes,
        "output_bytes": stats.output_size_in_bytes,
    }


def compile_all(chip: str) -> list[dict[str, Any]]:
    """One entry per head dimension and direction; raises what the compiler raises."""
    import jax
    import jax.numpy as jnp

    from attention.kernels import Spec, pallas_tpu

    entries = []
    for D in HEAD_DIMS:
        shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.bfloat16)
        operands = (shape(2, 1, T, H, D), shape(2, 1, T, K, D), shape(1, T, K, D))
        plan = pallas_tpu.make_plan(*operands, False, 0, Spec(True, 2), None, None, False)
        for backward in (False, True):
            start = time.perf_counter()
            executable = compiled(chip, T, H, K, D, backward, "pallas_tpu")
            entry = dict(chip=chip, T=T, H=H, Hkv=K, D=D, dtype="bfloat16", causal=True)
            entry |= dict(backward=backward, block_q=plan.block_q, block_kv=plan.block_kv)
            entry |= dict(within_vmem=True, seconds=round(time.perf_counter() - start, 1))
            entries.append(entry | memory(executable))
            print(entries[-1], file=sys.stderr, flush=True)
    return entries


def growths(figures: list[int]) -> list[float]:
    return [round(b / a, 3) for a, b in itertools.pairwise(figures)]


def memory_table(chip: str) -> dict[str, Any]:
    """Temporary bytes of forward + backward as T doubles, of kernels and dense control."""
    linear = [
        memory(compiled(chip, t, **MEMORY, backward=True, implementation="pallas_tpu"))
        for t in MEMORY_T
    ]
    dense = [
        memory(compiled(chip, t, **DENSE, backward=True, implementation="reference"))
        for t in DENSE_T
    ]
    temporary, control = ([entry["temporary_bytes"] for entry in x] for x in (linear, dense))
    return dict(
        chip=chip,
        T=list(MEMORY_T),
        shape=MEMORY,
        temporary_bytes=temporary,
        growth=growths(temporary),
        dense=dict(T=list(DENSE_T), shape=DENSE, temporary_bytes=control, growth=growths(control)),
    )


def commit() -> str:
    """Commit of this checkout, "+dirty" appended if files differ, "unknown" outside of one."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty=+dirty", "--abbrev=12", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or "unknown"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", default="", help="file to write; default: standard output")
    flags = parser.parse_args(words)
    if importlib.util.find_spec("libtpu") is None:
        print(
            "not run: libtpu is not installed; pip install 'banyan-stack[tpu_aot]'", file=sys.stderr
        )
        return 2
    # Before jax is imported: no search for a chip, neither on this machine nor in a cloud.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")
    report = dict(
        commit=commit(),
        versions={name: importlib.metadata.version(name) for name in VERSIONS},
        compiled=[entry for chip in TOPOLOGIES for entry in compile_all(chip)],
        memory=memory_table("v5e"),
    )
    text = json.dumps(report, indent=1)
    if flags.json:
        with open(flags.json, "w") as file:
            file.write(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
