# SPDX-License-Identifier: Apache-2.0
"""What can be said exactly of slots as signatures, and of nodes that look alike."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from graph import pencil, tuples
from graph.config import GNNConfig, PencilConfig
from graph.peers import gnn
from tests import jitter
from tests.graph import graphs

CYCLES = range(6, 11)


def test_rows_count_common_neighbours() -> None:
    """2 N + 2 <= d: <a_u P_adj, a_v P_adj> is the number of common neighbours."""
    adj = graphs.random_graph(152, 0.1, 0).astype(np.float32)
    P = pencil.projection(jax.random.key(0), 306, 512)[152:304]
    rows = jnp.asarray(adj) @ P
    common = adj @ adj
    np.testing.assert_allclose(rows @ rows.T, common, atol=1e-5 * common.max())
    assert np.median(common) > 0


def test_too_many_slots_count_without_bias() -> None:
    """2 N + 2 > d: scaled by (2 N + 2) / d the mean over draws of P is right, one draw is not."""
    adj = graphs.random_graph(20, 0.3, 1).astype(np.float32)
    common, pair = adj @ adj, np.triu(np.ones((20, 20), bool), 1)

    def estimate(key: jax.Array) -> jax.Array:
        rows = adj @ pencil.projection(key, 42, 16)[20:40]
        return 42 / 16 * rows @ rows.T

    drawn = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 4000))
    drawn = np.asarray(drawn)[:, pair]
    error = (drawn.mean(0) - common[pair]) / (drawn.std(0) / 4000**0.5)
    # A Gaussian each: the largest of 190 is below 5, and the mean square is near 1.
    assert np.abs(error).max() < 5 and np.mean(error**2) < 1.6
    assert np.sqrt(np.mean((drawn[0] - common[pair]) ** 2)) > 0.3


def test_one_propagation_gives_resource_allocation() -> None:
    """Signatures of length deg^-1/2, one application of A~: RA of the endpoints, at the tasks."""
    adj = graphs.random_graph(14, 0.4, 2)
    pairs = [(int(u), int(v)) for u, v in np.argwhere(np.triu(adj))[:3]] + [(0, 13), (4, 9)]
    batch = graphs.links(adj, pairs, hops=2, slots=20, seed=1)
    local, valid = pencil.read(batch)
    empty = jnp.zeros((len(pairs), 0), jnp.int32)
    tokens = pencil.Tokens(local, valid, valid.astype(jnp.int32), empty, empty)
    degree = jnp.maximum(local.sum(-1, keepdims=True), 1.0)
    lengths = jnp.pad(degree**-0.5, ((0, 0), (0, 2), (0, 0)))
    z = pencil.projection(jax.random.key(0), 22, 32)[None] * lengths
    out = pencil.propagate("adjacency_row", tokens, z)
    got = (out[:, -2] * out[:, -1]).sum(-1)
    got = got * (local[:, 0].sum(-1) + 1) * (local[:, 1].sum(-1) + 1)
    want = []
    for s, t in pairs:
        rest = adj.copy()
        rest[s, t] = rest[t, s] = False
        want.append(sum(1 / rest[w].sum() for w in np.flatnonzero(rest[s] & rest[t])))
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert max(want) > 0


def test_message_passing_ties_alike_nodes() -> None:
    """All nodes of a cycle look alike: pairs 2 and 3 apart tie without features."""
    for length in (6, 9):
        graph = tuples.from_csr(graphs.to_csr(graphs.cycle(length)))
        pairs = jnp.array([[0, 2], [0, 3]])
        for head in ("dot", "mlp"):
            model = gnn.GNN(GNNConfig("gcn", 8, 2, inputs="constant", head=head))
            variables = jax.jit(model.init)(jax.random.key(length), graph, pairs)
            scores: Any = jax.jit(model.apply)(variables, graph, pairs)
            assert abs(float(scores[0] - scores[1])) < 1e-6


@pytest.mark.deep
@pytest.mark.trains
def test_pencil_tells_distances_apart() -> None:
    """2-hop subgraphs of pairs 2 and 3 apart on cycles of 6 to 10: told apart without a mistake,
    under slots it was not trained on."""
    parts = [graphs.links(graphs.cycle(c), [(0, 2), (0, 3)], hops=2, slots=10) for c in CYCLES]
    batch = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    labels = jnp.tile(jnp.array([1.0, 0.0]), len(parts))
    sizes = dict(slots=10, width=32, heads=4, mlp_width=64, layers=2, remat=True)
    model = pencil.Pencil(PencilConfig(**sizes, dropout=0.0, attention_dropout=0.0))
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    frozen, tx = variables["frozen"], optax.adamw(2e-3, weight_decay=0.01)
    many = jax.tree.map(lambda x: jnp.tile(x, (4,) + (1,) * (x.ndim - 1)), batch)

    def step(state: Any, key: jax.Array) -> Any:
        params, opt = state
        mixed = pencil.permute_slots(many, jax.random.split(key, 40))

        def loss(params: Any) -> jax.Array:
            out: Any = model.apply({"params": params, "frozen": frozen}, mixed)
            return optax.sigmoid_binary_cross_entropy(out, jnp.tile(labels, 4)).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    state = variables["params"], tx.init(variables["params"])
    keys = jax.random.split(jax.random.key(1), 300)
    (params, _), losses = jax.jit(lambda s, k: jax.lax.scan(step, s, k))(state, keys)
    assert losses[-1] < losses[0]

    @jax.jit
    def score(key: jax.Array) -> jax.Array:
        draws = jax.random.split(key, (4, len(labels)))
        apply = lambda b: model.apply({"params": params, "frozen": frozen}, b)
        return pencil.mean_score(apply, batch, draws)

    scores = [score(key) * (2 * labels - 1) for key in jax.random.split(jax.random.key(2), 10)]
    # The least is 8.5 to 9.4 over six seeds; above 0 is told apart.
    jitter.at_least("logits, counted towards their labels", jnp.stack(scores), 2.0)
