# SPDX-License-Identifier: Apache-2.0
"""Node pairs that are no edges, uniformly, on the host and on a device."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax

from graph import csr
from graph.csr import CSR
from graph.sampling import device, draws


def check_room(num_nodes: int, entries: int, avoided: int) -> None:
    """Raises ValueError: no pair of different nodes is sure to be left. entries, avoided: stored
    entries, two of each edge."""
    if num_nodes * (num_nodes - 1) <= entries + avoided:
        raise ValueError(
            f"{num_nodes} nodes have {num_nodes * (num_nodes - 1)} ordered pairs, of which "
            f"{entries} are edges and {avoided} are to be avoided: no negative is left to draw"
        )


def attempt(seed: Any, epoch: Any, index: Any, turn: Any, num_nodes: int) -> tuple[Any, Any]:
    """Ordered pair (u, v) uint32 [R] of uniform nodes, the `turn`-th (uint32 [1]) try of negatives
    `index` uint32 [R]; NumPy or JAX arrays."""
    u, v = draws.threefry(draws.stream(seed, epoch, draws.NEGATIVE), (index, index * 0 + turn))
    bound = index * 0 + np.uint32(num_nodes)
    return draws.below(u, bound), draws.below(v, bound)


def negatives(
    graph: CSR, count: int, seed: int, epoch: int, *, avoid: CSR | None = None
) -> np.ndarray:
    """int32 [count, 2], each uniform over the ordered pairs of different nodes that are no edge of
    `graph`, nor of `avoid`; with replacement.

    Number i depends on (seed, epoch, i) alone. Without `avoid` the positives of valid and test may
    come up, as in the released code of PENCIL; give their edges to keep them out.

    Raises:
        ValueError: no such pair is left; seed or epoch outside 0 .. 2^32 - 1; avoid of another
            number of nodes.
    """
    _check_avoid(graph.num_nodes, None if avoid is None else avoid.num_nodes)
    check_room(graph.num_nodes, len(graph.indices), 0 if avoid is None else len(avoid.indices))
    seed_word, epoch_word = draws.word(seed, "seed"), draws.word(epoch, "epoch")
    out = np.zeros((count, 2), np.int32)
    left, turn = np.arange(count, dtype=np.uint32), np.zeros(1, np.uint32)
    while len(left):
        u, v = attempt(seed_word, epoch_word, left, turn, graph.num_nodes)
        pairs = np.stack([u, v], 1).astype(np.int32)
        bad = (u == v) | csr.contains(graph, pairs)
        if avoid is not None:
            bad |= csr.contains(avoid, pairs)
        out[left[~bad]] = pairs[~bad]
        left, turn = left[bad], turn + 1
    return out


def negatives_on_device(
    graph: device.Graph,
    count: int,
    seed: Any,
    epoch: Any,
    *,
    avoid: device.Graph | None = None,
) -> jax.Array:
    """`negatives` on a device, equal to the host's. seed, epoch: numbers, or traced uint32.

    Raises:
        ValueError: as `negatives`, but inside a jitted function room is not checked.
    """
    _check_avoid(graph.num_nodes, None if avoid is None else avoid.num_nodes)
    if not isinstance(graph.indptr, core.Tracer):
        entries = 0 if avoid is None else int(avoid.indptr[-1])
        check_room(graph.num_nodes, int(graph.indptr[-1]), entries)
    seed, epoch = draws.word(seed, "seed"), draws.word(epoch, "epoch")
    return _draw(graph, avoid, seed, epoch, count=count)


def _check_avoid(nodes: int, avoided: int | None) -> None:
    if avoided is not None and avoided != nodes:
        raise ValueError(f"avoid has {avoided} nodes, the graph {nodes}")


@functools.partial(jax.jit, static_argnames="count")
def _draw(
    graph: device.Graph, avoid: device.Graph | None, seed: Any, epoch: Any, *, count: int
) -> jax.Array:
    seed, epoch = jnp.asarray(seed), jnp.asarray(epoch)
    index = jnp.arange(count, dtype=jnp.uint32)

    def is_edge(graph: device.Graph, u: jax.Array, v: jax.Array) -> jax.Array:
        return device.contains(graph.indptr, graph.indices, graph.steps, u, v)

    def turn(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        u, v, bad, number = state
        u, v = (
            jnp.where(bad, new.astype(jnp.int32), old)
            for new, old in zip(
                attempt(seed, epoch, index, number[None], graph.num_nodes), (u, v), strict=True
            )
        )
        bad = (u == v) | is_edge(graph, u, v)
        if avoid is not None:
            bad |= is_edge(avoid, u, v)
        return u, v, bad, number + 1

    nothing = jnp.zeros(count, jnp.int32)
    state = (nothing, nothing, jnp.ones(count, bool), jnp.uint32(0))
    u, v, _, _ = lax.while_loop(lambda state: state[2].any(), turn, state)
    return jnp.stack([u, v], 1)
