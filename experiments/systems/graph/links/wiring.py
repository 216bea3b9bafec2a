# SPDX-License-Identifier: Apache-2.0
"""What all link predictors share: the graph and its split, the rows without training that every
learned one stands beside, and --mode=predict.

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

from experiments.runner import data, inputs
from experiments.runner.errors import UserError
from graph import csr, heuristics, metrics
from graph.csr import CSR
from graph.data import columns, reading
from graph.links import LinkData, Links

SELECTABLE = ("auc", "ap", "mrr", *(f"hits@{k}" for k in metrics.HITS))
SHOWN = ("auc", "ap", "mrr", "hits@10")  # of the heuristics, on the console


class Loaded(NamedTuple):
    """Holds a graph and its links, read once."""

    data: LinkData
    graph: CSR
    """What training and validation see."""
    late: CSR
    """What the test sees, mostly the same."""

    def links(self, side: str) -> Links:
        """Returns the links of "valid" or "test"."""
        return self.data.split.valid if side == "valid" else self.data.split.test

    def seen(self, side: str) -> CSR:
        """Returns the graph a side is predicted on."""
        return self.late if side == "test" else self.graph


def load(config: ConfigDict) -> Loaded:
    """Reads graph and split of config.data.

    Raises:
        UserError: missing or malformed files, unknown names, an empty side, a leak.
    """
    return _load(json.dumps(config.data.to_dict(), sort_keys=True))


@functools.lru_cache(maxsize=16)
def _load(values: str) -> Loaded:
    group = ConfigDict(json.loads(values))
    with inputs.explain_failures():
        if group.name in data.declared():
            data.fingerprints(group.name, group.root)
        link_data = reading.read(
            group.format,
            group.name,
            data.root(group.root),
            columns=columns.parse(group.columns),
            split=group.split,
            index=group.index,
            protocol=group.protocol,
            valid_share=group.valid_share,
            test_share=group.test_share,
            hard=group.hard,
            seed=group.seed,
        )
        split = link_data.split
        nodes = link_data.num_nodes
        graph = csr.build(split.graph, nodes)
        late = graph
        if len(split.late):
            both = np.concatenate([split.graph, split.late])
            late = csr.build(csr.clean(both, nodes).edges, nodes)
    return Loaded(link_data, graph, late)


def hash_links(link_data: LinkData) -> str:
    """Takes the SHA-256 of the graph and all its links."""
    digest = hashlib.sha256()
    for array in jax.tree.leaves(link_data.split):
        digest.update(f"{array.shape} ".encode())
        digest.update(np.ascontiguousarray(array, np.int32).tobytes())
    return digest.hexdigest()


def describe(link_data: LinkData) -> dict[str, Any]:
    """Counts a graph and its split, and what was left out on reading; adds the SHA-256 of both."""
    split = link_data.split
    linked_nodes = np.unique(split.graph)
    asked_links = np.concatenate([split.test.pos, split.valid.pos])
    return {
        "name": link_data.name,
        "protocol": link_data.protocol,
        "nodes": link_data.num_nodes,
        "edges": len(split.graph),
        "late_edges": len(split.late),
        "loops": link_data.dropped["loops"],
        "duplicates": link_data.dropped["duplicates"],
        "isolated_nodes": link_data.num_nodes - len(linked_nodes),
        "isolated_ends": int((~np.isin(asked_links, linked_nodes)).any(1).sum()),
        "train_links": len(split.train),
        "valid_links": len(split.valid.pos),
        "test_links": len(split.test.pos),
        "negatives": "x".join(str(n) for n in split.test.neg.shape[:-1]),
        "features": link_data.features.shape[1],
        "directed": link_data.directed,
        "sha256": hash_links(link_data),
    }


def summarize(pos: np.ndarray, neg: np.ndarray, prefix: str) -> dict[str, float]:
    """Computes the metrics of scores; keys begin with `prefix`."""
    return {f"{prefix}{name}": value for name, value in metrics.summarize(pos, neg).items()}


def choose_options(name: str, graph: CSR) -> dict[str, float]:
    """Chooses the options of a heuristic on a graph: beta of Katz is the usual .005, or half of
    what still has a sum on a denser graph [our choice]."""
    if name != "katz":
        return {}
    return {"beta": min(heuristics.BETA, 0.5 / max(heuristics.largest_eigenvalue(graph), 1.0))}


def score_without_training(loaded: Loaded, side: str, names: Sequence[str]) -> dict[str, float]:
    """Evaluates heuristics on a side: {"<heuristic>/<side>/<metric>": value}."""
    links = loaded.links(side)
    graph = loaded.seen(side)
    pairs, scatter = metrics.unique_pairs(links.pos, links.neg, directed=False)
    rows: dict[str, float] = {}
    for name in names:
        scores = heuristics.scores(name, graph, pairs, **choose_options(name, graph))
        rows |= summarize(*scatter(scores), f"{name}/{side}/")
    return rows


def load_one_split(config: ConfigDict) -> Loaded:
    """Reads the one split a system learns on.

    Raises:
        UserError: all splits are asked for; see `load`.
    """
    if config.data.index < 0:
        raise UserError(
            f"config.data.index={config.data.index}: {config.system} learns on one split; give 0 "
            "or another and compare runs: --mode=report DIR DIR"
        )
    return load(config)


def graph_artifacts(link_data: LinkData) -> dict[str, Any]:
    """Returns the graph as a run folder keeps it."""
    return {
        "graph": link_data.split.graph,
        "names": link_data.names,
        "features": link_data.features,
    }


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Makes the artifacts of any link predictor: graph, names, features, card, rows without
    training."""
    loaded = load_one_split(config)
    rows = score_without_training(loaded, "test", config.eval.heuristics)
    card = describe(loaded.data)
    print(
        f"{card['name']}: {card['nodes']:,} nodes, {card['edges']:,} edges in the graph; test "
        f"{card['test_links']:,} links against {card['negatives']} negatives ({card['protocol']})"
    )
    for name in config.eval.heuristics:
        print(f"  {name:<10} test: {format_metrics(rows, f'{name}/test/')}")
    return {**graph_artifacts(loaded.data), "card": card, "rows": rows}


def format_metrics(metrics_of_rows: Mapping[str, Any], prefix: str) -> str:
    """Writes the metrics shown on the console."""
    return "  ".join(f"{name} {float(metrics_of_rows[prefix + name]):.4f}" for name in SHOWN)


def selectable_metrics(artifacts: Mapping[str, Any]) -> tuple[str, ...]:
    """Lists the metrics of validation that may choose the checkpoint; OGB's hits only where all
    links share their negatives."""
    shared = "x" not in artifacts["card"]["negatives"]
    ogb = tuple(f"ogb_hits@{k}" for k in metrics.OGB_HITS) if shared else ()
    return tuple(f"valid/{name}" for name in (*SELECTABLE, *ogb))


def load_lazily(config: ConfigDict, artifacts: Mapping[str, Any]) -> Callable[[], Loaded]:
    """Returns a function that reads the links a run began with when they are first needed:
    predicting needs none.

    Raises (when called):
        UserError: other links than those.
    """
    return inputs.read_once(
        lambda: load(config),
        lambda loaded: hash_links(loaded.data),
        config,
        "links",
        artifacts["card"]["sha256"],
    )


def build_graph(artifacts: Mapping[str, Any]) -> CSR:
    """Builds the graph a run began with."""
    return csr.build(np.asarray(artifacts["graph"]), len(artifacts["names"]))


def subsample(links: Links, rows: int) -> Links:
    """Takes at most `rows` positives, evenly spaced, with their negatives; 0: all."""
    if not rows or rows >= len(links.pos):
        return links
    index = np.linspace(0, len(links.pos) - 1, rows).astype(np.int64)
    return Links(links.pos[index], links.neg[index] if links.private else links.neg)


Score = Callable[[Mapping[str, Any], np.ndarray], np.ndarray]
"""(state, pairs int32 [B, 2]) -> logits, or other scores, [B]."""
