# SPDX-License-Identifier: Apache-2.0
"""The device sampler with the rows of the graph spread over a mesh axis.

Node ids are cut into contiguous ranges of about equal entries, one per device along the axis
"graph". A device asks the owner of a row for its part: the draws of a hop, or whether a pair is an
edge. Requests travel in slots of fixed capacity by `all_to_all`, are answered where the row lies
with the words of the link they belong to, and travel back; what finds no slot waits for another
round, and those rounds are counted. The batch is bit for bit that of `graph.sampling.device`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from graph.csr import CSR, degrees
from graph.sampling import draws
from graph.sampling.batch import LinkBatch, check_pairs
from graph.sampling.config import SampleConfig, Slots, check_slots
from graph.sampling.device import (
    PAIRS,
    Request,
    adjacency,
    check_entries,
    contains,
    neighbors,
    pick,
    steps_for,
    walk,
)

AXIS = "graph"


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["indptr", "indices", "bounds"],
    meta_fields=["mesh", "steps"],
)
@dataclasses.dataclass(frozen=True)
class Graph:
    """Ranges of rows over axis "graph" of G devices. indptr: int32 [G, rows + 1], offsets within
    the range, the last repeated; indices: int32 [G, entries], zeros at the end; bounds: int32
    [G + 1], first node of each range and V; steps: halvings that search the longest row."""

    indptr: jax.Array
    indices: jax.Array
    bounds: jax.Array
    mesh: Mesh
    steps: int


class Sampled(NamedTuple):
    """batch; retries: int32 scalar, rounds beyond the first of all exchanges together."""

    batch: LinkBatch
    retries: jax.Array


def partition(graph: CSR, parts: int) -> np.ndarray:
    """int64 [parts + 1] bounds of contiguous ranges of nodes with about equal entries."""
    wanted = np.arange(1, parts) * (len(graph.indices) / parts)
    inner = np.searchsorted(graph.indptr, wanted)
    return np.concatenate([[0], np.minimum(inner, graph.num_nodes), [graph.num_nodes]])


def put(graph: CSR, mesh: Mesh) -> Graph:
    """Graph spread over the axis "graph" of a mesh, the same on every other axis. Offsets count
    within a range, so the whole may hold 2^31 entries and more.

    Raises:
        ValueError: the mesh has no axis "graph"; a range of 2^31 entries or more.
    """
    if AXIS not in mesh.shape:
        raise ValueError(f"the mesh has axes {mesh.axis_names}: one must be called {AXIS!r}")
    parts = mesh.shape[AXIS]
    bounds = partition(graph, parts)
    starts = np.asarray(graph.indptr)[bounds].astype(np.int64)
    rows, entries = int(np.diff(bounds).max()), max(int(np.diff(starts).max()), 1)
    check_entries(entries, f"a range of nodes, one of {parts},")

    def offsets(where: Any) -> np.ndarray:
        return np.stack([_padded(
            graph.indptr[bounds[k] : bounds[k + 1] + 1] - starts[k], rows + 1, "edge"
        ) for k in range(parts)[where[0]]])  # fmt: skip

    def columns(where: Any) -> np.ndarray:
        return np.stack([
            _padded(graph.indices[starts[k] : starts[k + 1]], entries, "constant")
            for k in range(parts)[where[0]]
        ])  # fmt: skip

    over, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((AXIS,), ()))
    return Graph(
        jax.make_array_from_callback((parts, rows + 1), over, offsets),
        jax.make_array_from_callback((parts, entries), over, columns),
        jax.device_put(bounds.astype(np.int32), everywhere),
        mesh,
        steps_for(int(degrees(graph).max(initial=0))),
    )


def _padded(values: np.ndarray, length: int, mode: Any) -> np.ndarray:
    return np.pad(values.astype(np.int32), (0, length - len(values)), mode)


def sample(
    graph: Graph,
    pairs: Any,
    seed: Any,
    epoch: Any,
    config: SampleConfig,
    *,
    slots: Slots = "random",
    slack: float = 2.0,
) -> Sampled:
    """As `graph.sampling.device.sample`; links are split over all axes of the mesh.

    slack: slots for requests to each owner, as a multiple of an even share; fewer cost rounds,
    more cost memory.

    Raises:
        ValueError: as there; B is not a multiple of the devices; slack is not positive.
    """
    check_slots(slots)
    if slack <= 0:
        raise ValueError(f"slack={slack}: must be positive")
    if len(pairs) % graph.mesh.size:
        raise ValueError(
            f"{len(pairs)} links over {graph.mesh.size} devices: must be a multiple; repeat some"
        )
    if not isinstance(pairs, core.Tracer):
        check_pairs(np.asarray(pairs), int(graph.bounds[-1]))
        pairs = jnp.asarray(pairs, jnp.int32)
    seed, epoch = draws.word(seed, "seed"), draws.word(epoch, "epoch")
    return _sample(graph, pairs, seed, epoch, config=config, slots=slots, slack=slack)


@functools.partial(jax.jit, static_argnames=("config", "slots", "slack"))
def _sample(
    graph: Graph,
    pairs: jax.Array,
    seed: Any,
    epoch: Any,
    *,
    config: SampleConfig,
    slots: Slots,
    slack: float,
) -> Sampled:
    P, axes = PartitionSpec, graph.mesh.axis_names
    over: Any = P(axes)
    everywhere: Any = P()
    local = functools.partial(
        _local, config=config, slots=slots, slack=slack, steps=graph.steps, axes=axes
    )
    return jax.shard_map(
        local,
        mesh=graph.mesh,
        in_specs=(P(AXIS), P(AXIS), P(), over, P(), P()),
        out_specs=Sampled(LinkBatch(over, over, over, over), everywhere),
        check_vma=False,  # the count of rounds is the same everywhere through a sum over all axes
    )(graph.indptr, graph.indices, graph.bounds, pairs, jnp.asarray(seed), jnp.asarray(epoch))


def _local(
    indptr: jax.Array,
    indices: jax.Array,
    bounds: jax.Array,
    pairs: jax.Array,
    seed: jax.Array,
    epoch: jax.Array,
    *,
    config: SampleConfig,
    slots: Slots,
    slack: float,
    steps: int,
    axes: tuple[str, ...],
) -> Sampled:
    """What one device does for its links, and for the rows it owns."""
    rows, start = (indptr[0], indices[0], steps), bounds[lax.axis_index(AXIS)]
    ask = functools.partial(exchange, bounds=bounds, slack=slack, axes=axes)
    here = lambda node: jnp.where(node >= 0, node - start, -1)

    def draw(asked: Request) -> jax.Array:
        mine = dataclasses.replace(asked, node=here(asked.node))
        return neighbors(*rows, config.fanout, mine)

    def check(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return contains(*rows, here(pair[0]), pair[1])[:, None].astype(jnp.int32)

    walked = []

    def remote_rows(asked: Request) -> jax.Array:
        rows_of_nodes, retries = ask(asked, asked.node, draw, config.fanout)
        walked.append(retries)
        return rows_of_nodes

    key = draws.link_keys(seed, epoch, pairs)
    ids, n, dropped = pick(walk(pairs, key, config, remote_rows), key, config, slots)

    def part(retries: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        more = []

        def remote_edges(i: jax.Array, j: jax.Array) -> jax.Array:
            asked = jnp.where(j >= 0, i, -1)
            is_edge, again = ask((asked, j), asked, check, 1)
            more.append(again)
            return is_edge[:, 0] == 1

        bits = adjacency(ids, remote_edges)
        return sum(more, retries), bits

    size = config.size
    together = max(1, min(len(ids), PAIRS // (size * (size - 1) // 2)))
    parts = -(-len(ids) // together)
    wide = jnp.pad(ids, ((0, parts * together - len(ids)), (0, 0)), constant_values=-1)
    retries, bits = lax.scan(part, sum(walked, jnp.int32(0)), wide.reshape(parts, together, size))
    bits = bits.reshape(parts * together, size, -1)[: len(ids)]
    return Sampled(LinkBatch(bits, n, ids, dropped), retries)


def exchange(
    requests: Any,
    node: jax.Array,
    answer: Callable[[Any], jax.Array],
    width: int,
    *,
    bounds: jax.Array,
    slack: float,
    axes: tuple[str, ...],
) -> tuple[jax.Array, jax.Array]:
    """(answers int32 [R, width], rounds beyond the first int32) of requests to the owners of nodes.

    requests: pytree of arrays [R]; node: int32 [R], whose owner is asked, -1 for nobody (the answer
    is then -1). answer: a function that the owner applies to requests of all devices together; an
    empty slot shows it the least integer, or the largest word. Runs inside `shard_map`.
    """
    count, devices = len(node), lax.axis_size(AXIS)
    capacity = max(1, int(np.ceil(slack * count / devices)))
    owner = jnp.searchsorted(bounds, node, side="right").astype(jnp.int32) - 1
    owner = jnp.where(node >= 0, owner, devices)
    travel = functools.partial(lax.all_to_all, axis_name=AXIS, split_axis=0, concat_axis=0)
    place = jnp.arange(count, dtype=jnp.int32)

    def send(values: jax.Array, index: jax.Array) -> jax.Array:
        """[devices * capacity] of what the others ask of this device."""
        outgoing = values.at[index].get(mode="fill")
        return travel(outgoing.reshape(devices, capacity)).reshape(-1)

    def turn(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        owner, answered, rounds, _ = state
        asked, index = lax.sort((owner, place), num_keys=1, is_stable=True)
        rank = place - jnp.searchsorted(asked, asked, side="left").astype(jnp.int32)
        slot = jnp.where((asked < devices) & (rank < capacity), asked * capacity + rank, -1)
        slot = jnp.where(slot < 0, devices * capacity, slot)
        index = jnp.full(devices * capacity, count, jnp.int32).at[slot].set(index, mode="drop")
        answers = answer(jax.tree.map(lambda x: send(x, index), requests))
        back = travel(answers.reshape(devices, capacity, width)).reshape(-1, width)
        answered = answered.at[index].set(back, mode="drop")
        owner = owner.at[index].set(devices, mode="drop")
        return owner, answered, rounds + 1, left(owner)

    def left(owner: jax.Array) -> jax.Array:
        return lax.psum((owner < devices).any().astype(jnp.int32), axes)

    state = (owner, jnp.full((count, width), -1, jnp.int32), jnp.int32(0), left(owner))
    _, answered, rounds, _ = lax.while_loop(lambda state: state[3] > 0, turn, state)
    return answered, jnp.maximum(rounds - 1, 0)
