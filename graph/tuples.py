# SPDX-License-Identifier: Apache-2.0
"""Graphs for message passing: the one module that knows jraph.

jraph's GraphsTuple is what graph networks exchange, but jraph is no longer maintained and parts of
it have ceased to work. NAMES is all that is used of it; where it does not import, the same names
come from `graph.plain_tuples`. In graphs made here the feature of an edge is its weight, float32,
0 for an edge that is taken out, and edges are in ascending order of (sender, receiver).
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from graph import bits, plain_tuples
from graph.csr import CSR, degrees
from graph.sample import Array, LinkBatch

try:
    import jraph

    backend: Any = jraph
except ImportError:
    backend = plain_tuples

if TYPE_CHECKING:
    from graph.plain_tuples import GraphsTuple
else:
    GraphsTuple = backend.GraphsTuple

NAMES = (
    "GraphsTuple",
    "batch_np",
    "get_edge_padding_mask",
    "get_graph_padding_mask",
    "get_node_padding_mask",
    "pad_with_graphs",
    "segment_softmax",
    "segment_sum",
)
batch_np = backend.batch_np
get_edge_padding_mask = backend.get_edge_padding_mask
get_graph_padding_mask = backend.get_graph_padding_mask
get_node_padding_mask = backend.get_node_padding_mask
pad_with_graphs = backend.pad_with_graphs
segment_softmax = backend.segment_softmax
segment_sum = backend.segment_sum


def from_csr(graph: CSR, nodes: Any = None) -> GraphsTuple:
    """Both directions of every edge, all of weight 1; NumPy.

    Args:
        nodes: float [V, F], or None where nothing is known.
    """
    senders = np.repeat(np.arange(graph.num_nodes, dtype=np.int32), degrees(graph))
    nodes = np.zeros((graph.num_nodes, 0), np.float32) if nodes is None else nodes
    return GraphsTuple(
        nodes=nodes,
        edges=np.ones(len(senders), np.float32),
        senders=senders,
        receivers=np.asarray(graph.indices),
        globals=None,
        n_node=np.array([graph.num_nodes], np.int32),
        n_edge=np.array([len(senders)], np.int32),
    )


def from_links(batch: LinkBatch, nodes: int, edges: int) -> GraphsTuple:
    """Subgraphs of B links side by side, padded to `nodes` and `edges` of B + 1 graphs; NumPy.

    Node features are global ids int32, -1 in the padding is 0 here. Roots are the first two nodes
    of each graph.

    Raises:
        RuntimeError: they do not fit (one node must be spare).
    """
    adj = bits.unpack(np.asarray(batch.adj_bits), batch.ids.shape[1])
    rows = []
    for b, n in enumerate(np.asarray(batch.n).tolist()):
        senders, receivers = np.nonzero(adj[b, :n, :n])
        rows.append(
            GraphsTuple(
                nodes=np.asarray(batch.ids)[b, :n],
                edges=np.ones(len(senders), np.float32),
                senders=senders.astype(np.int32),
                receivers=receivers.astype(np.int32),
                globals=None,
                n_node=np.array([n], np.int32),
                n_edge=np.array([len(senders)], np.int32),
            )
        )
    return pad_with_graphs(batch_np(rows), nodes, edges, len(rows) + 1)


def without(graph: GraphsTuple, pairs: Array) -> GraphsTuple:
    """The graph with weight 0 on both directions of every pair that is an edge.

    A link that is predicted must not be seen by what predicts it; the shape stays as it is.

    Args:
        graph: edges sorted as said above, of weight float [E].
        pairs: int [P, 2]; pairs that are no edge change nothing.
    """
    E = len(graph.senders)
    if not E:
        return graph
    senders, receivers = jnp.asarray(graph.senders), jnp.asarray(graph.receivers)
    pairs = jnp.asarray(pairs)
    u, v = jnp.concatenate([pairs, pairs[:, ::-1]]).T

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # edges before low come before (u, v), those from high on do not
        middle = (low + high) // 2
        at = jnp.minimum(middle, E - 1)
        before = (senders[at] < u) | ((senders[at] == u) & (receivers[at] < v))
        inside = low < high
        return (
            jnp.where(inside & before, middle + 1, low),
            jnp.where(inside & ~before, middle, high),
        )

    start = jnp.zeros(u.shape, jnp.int32), jnp.full(u.shape, E, jnp.int32)
    low, _ = jax.lax.fori_loop(0, E.bit_length() + 1, halve, start)
    at = jnp.minimum(low, E - 1)
    is_edge = (low < E) & (senders[at] == u) & (receivers[at] == v)
    weights = jnp.asarray(graph.edges).at[jnp.where(is_edge, at, E)].set(0.0, mode="drop")
    return graph._replace(edges=weights)
