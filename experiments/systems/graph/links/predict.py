# SPDX-License-Identifier: Apache-2.0
"""--mode=predict of every link predictor: pairs or nodes in, tables of scores out.

    --query="NODE NODE"    one pair a line; ranks are among all pairs of the query
    --query=NODE           the likeliest new links of a node, best first
    --query=@FILE.csv      a table of pairs, columns source and target, or from and to
    --query=all            the links of the test, as the run's data have them

--top=K leaves the best K of each table.

A score orders pairs of one run; it is no calibrated probability.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.runner.contract import State
from experiments.runner.errors import UserError
from experiments.runner.queries import Columns, Query, lookup
from experiments.systems.graph.links.wiring import Loaded, Score
from graph import csr, heuristics
from graph.csr import CSR
from graph.data import columns, edgelist

CAUTION = "a score orders the pairs of one run; it is no calibrated probability"
"""What every answer is preceded by on stderr."""


class Graph(NamedTuple):
    """What is asked about."""

    names: Sequence[str]
    graph: CSR


class Asked(NamedTuple):
    """Pairs that are ranked among each other."""

    pairs: np.ndarray
    """int32 [B, 2]."""
    most: int | None
    """How many of the best are wanted; None for all."""


class Source(NamedTuple):
    """What a run knows, and how questions to it are read."""

    graph: Callable[[], Graph]
    loaded: Callable[[], Loaded]
    """The links of the run, for "all"."""
    columns: str
    """config.data.columns, for files of pairs."""
    top: int
    """Links of a node where the query does not say."""
    candidates: int
    """Nodes that are scored for one; of more that are no neighbors, those with the largest
    personalised PageRank from it."""


def make_predict(source: Source, score: Score) -> Callable[[State, Query], Iterator[Columns]]:
    """Makes the action."""

    def predict(state: State, query: Query) -> Iterator[Columns]:
        for asked in read_query(source, query):
            yield table(source.graph(), asked, score(state, asked.pairs))

    return predict


def read_query(source: Source, query: Query) -> list[Asked]:
    """Reads what is asked, and says what a score is not.

    Raises:
        UserError: see `read_pairs`; other links than those the run began with.
    """
    print(CAUTION, file=sys.stderr)
    if query.is_all:
        return [Asked(source.loaded().links("test").pos, query.top)]
    names, graph = source.graph()
    lines = read_pairs(query, names, source.columns)
    pairs = [line for line in lines if len(line) == 2]
    asked = [Asked(np.array(pairs, np.int32), query.top)] if pairs else []
    for (node,) in [line for line in lines if len(line) == 1]:
        others = choose_candidates(graph, node, source.candidates)
        ahead = np.stack([np.full(len(others), node), others], 1).astype(np.int32)
        asked.append(Asked(ahead, query.top or source.top))
    return asked


def table(known: Graph, asked: Asked, scores: np.ndarray) -> Columns:
    """Ranks the pairs, best first."""
    names, graph = known
    order = np.argsort(-scores, kind="stable")[: asked.most]
    best = asked.pairs[order]
    return {
        "source": [names[node] for node in best[:, 0].tolist()],
        "target": [names[node] for node in best[:, 1].tolist()],
        "score": scores[order].astype(np.float32),
        "rank": np.arange(1, len(best) + 1),
        "linked": csr.contains(graph, best).astype(bool),
        "common_neighbors": heuristics.scores("cn", graph, best).astype(int),
    }


def read_pairs(query: Query, names: Sequence[str], named: str) -> list[list[int]]:
    """Reads the pairs, or single nodes, a query asks about.

    Raises:
        UserError: nothing, three words in a line, an unknown node, a pair of one node, or a file
            that cannot be read.
    """
    number = {name: i for i, name in enumerate(names)}
    if query.path is not None:
        try:
            lines = edgelist.read_pairs(query.path, columns.parse(named))
        except ValueError as error:
            raise UserError(f"--query: {error}") from error
    else:
        lines = [line.split() for line in query.text.splitlines() if line.strip()]
    if not lines:
        raise UserError('--query is empty: "u v" or "u" is expected, one a line; @FILE.csv; or all')
    for words in lines:
        if len(words) not in (1, 2):
            raise UserError(f'--query: {" ".join(words)!r}: "u v" or "u" is expected')
    asked = [[lookup(word, number, "node") for word in words] for words in lines]
    for words, nodes in zip(lines, asked, strict=True):
        if len(set(nodes)) < len(nodes):
            raise UserError(f"--query: {' '.join(words)!r} joins a node to itself")
    return asked


def choose_candidates(graph: CSR, node: int, count: int) -> np.ndarray:
    """Chooses nodes that are no neighbors, the `count` with the largest PageRank from `node`."""
    is_free = np.ones(graph.num_nodes, bool)
    is_free[graph.indices[graph.indptr[node] : graph.indptr[node + 1]]] = False
    is_free[node] = False
    nodes = np.flatnonzero(is_free)
    if len(nodes) <= count:
        return nodes
    pairs = np.stack([np.full(len(nodes), node), nodes], 1).astype(np.int32)
    rank = heuristics.scores("ppr", graph, pairs)
    return np.sort(nodes[np.argsort(-rank, kind="stable")[:count]])


def known_of(artifacts: Mapping[str, Any], graph: Callable[[], CSR]) -> Callable[[], Graph]:
    """Returns a function that gives graph and names of a run folder."""
    return lambda: Graph(list(artifacts["names"]), graph())
