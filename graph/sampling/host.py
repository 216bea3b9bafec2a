# SPDX-License-Identifier: Apache-2.0
"""Subgraphs of many links at once in NumPy.

Work is cut into chunks of links whose arrays stay in the cache; threads take chunks, or whole
batches (`load`), and NumPy lets go of the interpreter in between. Which neighbors, slots and bits
come out is the device's (`graph.sampling.device`) word for word.

Edges among the tokens of a link are found from the end of lower degree: rows of at most `reach`
entries are read through and looked up in a hash table of the chunk's tokens; the few nodes above
it, the hubs, are looked up against each other in a dense matrix. So no step grows with the degree
of a hub.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from graph.bits import words
from graph.csr import CSR, degrees
from graph.sampling import draws
from graph.sampling.batch import LinkBatch, check_pairs
from graph.sampling.buckets import Bucket, place
from graph.sampling.config import SampleConfig, Slots, check_slots, levels, num_slots

CHUNK = 512  # links worked on at a time; at most 1024: sort keys give a link 10 bits
READ = 1 << 18  # entries of rows read at a time
HUBS = 4096  # at most: their matrix takes 16 MiB
REACH = 64  # rows this short are always read through
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: multiplicative hashing


class Graph(NamedTuple):
    """A CSR made ready: degrees int32 [V]; hub int32 [V], rank among the hubs or -1; dense bool
    [H + 1, H + 1], edges among hubs, none in the last row and column."""

    csr: CSR
    degrees: np.ndarray
    hub: np.ndarray
    dense: np.ndarray


class Tokens(NamedTuple):
    """Tokens of links end to end: start int64 [B + 1]; node int64 [T], in slot order; dropped
    int32 [B]."""

    start: np.ndarray
    node: np.ndarray
    dropped: np.ndarray


def prepare(graph: CSR) -> Graph:
    """Degrees, hubs and the edges among them; memory of 4 int32 per node and HUBS^2 bytes."""
    degree = degrees(graph).astype(np.int32)
    reach = REACH
    if (degree > REACH).sum() > HUBS:
        reach = int(np.partition(degree, len(degree) - HUBS - 1)[len(degree) - HUBS - 1])
    hubs = np.flatnonzero(degree > reach)
    hub = np.full(len(degree), -1, np.int32)
    hub[hubs] = np.arange(len(hubs), dtype=np.int32)
    dense = np.zeros((len(hubs) + 1, len(hubs) + 1), bool)
    for rank, node in enumerate(hubs.tolist()):
        ranks = hub[graph.indices[graph.indptr[node] : graph.indptr[node + 1]]]
        dense[rank, ranks[ranks >= 0]] = True
    return Graph(graph, degree, hub, dense)


def sample(
    graph: Graph,
    pairs: np.ndarray,
    seed: int,
    epoch: int,
    config: SampleConfig,
    *,
    slots: Slots = "random",
    tight: bool = False,
    workers: int = 1,
) -> LinkBatch:
    """Subgraphs of links int [B, 2], all in `config.size` slots.

    seed, epoch: 0 .. 2^32 - 1; with the link they decide the sample, nothing else does. slots:
    order of the tokens after the roots, "random" or "sorted" by id. tight: in the smallest of
    `config.sizes` that holds them all instead, as `fit` would put them. workers: threads that share
    the chunks.

    Raises:
        ValueError: see `check_pairs`; seed or epoch out of range; workers below 1.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    pairs = np.asarray(pairs)
    check_pairs(pairs, graph.csr.num_nodes)
    parts = [slice(at, at + CHUNK) for at in range(0, len(pairs), CHUNK)]
    with ThreadPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        share = pool.map if pool else map
        drawn = share(lambda part: draw(graph, pairs[part], seed, epoch, config, slots), parts)
        size = config.size
        if tight:
            drawn = list(drawn)
            most = max((int(np.diff(tokens.start).max()) for tokens in drawn), default=0)
            size = next(size for size in config.sizes if size >= most)
        out = empty(len(pairs), size)
        views = [LinkBatch(*(x[part] for x in out)) for part in parts]
        list(share(lambda tokens, view: fill(graph, tokens, view), drawn, views))
    return out


def bucketed(
    graph: Graph,
    pairs: np.ndarray,
    seed: int,
    epoch: int,
    config: SampleConfig,
    rows: int,
    *,
    slots: Slots = "random",
) -> list[Bucket]:
    """As `sample`, each link in the smallest of `config.sizes` that holds it, `rows` links to a
    bucket; equal to `buckets.group(sample(..), ..)` without the wide array in between.

    Raises:
        ValueError: as `sample`.
    """
    pairs = np.asarray(pairs)
    check_pairs(pairs, graph.csr.num_nodes)
    tokens = join(
        draw(graph, pairs[at : at + CHUNK], seed, epoch, config, slots)
        for at in range(0, len(pairs), CHUNK)
    )
    buckets = []
    for size, index, weight in place(np.diff(tokens.start), config.sizes, rows):
        batch = empty(len(index), size)
        num_links = int(weight.sum())
        for at in range(0, num_links, CHUNK):
            part = slice(at, min(at + CHUNK, num_links))
            fill(graph, take(tokens, index[part]), LinkBatch(*(x[part] for x in batch)))
        for x in batch:
            x[num_links:] = x[num_links - 1]
        buckets.append(Bucket(batch, index, weight))
    return buckets


def load(
    graph: Graph,
    batches: Iterable[np.ndarray],
    seed: int,
    epoch: int,
    config: SampleConfig,
    *,
    slots: Slots = "random",
    tight: bool = False,
    workers: int = 2,
    depth: int = 4,
) -> Iterator[LinkBatch]:
    """Samples of batches of links, in their order, `depth` of them ahead of the reader.

    Equal for any workers >= 1 and depth >= 1.

    Raises:
        ValueError: as `sample`, when the batch comes up; workers or depth below 1.
    """
    if workers < 1 or depth < 1:
        raise ValueError(f"workers={workers}, depth={depth}: must be at least 1")

    def sample_batch(link_pairs: np.ndarray) -> LinkBatch:
        return sample(graph, link_pairs, seed, epoch, config, slots=slots, tight=tight)

    waiting: deque[Future[LinkBatch]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for pairs in batches:
                waiting.append(pool.submit(sample_batch, pairs))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def empty(links: int, size: int) -> LinkBatch:
    """Room for links of `size` slots."""
    return LinkBatch(
        np.zeros((links, size, words(size)), np.uint32),
        np.zeros(links, np.int32),
        np.full((links, size), -1, np.int32),
        np.zeros(links, np.int32),
    )


def take(tokens: Tokens, index: np.ndarray) -> Tokens:
    """Tokens of some links."""
    count = np.diff(tokens.start)[index]
    start = np.concatenate([[0], np.cumsum(count)])
    from_ = np.repeat(tokens.start[index] - start[:-1], count)
    return Tokens(start, tokens.node[from_ + np.arange(start[-1])], tokens.dropped[index])


def join(parts: Iterable[Tokens]) -> Tokens:
    """Tokens of chunks, one after the other."""
    every = list(parts)
    counts = [np.diff(part.start) for part in every]
    return Tokens(
        np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts]))]),
        np.concatenate([np.zeros(0, np.int64), *(part.node for part in every)]),
        np.concatenate([np.zeros(0, np.int32), *(part.dropped for part in every)]),
    )


def draw(
    graph: Graph,
    pairs: np.ndarray,
    seed: int,
    epoch: int,
    config: SampleConfig,
    slots: Slots = "random",
) -> Tokens:
    """Tokens of at most 1024 links in slot order; the arguments are those of `sample`."""
    if len(pairs) > 1024:
        raise ValueError(f"{len(pairs)} links in a chunk: at most 1024")
    check_slots(slots)
    pairs = pairs.astype(np.int64)
    key = draws.link_keys(draws.word(seed, "seed"), draws.word(epoch, "epoch"), pairs)
    link, position, node = _walk(graph, pairs, key, config)
    places = num_slots(config.hops, config.fanout).bit_length()
    bits = graph.csr.num_nodes.bit_length()
    sorting = (((link << bits) | node) << places) | position
    sorting.sort()
    first = np.ones(len(sorting), bool)
    np.not_equal(sorting[1:] >> places, sorting[:-1] >> places, out=first[1:])
    sorting = sorting[first]  # of each node of a link, its first position
    position = sorting & ((1 << places) - 1)
    node = (sorting >> places) & ((1 << bits) - 1)
    link = sorting >> (places + bits)
    count = np.bincount(link, minlength=len(pairs))
    dropped = np.maximum(count - config.size, 0)
    if dropped.any():
        under_cap = _under_cap(link, position, count, key, config)
        link, position, node = link[under_cap], position[under_cap], node[under_cap]
        count = count - dropped
    if slots == "random":
        priority = _words(key, link, position, draws.DRAW)[1]
    else:
        priority = np.zeros(len(link), np.uint32)  # ties keep the order of ids
    order = _order(link, np.minimum(position, 2), priority, count)
    start = np.concatenate([[0], np.cumsum(count)])
    return Tokens(start, node[order], dropped.astype(np.int32))


def _walk(
    graph: Graph, pairs: np.ndarray, key: draws.Key, config: SampleConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(link, position, node) int64 of every sample; positions number the places of two full trees
    level by level, roots 0 and 1."""
    link, position = np.divmod(np.arange(2 * len(pairs)), 2)
    node = pairs.reshape(-1)
    levels_walked = [(link, position, node)]
    start = 0
    for hop in range(config.hops):
        below = start + 2 * config.fanout**hop
        base = below + (position - start) * config.fanout
        banned = np.full(len(node), -1)
        if not config.reference_order:
            banned = np.where(node == pairs[link, 0], pairs[link, 1], banned)
            banned = np.where(node == pairs[link, 1], pairs[link, 0], banned)
        row, child, node = _neighbors(graph, node, banned, key, link, base, config.fanout)
        link, position, start = link[row], base[row] + child, below
        levels_walked.append((link, position, node))
    links, positions, nodes = (np.concatenate(part) for part in zip(*levels_walked, strict=True))
    return links, positions, nodes


def _neighbors(
    graph: Graph,
    node: np.ndarray,
    banned: np.ndarray,
    key: draws.Key,
    link: np.ndarray,
    base: np.ndarray,
    fanout: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, child 0 .. fanout - 1, neighbor): all neighbors of rows of at most `fanout`, else
    Floyd's draws without replacement; the banned neighbor does not count as one."""
    indptr, indices = graph.csr
    begin, degree = indptr[node].astype(np.int64), graph.degrees[node].astype(np.int64)
    skip = np.full(len(node), np.iinfo(np.int64).max)
    with_ban = np.flatnonzero(banned >= 0)
    if len(with_ban):
        at = _lower_bound(graph.csr, node[with_ban], banned[with_ban])
        has = (at < indptr[node[with_ban] + 1]) & (
            indices[np.minimum(at, len(indices) - 1)] == banned[with_ban] if len(indices) else False
        )
        with_ban, at = with_ban[has], at[has]
        skip[with_ban] = at - begin[with_ban]
        degree[with_ban] -= 1
    read_whole, drawn_from = np.flatnonzero(degree <= fanout), np.flatnonzero(degree > fanout)
    row = np.repeat(read_whole, degree[read_whole])
    ends = np.cumsum(degree[read_whole])
    child = np.arange(len(row)) - np.repeat(ends - degree[read_whole], degree[read_whole])
    local = child
    if len(drawn_from):
        chosen = _floyd(key, link[drawn_from], base[drawn_from], degree[drawn_from], fanout)
        row = np.concatenate([row, np.repeat(drawn_from, fanout)])
        child = np.concatenate([child, np.tile(np.arange(fanout), len(drawn_from))])
        local = np.concatenate([local, chosen.reshape(-1)])
    local = local + (local >= skip[row])
    return row, child, indices[begin[row] + local].astype(np.int64)


def _floyd(
    key: draws.Key, link: np.ndarray, base: np.ndarray, degree: np.ndarray, fanout: int
) -> np.ndarray:
    """int64 [R, fanout] distinct indices below degree > fanout, uniform over subsets (Floyd)."""
    row, child = np.repeat(np.arange(len(link)), fanout), np.tile(np.arange(fanout), len(link))
    bits = _words(key, link[row], base[row] + child, draws.DRAW)[0]
    top = (degree[row] - fanout + child).astype(np.uint32)
    drawn = np.asarray(draws.below(bits, top + 1)).reshape(-1, fanout).T.copy()
    top = top.reshape(-1, fanout).T
    for t in range(1, fanout):
        taken = (drawn[:t] == drawn[t]).any(0)
        drawn[t] = np.where(taken, top[t], drawn[t])
    return drawn.T.astype(np.int64)


def _words(key: draws.Key, link: np.ndarray, position: np.ndarray, purpose: int) -> draws.Key:
    """Words of positions of links, uint32 like `position`."""
    return draws.threefry(
        (key[0][link], key[1][link]),
        (position.astype(np.uint32), np.full(len(position), purpose, np.uint32)),
    )


def _lower_bound(graph: CSR, node: np.ndarray, value: np.ndarray) -> np.ndarray:
    """First place int64 of node's row that holds `value` or more."""
    low, high = graph.indptr[node].astype(np.int64), graph.indptr[node + 1].astype(np.int64)
    while (low < high).any():
        middle = (low + high) // 2
        open_ = low < high
        less = open_ & (graph.indices[np.minimum(middle, len(graph.indices) - 1)] < value)
        low, high = np.where(less, middle + 1, low), np.where(open_ & ~less, middle, high)
    return low


def _order(
    link: np.ndarray, rank: np.ndarray, priority: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """Order by (link, rank 0 .. 3, priority, place) of tokens that stand link by link."""
    start = np.cumsum(count) - count
    local = np.arange(len(link)) - start[link]
    key = (link.astype(np.uint64) << np.uint64(54)) | (rank.astype(np.uint64) << np.uint64(52))
    key |= (priority.astype(np.uint64) << np.uint64(20)) | local.astype(np.uint64)
    key.sort()
    return start[link] + (key & np.uint64((1 << 20) - 1)).astype(np.int64)


def _under_cap(
    link: np.ndarray,
    position: np.ndarray,
    count: np.ndarray,
    key: draws.Key,
    config: SampleConfig,
) -> np.ndarray:
    """bool per token: roots, then samples of the first hop and so on, each hop uniformly."""
    over = np.flatnonzero((count > config.size)[link])
    over_link, place = link[over], position[over]
    rank = np.searchsorted(levels(config.hops, config.fanout), place, side="right")
    many = np.where(count > config.size, count, 0)
    order = _order(over_link, rank, _words(key, over_link, place, draws.KEEP)[0], many)
    stays = np.ones(len(link), bool)
    late = np.arange(len(over)) - (np.cumsum(many) - many)[over_link] >= config.size
    stays[over[order[late]]] = False
    return stays


def fill(graph: Graph, tokens: Tokens, out: LinkBatch) -> None:
    """Writes tokens of at most 1024 links into `out`, whose arrays hold zeros and ids of -1."""
    count = np.diff(tokens.start)
    link = np.repeat(np.arange(len(count)), count)
    slot = np.arange(len(link)) - tokens.start[link]
    out.n[:], out.dropped[:] = count, tokens.dropped
    out.ids[link, slot] = tokens.node
    _hub_bits(graph, tokens, out)
    flat = np.asarray(out.adj_bits).reshape(-1)
    size, width = out.adj_bits.shape[1:]
    for row, column in _edges(graph, tokens, link, slot):
        where = (link[row] * size + slot[row]) * width + (column >> 5)
        np.bitwise_or.at(flat, where, np.uint32(1) << (column & 31).astype(np.uint32))
    out.adj_bits[:, 0, 0] &= np.uint32(0xFFFFFFFD)
    out.adj_bits[:, 1, 0] &= np.uint32(0xFFFFFFFE)


def _edges(
    graph: Graph, tokens: Tokens, link: np.ndarray, slot: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(token, slot of a neighbor in the same link) of induced edges, both ways, but not those
    between two hubs."""
    hub = graph.hub[tokens.node]
    bits = graph.csr.num_nodes.bit_length()
    table = _table((link << bits) | tokens.node)
    low = np.flatnonzero(hub < 0)
    degree = graph.degrees[tokens.node[low]].astype(np.int64)
    ends = np.cumsum(degree)
    begin = graph.csr.indptr[tokens.node[low]].astype(np.int64) - (ends - degree)
    cuts = np.searchsorted(ends, np.arange(READ, (ends[-1] if len(ends) else 0) + READ, READ))
    at = 0
    for stop in [*cuts.tolist(), len(low)]:
        if stop <= at:
            continue
        part, start = slice(at, stop), int(ends[at] - degree[at])
        row = np.repeat(np.arange(at, stop), degree[part])
        neighbor = graph.csr.indices[begin[row] + np.arange(start, start + len(row))]
        row = low[row]
        other = _find(table, (link[row] << bits) | neighbor)
        hit = np.flatnonzero(other >= 0)
        row, other = row[hit], other[hit]
        yield row, slot[other]
        back = np.flatnonzero(hub[other] >= 0)  # rows of hubs are not read
        yield other[back], slot[row[back]]
        at = stop


def _hub_bits(graph: Graph, tokens: Tokens, out: LinkBatch) -> None:
    """Writes the edges among the hubs of each link."""
    nobody = len(graph.dense) - 1
    hub = graph.hub[tokens.node].astype(np.int64)
    hub[hub < 0] = nobody
    count = np.diff(tokens.start)
    hubs = np.add.reduceat(np.append(hub < nobody, False).astype(np.int64), tokens.start[:-1])
    order = np.argsort(count, kind="stable")
    order = order[hubs[order] > 1]
    dense, at = graph.dense.reshape(-1), 0
    while at < len(order):  # links of about the same size go together
        wide = 32 * words(int(count[order[at]]))
        stop = int(np.searchsorted(count[order], wide, side="right"))
        group = order[at : min(stop, at + max(1, READ // wide**2))]
        at += len(group)
        place = np.arange(wide)
        token = np.minimum(tokens.start[group][:, None] + place, len(hub) - 1)
        rank = np.where(place < count[group][:, None], hub[token], nobody)
        edge = dense.take((rank * (nobody + 1))[:, :, None] + rank[:, None, :])
        bits = np.packbits(edge, axis=2, bitorder="little").view("<u4")
        rows = min(wide, out.adj_bits.shape[1])
        out.adj_bits[group, :rows, : wide // 32] = bits[:, :rows]


class _Level(NamedTuple):
    shift: np.uint64
    factor: np.uint64
    token: np.ndarray  # int32, -1 where empty


def _table(keys: np.ndarray) -> tuple[np.ndarray, list[_Level]]:
    """Hash tables of distinct keys: what finds no place in one goes to the next."""
    levels, waiting = [], np.arange(len(keys), dtype=np.int32)
    factor = GOLDEN
    while len(waiting):
        bits = max(4, (8 * len(waiting)).bit_length())
        token = np.full(1 << bits, -1, np.int32)
        level = _Level(np.uint64(64 - bits), np.uint64(factor), token)
        place = _hash(level, keys[waiting])
        token[place] = waiting
        waiting = waiting[token[place] != waiting]
        levels.append(level)
        factor = (factor * GOLDEN | 1) % (1 << 64)
    return keys, levels


def _hash(level: _Level, keys: np.ndarray) -> np.ndarray:
    return ((keys.view(np.uint64) * level.factor) >> level.shift).view(np.int64)


def _find(table: tuple[np.ndarray, list[_Level]], queries: np.ndarray) -> np.ndarray:
    """Index int32 of each query among the keys, -1 where it is none of them."""
    keys, levels = table
    index = np.full(len(queries), -1, np.int32)
    query = np.arange(len(queries))
    for level in levels:
        token = level.token[_hash(level, queries)]
        occupied = np.flatnonzero(token >= 0)  # an empty place: no level holds the key
        token, query, queries = token[occupied], query[occupied], queries[occupied]
        equal = keys[token] == queries
        index[query[equal]] = token[equal]
        query, queries = query[~equal], queries[~equal]
    return index
