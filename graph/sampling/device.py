# SPDX-License-Identifier: Apache-2.0
"""Subgraphs of many links in one jitted program, the whole graph in device memory.

Every shape is fixed: a link has a place for each node of two full trees; empty places hold -1.
Draws without replacement are Floyd's algorithm as a loop over the fan-out, edges among tokens are
binary searches of fixed length, or look-ups in a dense bit matrix where the graph is small. The
result is the host's (`graph.sampling.host`) bit for bit.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax

from graph.bits import pack, words
from graph.csr import CSR, LIMIT, degrees
from graph.sampling import draws
from graph.sampling.batch import LinkBatch, check_pairs
from graph.sampling.config import SampleConfig, Slots, check_slots, levels, num_slots

DENSE_LIMIT = 60_000  # nodes; the bit matrix takes 450 MB there
DENSE_NODES = 20_000  # nodes up to which it is the default, 50 MB
PAIRS = 1 << 22  # pairs of tokens looked up at a time: bounds temporary memory
NOTHING = np.iinfo(np.int32).max  # sorts after every id

# Neighbours [R, f] of R requests, and whether pairs (i, j) [R] are edges: what a sampler asks of
# a graph, wherever its rows lie.
Rows = Callable[["Request"], jax.Array]
Edges = Callable[[jax.Array, jax.Array], jax.Array]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["indptr", "indices", "dense"],
    meta_fields=["steps"],
)
@dataclasses.dataclass(frozen=True)
class Graph:
    """CSR on a device. indptr: int32 [V + 1]; indices: int32 [entries], one at least; dense: uint32
    [V, ceil(V / 32)], or None; steps: halvings that search the longest row."""

    indptr: jax.Array
    indices: jax.Array
    dense: jax.Array | None
    steps: int

    @property
    def num_nodes(self) -> int:
        return self.indptr.shape[0] - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a row, each [R]: node int32, -1 for none; banned int32, a neighbor that
    does not count, or -1; key: two uint32 words; base: int32, position of the first child."""

    node: jax.Array
    banned: jax.Array
    key: tuple[jax.Array, jax.Array]
    base: jax.Array


def steps_for(longest: int) -> int:
    """Halvings that find a place among 0 .. longest."""
    return max(int(longest).bit_length(), 1)


def check_entries(entries: int, what: str) -> None:
    """Raises ValueError: more entries than int32 offsets reach."""
    if entries > LIMIT:
        raise ValueError(
            f"{what} has {entries} entries, more than int32 offsets reach ({LIMIT}): shard it over "
            "more devices (graph.sampling.sharded), or sample on the host"
        )


def put(graph: CSR, dense: bool | None = None) -> Graph:
    """Graph on the default device. dense: whether edges are looked up in a bit matrix, by default
    where V <= 20,000.

    Raises:
        ValueError: 2^31 entries or more; a dense matrix of more than 60,000 nodes.
    """
    nodes = graph.num_nodes
    check_entries(len(graph.indices), "the graph")
    if dense is None:
        dense = nodes <= DENSE_NODES
    if dense and nodes > DENSE_LIMIT:
        raise ValueError(
            f"dense=True: a bit matrix of {nodes} nodes; at most {DENSE_LIMIT}, else dense=False"
        )
    bits = None
    if dense:
        matrix = np.zeros((nodes, words(nodes)), np.uint32)
        row = np.repeat(np.arange(nodes), degrees(graph))
        value = np.uint32(1) << (graph.indices & 31).astype(np.uint32)
        np.bitwise_or.at(matrix.reshape(-1), row * words(nodes) + (graph.indices >> 5), value)
        bits = jnp.asarray(matrix)
    indices = graph.indices if len(graph.indices) else np.zeros(1, np.int32)
    return Graph(
        jnp.asarray(graph.indptr, jnp.int32),
        jnp.asarray(indices),
        bits,
        steps_for(int(degrees(graph).max(initial=0))),
    )


def sample(
    graph: Graph,
    pairs: Any,
    seed: Any,
    epoch: Any,
    config: SampleConfig,
    *,
    slots: Slots = "random",
) -> LinkBatch:
    """Subgraphs of links int32 [B, 2] in `config.size` slots; see `graph.sampling.host.sample`.

    May be called inside a jitted function with traced pairs, seed (uint32) and epoch (uint32);
    then ids are not checked.

    Raises:
        ValueError: see `check_pairs`; seed or epoch out of range; slots neither "random" nor
            "sorted".
    """
    check_slots(slots)
    if not isinstance(pairs, core.Tracer):
        check_pairs(np.asarray(pairs), graph.num_nodes)
        pairs = jnp.asarray(pairs, jnp.int32)
    seed, epoch = draws.word(seed, "seed"), draws.word(epoch, "epoch")
    return _sample(graph, pairs, seed, epoch, config=config, slots=slots)


@functools.partial(jax.jit, static_argnames=("config", "slots"))
def _sample(
    graph: Graph, pairs: jax.Array, seed: Any, epoch: Any, *, config: SampleConfig, slots: Slots
) -> LinkBatch:
    rows = functools.partial(neighbors, graph.indptr, graph.indices, graph.steps, config.fanout)
    if graph.dense is None:
        edges = functools.partial(contains, graph.indptr, graph.indices, graph.steps)
    else:
        edges = functools.partial(contains_dense, graph.dense)
    key = draws.link_keys(jnp.asarray(seed), jnp.asarray(epoch), pairs)
    ids, n, dropped = pick(walk(pairs, key, config, rows), key, config, slots)
    pairs_of = config.size * (config.size - 1) // 2
    bits = lax.map(
        lambda row: adjacency(row[None], edges)[0],
        ids,
        batch_size=max(1, min(len(ids), PAIRS // pairs_of)),
    )
    return LinkBatch(bits, n, ids, dropped)


def walk(pairs: jax.Array, key: draws.Key, config: SampleConfig, rows: Rows) -> jax.Array:
    """ids int32 [B, P] of all places of two full trees level by level, -1 where empty."""
    node, start, levels_walked = pairs, 0, [pairs]
    s, t = pairs[:, :1], pairs[:, 1:]
    for hop in range(config.hops):
        width = node.shape[1]
        below = start + 2 * config.fanout**hop
        base = below + jnp.arange(width, dtype=jnp.int32) * config.fanout
        banned = jnp.full(node.shape, -1, jnp.int32)
        if not config.reference_order:
            banned = jnp.where(node == s, t, jnp.where(node == t, s, banned))
        flat = lambda x, width=width: jnp.broadcast_to(x, (len(pairs), width)).reshape(-1)
        words_of = (flat(key[0][:, None]), flat(key[1][:, None]))
        asked = Request(node.reshape(-1), banned.reshape(-1), words_of, flat(base[None]))
        node, start = rows(asked).reshape(len(pairs), width * config.fanout), below
        levels_walked.append(node)
    return jnp.concatenate(levels_walked, 1)


def lower_bound(
    indices: jax.Array, low: jax.Array, high: jax.Array, value: jax.Array, steps: int
) -> jax.Array:
    """First place of low .. high at which ascending `indices` hold `value` or more, int32 [R]."""

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = low + (high - low) // 2  # low + high may pass 2^31
        less = (low < high) & (indices[jnp.minimum(middle, len(indices) - 1)] < value)
        return jnp.where(less, middle + 1, low), jnp.where(less | (low >= high), high, middle)

    return lax.fori_loop(0, steps, halve, (low, high))[0]


def contains(
    indptr: jax.Array, indices: jax.Array, steps: int, i: jax.Array, j: jax.Array
) -> jax.Array:
    """Whether i and j, int32 [R], are neighbors, bool [R]; ids below 0 are nobody's."""
    row = jnp.maximum(i, 0)
    high = indptr[row + 1]
    at = lower_bound(indices, indptr[row], high, j, steps)
    same = indices[jnp.minimum(at, len(indices) - 1)] == j
    return (at < high) & same & (i >= 0) & (j >= 0)


def contains_dense(dense: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
    """As `contains`, from a bit matrix."""
    column = jnp.maximum(j, 0)
    word = dense[jnp.maximum(i, 0), column >> 5]
    bit = (word >> (column & 31).astype(jnp.uint32)) & 1
    return (bit == 1) & (i >= 0) & (j >= 0)


def neighbors(
    indptr: jax.Array, indices: jax.Array, steps: int, fanout: int, asked: Request
) -> jax.Array:
    """int32 [R, fanout]: all neighbors of rows of at most `fanout`, -1 after the last; else
    Floyd's draws without replacement, [R, fanout]. The banned neighbor does not count as one."""
    row = jnp.maximum(asked.node, 0)
    begin, end = indptr[row], indptr[row + 1]
    at = lower_bound(indices, begin, end, asked.banned, steps)
    has = (at < end) & (indices[jnp.minimum(at, len(indices) - 1)] == asked.banned)
    degree = jnp.where(asked.node >= 0, end - begin - has, 0)
    child = jnp.arange(fanout, dtype=jnp.int32)
    place = (asked.base[:, None] + child[None]).astype(jnp.uint32)
    bits = draws.threefry((asked.key[0][:, None], asked.key[1][:, None]), (place, place * 0))[0]
    top = jnp.maximum(degree - fanout, 0)[:, None] + child[None]
    drawn = draws.below(bits, top.astype(jnp.uint32) + 1).astype(jnp.int32)

    def step(t: Any, chosen: jax.Array) -> jax.Array:
        mine = lax.dynamic_slice_in_dim(chosen, t, 1, 1)
        earlier = (child < t)[None]
        taken = ((chosen == mine) & earlier).any(1, keepdims=True)
        mine = jnp.where(taken, lax.dynamic_slice_in_dim(top, t, 1, 1), mine)
        return lax.dynamic_update_slice_in_dim(chosen, mine, t, 1)

    chosen = lax.fori_loop(1, fanout, step, drawn)
    chosen = jnp.where((degree <= fanout)[:, None], child[None], chosen)
    place = begin[:, None] + chosen + (has[:, None] & (chosen >= (at - begin)[:, None]))
    chosen_nodes = indices[jnp.clip(place, 0, len(indices) - 1)]
    return jnp.where(child[None] < degree[:, None], chosen_nodes, -1)


def pick(
    places: jax.Array, key: draws.Key, config: SampleConfig, slots: Slots
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(ids int32 [B, N] in slot order, n int32 [B], dropped int32 [B]) of places [B, P]."""
    shape = places.shape
    position = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32)[None], shape)
    lone = (key[0][:, None], key[1][:, None])
    place = position.astype(jnp.uint32)
    priority = draws.threefry(lone, (place, place * 0 + draws.DRAW))[1]
    if slots == "sorted":
        priority = jnp.zeros_like(priority)
    node, position, priority = lax.sort(
        (jnp.where(places < 0, NOTHING, places), position, priority), num_keys=2
    )
    first = jnp.concatenate([jnp.ones((shape[0], 1), bool), node[:, 1:] != node[:, :-1]], 1)
    first &= node != NOTHING
    count = first.sum(1, dtype=jnp.int32)
    node = jnp.where(first, node, NOTHING)
    rank = jnp.where(first, jnp.minimum(position, 2), 3)
    if config.size < num_slots(config.hops, config.fanout):
        starts = levels(config.hops, config.fanout)
        keep = draws.threefry(lone, (position.astype(jnp.uint32), place * 0 + draws.KEEP))[0]
        level = sum((position >= start).astype(jnp.int32) for start in starts)
        level = jnp.where(first, level, config.hops + 1)
        node, rank, priority = lax.sort((level, keep, node, rank, priority), num_keys=3)[2:]
        node, rank, priority = (x[:, : config.size] for x in (node, rank, priority))
    _, _, node = lax.sort((rank, priority, node), num_keys=3)
    ids = jnp.where(node == NOTHING, -1, node)
    return ids, jnp.minimum(count, config.size), jnp.maximum(count - config.size, 0)


@functools.cache
def triangle(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(i, j) of the pairs i < j of N slots, and int32 [N, N], the pair of each cell; the diagonal
    and the two roots show one pair more, which is no edge."""
    i, j = np.triu_indices(size, 1)
    cell = np.full((size, size), len(i), np.int32)
    cell[i, j] = cell[j, i] = np.arange(len(i))
    cell[0, 1] = cell[1, 0] = len(i)
    return i, j, cell


def adjacency(ids: jax.Array, edges: Edges) -> jax.Array:
    """uint32 [B, N, ceil(N / 32)], edges among ids [B, N], none between the roots."""
    links, size = ids.shape
    i, j, cell = triangle(size)
    is_edge = edges(ids[:, i].reshape(-1), ids[:, j].reshape(-1)).reshape(links, len(i))
    is_edge = jnp.concatenate([is_edge, jnp.zeros((links, 1), bool)], 1)
    return pack(is_edge[:, cell])
