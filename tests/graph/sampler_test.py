# SPDX-License-Identifier: Apache-2.0
"""Samplers on the host and on a device against sets and dictionaries."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from graph import csr, sample
from graph.sampling import buckets, device, draws, host
from graph.sampling.config import SampleConfig, check_slots, ladder, num_slots

SIZE, COPIES = 12, 200  # nodes of a random graph, and how many of them


def random_graphs(seed: int = 0) -> csr.CSR:
    """200 random graphs of 12 nodes and of all densities, side by side in one."""
    rng = np.random.default_rng(seed)
    chosen = np.triu(rng.random((COPIES, SIZE, SIZE)) < rng.random((COPIES, 1, 1)), 1)
    copy, u, v = np.nonzero(chosen)
    return csr.build(np.stack([copy * SIZE + u, copy * SIZE + v], 1).astype(np.int32), COPIES * 12)


def hubs(nodes: int = 150, seed: int = 1) -> csr.CSR:
    """A few nodes that know most of the others, many with little, the last ten with no edge."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, nodes + 1)
    ends = rng.choice(nodes - 10, (900, 2), p=share[:-10] / share[:-10].sum())
    return csr.build(csr.clean(ends, nodes).edges, nodes)


def links_of(graph: csr.CSR, count: int, seed: int = 2) -> np.ndarray:
    """Half edges, half pairs of any nodes; the first has two isolated ends where there are two."""
    rng = np.random.default_rng(seed)
    edges = rng.permutation(csr.edges_of(graph))[: count // 2]
    some = rng.permutation(graph.num_nodes)[: 2 * (count - len(edges))].reshape(-1, 2)
    alone = np.flatnonzero(csr.degrees(graph) == 0)
    some[0] = alone[:2] if len(alone) > 1 else some[0]
    return np.concatenate([some, rng.permuted(edges, axis=1)]).astype(np.int32)


def sets(graph: csr.CSR) -> dict[int, set[int]]:
    parts = np.split(graph.indices, graph.indptr[1:-1])
    return {node: set(part.tolist()) for node, part in enumerate(parts)}


def ball(known: dict[int, set[int]], s: int, t: int, hops: int) -> dict[int, int]:
    """Distance from the nearer root of all nodes within `hops`, the edge (s, t) taken out."""
    found, frontier = {s: 0, t: 0}, [s, t]
    for hop in range(1, hops + 1):
        step = {y for x in frontier for y in known[x] if {x, y} != {s, t}}
        frontier = [y for y in step if y not in found]
        found |= dict.fromkeys(frontier, hop)
    return found


def matrix(one: sample.LinkBatch, row: int) -> np.ndarray:
    """0 and 1 [N, N] of a link, read off the words."""
    size = one.ids.shape[1]
    column = np.arange(size)
    return np.asarray(one.adj_bits)[row][:, column // 32] >> (column % 32).astype(np.uint32) & 1


def equal(one: sample.LinkBatch, other: sample.LinkBatch) -> bool:
    assert [x.dtype for x in one] == [x.dtype for x in other]
    return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


def check_against_sets(
    graph: csr.CSR, pairs: np.ndarray, config: SampleConfig, found: sample.LinkBatch
) -> None:
    """Everything that holds of a sample whatever was drawn, and all that is fixed."""
    known, f, size = sets(graph), config.fanout, config.size
    assert found.adj_bits.shape == (len(pairs), size, -(-size // 32))
    for row, (s, t) in enumerate(pairs.tolist()):
        n, ids = int(found.n[row]), np.asarray(found.ids)[row].tolist()
        tokens, near = ids[:n], ball(known, s, t, config.hops)
        assert tokens[:2] == [s, t] and len(set(tokens)) == n and set(ids[n:]) <= {-1}
        assert set(tokens) <= set(near)
        wanted = [[{i, j} != {s, t} and j in known[i] for j in tokens] for i in tokens]
        seen = matrix(found, row)
        assert np.array_equal(seen[:n, :n], np.array(wanted, int).reshape(n, n))
        assert not seen[n:].any() and not seen[:, n:].any()
        assert seen[2:n].any(1).all()  # none but a root is without an edge
        for root, other in ((s, t), (t, s)):
            reach = known[root] - {other}
            if not found.dropped[row]:
                drawn = reach & set(tokens)
                assert len(drawn) >= min(len(reach), f)
                assert len(reach) > f or drawn == reach
        if max(len(known[x] - {t if x == s else s if x == t else x}) for x in near) <= f:
            assert n + int(found.dropped[row]) == len(near)


@pytest.mark.parametrize(
    "config",
    [
        SampleConfig(1, 3),
        SampleConfig(1, 12),
        SampleConfig(2, 4),
        SampleConfig(2, 11),
        SampleConfig(2, 4, cap=7),
        SampleConfig(3, 2),
    ],
    ids=str,
)
def test_samples_equal_brute_force(config: SampleConfig) -> None:
    graph = random_graphs()
    rng = np.random.default_rng(5)
    ends = np.stack([rng.permutation(SIZE)[:2] for _ in range(COPIES)])
    pairs = (ends + SIZE * np.arange(COPIES)[:, None]).astype(np.int32)
    found = host.sample(host.prepare(graph), pairs, 7, 0, config)
    check_against_sets(graph, pairs, config, found)
    assert csr.contains(graph, pairs).any() and not csr.contains(graph, pairs).all()


CASES = [
    (SampleConfig(1, 5), False, "random"),
    (SampleConfig(2, 3), True, "random"),
    (SampleConfig(2, 3), True, "sorted"),
    (SampleConfig(2, 4, cap=9), False, "random"),
    (SampleConfig(1, 6, cap=6, reference_order=True), False, "random"),
    (SampleConfig(3, 2, cap=20), False, "sorted"),
]


@pytest.mark.parametrize(("config", "dense", "slots"), CASES, ids=str)
def test_device_equals_host(
    config: SampleConfig, dense: bool, slots: sample.Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with hubs and without, for links with isolated ends, in one chunk and in many,
    with few and many links looked up at a time."""
    graph = hubs()
    pairs = links_of(graph, 48)
    monkeypatch.setattr(device, "PAIRS", 10 * config.size**2)
    on_device = device.sample(device.put(graph, dense), pairs, 3, 9, config, slots=slots)
    check = lambda: equal(
        on_device, host.sample(host.prepare(graph), pairs, 3, 9, config, slots=slots)
    )
    assert check()
    for reach, most, read, chunk in ((2, 4096, 1 << 18, 512), (5, 8, 40, 7), (1000, 1, 1, 1)):
        monkeypatch.setattr(host, "REACH", reach)
        monkeypatch.setattr(host, "HUBS", most)
        monkeypatch.setattr(host, "READ", read)
        monkeypatch.setattr(host, "CHUNK", chunk)
        assert check(), (reach, most, read, chunk)
    assert on_device.n[0] == 2 and not np.asarray(on_device.adj_bits)[0].any()
    if not config.reference_order:
        check_against_sets(graph, pairs, config, on_device)


def test_device_equals_host_on_all_random_graphs() -> None:
    graph, config = random_graphs(3), SampleConfig(2, 3)
    pairs = links_of(graph, 400)
    on_device = device.sample(device.put(graph), pairs, 1, 2, config)
    assert equal(on_device, host.sample(host.prepare(graph), pairs, 1, 2, config))


def without(graph: csr.CSR, edge: np.ndarray) -> csr.CSR:
    edges = csr.edges_of(graph)
    return csr.build(edges[(edges != np.sort(edge)).any(1)], graph.num_nodes)


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_whether_the_target_is_an_edge_cannot_be_seen(hops: int) -> None:
    """For every fan-out; the order of the released code shows it."""
    graph = hubs()
    edges = csr.edges_of(graph)
    degree = csr.degrees(graph)
    order = np.argsort(-degree[edges].sum(1), kind="stable")
    pairs = edges[order[[0, 1, 5, 60, 200, len(edges) - 1]]]
    ready = host.prepare(graph)
    removed = [host.prepare(without(graph, pair)) for pair in pairs]
    shown = set()
    for fanout in range(1, 41) if hops == 1 else range(1, 12) if hops == 2 else range(1, 5):
        for order_of_released_code in (False, True):
            config = SampleConfig(hops, fanout, reference_order=order_of_released_code)
            for pair, less in zip(pairs, removed, strict=True):
                one = host.sample(ready, pair[None], 4, 1, config)
                other = host.sample(less, pair[None], 4, 1, config)
                assert not matrix(one, 0)[0, 1] and not matrix(one, 0)[1, 0]
                if not order_of_released_code:
                    assert equal(one, other), (fanout, pair)
                elif not equal(one, other):
                    shown.add(fanout)
    assert len(shown) > 3, "the released order should leak"


def test_the_target_cannot_be_seen_on_a_device() -> None:
    graph, config = hubs(), SampleConfig(2, 3)
    edge = csr.edges_of(graph)[:1]
    found = [
        device.sample(device.put(g), edge, 1, 1, config) for g in (graph, without(graph, edge[0]))
    ]
    assert equal(*found)


def stars(leaves: int, copies: int) -> tuple[csr.CSR, np.ndarray]:
    """Copies of a star, each with a lone node; links (middle, lone)."""
    size = leaves + 2
    one = np.stack([np.zeros(leaves, int), np.arange(1, leaves + 1)], 1)
    edges = (one[None] + size * np.arange(copies)[:, None, None]).reshape(-1, 2)
    links = np.stack([size * np.arange(copies), size * np.arange(copies) + size - 1], 1)
    return csr.build(edges.astype(np.int32), size * copies), links.astype(np.int32)


def p_value(counts: np.ndarray) -> float:
    """Of equal chances for all cells."""
    mean = counts.mean()
    return float(chi2.sf(((counts - mean) ** 2 / mean).sum(), len(counts) - 1))


def test_draws_are_uniform_over_subsets_and_orders() -> None:
    """All C(7, 3) subsets in all 3! orders of slots are equally likely."""
    graph, links = stars(7, 12_000)
    config = SampleConfig(1, 3)
    found = host.sample(host.prepare(graph), links, 11, 0, config)
    assert (found.n == 5).all()
    leaves = found.ids[:, 2:5] - links[:, :1]
    assert leaves.min() == 1 and leaves.max() == 7
    names = {order: i for i, order in enumerate(itertools.permutations(range(1, 8), 3))}
    counts = np.bincount([names[tuple(x)] for x in leaves.tolist()], minlength=len(names))
    assert p_value(counts) > 1e-3
    included = np.bincount(leaves.reshape(-1), minlength=8)[1:]
    share, total = 3 / 7, len(links)
    statistic = 6 / 7 * ((included - total * share) ** 2).sum() / (total * share * (1 - share))
    assert chi2.sf(statistic, 6) > 1e-3
    again = host.sample(host.prepare(graph), links, 11, 1, config)
    same = (np.sort(again.ids[:, 2:5], 1) == np.sort(found.ids[:, 2:5], 1)).all(1).mean()
    assert abs(same - 1 / 35) < 4 * np.sqrt(1 / 35 / total)  # epochs are independent


def test_those_over_the_cap_go_by_hop_and_then_by_chance() -> None:
    """Trees of two children of three leaves each: under a cap of six both children stay, two of
    the leaves do, and slots tell nothing of the hop."""
    copies, size = 6000, 10
    one = np.array(
        [[0, 1], [0, 2], *([1, 3 + i] for i in range(3)), *([2, 6 + i] for i in range(3))]
    )
    edges = (one[None] + size * np.arange(copies)[:, None, None]).reshape(-1, 2)
    graph = host.prepare(csr.build(edges.astype(np.int32), size * copies))
    links = np.stack([size * np.arange(copies), size * np.arange(copies) + 9], 1).astype(np.int32)
    found = host.sample(graph, links, 2, 0, SampleConfig(2, 4, cap=6))
    assert (found.n == 6).all() and (found.dropped == 4).all()
    tokens = found.ids[:, 2:] - links[:, :1]
    assert (np.sort(tokens, 1)[:, :2] == [1, 2]).all()
    pairs = [tuple(sorted(set(x) - {1, 2})) for x in tokens.tolist()]
    names = {pair: i for i, pair in enumerate(itertools.combinations(range(3, 9), 2))}
    assert p_value(np.bincount([names[pair] for pair in pairs], minlength=15)) > 1e-3
    assert p_value((tokens == 1).sum(0)) > 1e-3 and p_value((tokens == 7).sum(0)) > 1e-3
    small = host.sample(graph, links, 2, 0, SampleConfig(2, 4, cap=3))
    first = small.ids[:, 2] - links[:, 0]
    assert set(first.tolist()) == {1, 2} and p_value(np.bincount(first)[1:]) > 1e-3
    assert (small.dropped == 7).all()


def test_nothing_but_the_link_decides_its_sample() -> None:
    """Not the batch, its order, workers, nor how far ahead is read."""
    graph = hubs()
    ready, config = host.prepare(graph), SampleConfig(2, 4, cap=20)
    pairs = np.tile(links_of(graph, 40), (40, 1))  # several chunks
    whole = host.sample(ready, pairs, 5, 6, config)
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = host.sample(ready, pairs[order], 5, 6, config, workers=3)
    assert equal(shuffled, sample.LinkBatch(*(x[order] for x in whole)))
    cut = [pairs[at : at + 129] for at in range(0, len(pairs), 129)]
    for workers, depth in ((1, 1), (3, 2)):
        parts = host.load(ready, iter(cut), 5, 6, config, workers=workers, depth=depth)
        joined = sample.LinkBatch(*(np.concatenate(x) for x in zip(*parts, strict=True)))
        assert equal(joined, whole)
    first = host.sample(ready, pairs[:40], 5, 6, config)
    other = host.sample(ready, pairs[:40], 5, 7, config)
    assert not equal(first, other) and not equal(
        first, host.sample(ready, pairs[:40], 6, 6, config)
    )
    on_device = device.put(graph)
    few = device.sample(on_device, pairs[8:24], 5, 6, config)
    assert equal(few, sample.LinkBatch(*(x[8:24] for x in whole)))
    inside = jax.jit(lambda g, p, e: device.sample(g, p, 5, e, config))
    assert equal(inside(on_device, jnp.asarray(pairs[8:24]), jnp.uint32(6)), few)


def test_slots_sorted_by_id() -> None:
    graph = hubs()
    found = host.sample(
        host.prepare(graph), links_of(graph, 20), 0, 0, SampleConfig(2, 5), slots="sorted"
    )
    for ids, n in zip(found.ids, found.n, strict=True):
        assert (np.diff(ids[2:n]) > 0).all()


def test_buckets_hold_every_link_once() -> None:
    graph = hubs()
    config = SampleConfig(2, 5, buckets=(8, 16, 32, num_slots(2, 5)))
    ready, pairs = host.prepare(graph), links_of(graph, 90)
    wide = host.sample(ready, pairs, 1, 0, config)
    grouped = buckets.group(wide, config.sizes, 16)
    direct = host.bucketed(ready, pairs, 1, 0, config, 16)
    assert len(grouped) == len(direct) > 4
    seen = []
    for one, other in zip(grouped, direct, strict=True):
        assert equal(one.batch, other.batch)
        assert np.array_equal(one.index, other.index) and np.array_equal(one.weight, other.weight)
        size = one.batch.ids.shape[1]
        assert one.batch.ids.shape[0] == len(one.weight) == 16 and size in config.sizes
        smaller = [s for s in config.sizes if s < size]
        assert (one.batch.n > max(smaller, default=0)).all()
        real = one.weight == 1
        assert real[0] and (one.index[~real] == one.index[real][-1]).all()
        seen += one.index[real].tolist()
        for row, link in enumerate(one.index):
            n = wide.n[link]
            assert np.array_equal(matrix(one.batch, row)[:n, :n], matrix(wide, link)[:n, :n])
    assert sorted(seen) == list(range(90))
    assert equal(buckets.repad(buckets.fit(wide, config.sizes), config.size), wide)
    tight = host.sample(ready, pairs[:4], 1, 0, config, tight=True)
    assert tight.ids.shape[1] < config.size
    first = sample.LinkBatch(*(x[:4] for x in wide))
    assert equal(tight, buckets.fit(first, config.sizes))
    with pytest.raises(ValueError, match="a link has"):
        buckets.repad(wide, 8)
    with pytest.raises(ValueError, match="rows=0"):
        buckets.group(wide, config.sizes, 0)
    assert host.bucketed(ready, pairs[:0], 1, 0, config, 16) == []
    assert ladder(842) == (32, 64, 128, 256, 512, 842) and ladder(82) == (32, 64, 82)


def test_words_of_threefry() -> None:
    """The published test vectors of Threefry-2x32-20, and products against whole numbers."""
    ones, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    for key, counter, wanted in (
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((ones, ones), (ones, ones), (0x1CB996FC, 0xBB002BE7)),
        (pi[2:], pi[:2], (0xC4923A9C, 0x483DF7A0)),
    ):
        for module in (np, jnp):
            key_words = tuple(module.asarray(np.array([k], np.uint32)) for k in key)
            words = tuple(module.asarray(np.array([c], np.uint32)) for c in counter)
            found = draws.threefry(key_words, words)
            assert tuple(int(x[0]) for x in found) == wanted
    edge = [0, 1, 2, 0xFFFF, 0x10000, 0x10001, 0x7FFFFFFF, 0x80000000, ones - 1, ones]
    bits, bound = np.array(list(itertools.product(edge, edge[1:])), np.uint32).T
    wanted = [int(a) * int(b) >> 32 for a, b in zip(bits, bound, strict=True)]
    assert draws.below(bits, bound).tolist() == wanted
    assert draws.below(jnp.asarray(bits), jnp.asarray(bound)).tolist() == wanted


def test_order_of_endpoints_is_a_fair_coin_of_the_pair() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 1000, (4000, 2)).astype(np.int32)
    one, other = draws.orient(pairs, 3, 0), draws.orient(pairs[:, ::-1], 3, 0)
    assert np.array_equal(one, other) and one.dtype == np.int32
    assert np.array_equal(np.sort(one, 1), np.sort(pairs, 1))
    up = one[:, 0] < one[:, 1]
    assert abs(up.mean() - 0.5) < 0.03
    later = draws.orient(pairs, 3, 1)
    assert abs((later[:, 0] == one[:, 0]).mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([[0, 150]], "node id 150"),
        ([[-1, 3]], "negative"),
        ([[1, 2], [4, 150]], "count from 1"),
        ([[1, 2], [5, 5]], "link 1"),
        ([1, 2], r"\[B, 2\]"),
        ([[1, 2, 3]], "wanted"),
        ([[0.5, 1.0]], "integers"),
    ],
)
def test_bad_links_are_refused(pairs: list, words: str) -> None:
    graph, config = hubs(), SampleConfig(1, 2)
    for ready in (host.prepare(graph), device.put(graph)):
        with pytest.raises(ValueError, match=words):
            sample.sample(ready, np.asarray(pairs), 0, 0, config)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hops": 0}, "hops=0"),
        ({"hops": 4}, "hops=4"),
        ({"fanout": 0}, "fanout=0"),
        ({"hops": 3, "fanout": 100}, "slots"),
        ({"cap": 1}, "cap=1"),
        ({"cap": 15}, "cap=15"),
        ({"buckets": (16, 8)}, "buckets"),
        ({"buckets": (4, 8)}, "add 14"),
    ],
)
def test_bad_configs_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SampleConfig(**{"hops": 2, "fanout": 2} | fields)
    assert num_slots(2, 2) == 14


def test_bad_arguments_are_refused() -> None:
    graph, config = hubs(), SampleConfig(1, 2)
    pairs = np.array([[0, 1]], np.int32)
    for ready in (host.prepare(graph), device.put(graph)):
        with pytest.raises(ValueError, match="seed=-1"):
            sample.sample(ready, pairs, -1, 0, config)
        with pytest.raises(ValueError, match="epoch=4294967296"):
            sample.sample(ready, pairs, 0, 1 << 32, config)
    with pytest.raises(ValueError, match="slots='best'"):
        check_slots("best")
    with pytest.raises(ValueError, match="workers=0"):
        host.sample(host.prepare(graph), pairs, 0, 0, config, workers=0)
    with pytest.raises(ValueError, match="depth=0"):
        next(host.load(host.prepare(graph), [pairs], 0, 0, config, depth=0))
    with pytest.raises(ValueError, match="backend"):
        sample.prepare(graph, "sharded")


def test_offsets_never_wrap() -> None:
    entries = 1 << 31  # a view of one number: no memory
    huge = csr.CSR(np.array([0, entries], np.int64), np.broadcast_to(np.int32(0), entries))
    with pytest.raises(ValueError, match="2147483648 entries"):
        device.put(huge)
    wide = csr.CSR(np.zeros(70_001, np.int32), np.zeros(0, np.int32))
    with pytest.raises(ValueError, match="70000 nodes"):
        device.put(wide, dense=True)
    assert device.put(wide).dense is None and device.put(hubs()).dense is not None


def test_a_graph_without_edges() -> None:
    graph = csr.build(np.zeros((0, 2), np.int32), 5)
    pairs, config = np.array([[0, 4], [3, 1]], np.int32), SampleConfig(2, 2)
    found = host.sample(host.prepare(graph), pairs, 0, 0, config)
    assert found.n.tolist() == [2, 2] and not found.adj_bits.any()
    for dense in (False, True):
        assert equal(device.sample(device.put(graph, dense), pairs, 0, 0, config), found)


def test_the_faster_backend_is_one_of_the_two() -> None:
    graph = hubs()
    assert sample.faster(graph, links_of(graph, 16), SampleConfig(1, 2)) in ("host", "device")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "hops", "fanout", "mean"),
    [("citeseer", 2, 20, 32), ("pubmed", 2, 20, 138), ("USAir", 1, 75, 65),
     ("Yeast", 1, 75, 51), ("PB", 1, 75, 97), ("Power", 1, 75, 8), ("BlogCatalog", 1, 75, 128)],
)  # fmt: skip
def test_tokens_per_link_of_real_graphs(
    data_root: Path, name: str, hops: int, fanout: int, mean: float
) -> None:
    """Mean tokens of positive links, as counted for PENCIL's specification."""
    with np.load(data_root / "graph" / f"{name}.npz") as file:
        edges = file["train_pos" if "train_pos" in file.files else "edges"].astype(np.int32)
        nodes = int(file["num_nodes"])
    edges = csr.clean(edges, nodes).edges
    graph = host.prepare(csr.build(edges, nodes))
    links = np.random.default_rng(0).permutation(edges)[:1500]
    config = SampleConfig(hops, fanout, buckets=ladder(num_slots(hops, fanout)))
    found = host.sample(graph, links, 0, 0, config, tight=True)
    assert float(np.mean(found.n)) == pytest.approx(mean, rel=0.06)
    assert not found.dropped.any()
