# SPDX-License-Identifier: Apache-2.0
"""One door to all formats: `read(format, name, root)`.

npz        <root>/graph/<name>.npz, and <name>_splits.npz       see graph.data.npz
linqs      <root>/graph/<name>/<name>.content and .cites
snap       <root>/graph/<name>.txt[.gz]                         see graph.data.edgelist
own        <root>/graph/<name>.csv, .tsv or .parquet            see graph.data.edgelist
planted    made up; <name> is the seed                          no files
chung_lu   made up; <name> is <nodes>-<edges>-<seed>            no files

Splits: fixed (as files have them; npz alone), random, temporal (edges with times). Protocols say
how negatives of valid and test were made: original (shared uniform ones, or the file's), heart
(private hard ones: the file's, else made by graph.data.heart), ogb (the file's own; private ones
where the file has them).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from graph import csr, links
from graph.data import edgelist, heart, linqs, made, npz, splits
from graph.data.raw import Raw
from graph.data.text import inside
from graph.links import LinkData, Split

SPLITS = ("fixed", "random", "temporal")
PROTOCOLS = ("original", "heart", "ogb")


def _planted(name: str, root: str | Path) -> Raw:
    del root
    if not name.isdecimal():
        raise ValueError(f"name={name!r}: the name of a planted graph is its seed, a number")
    return made.planted(int(name))


def _chung_lu(name: str, root: str | Path) -> Raw:
    del root
    return made.chung_lu_graph(name)


FORMATS: dict[str, Callable[[str, str | Path], Raw]] = {
    "npz": npz.read_graph,
    "linqs": linqs.read,
    "snap": edgelist.read_snap,
    "own": edgelist.read_own,
    "planted": _planted,
    "chung_lu": _chung_lu,
}


def read(
    format: str,
    name: str,
    root: str | Path = "",
    *,
    columns: Mapping[str, str] = {},
    split: str = "fixed",
    index: int = 0,
    protocol: str = "original",
    valid_share: float = 0.05,
    test_share: float = 0.1,
    hard: int = 250,
    seed: int = 0,
) -> LinkData:
    """Graph `name` in one of FORMATS, split and checked.

    Args:
        root: folder of the data. split: one of SPLITS. index: which of a file's fixed splits.
        protocol: one of PROTOCOLS. valid_share, test_share: of all edges; of a fixed split that
            has no validation links, valid_share of the training links. hard: HeaRT negatives made
            for each end of a link. seed: of the split and its negatives.

    Raises:
        ValueError: an unknown choice, a name that leaves the folder, what the reader of that
            format raises, what `links.check` refuses.
    """
    for what, chosen, allowed in (
        ("format", format, tuple(FORMATS)), ("split", split, SPLITS),
        ("protocol", protocol, PROTOCOLS),
    ):  # fmt: skip
        if chosen not in allowed:
            raise ValueError(f"{what}={chosen!r} is unknown; choose from {', '.join(allowed)}")
    inside(root, name)
    if split == "fixed":
        data = _fixed(format, name, root, index, protocol, valid_share, seed)
    else:
        if protocol == "ogb":
            raise ValueError(f"protocol='ogb' is that of a fixed split, got split={split!r}")
        named = {"columns": columns} if format == "own" else {}
        raw = FORMATS[format](name, root, **named)
        data = _made(raw, name, split, valid_share, test_share, seed)
    if protocol == "heart" and not data.split.test.private:
        hardened = _hardened(data.split, data.num_nodes, hard, heart.EPSILON.get(name, 1e-5))
        data = data._replace(split=hardened, protocol="heart")
    links.check(data)
    return data


def _fixed(
    format: str,
    name: str,
    root: str | Path,
    index: int,
    protocol: str,
    valid_share: float,
    seed: int,
) -> LinkData:
    if format != "npz":
        raise ValueError(
            f"format={format!r} has no fixed splits: choose split='random', or 'temporal' where "
            "edges have times"
        )
    arrays, nodes, path = npz.read_split(name, root, index)
    taken = "heart" if protocol == "heart" and "heart_test_neg" in arrays else "original"
    try:
        split, dropped = splits.fixed(arrays, nodes.num_nodes, taken, seed, valid_share)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return LinkData(
        name,
        nodes.num_nodes,
        split,
        nodes.features,
        nodes.names,
        protocol,
        dropped,
        bool(arrays.get("directed", False)),
    )


def _made(
    raw: Raw, name: str, split: str, valid_share: float, test_share: float, seed: int
) -> LinkData:
    try:
        if split == "random":
            divided = splits.random(raw.edges, raw.num_nodes, seed, valid_share, test_share)
        else:
            divided = splits.temporal(
                raw.edges, raw.times, raw.num_nodes, seed, valid_share, test_share
            )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return LinkData(name, raw.num_nodes, divided, raw.features, raw.names, "original", raw.dropped)


def _hardened(split: Split, num_nodes: int, hard: int, epsilon: float) -> Split:
    """The split with negatives of `graph.data.heart`; those of the test leave out validation
    links too."""
    graph = csr.build(split.graph, num_nodes)
    seen = csr.clean(np.concatenate([split.graph, split.valid.pos]), num_nodes).edges
    with_valid = csr.build(seen, num_nodes)
    valid, test = (
        links._replace(neg=heart.negatives(graph, links.pos, without, hard, epsilon))
        for links, without in ((split.valid, graph), (split.test, with_valid))
    )
    return split._replace(valid=valid, test=test)
