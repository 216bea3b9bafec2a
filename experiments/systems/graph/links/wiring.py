# SPDX-License-Identifier: Apache-2.0
"""What all link predictors share: the graph and its split, the rows without training that every
learned one stands beside, batches of links, evaluation, and --mode=predict.

The graph, node names and features are artifacts, so that a run folder can predict; the links of
validation and test are read again through the data root and their SHA-256, which is an artifact, is
compared.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.runner import data
from experiments.runner.errors import UserError
from experiments.runner.queries import lookup
from graph import csr, heuristics, metrics
from graph.csr import CSR
from graph.data import reading
from graph.links import LinkData, Links

SELECTABLE = ("auc", "ap", "mrr", *(f"hits@{k}" for k in metrics.HITS))
NO_FILES = "  without files: the variant :tiny, or --config.data.format=planted"
SHOWN = ("auc", "ap", "mrr", "hits@10")  # of the heuristics, on the console


class Loaded(NamedTuple):
    """graph: what training and validation see; late: what the test sees, mostly the same."""

    data: LinkData
    graph: CSR
    late: CSR

    def links(self, side: str) -> Links:
        """Of "valid" or "test"."""
        return self.data.split.valid if side == "valid" else self.data.split.test

    def seen(self, side: str) -> CSR:
        """The graph a side is predicted on."""
        return self.late if side == "test" else self.graph


def load(config: ConfigDict) -> Loaded:
    """Graph and split of config.data.

    Raises:
        UserError: missing or malformed files, unknown names, an empty side, a leak.
    """
    return _load(json.dumps(config.data.to_dict(), sort_keys=True))


@functools.lru_cache(maxsize=16)
def _load(values: str) -> Loaded:
    group = ConfigDict(json.loads(values))
    try:
        if group.name in data.declared():
            data.fingerprints(group.name, group.root)
        found = reading.read(
            group.format,
            group.name,
            data.root(group.root),
            split=group.split,
            index=group.index,
            protocol=group.protocol,
            valid_share=group.valid_share,
            test_share=group.test_share,
            hard=group.hard,
            seed=group.seed,
        )
        graph = csr.build(found.split.graph, found.num_nodes)
        late = graph
        if len(found.split.late):
            both = np.concatenate([found.split.graph, found.split.late])
            late = csr.build(csr.clean(both, found.num_nodes).edges, found.num_nodes)
    except data.DataError as error:
        raise UserError(f"{error}\n{NO_FILES}") from error
    except (ValueError, OSError) as error:
        missing = "missing" in str(error) or isinstance(error, FileNotFoundError)
        raise UserError(f"config.data: {error}" + (f"\n{NO_FILES}" if missing else "")) from error
    return Loaded(found, graph, late)


def sha256(found: LinkData) -> str:
    """Of the graph and all its links."""
    digest = hashlib.sha256()
    for array in jax.tree.leaves(found.split):
        digest.update(f"{array.shape} ".encode())
        digest.update(np.ascontiguousarray(array, np.int32).tobytes())
    return digest.hexdigest()


def card(found: LinkData) -> dict[str, Any]:
    """Counts of a graph and its split, what was left out on reading, and the SHA-256 of both."""
    split, linked = found.split, np.unique(found.split.graph)
    ends = np.concatenate([split.test.pos, split.valid.pos])
    return {
        "name": found.name,
        "protocol": found.protocol,
        "nodes": found.num_nodes,
        "edges": len(split.graph),
        "late_edges": len(split.late),
        "loops": found.dropped["loops"],
        "duplicates": found.dropped["duplicates"],
        "isolated_nodes": found.num_nodes - len(linked),
        "isolated_ends": int((~np.isin(ends, linked)).any(1).sum()),
        "train_links": len(split.train),
        "valid_links": len(split.valid.pos),
        "test_links": len(split.test.pos),
        "negatives": "x".join(str(n) for n in split.test.neg.shape[:-1]),
        "features": found.features.shape[1],
        "directed": found.directed,
        "sha256": sha256(found),
    }


def judge(pos: np.ndarray, neg: np.ndarray, prefix: str) -> dict[str, float]:
    """Metrics of scores, keys with a prefix."""
    return {f"{prefix}{name}": value for name, value in metrics.summarise(pos, neg).items()}


def options(name: str, graph: CSR) -> dict[str, float]:
    """Of a heuristic on a graph: beta of Katz is the usual .005, or half of what still has a sum on
    a denser graph [our choice]."""
    if name != "katz":
        return {}
    return {"beta": min(heuristics.BETA, 0.5 / max(heuristics.largest_eigenvalue(graph), 1.0))}


def rows_without_training(loaded: Loaded, side: str, names: Sequence[str]) -> dict[str, float]:
    """{"<heuristic>/<side>/<metric>": value}."""
    links, graph, out = loaded.links(side), loaded.seen(side), {}
    pairs, scatter = metrics.unique_pairs(links.pos, links.neg, directed=False)
    for name in names:
        scores = heuristics.scores(name, graph, pairs, **options(name, graph))
        out |= judge(*scatter(scores), f"{name}/{side}/")
    return out


def load_one(config: ConfigDict) -> Loaded:
    """The one split a system learns on.

    Raises:
        UserError: all splits are asked for; see `load`.
    """
    if config.data.index < 0:
        raise UserError(
            f"config.data.index={config.data.index}: {config.system} learns on one split; give 0 "
            "or another and compare runs: --mode=report DIR DIR"
        )
    return load(config)


def graph_artifacts(found: LinkData) -> dict[str, Any]:
    """The graph as a run folder keeps it."""
    return {"graph": found.split.graph, "names": found.names, "features": found.features}


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Artifacts of any link predictor: graph, names, features, card, rows without training."""
    loaded = load_one(config)
    found, rows = loaded.data, rows_without_training(loaded, "test", config.eval.heuristics)
    about = card(found)
    print(
        f"{found.name}: {about['nodes']:,} nodes, {about['edges']:,} edges in the graph; test "
        f"{about['test_links']:,} links against {about['negatives']} negatives ({found.protocol})"
    )
    for name in config.eval.heuristics:
        print(f"  {name:<10} test: {cells(rows, f'{name}/test/')}")
    return {**graph_artifacts(found), "card": about, "rows": rows}


def cells(found: Mapping[str, Any], prefix: str) -> str:
    """The metrics shown on the console."""
    return "  ".join(f"{name} {float(found[prefix + name]):.4f}" for name in SHOWN)


def selectable(artifacts: Mapping[str, Any]) -> tuple[str, ...]:
    """Metrics of validation that may choose the checkpoint; OGB's hits of shared negatives only."""
    shared = "x" not in artifacts["card"]["negatives"]
    more = tuple(f"ogb_hits@{k}" for k in metrics.OGB_HITS) if shared else ()
    return tuple(f"valid/{name}" for name in (*SELECTABLE, *more))


def lazily(config: ConfigDict, artifacts: Mapping[str, Any]) -> Callable[[], Loaded]:
    """The links a run began with, read when they are first needed: predicting needs none.

    Raises (when called):
        UserError: other links than those.
    """

    @functools.cache
    def loaded() -> Loaded:
        found = load(config)
        check_same(config, found.data, artifacts["card"]["sha256"])
        return found

    return loaded


def check_same(config: ConfigDict, found: LinkData, expected: str) -> None:
    """Raises UserError: other links than those of that SHA-256."""
    now = sha256(found)
    if now != expected:
        raise UserError(
            f"config.data.name={config.data.name}: not the links this run began with: SHA-256 "
            f"{now}, expected {expected}"
        )


def graph_of(artifacts: Mapping[str, Any]) -> CSR:
    """The graph a run began with."""
    return csr.build(np.asarray(artifacts["graph"]), len(artifacts["names"]))


def some(links: Links, rows: int) -> Links:
    """At most `rows` positives, evenly spaced, with their negatives; 0: all."""
    if not rows or rows >= len(links.pos):
        return links
    at = np.linspace(0, len(links.pos) - 1, rows).astype(np.int64)
    return Links(links.pos[at], links.neg[at] if links.private else links.neg)


# --------------------------------------------------------------------------------------- predict

Score = Callable[[Mapping[str, Any], np.ndarray], np.ndarray]
"""(state, pairs int32 [B, 2]) -> logits [B]."""


def make_predict(
    artifacts: Mapping[str, Any], top: int, candidates: int, score: Score
) -> Callable[[Any, str], str]:
    """Action: the logit of a pair "u v", or the likeliest new links of a node "u".

    A query has one of either a line. A node's candidates are all nodes that are no neighbours; of
    more than `candidates`, those with the largest personalised PageRank from it.
    """
    names = list(artifacts["names"])
    number = {name: i for i, name in enumerate(names)}
    graph = graph_of(artifacts)

    def predict(state: Any, query: str) -> str:
        lines = [line.split() for line in query.splitlines() if line.strip()]
        if not lines:
            raise UserError('--query is empty: "u v" or "u" is expected, one a line')
        for words in lines:
            if len(words) not in (1, 2):
                raise UserError(f'--query: {" ".join(words)!r}: "u v" or "u" is expected')
        asked = [[lookup(word, number, "node") for word in words] for words in lines]
        for words, nodes in zip(lines, asked, strict=True):
            if len(set(nodes)) < len(nodes):
                raise UserError(f"--query: {' '.join(words)!r} joins a node to itself")
        return "\n".join(answer(state, nodes) for nodes in asked)

    def answer(state: Any, nodes: list[int]) -> str:
        if len(nodes) == 2:
            pair = np.array([nodes], np.int32)
            known = " (an edge of the graph)" if csr.contains(graph, pair)[0] else ""
            return describe(state, pair)[0] + known
        found = likely(graph, nodes[0], candidates)
        pairs = np.stack([np.full(len(found), nodes[0]), found], 1).astype(np.int32)
        if not len(pairs):
            return f"{names[nodes[0]]}: linked to every node"
        logits = score(state, pairs)
        best = pairs[np.argsort(-logits, kind="stable")[:top]]
        degree = int(csr.degrees(graph)[nodes[0]])
        head = f"{names[nodes[0]]}: {degree} neighbours, best of {len(pairs):,} candidates"
        return "\n".join([head, *describe(state, best)])

    def describe(state: Any, pairs: np.ndarray) -> list[str]:
        logits, shared = score(state, pairs), heuristics.scores("cn", graph, pairs)
        return [
            f"  {names[u]} {names[v]}  logit {logit:+.4f}  probability "
            f"{1 / (1 + np.exp(-logit)):.4f}  {int(cn)} common neighbours"
            for (u, v), logit, cn in zip(pairs.tolist(), logits.tolist(), shared, strict=True)
        ]

    return predict


def likely(graph: CSR, node: int, count: int) -> np.ndarray:
    """Nodes that are no neighbours, the `count` with the largest PageRank from `node`."""
    free = np.ones(graph.num_nodes, bool)
    free[graph.indices[graph.indptr[node] : graph.indptr[node + 1]]] = False
    free[node] = False
    found = np.flatnonzero(free)
    if len(found) <= count:
        return found
    pairs = np.stack([np.full(len(found), node), found], 1).astype(np.int32)
    rank = heuristics.scores("ppr", graph, pairs)
    return np.sort(found[np.argsort(-rank, kind="stable")[:count]])
