# SPDX-License-Identifier: Apache-2.0
"""The functions of jraph that `graph.tuples` uses, written out: for the day jraph does not import.

Names, arguments and results are jraph's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class GraphsTuple(NamedTuple):
    """Graphs side by side: nodes and edges are pytrees of arrays [sum of n_node or n_edge, ..]."""

    nodes: Any
    edges: Any
    receivers: Any
    senders: Any
    globals: Any
    n_node: Any
    n_edge: Any


def batch_np(graphs: Sequence[GraphsTuple]) -> GraphsTuple:
    """NumPy graphs side by side, ids of nodes counted on."""
    starts = np.cumsum([0, *(int(np.sum(g.n_node)) for g in graphs[:-1])])

    def join(*parts: Any) -> Any:
        return np.concatenate(parts, axis=0)

    shifted = [
        g._replace(senders=g.senders + at, receivers=g.receivers + at)
        for g, at in zip(graphs, starts, strict=True)
    ]
    return jax.tree.map(join, *shifted)


def pad_with_graphs(graph: GraphsTuple, n_node: int, n_edge: int, n_graph: int = 2) -> GraphsTuple:
    """Up to fixed sizes: one graph takes all spare nodes and edges, the rest are empty."""
    nodes, edges = int(np.sum(graph.n_node)), int(np.sum(graph.n_edge))
    spare = n_node - nodes, n_edge - edges, n_graph - len(graph.n_node)
    if spare[0] <= 0 or spare[1] < 0 or spare[2] <= 0:
        raise RuntimeError(f"{nodes} nodes, {edges} edges, {len(graph.n_node)} graphs do not fit")

    def grow(tree: Any, count: int, value: int = 0) -> Any:
        def wider(x: Any) -> Any:
            x = np.asarray(x)
            return np.concatenate([x, np.full((count, *x.shape[1:]), value, x.dtype)])

        return jax.tree.map(wider, tree)

    def total(counts: Any, extra: int) -> Any:
        return grow(grow(counts, 1, extra), spare[2] - 1)

    return GraphsTuple(
        nodes=grow(graph.nodes, spare[0]),
        edges=grow(graph.edges, spare[1]),
        receivers=grow(graph.receivers, spare[1], nodes),
        senders=grow(graph.senders, spare[1], nodes),
        globals=grow(graph.globals, spare[2]),
        n_node=total(graph.n_node, spare[0]),
        n_edge=total(graph.n_edge, spare[1]),
    )


def get_graph_padding_mask(padded: GraphsTuple) -> jax.Array:
    """bool [graphs]: not of the padding, whose graphs are the last with nodes and all after it."""
    counts = jnp.asarray(padded.n_node)
    empty = jnp.argmin(counts[::-1] == 0)  # graphs without nodes at the end
    return jnp.arange(len(counts)) < len(counts) - 1 - empty


def get_node_padding_mask(padded: GraphsTuple) -> jax.Array:
    """bool [nodes]."""
    num_nodes = jnp.where(get_graph_padding_mask(padded), jnp.asarray(padded.n_node), 0).sum()
    return jnp.arange(jax.tree.leaves(padded.nodes)[0].shape[0]) < num_nodes


def get_edge_padding_mask(padded: GraphsTuple) -> jax.Array:
    """bool [edges]."""
    num_edges = jnp.where(get_graph_padding_mask(padded), jnp.asarray(padded.n_edge), 0).sum()
    return jnp.arange(len(padded.senders)) < num_edges


def segment_sum(data: Any, segment_ids: Any, num_segments: int) -> jax.Array:
    """[num_segments, ..]: sums of rows with equal ids."""
    return jax.ops.segment_sum(data, segment_ids, num_segments)


def segment_softmax(logits: Any, segment_ids: Any, num_segments: int) -> jax.Array:
    """Softmax among rows with equal ids, as logits."""
    top = jax.ops.segment_max(logits, segment_ids, num_segments)
    grown = jnp.exp(logits - top[segment_ids])
    return grown / segment_sum(grown, segment_ids, num_segments)[segment_ids]
