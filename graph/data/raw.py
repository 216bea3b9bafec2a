# SPDX-License-Identifier: Apache-2.0
"""What the readers of graphs without a split give."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from graph import csr
from graph.data.text import inside


class Raw(NamedTuple):
    """A graph as read. edges: int32 [E, 2] cleaned; times: float64 [E], or [0] without; features:
    float32 [V, F], F = 0 without; names: [V]; dropped: rows left out, by why."""

    edges: np.ndarray
    num_nodes: int
    times: np.ndarray
    features: np.ndarray
    names: list[str]
    dropped: dict[str, int]


def raw(
    edges: np.ndarray,
    num_nodes: int,
    times: np.ndarray | None = None,
    features: np.ndarray | None = None,
    names: list[str] | None = None,
) -> Raw:
    """Raw of edges int [N, 2] in any order; of an edge given several times the earliest counts.

    Raises:
        ValueError: ids out of range, or features or names of another length than num_nodes.
    """
    cleaned = csr.clean(edges, num_nodes)
    when = np.zeros(0)
    if times is not None and len(times):
        low, high = np.sort(edges, axis=1).astype(np.int64).T
        order = np.lexsort((times, high, low))
        order = order[low[order] != high[order]]
        first = np.ones(len(order), bool)
        first[1:] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
        when = np.asarray(times, float)[order[first]]
    return Raw(
        cleaned.edges, num_nodes, when, featured(features, num_nodes),
        named(names, num_nodes), {"loops": cleaned.loops, "duplicates": cleaned.duplicates},
    )  # fmt: skip


def featured(features: np.ndarray | None, num_nodes: int, where: str | Path = "") -> np.ndarray:
    """float32 [V, F]; [V, 0] of None.

    Raises:
        ValueError: another length, another rank, or numbers that are not finite.
    """
    if features is None:
        return np.zeros((num_nodes, 0), np.float32)
    at = f"{where}: " if where else ""
    if features.ndim != 2 or len(features) != num_nodes:
        raise ValueError(
            f"{at}features {list(features.shape)} do not fit {num_nodes} nodes: one row for each "
            "node is expected"
        )
    if not np.issubdtype(features.dtype, np.number) and features.dtype != bool:
        raise ValueError(f"{at}features are {features.dtype}, numbers are expected")
    features = features.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise ValueError(f"{at}features of node {bad[0]} are not finite")
    return features


def named(names: list[str] | None, num_nodes: int, where: str | Path = "") -> list[str]:
    """Names of nodes; their ids as text where there are none.

    Raises:
        ValueError: another number of names than nodes, or a name used twice.
    """
    if names is None:
        return [str(i) for i in range(num_nodes)]
    at = f"{where}: " if where else ""
    if len(names) != num_nodes:
        raise ValueError(f"{at}{len(names)} names for {num_nodes} nodes")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise ValueError(f"{at}two nodes have the name {twice!r}")
    return names


def find(root: str | Path, *names: str) -> Path:
    """The first of `names` that is a file below `<root>/graph` or `<root>`.

    Raises:
        ValueError: none is there (names what was looked for, and where), or one leaves the folder.
    """
    path = maybe(root, *names)
    if path is not None:
        return path
    folders = (Path(root) / "graph", Path(root))
    raise ValueError(
        f"missing file {folders[0] / names[0]}: {' or '.join(names)} is expected in {folders[0]} "
        f"or {folders[1]}; the data folder is --config.data.root, else $BANYAN_DATA"
    )


def maybe(root: str | Path, *names: str) -> Path | None:
    """As `find`, None where no file is there."""
    for folder in (Path(root) / "graph", Path(root)):
        for name in names:
            path = inside(folder, name)
            if path.is_file():
                return path
    return None
