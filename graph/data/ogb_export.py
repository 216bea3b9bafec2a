# SPDX-License-Identifier: Apache-2.0
"""Graphs of the Open Graph Benchmark as .npz files, once, where `ogb` is installed.

    python -m graph.data.ogb_export ogbl-collab OUT.npz [--root DIR]

OGB keeps its splits pickled, which nothing else here reads. `ogb` downloads what it needs. Put the
file below <root>/graph and read it with format npz, split fixed, protocol ogb.

collab: training links before 2007 are left out, validation links are `late`. citation2: the order
of a pair counts, negatives are private (1000 targets each); the graph to sample from is made
undirected on reading. A training link that is a test link too (people publish together again) is
left out of the training links and counted. Features as OGB has them, as float32.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graph.data import npz

NAMES = ("ogbl-collab", "ogbl-ppa", "ogbl-ddi", "ogbl-citation2", "ogbl-vessel")
SINCE = 2007  # first year of collab's training links

Sides = Mapping[str, Mapping[str, Any]]


def arrays_of(name: str, graph: Mapping[str, Any], sides: Sides) -> dict[str, np.ndarray]:
    """Arrays of `graph.data.npz` from what OGB gives.

    Args:
        graph: num_nodes, node_feat ([V, F] or None). sides: train, valid, test, each with `edge`
            and `edge_neg` [N, 2], or citation2's `source_node`, `target_node` [N] and
            `target_node_neg` [N, K]; collab's have `year` [N].

    Raises:
        ValueError: a name that is not of NAMES.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is unknown; choose from {', '.join(NAMES)}")
    directed = name == "ogbl-citation2"
    arrays = {"num_nodes": np.array(int(graph["num_nodes"])), "directed": np.array(directed)}
    for side, links in sides.items():
        pos, neg = _private(links) if directed else _shared(links)
        if name == "ogbl-collab" and side == "train":
            pos = pos[np.asarray(links["year"]).reshape(-1) >= SINCE]
        arrays[f"{side}_pos"] = pos
        if len(neg):
            arrays[f"{side}_neg"] = neg
    if name == "ogbl-collab":
        arrays["late"] = arrays["valid_pos"]
    train, count = arrays["train_pos"], int(graph["num_nodes"])
    again = np.isin(_keys(train, count, directed), _keys(arrays["test_pos"], count, directed))
    arrays["train_pos"], arrays["train_left_out"] = train[~again], np.array(int(again.sum()))
    if graph.get("node_feat") is not None:
        arrays["features"] = np.asarray(graph["node_feat"], np.float32)
    return arrays


def _links(values: Any) -> np.ndarray:
    return np.asarray(values).astype(np.int32)


def _shared(links: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return _links(links["edge"]), _links(links.get("edge_neg", np.zeros((0, 2))))


def _private(links: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """([N, 2], [N, K, 2]): each source with its own other targets."""
    source, target = _links(links["source_node"]), _links(links["target_node"])
    pos = np.stack([source, target], axis=1)
    if "target_node_neg" not in links:
        return pos, np.zeros((0, 2), np.int32)
    others = _links(links["target_node_neg"])
    return pos, np.stack([np.broadcast_to(source[:, None], others.shape), others], axis=2)


def _keys(pairs: np.ndarray, num_nodes: int, directed: bool) -> np.ndarray:
    pairs = (pairs if directed else np.sort(pairs, axis=1)).astype(np.int64)
    return pairs[:, 0] * num_nodes + pairs[:, 1]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m graph.data.ogb_export", description="An OGB graph as one .npz file."
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("out", type=Path, help="file to write, ending in .npz")
    parser.add_argument("--root", default="dataset", help="where ogb keeps its downloads")
    flags = parser.parse_args(argv)
    if flags.out.suffix != ".npz" or flags.out.exists() or not flags.out.parent.is_dir():
        print(
            f"error: {flags.out} must be a new .npz file in a folder that exists", file=sys.stderr
        )
        return 1
    try:
        from ogb.linkproppred import LinkPropPredDataset  # type: ignore[import-not-found]
    except ImportError as error:
        print(
            f"error: the package ogb is needed here and cannot be imported ({error}): install it "
            "(pip install ogb) in an environment of its own and run this command there; the file "
            "it writes is read without it",
            file=sys.stderr,
        )
        return 1
    loaded = LinkPropPredDataset(name=flags.name, root=flags.root)
    arrays = arrays_of(flags.name, loaded[0], loaded.get_edge_split())
    npz.write(flags.out, **arrays)
    print(f"{flags.out}: " + ", ".join(f"{k} {list(v.shape)}" for k, v in arrays.items()))
    print(f"training links left out as they are test links: {int(arrays['train_left_out'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
