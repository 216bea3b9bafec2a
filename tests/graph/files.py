# SPDX-License-Identifier: Apache-2.0
"""Small graph files for tests, and how they compare."""

from pathlib import Path
from typing import Any

import numpy as np

from graph.data import made, splits
from graph.links import LinkData, Links

RING = np.stack([np.arange(12), (np.arange(12) + 1) % 12], axis=1)


def put(root: Path, name: str, content: Any) -> Path:
    path = root / "graph" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_set(pairs: np.ndarray) -> set[tuple[int, int]]:
    return {(min(u, v), max(u, v)) for u, v in pairs.reshape(-1, 2).tolist()}


def whole(**changed: Any) -> dict[str, Any]:
    """A file of split links: a ring of 12 nodes; node 12 has no edge in training."""
    return {
        "train_pos": RING[:9], "valid_pos": RING[9:10], "test_pos": np.array([[10, 11], [12, 0]]),
        "valid_neg": np.array([[0, 5]]), "test_neg": np.array([[1, 7], [3, 9]]),
        "heart_valid_neg": np.array([[[9, 1], [2, 10]]]),
        "heart_test_neg": np.array([[[10, 1], [2, 11]], [[12, 3], [4, 0]]]), "num_nodes": 13,
    } | changed  # fmt: skip


def same(a: LinkData, b: LinkData) -> None:
    assert a._replace(split=None, features=None) == b._replace(split=None, features=None)  # type: ignore[arg-type]
    np.testing.assert_array_equal(a.features, b.features)
    for x, y in zip(a.split, b.split, strict=True):
        for left, right in zip(
            *((z if isinstance(z, Links) else [z]) for z in (x, y)), strict=True
        ):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


def ten(tmp_path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    rng = np.random.default_rng(0)
    graph = made.planted(0, 40, 6).edges
    for i in range(10):
        order = rng.permutation(len(graph))
        neg = splits.non_edges(graph, 40, len(graph), rng)
        arrays |= {
            f"split{i}_train_pos": graph[order[12:]], f"split{i}_test_pos": graph[order[:12]],
            f"split{i}_train_neg": neg[12:], f"split{i}_test_neg": neg[:12],
        }  # fmt: skip
    put(tmp_path, "g.npz", {"edges": graph, "num_nodes": 41})
    put(tmp_path, "g_splits.npz", arrays)
    return arrays
