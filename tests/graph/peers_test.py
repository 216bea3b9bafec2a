# SPDX-License-Identifier: Apache-2.0
"""Learned peers against loops over nodes, breadth-first search and set counts."""

import collections
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graph import config, pencil, tuples
from graph.peers import gnn, layers, mplp, ncn, refined_gae, seal, subgraph
from tests.graph import graphs
from tests.tiers import deep_unless

ADJ = graphs.random_graph(12, 0.28, 1)
PAIRS = np.array([[1, 4], [1, 6], [1, 7], [0, 7], [1, 2]])  # three edges, two that are none
X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
WHOLE = tuples.from_csr(graphs.to_csr(ADJ), X)
BATCH = graphs.links(ADJ, PAIRS.tolist(), hops=2, slots=16, seed=0)
FEATURES = pencil.gather(X, BATCH.ids)


def start(model: Any, *args: Any) -> Any:
    """Variables with every trained value moved from its start."""
    variables = jax.jit(model.init)(jax.random.key(0), *args)
    rng = np.random.default_rng(0)
    move = lambda x: jnp.asarray(x + 0.2 * rng.normal(size=x.shape).astype(np.float32))
    return {**variables, "params": jax.tree.map(move, jax.device_get(variables["params"]))}


def run(model: Any, variables: Any, *args: Any, **options: Any) -> np.ndarray:
    return np.asarray(jax.jit(model.apply, static_argnames="method")(variables, *args, **options))


def lin(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(p["kernel"]) + (np.asarray(p["bias"]) if "bias" in p else 0)


def mlp(p: Any, x: np.ndarray) -> np.ndarray:
    return lin(p["out"], np.maximum(lin(p["linear_0"], x), 0))[..., 0]


def convolve(kind: str, p: Any, x: np.ndarray, adj: np.ndarray, heads: int) -> np.ndarray:
    """One convolution, node by node."""
    n = len(adj)
    if kind == "sage":
        near = [x[adj[i]].mean(0) if adj[i].any() else 0 * x[0] for i in range(n)]
        return lin(p["own"], x) + lin(p["neighbours"], np.stack(near))
    h, size = lin(p["linear"], x), adj.sum(1) + 1
    out = np.zeros_like(h)
    for i in range(n):
        near = [i, *np.flatnonzero(adj[i])]
        if kind == "gcn":
            out[i] = sum(h[j] / np.sqrt(size[i] * size[j]) for j in near)
            continue
        for at in np.split(np.arange(h.shape[1]), heads):
            which = at[0] // len(at)
            receive, send = (np.asarray(p[k])[which] for k in ("receive", "send"))
            s = np.array([h[i, at] @ receive + h[j, at] @ send for j in near])
            w = np.exp(np.where(s > 0, s, 0.2 * s))
            out[i, at] = (w[:, None] * h[near][:, at]).sum(0) / w.sum()
    return out + np.asarray(p["bias"])


@pytest.mark.parametrize("kind", deep_unless(lambda kind: kind == "gcn", config.CONVOLUTIONS))
def test_convolutions(kind: str) -> None:
    """Loops, the sparse form and the dense form agree, with a node that has no neighbour."""
    adj = ADJ.copy()
    adj[5] = adj[:, 5] = False
    layer: Any = layers.convolution(kind, 6, 2, "conv")
    dense = layers.Dense(jnp.asarray(adj[None], jnp.float32))
    graph = layers.sparse(tuples.from_csr(graphs.to_csr(adj), X))
    variables = start(layer, jnp.asarray(X)[None], dense)
    want = convolve(kind, variables["params"], X, adj, 2)
    apply = lambda x, g: np.asarray(layer.apply(variables, x, g))
    np.testing.assert_allclose(apply(jnp.asarray(X)[None], dense)[0], want, atol=1e-5)
    np.testing.assert_allclose(apply(jnp.asarray(X), graph), want, atol=1e-5)
    # weights of 0 are edges that are not there
    pairs = np.argwhere(np.triu(adj))[:4]
    adj[pairs[:, 0], pairs[:, 1]] = adj[pairs[:, 1], pairs[:, 0]] = False
    less = tuples.without(WHOLE, jnp.array([*pairs.tolist(), *([5, v] for v in range(12))]))
    want = convolve(kind, variables["params"], X, adj, 2)
    np.testing.assert_allclose(apply(jnp.asarray(X), layers.sparse(less)), want, atol=1e-5)


def test_encoder() -> None:
    """Two layers with ReLU between them and a linear residual around each."""
    model = layers.Encoder("gcn", 6, 2, residual=True)
    graph = layers.sparse(WHOLE)
    # The number of nodes is no array: closed over where jit is used.
    on = types.SimpleNamespace(init=lambda key, x: model.init(key, x, graph))
    variables = start(on, jnp.asarray(X))
    p, x = variables["params"], X
    for index in range(2):
        x = np.maximum(x, 0) if index else x
        x = convolve("gcn", p[f"conv_{index}"], x, ADJ, 1) + lin(p[f"residual_{index}"], x)
    np.testing.assert_allclose(model.apply(variables, jnp.asarray(X), graph), x, atol=1e-4)


def test_gae_and_gnn() -> None:
    """Dot products, and an MLP of Hadamard products, of states seen without the links asked for."""
    hidden = ADJ.copy()
    hidden[PAIRS[:, 0], PAIRS[:, 1]] = hidden[PAIRS[:, 1], PAIRS[:, 0]] = False
    for head in config.HEADS:
        model = gnn.GNN(config.GNNConfig("gcn", 6, 1, head=head))
        variables = start(model, WHOLE, PAIRS)
        z = convolve("gcn", variables["params"]["encoder"]["encoder"]["conv_0"], X, hidden, 1)
        both = z[PAIRS[:, 0]] * z[PAIRS[:, 1]]
        want = both.sum(1) if head == "dot" else mlp(variables["params"]["head"], both)
        np.testing.assert_allclose(run(model, variables, WHOLE, PAIRS), want, atol=1e-4)


def whole_graph_models() -> dict[str, tuple[Any, Any]]:
    """Name to model and links, every kind of input once."""
    pairs = jnp.asarray(PAIRS)
    return {
        "gcn": (gnn.GNN(config.GNNConfig("gcn", 6, 2, inputs="orthogonal")), pairs),
        "sage": (gnn.GNN(config.GNNConfig("sage", 6, 2, inputs="learned", dropout=0.5)), pairs),
        "gat": (gnn.GNN(config.GNNConfig("gat", 6, 2, heads=2, residual=True)), pairs),
        "ncn": (ncn.NCN(config.NCNConfig("gcn", 6, 2, dropout=0.5)), BATCH),
        "refined": (
            refined_gae.RefinedGAE(config.RefinedGAEConfig(6, 2, features=True, dropout=0.5)),
            pairs,
        ),
    }


@pytest.mark.parametrize(
    "name", deep_unless(lambda name: name in ("gcn", "ncn"), whole_graph_models())
)
def test_targets_do_not_leak(name: str) -> None:
    """The links of a batch in the graph or out of it: the same bits. Encoded with them: others."""
    model, links = whole_graph_models()[name]
    less = ADJ.copy()
    less[PAIRS[:, 0], PAIRS[:, 1]] = less[PAIRS[:, 1], PAIRS[:, 0]] = False
    variables = start(model, WHOLE, links)
    there = run(model, variables, WHOLE, links)
    gone = run(model, variables, tuples.from_csr(graphs.to_csr(less), X), links)
    np.testing.assert_allclose(there, gone, atol=1e-5)
    states = run(model, variables, WHOLE, method="encode")
    seen = run(model, variables, states, links, method="score")
    assert np.abs(seen - there).max() > 1e-3
    assert there.shape == (5,) and there.dtype == np.float32


@pytest.mark.parametrize(
    "name", deep_unless(lambda name: name in ("gcn", "ncn"), whole_graph_models())
)
def test_whole_graph_models(name: str) -> None:
    """Symmetric; every trained value has a gradient; what is frozen is frozen; dropout drops."""
    model, links = whole_graph_models()[name]
    variables = start(model, WHOLE, links)
    assert ("frozen" in variables) is (name == "gcn")
    turned = pencil.swap_roots(links) if name == "ncn" else links[:, ::-1]
    np.testing.assert_allclose(
        run(model, variables, WHOLE, links), run(model, variables, WHOLE, turned), atol=1e-5
    )
    if name == "gcn":
        rows = np.asarray(variables["frozen"]["encoder"]["inputs"]["nodes"])
        np.testing.assert_allclose(rows.T @ rows, np.eye(6), atol=1e-5)
    check_gradients(lambda p: model.apply({**variables, "params": p}, WHOLE, links), variables)
    if name in ("sage", "ncn", "refined"):
        apply = jax.jit(functools.partial(model.apply, deterministic=False))
        drop = lambda seed: apply(variables, WHOLE, links, rngs={"dropout": jax.random.key(seed)})
        assert np.abs(drop(0) - drop(1)).max() > 1e-4


def check_gradients(loss: Any, variables: Any) -> None:
    grads = jax.jit(jax.grad(lambda p: (loss(p) * jnp.arange(1.0, 6.0)).sum()))(variables["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all() and np.any(g), jax.tree_util.keystr(path)


def test_features_are_missed() -> None:
    bare = tuples.from_csr(graphs.to_csr(ADJ))
    model = gnn.GNN(config.GNNConfig("gcn", 6, 1, inputs="features"))
    with pytest.raises(ValueError, match="inputs='features'"):
        model.init(jax.random.key(0), bare, PAIRS)


def test_refined_gae() -> None:
    """Vectors start orthonormal; states are linear in them, step by step."""
    model = refined_gae.RefinedGAE(config.RefinedGAEConfig(6, 2, residual=0.5))
    fresh = jax.jit(model.init)(jax.random.key(0), WHOLE, PAIRS)["params"]["propagation"]["nodes"]
    np.testing.assert_allclose(fresh.T @ fresh, np.eye(6), atol=1e-5)
    variables = start(model, WHOLE, PAIRS)
    p = variables["params"]["propagation"]
    size = ADJ.sum(1) + 1
    A = (ADJ + np.eye(12)) / np.sqrt(np.outer(size, size))
    first = h = np.asarray(p["nodes"])
    for index in range(2):
        h = A @ h @ np.asarray(p[f"conv_{index}"]["linear"]["kernel"]) + 0.5 * first
    np.testing.assert_allclose(run(model, variables, WHOLE, method="encode"), h, atol=1e-4)


def test_ncn_pools_common_neighbours() -> None:
    """Sets of neighbours in the whole graph, with states given."""
    model = ncn.NCN(config.NCNConfig("gcn", 6, 1))
    variables = start(model, WHOLE, BATCH)
    z = np.random.default_rng(3).normal(size=(12, 6)).astype(np.float32)
    rows = []
    for s, t in PAIRS.tolist():
        common = set(np.flatnonzero(ADJ[s])) & set(np.flatnonzero(ADJ[t]))
        assert common
        rows.append(np.r_[z[s] * z[t], sum((z[u] for u in common), np.zeros(6))])
    want = mlp(variables["params"]["head"], np.stack(rows))
    np.testing.assert_allclose(run(model, variables, z, BATCH, method="score"), want, atol=1e-4)


def search(adj: np.ndarray, root: int, avoid: int) -> dict[int, int]:
    """Distances by breadth-first search with a queue."""
    found, queue = {root: 0}, collections.deque([root])
    while queue:
        u = queue.popleft()
        for v in np.flatnonzero(adj[u]).tolist():
            if v != avoid and v not in found:
                found[v] = found[u] + 1
                queue.append(v)
    return found


# Labels of nodes at distances (a, b), a <= b, by hand: they count pairs by sum, then by minimum.
LABELS = {
    **{(1, 1): 2, (1, 2): 3, (1, 3): 4, (2, 2): 5, (1, 4): 6, (2, 3): 7},
    **{(1, 5): 8, (2, 4): 9, (3, 3): 10},
}


def test_drnl() -> None:
    """Labels from searches with a queue, on graphs that fall apart and on a path with branches."""
    seen = set()
    for seed, density in ((0, 0.25), (1, 0.15), (2, 0.5)):
        adj = graphs.random_graph(14, density, seed)
        adj[0, 1] = adj[1, 0] = False
        valid = np.arange(14) < 12
        adj &= valid[:, None] & valid[None]
        got = np.asarray(seal.drnl(jnp.asarray(adj[None], jnp.float32), jnp.asarray(valid[None])))
        s, t = search(adj, 0, 1), search(adj, 1, 0)
        for i in range(14):
            want = 1 if i < 2 else 0
            if i >= 2 and i in s and i in t:
                key = min(s[i], t[i]), max(s[i], t[i])
                half, odd = divmod(sum(key), 2)
                want = LABELS.get(key, 1 + key[0] + half * (half + odd - 1))
                seen.add(key)
            assert got[0, i] == want
    assert len(seen & set(LABELS)) >= 5
    far = np.asarray(seal.distances(jnp.asarray(graphs.cycle(9)[None], jnp.float32), 0))
    assert far[0].tolist() == [0, 1, 2, 3, 4, 4, 3, 2, 1]


def subgraph_models() -> dict[str, tuple[Any, Any]]:
    """Name to model and features, every kind of input once."""
    sub = lambda kind, inputs, **more: subgraph.SubgraphGNN(
        config.SubgraphGNNConfig(kind, 6, 1, 20, inputs=inputs, **more)
    )
    return {
        "gcn": (sub("gcn", "marked"), None),
        "sage": (sub("sage", "slots"), None),
        "gat": (sub("gat", "features", heads=2), FEATURES),
        "constant": (sub("gcn", "constant"), None),
        "seal": (seal.SEAL(config.SEALConfig(6, 2, max_label=5)), None),
        "seal_mean": (seal.SEAL(config.SEALConfig(6, 2, pooling="mean", features=True)), FEATURES),
        "mplp": (mplp.MPLP(config.MPLPConfig(20, 8, 6)), None),
        "mplp_features": (mplp.MPLP(config.MPLPConfig(20, 8, 6, weighted=False)), FEATURES),
    }


@pytest.mark.parametrize("name", subgraph_models())
def test_subgraph_models(name: str) -> None:
    """Gradients reach all; empty slots and their rubbish change nothing; symmetric where said."""
    model, features = subgraph_models()[name]
    variables = start(model, BATCH, features)
    want = run(model, variables, BATCH, features)
    assert want.shape == (5,) and want.dtype == np.float32 and np.ptp(want) > 1e-3
    assert ("frozen" in variables) is (name in ("sage", "mplp", "mplp_features"))
    wide = graphs.links(ADJ, PAIRS.tolist(), hops=2, slots=18, seed=0)
    wide = wide._replace(adj_bits=wide.adj_bits.copy())
    for b, n in enumerate(wide.n.tolist()):
        wide.adj_bits[b, n:] = 0xFFFF
        wide.adj_bits[b, :n] |= np.uint32((0x3FFFF << n) & 0x3FFFF)
    more = None if features is None else pencil.gather(X, wide.ids)
    np.testing.assert_allclose(run(model, variables, wide, more), want, atol=1e-5)
    turned = pencil.swap_roots(BATCH)
    back = None if features is None else pencil.gather(X, turned.ids)
    apart = np.abs(run(model, variables, turned, back) - want).max()
    if name not in ("gcn", "sage"):
        assert apart < 1e-4

    def loss(params: Any) -> Any:
        return model.apply({**variables, "params": params}, BATCH, features)

    if name in ("gat", "seal", "mplp"):
        check_gradients(loss, variables)


def test_subgraph_gnn_by_hand() -> None:
    """One convolution, the linear residual, the product of the endpoints and two linear maps."""
    model, _ = subgraph_models()["gat"]
    variables = start(model, BATCH, FEATURES)
    p = variables["params"]["encoder"]
    for b, n in enumerate(BATCH.n.tolist()):
        x = np.asarray(FEATURES)[b, :n]
        adj = graphs.dense(BATCH)[b, :n, :n]
        h = convolve("gat", p["conv_0"], x, adj, 2) + lin(p["residual_0"], x)
        want = mlp(variables["params"]["head"], h[0] * h[1])
        np.testing.assert_allclose(run(model, variables, BATCH, FEATURES)[b], want, atol=1e-4)


def test_what_a_subgraph_model_lacks_is_named() -> None:
    key = jax.random.key(0)
    gat, _ = subgraph_models()["gat"]
    with pytest.raises(ValueError, match="features: none given, but inputs='features'"):
        gat.init(key, BATCH)
    with pytest.raises(ValueError, match="features: some given, but features=False"):
        subgraph_models()["seal"][0].init(key, BATCH, FEATURES)
    wide = graphs.links(ADJ, PAIRS.tolist(), slots=21)
    for name in ("sage", "mplp"):
        with pytest.raises(ValueError, match="batch of 21 tokens per link: slots=20"):
            subgraph_models()[name][0].init(key, wide)


def test_mplp_counts() -> None:
    """Exact with orthonormal signatures; else unbiased, and not exact."""
    adj = graphs.dense(BATCH).astype(np.float32)
    want = []
    for b, n in enumerate(BATCH.n.tolist()):
        s, t = search(adj[b], 0, 1), search(adj[b], 1, 0)
        at = collections.Counter((s.get(i, 9), t.get(i, 9)) for i in range(2, n))
        pick = lambda *keys: sum(at[k] for k in keys)  # noqa: B023
        ones = sum(c for (a, b), c in at.items() if (a == 1) != (b == 1) and 2 not in (a, b))
        twos = sum(c for (a, b), c in at.items() if (a == 2) != (b == 2) and 1 not in (a, b))
        want.append([pick((1, 1)), pick((1, 2), (2, 1)), pick((2, 2)), ones, twos])
    want = np.array(want, float)
    assert (want.sum(0) > 0).all()
    count = jax.jit(jax.vmap(mplp.counts, (None, 0)))
    exact = mplp.signatures(jax.random.key(0), 16, 20)[None]
    np.testing.assert_allclose(count(adj, exact)[0], want, atol=1e-4)
    keys = jax.random.split(jax.random.key(1), 2000)
    drawn = np.asarray(count(adj, jax.vmap(lambda k: mplp.signatures(k, 16, 8))(keys)))
    error = drawn.mean(0) - want
    spread = drawn.std(0) / 2000**0.5
    assert (np.abs(error) < 5 * spread + 1e-4).all() and (drawn.std(0)[want > 0] > 0.1).all()


def test_mplp_weights_are_those_of_nodes() -> None:
    """Signatures scaled by roots of 1 / degree count as resource allocation does."""
    adj = graphs.dense(BATCH).astype(np.float32)
    degree = np.maximum(adj.sum(2), 1)
    rows = mplp.signatures(jax.random.key(0), 16, 20)[None] * (degree**-0.5)[..., None]
    (s, _), (t, _) = mplp.rings(jnp.asarray(adj))
    want = (adj[:, 0] * adj[:, 1] / degree).sum(1)
    np.testing.assert_allclose(mplp.overlap(rows, s, t), want, atol=1e-5)
    assert want.max() > 0


BAD = [
    (config.GNNConfig, ("gcn", 6, 1), {"kind": "gin", "width": 0, "inputs": "ids", "head": "sum"}),
    (config.GNNConfig, ("gat", 6, 1), {"heads": 4, "head_layers": 0, "dropout": 1}),
    (config.NCNConfig, ("gcn", 6, 1), {"layers": 0, "kind": "gin"}),
    (config.RefinedGAEConfig, (6, 1), {"residual": -1, "layers": 0}),
    (config.SubgraphGNNConfig, ("gat", 6, 1, 9), {"inputs": "learned", "slots": 1, "heads": 5}),
    (config.SEALConfig, (6, 1), {"pooling": "sort", "max_label": 0, "dropout": -0.5}),
    (config.MPLPConfig, (9, 8, 6), {"slots": 1, "signature": 0, "width": 0}),
]


@pytest.mark.parametrize(("make", "args", "wrong"), BAD)
def test_bad_sizes_are_named(make: Any, args: Any, wrong: dict[str, Any]) -> None:
    fields = list(make.__dataclass_fields__)
    good = dict(zip(fields, args, strict=False))
    make(**good)
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"^{name}={value!r}"):
            make(**{**good, name: value})
