# SPDX-License-Identifier: Apache-2.0
"""PENCIL against one-hot vectors, a NumPy layer, and what it must not depend on."""

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from experiments.runner import checkpoint
from graph import bits, pencil
from graph.config import OptimConfig, PencilConfig
from graph.pencil import Pencil
from graph.sample import LinkBatch
from tests import jitter
from tests.graph import graphs
from tests.jitter import jittered
from tests.tiers import deep

SMALL = dict(slots=12, width=16, heads=2, mlp_width=24, layers=2, scan=False)
ADJ = graphs.random_graph(11, 0.3, 0)
PAIRS = [(0, 1), (2, 7), (5, 3), (8, 9)]


def config(**changes: Any) -> PencilConfig:
    return PencilConfig(**{**SMALL, **changes})


def some(slots: int = 12, **changes: Any) -> LinkBatch:
    return graphs.links(ADJ, PAIRS, **{"slots": slots, "hops": 1, **changes})


def start(cfg: PencilConfig, batch: LinkBatch, features: Any = None, seed: int = 0) -> Any:
    return jax.jit(Pencil(cfg).init)(jax.random.key(seed), batch, features)


def loud(variables: Any, seed: int = 1) -> Any:
    """Every trained value moved, so that nothing is hidden by zeros and ones of the start."""
    rng = np.random.default_rng(seed)
    move = lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32)
    moved = jax.tree.map(move, jax.device_get(variables["params"]))
    return {**variables, "params": jax.tree.map(jnp.asarray, moved)}


def logits(cfg: PencilConfig, variables: Any, batch: LinkBatch, features: Any = None) -> np.ndarray:
    return np.asarray(jax.jit(Pencil(cfg).apply)(variables, batch, features))


def count(params: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def test_bits_round_trip() -> None:
    """Both kinds of arrays, widths on both sides of a word, against bits set one by one."""
    for n in (5, 32, 40):
        adj = graphs.random_graph(n, 0.4, n)
        want = graphs.words(adj)
        assert np.array_equal(bits.pack(adj), want)
        assert np.array_equal(bits.pack(jnp.asarray(adj)), want)
        assert np.array_equal(bits.unpack(want, n), adj)
        assert np.array_equal(bits.unpack(jnp.asarray(want), n), adj)
    with pytest.raises(ValueError, match="columns=33"):
        bits.unpack(np.zeros(1, np.uint32), 33)


def one_hot(cfg: PencilConfig, adj: np.ndarray, n: int) -> np.ndarray:
    """Tokens of one subgraph as the long vectors [S, D_in], written out one by one."""
    S, N = cfg.slots, len(adj)

    def half(i: int) -> list[float]:
        name = [float(j == i) for j in range(S)]
        row = [float(j < N and adj[i, j]) for j in range(S)]
        return name if cfg.scheme == "edge_list" else name + row

    zero = [0.0] * len(half(0))
    rows: list[list[float]] = []
    if cfg.scheme == "adjacency_row":
        for i in range(N):
            rows.append([*half(i), 1, 0] if i < n else [0.0] * cfg.input_width)
        return np.array([*rows, [*half(0), 0, 1], [*half(1), 0, 1]])
    for i in range(N):
        rows.append([*half(i), *zero, 1, 0, 0] if i < n else [0.0] * cfg.input_width)
    edges = [(i, j) for i in range(N) for j in range(i + 1, N) if adj[i, j]][: cfg.edge_tokens]
    rows += [[*half(i), *half(j), 0, 1, 0] for i, j in edges]
    rows += [[0.0] * cfg.input_width] * (cfg.edge_tokens - len(edges))
    return np.array([*rows, [*half(0), *half(1), 0, 0, 1]])


@pytest.mark.parametrize("scheme", ["adjacency_row", "edge_list", "full"])
@pytest.mark.parametrize("width", [8, 128], ids=["wide_input", "narrow_input"])
def test_fused_embedding_equals_one_hot(scheme: str, width: int) -> None:
    """Sums of rows of P are the matrix product, for D_in on both sides of d, in a bucket too."""
    cfg = config(scheme=scheme, width=width, edge_tokens=9, slots=14)
    batch = some(11)
    P = pencil.projection(jax.random.key(0), cfg.input_width, width)
    _, x = jax.jit(pencil.embed, static_argnums=0)(cfg, P, batch)
    adj = graphs.dense(batch)
    for b in range(len(PAIRS)):
        want = one_hot(cfg, adj[b], int(batch.n[b])) @ np.asarray(P, np.float64)
        np.testing.assert_allclose(x[b], want, atol=1e-5)


def test_projection_is_orthonormal() -> None:
    for rows, columns in ((20, 50), (50, 20)):
        P = np.asarray(pencil.projection(jax.random.key(1), rows, columns), np.float64)
        gram = P @ P.T if rows <= columns else P.T @ P
        np.testing.assert_allclose(gram, np.eye(min(rows, columns)), atol=1e-5)


def test_propagation_operator() -> None:
    """The matrix behind A~, read off by applying it to the identity."""
    N, S = 6, 8
    batch = graphs.links(graphs.random_graph(7, 0.3, 3), [(0, 1), (2, 5)], slots=N)
    batch = batch._replace(n=np.array([6, 4], np.int32))  # the last tokens of link 1 are not real
    adj, valid = pencil.read(batch)
    empty = jnp.zeros((2, 0), jnp.int32)
    tokens = pencil.Tokens(adj, valid, jnp.ones((2, S), jnp.int32), empty, empty)
    eye = jnp.broadcast_to(jnp.eye(S)[None], (2, S, S))
    A = np.asarray(pencil.propagate("adjacency_row", tokens, eye))
    plain = graphs.dense(batch)
    for b, n in enumerate((6, 4)):
        want = np.zeros((S, S))
        for i in range(n):
            row = plain[b, i, :n] + np.eye(n)[i]
            want[i, :n] = row / row.sum()
        want[6], want[7] = want[0], want[1]
        np.testing.assert_allclose(A[b], want, atol=1e-6)
        np.testing.assert_allclose(A[b].sum(1), [1] * n + [0] * (N - n) + [1, 1], atol=1e-6)
    assert not A[:, :, N:].any() and not A[1, :, 4:].any()


def test_propagation_of_edge_tokens() -> None:
    """Edges and the link average their ends in "edge_list", take the first end's row in "full"."""
    adj = np.zeros((4, 4), bool)
    for i, j in ((0, 2), (1, 2), (2, 3)):
        adj[i, j] = adj[j, i] = True
    ids = np.arange(4, dtype=np.int32)
    batch = graphs.stack([LinkBatch(graphs.words(adj), np.int32(4), ids, np.int32(0))])
    dense, valid = pencil.read(batch)
    sends, receives = pencil.edge_slots(dense, 4)
    assert sends.tolist() == [[0, 1, 2, 4]] and receives.tolist() == [[2, 2, 3, 4]]
    tokens = pencil.Tokens(dense, valid, jnp.ones((1, 9), jnp.int32), sends, receives)
    A = np.asarray(pencil.propagate("edge_list", tokens, jnp.eye(9)[None])[0])[:, :4]
    want = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]) / 2
    np.testing.assert_allclose(A, [*np.eye(4), *want], atol=1e-6)
    A = np.asarray(pencil.propagate("full", tokens, jnp.eye(9)[None])[0])[:, :4]
    nodes = adj + np.eye(4)
    nodes /= nodes.sum(1, keepdims=True)
    edges = [nodes[0], nodes[1], nodes[2], 0 * nodes[0]]
    np.testing.assert_allclose(A, [*nodes, *edges, nodes[0]], atol=1e-6)
    assert pencil.edges_over(batch, 2).tolist() == [1]
    assert pencil.edges_over(batch, 4).tolist() == [0]


def reference(cfg: PencilConfig, params: Any, P: np.ndarray, adj: np.ndarray, n: int) -> float:
    """Logit of one subgraph in NumPy float64, from the equations."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    N = len(adj)
    X = one_hot(cfg, adj, n)
    mask = np.r_[np.arange(N) < n, True, True]
    A = np.zeros((N + 2, N + 2))
    A[:N, :N] = np.where(mask[:N, None], adj + np.eye(N), 0)
    A[N], A[N + 1] = A[0], A[1]
    A /= A.sum(1, keepdims=True) + 1e-8
    H = X @ P

    def lin(p: Any, x: np.ndarray) -> np.ndarray:
        return x @ p["kernel"] + p["bias"]

    def norm(p: Any, x: np.ndarray) -> np.ndarray:
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-12) * p["scale"] + p["bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))

    hd = cfg.width // cfg.heads
    for index in range(cfg.layers):
        p = jax.tree.map(lambda x, i=index: x[i], params["layers"])
        q, k, v = (lin(p["attn"][name], H) for name in "qkv")
        out = np.zeros_like(H)
        for h in range(cfg.heads):
            at = slice(h * hd, h * hd + hd)
            s = np.where(mask[None], q[:, at] @ k[:, at].T / np.sqrt(hd), -np.inf)
            out[:, at] = scipy.special.softmax(s, axis=-1) @ v[:, at]
        Z = norm(p["attn_norm"], H + lin(p["attn"]["o"], out))
        Z = norm(p["mlp_norm"], Z + lin(p["down"], gelu(lin(p["up"], Z))))
        H = Z + gelu(lin(p["propagate"], A @ Z))
    return float(lin(params["head"], np.r_[H[-2], H[-1]])[0])


def test_layer_equals_numpy() -> None:
    """Two links of other sizes, every parameter away from its start."""
    cfg = config(layers=1)
    batch = some()
    variables = loud(start(cfg, batch))
    got = logits(cfg, variables, batch)
    P = np.asarray(variables["frozen"]["projection"], np.float64)
    adj = graphs.dense(batch)
    assert len(set(batch.n.tolist())) > 1
    for b in range(len(PAIRS)):
        want = reference(cfg, variables["params"], P, adj[b], int(batch.n[b]))
        np.testing.assert_allclose(got[b], want, atol=1e-5, rtol=1e-5)


COUNTS = [
    (512, 2048, 3, 10_246_145),
    (512, 2048, 4, 13_661_185),
    (512, 2048, 8, 27_321_345),
    (1024, 2048, 2, 18_900_993),
    (256, 512, 1, 593_409),
]


@pytest.mark.parametrize(("width", "mlp_width", "layers", "wanted"), COUNTS)
@pytest.mark.parametrize("scan", [False, True])
def test_parameter_counts(width: int, mlp_width: int, layers: int, wanted: int, scan: bool) -> None:
    cfg = PencilConfig(842, width, 4, mlp_width, layers, scan=scan)
    shapes = jax.eval_shape(lambda: start(cfg, some()))
    assert count(shapes["params"]) == wanted
    assert shapes["frozen"]["projection"].shape == (1686, width)


def test_initial_values() -> None:
    """BERT's maps from U(+-1 / sqrt(fan in)), biases too; head and propagation from N(0, .02^2)."""
    cfg = PencilConfig(8, 64, 4, 256, 1, fusion="early", scan=False)
    feats = np.ones((len(PAIRS), 8, 300), np.float32)
    params = start(cfg, some(8), feats)["params"]
    layer = jax.tree.map(lambda x: x[0], params["layers"])
    for part, fan_in in ((layer["attn"]["q"], 64), (layer["up"], 64), (layer["down"], 256)):
        for name in ("kernel", "bias"):
            assert np.abs(part[name]).max() <= fan_in**-0.5
        assert abs(np.std(part["kernel"]) / (fan_in**-0.5 / 3**0.5) - 1) < 0.05
        assert np.abs(part["bias"]).max() > 0.5 * fan_in**-0.5
    for part in (layer["propagate"], params["features"]):
        assert not np.any(part["bias"]) and abs(np.std(part["kernel"]) / 0.02 - 1) < 0.1
    assert (
        not np.any(params["head"]["bias"])
        and abs(np.std(params["head"]["kernel"]) / 0.02 - 1) < 0.3
    )
    assert np.all(layer["attn_norm"]["scale"] == 1) and not np.any(layer["attn_norm"]["bias"])


@pytest.mark.parametrize("scheme", [deep("adjacency_row"), deep("edge_list"), "full"])
def test_buckets_do_not_matter(scheme: str) -> None:
    """The same subgraphs in every bucket, and rubbish in empty slots: the same logits."""
    sizes = dict(slots=544, width=8, layers=1, mlp_width=8, edge_tokens=40)
    cfg = config(scheme=scheme, fusion="early", **sizes)
    feats = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    variables, want = None, None
    for slots in (32, 64, 128, 256, 512, 544) if scheme == "adjacency_row" else (32, 64):
        batch = some(slots)
        rows = pencil.gather(jnp.asarray(feats), jnp.asarray(batch.ids))
        variables = variables or loud(start(cfg, batch, rows))
        got = logits(cfg, variables, batch, rows)
        want = got if want is None else want
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.ptp(want) > 1e-2
    rng, batch = np.random.default_rng(1), some(32)
    junk = rng.integers(0, 2**32, batch.adj_bits.shape, dtype=np.uint32)
    for b, n in enumerate(batch.n.tolist()):
        junk[b, :n] = batch.adj_bits[b, :n] | np.uint32((0xFFFFFFFF << n) & 0xFFFFFFFF)
    rows = pencil.gather(jnp.asarray(feats), jnp.asarray(batch.ids))
    rows = jnp.where((batch.ids >= 0)[..., None], rows, jnp.nan)
    spoilt = batch._replace(adj_bits=junk, ids=rng.integers(0, 9, batch.ids.shape, dtype=np.int32))
    np.testing.assert_allclose(logits(cfg, variables, spoilt, rows), want, atol=1e-5)


@pytest.mark.deep
def test_slot_permutations() -> None:
    """The mean over all (n - 2)! draws does not know how nodes are numbered; one draw does."""
    cfg = config(slots=7)
    path = np.zeros((6, 6), bool)
    for i, j in ((0, 2), (2, 3), (3, 1), (3, 4), (2, 4), (4, 5)):
        path[i, j] = path[j, i] = True
    renamed = np.array([3, 0, 5, 1, 4, 2])
    other = np.zeros_like(path)
    other[np.ix_(renamed, renamed)] = path
    batches = []
    for adj, (s, t) in ((path, (0, 1)), (other, (3, 0))):
        base = graphs.one(adj, s, t, 3, 7, None)
        assert int(base.n) == 6
        orders = [[0, 1, *p, 6] for p in itertools.permutations(range(2, 6))]
        local = graphs.dense(graphs.stack([base]))[0]
        batches.append(
            graphs.stack(
                [base._replace(adj_bits=graphs.words(local[np.ix_(o, o)])) for o in orders]
            )
        )
    variables = loud(start(cfg, batches[0]))
    a, b = (logits(cfg, variables, batch) for batch in batches)
    assert abs(a.mean() - b.mean()) < 1e-5
    assert np.ptp(a) > 1e-2
    np.testing.assert_allclose(np.sort(a), np.sort(b), atol=1e-5)
    assert abs(a[0] - b[0]) > 1e-4


def test_permute_slots_keeps_graph_and_roots() -> None:
    """Roots stay, ids and bits move together, each slot is as likely, a draw is its link's own."""
    batch = some(12, hops=2)
    B = len(PAIRS)
    keys = jax.random.split(jax.random.key(0), B)
    permute = jax.jit(pencil.permute_slots)
    new = jax.tree.map(np.asarray, permute(batch, keys))
    adj, moved = graphs.dense(batch), graphs.dense(new)
    for b in range(B):
        n = int(batch.n[b])
        assert new.ids[b, :2].tolist() == batch.ids[b, :2].tolist()
        assert sorted(new.ids[b, :n]) == sorted(batch.ids[b, :n]) and (new.ids[b, n:] == -1).all()
        at = {int(v): i for i, v in enumerate(batch.ids[b, :n])}
        back = [at[int(v)] for v in new.ids[b, :n]]
        assert np.array_equal(moved[b, :n, :n], adj[b][np.ix_(back, back)])
        assert not moved[b, n:].any()
    alone = permute(jax.tree.map(lambda x: x[2:3], batch), keys[2:3])
    assert np.array_equal(alone.ids[0], new.ids[2])
    first = jax.tree.map(lambda x: np.repeat(x[:1], 2000, axis=0), batch)
    ids = np.asarray(permute(first, jax.random.split(jax.random.key(1), 2000)).ids)
    n, node = int(batch.n[0]), batch.ids[0, 2]
    where = np.bincount(np.argmax(ids == node, axis=1), minlength=n)[2:n]
    chi2 = ((where - 2000 / (n - 2)) ** 2 / (2000 / (n - 2))).sum()
    assert scipy.special.chdtrc(n - 3, chi2) > 1e-3


@pytest.mark.deep
def test_mean_score() -> None:
    cfg = config()
    batch = some(hops=2)
    variables = loud(start(cfg, batch))
    keys = jax.random.split(jax.random.key(3), (3, len(PAIRS)))
    got = pencil.mean_score(lambda b: Pencil(cfg).apply(variables, b), batch, keys)
    each = [logits(cfg, variables, pencil.permute_slots(batch, k)) for k in keys]
    np.testing.assert_allclose(got, np.mean(each, axis=0), atol=1e-5)
    assert np.ptp(each, axis=0).max() > 1e-3


@pytest.mark.parametrize("scheme", ["adjacency_row", deep("full")])
def test_symmetric(scheme: str) -> None:
    """score(s, t) = score(t, s) exactly where asked for, and the mean of both orders."""
    batch, turned = some(), graphs.links(ADJ, [(t, s) for s, t in PAIRS], slots=12)
    assert all(np.array_equal(a, b) for a, b in zip(pencil.swap_roots(batch), turned, strict=True))
    cfg = config(scheme=scheme, fusion="early", edge_tokens=20)
    table = jax.random.normal(jax.random.key(0), (11, 5))
    rows, back = pencil.gather(table, batch.ids), pencil.gather(table, turned.ids)
    variables = loud(start(cfg, batch, rows))
    there, here = logits(cfg, variables, batch, rows), logits(cfg, variables, turned, back)
    assert np.abs(there - here).max() > 1e-2
    both = dataclasses.replace(cfg, symmetric=True)
    a, b = logits(both, variables, batch, rows), logits(both, variables, turned, back)
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(a, (there + here) / 2, atol=1e-5)


@pytest.mark.deep
def test_fusion() -> None:
    """Late features act after the last layer alone; early ones reach the endpoints from others."""
    batch = some(hops=2)
    table = jax.random.normal(jax.random.key(0), (11, 5))
    rows = pencil.gather(table, batch.ids)
    other = rows.at[:, 2].add(1.0)  # features of a token that is no root
    for fusion, reaches in (("early", True), ("late", False)):
        cfg = config(fusion=fusion)
        variables = loud(start(cfg, batch, rows))
        got = logits(cfg, variables, batch, rows)
        moved = np.abs(got - logits(cfg, variables, batch, other)).max()
        assert bool(moved > 1e-4) is reaches
        rest = {k: v for k, v in variables["params"].items() if k != "features"}
        bare = logits(config(), {**variables, "params": rest}, batch)
        p = jax.tree.map(np.asarray, variables["params"])
        x = np.asarray(rows)[:, :2] @ p["features"]["kernel"] + p["features"]["bias"]
        x = x * 0.5 * (1 + scipy.special.erf(x / 2**0.5))
        late = bare + (x.reshape(len(x), -1) @ p["head"]["kernel"])[:, 0]
        assert np.allclose(got, late, atol=1e-4) is (fusion == "late")
    with pytest.raises(ValueError, match="features: none given"):
        start(config(fusion="late"), batch)
    with pytest.raises(ValueError, match="features: some given"):
        start(config(), batch, rows)
    assert pencil.gather(table, jnp.array([[-1, 3]])).tolist() == [[[0.0] * 5, table[3].tolist()]]


@pytest.mark.deep
def test_controls() -> None:
    """Without rows and propagation only the number of tokens is seen; each alone sees edges."""
    batch = some()
    empty = batch._replace(adj_bits=np.zeros_like(batch.adj_bits))
    for adjacency, propagation in itertools.product((True, False), repeat=2):
        cfg = config(adjacency=adjacency, propagation=propagation)
        variables = loud(start(cfg, batch))
        apart = np.abs(logits(cfg, variables, batch) - logits(cfg, variables, empty)).max()
        assert bool(apart > 1e-3) is (adjacency or propagation)
        assert ("propagate" in variables["params"]["layers"]) is propagation


@pytest.mark.parametrize("kind", ["softmax", deep("tda")])
def test_attention_kinds(kind: str) -> None:
    """The dense form that may drop weights is the same attention; every parameter is learned."""
    cfg = config(attention=kind, layers=1, dropout=0.0, attention_dropout=1e-9)
    batch = some()
    variables = loud(start(cfg, batch))

    def training(params: Any) -> jax.Array:
        given, rngs = {**variables, "params": params}, {"dropout": jax.random.key(0)}
        out: Any = Pencil(cfg).apply(given, batch, deterministic=False, rngs=rngs)
        return out

    got, pull = jax.vjp(jax.jit(training), variables["params"])
    np.testing.assert_allclose(got, logits(cfg, variables, batch), rtol=1e-4, atol=1e-5)
    for x in jax.tree.leaves(pull(jnp.arange(1.0, 5.0))):
        assert np.isfinite(x).all() and np.any(x)
    assert ("lam" in variables["params"]["layers"]["attn"]) is (kind == "tda")


@pytest.mark.deep
def test_dropout_is_where_it_belongs() -> None:
    """Each rate alone makes training differ from evaluation, and two draws differ."""
    batch = some()

    def run(cfg: PencilConfig, variables: Any, seed: int) -> np.ndarray:
        rngs = {"dropout": jax.random.key(seed)}
        apply = jax.jit(functools.partial(Pencil(cfg).apply, deterministic=False))
        return np.asarray(apply(variables, batch, rngs=rngs))

    for dropout, attention_dropout in ((0.3, 0.0), (0.0, 0.3)):
        cfg = config(dropout=dropout, attention_dropout=attention_dropout, scan=True)
        variables = loud(start(cfg, batch))
        still = logits(cfg, variables, batch)
        first, second = (run(cfg, variables, seed) for seed in (0, 1))
        assert np.abs(first - still).max() > 1e-3 and np.abs(first - second).max() > 1e-3


def test_scan_remat_and_dtype() -> None:
    """Scanned and recomputed layers give the same; bfloat16 is close and the head is float32."""
    batch = some()
    cfg = config()
    variables = loud(start(cfg, batch))
    want = logits(cfg, variables, batch)
    scanned = dataclasses.replace(cfg, scan=True, remat=True)
    got = logits(scanned, variables, batch)
    np.testing.assert_allclose(got, want, atol=1e-5)
    low = logits(dataclasses.replace(cfg, dtype="bfloat16"), variables, batch)
    assert low.dtype == np.float32 and 0 < np.abs(low - want).max() < 0.1 * max(np.ptp(want), 1)


@pytest.mark.deep
@pytest.mark.trains
def test_training_resumes_and_leaves_the_projection(tmp_path: Path) -> None:
    """Ten updates with dropout and decay move every trained value and no bit of P; saved, restored
    and ten more are bit for bit the twenty in one go."""
    cfg, optim = config(scan=True), OptimConfig(lr=1e-3, weight_decay=0.1)
    batch, labels = some(), jittered(jnp.array([1.0, 0, 1, 0]))
    variables = start(cfg, batch)
    assert set(variables) == {"params", "frozen"}
    tx = optax.adamw(optim.lr, optim.b1, optim.b2, optim.eps, weight_decay=optim.weight_decay)
    begin = {**variables, "opt": tx.init(variables["params"]), "step": jnp.int32(0)}

    @jax.jit
    def ten(state: Any) -> Any:
        def update(state: Any, _: None) -> Any:
            rngs = {"dropout": jax.random.fold_in(jax.random.key(5), state["step"])}

            def loss(params: Any) -> jax.Array:
                given = {"params": params, "frozen": state["frozen"]}
                out: Any = Pencil(cfg).apply(given, batch, deterministic=False, rngs=rngs)
                return optax.sigmoid_binary_cross_entropy(out, labels).mean()

            value, grads = jax.value_and_grad(loss)(state["params"])
            updates, opt = tx.update(grads, state["opt"], state["params"])
            params = optax.apply_updates(state["params"], updates)
            return {**state, "params": params, "opt": opt, "step": state["step"] + 1}, value

        return jax.lax.scan(update, state, None, length=10)

    middle, losses = ten(begin)
    # .930 +- .013 over ten seeds, at most .946.
    jitter.at_most("last loss / first", losses[-1] / losses[0], 0.985)
    assert np.array_equal(middle["frozen"]["projection"], begin["frozen"]["projection"])
    old, new = jax.tree.leaves(begin["params"]), jax.tree.leaves(middle["params"])
    assert all(np.all(a != b) for a, b in zip(old, new, strict=True))
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 10, middle, {}, {})
        checkpoint.wait(manager)
        back = checkpoint.restore(manager, 10, jax.eval_shape(lambda: middle))
    ends = ten(middle)[0], ten(back)[0]
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        assert np.array_equal(a, b)
    assert int(ends[1]["step"]) == 20


BAD = [
    ("slots", 1),
    ("heads", 3),
    ("layers", 0),
    ("edge_tokens", 0),
    ("scheme", "rows"),
    ("fusion", "middle"),
    ("attention", "linear"),
    ("dropout", 1.0),
    ("attention_dropout", -0.1),
    ("dtype", "float16"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_sizes_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}={value!r}"):
        config(**{name: value})


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="adjacency=False: may be off only"):
        config(adjacency=False, scheme="full")
    for name, value in (
        ("lr", 0),
        ("b2", 1),
        ("eps", 0),
        ("weight_decay", -1),
        ("microbatches", 0),
    ):
        with pytest.raises(ValueError, match=f"^{name}={value!r}"):
            OptimConfig(**{"lr": 1e-3, name: value})
    with pytest.raises(ValueError, match="batch of 13 tokens per link: slots=12"):
        start(config(), some(13))
