# SPDX-License-Identifier: Apache-2.0
"""LINQS text files: <name>.content (node, numbers, label) and <name>.cites (cited, citing).

They lie in <root>/graph/<name>/ or directly in <root>/graph or <root>. Nodes keep the order and
the names of the content file; labels are not used. A citation of a node that has no content is
left out and counted ("dangling").
"""

from pathlib import Path

import numpy as np

from graph.data.raw import Raw, find, raw
from graph.data.text import lines


def read(name: str, root: str | Path) -> Raw:
    """The graph with its features.

    Raises:
        ValueError: a missing or damaged file, a line of another length, a node twice, a feature
            that is no number; file and line are named.
    """
    content, cites = (
        find(
            root,
            *(f"{folder}{name}.{end}{gz}" for folder in (f"{name}/", "") for gz in ("", ".gz")),
        )
        for end in ("content", "cites")
    )
    ids: dict[str, int] = {}
    rows: list[np.ndarray] = []
    for number, line in lines(content):
        node, *values = line.split()
        if node in ids:
            raise ValueError(f"{content}:{number}: node {node!r} has a line already")
        if not values or (rows and len(values) - 1 != len(rows[0])):
            wanted = len(rows[0]) if rows else "some"
            raise ValueError(
                f"{content}:{number}: a node, {wanted} numbers and a label are expected, got "
                f"{len(values) + 1} fields"
            )
        try:
            rows.append(np.array([float(x) for x in values[:-1]], np.float32))
        except ValueError as error:
            raise ValueError(f"{content}:{number}: {error}") from error
        ids[node] = len(ids)
    if not ids:
        raise ValueError(f"{content} is empty")
    edges, dangling = [], 0
    for number, line in lines(cites):
        ends = line.split()
        if len(ends) != 2:
            raise ValueError(f"{cites}:{number}: two nodes are expected, got {len(ends)} fields")
        if ends[0] in ids and ends[1] in ids:
            edges.append((ids[ends[0]], ids[ends[1]]))
        else:
            dangling += 1
    graph = raw(np.array(edges, np.int64).reshape(-1, 2), len(ids), None, np.stack(rows), list(ids))
    return graph._replace(dropped=graph.dropped | {"dangling": dangling})
