# SPDX-License-Identifier: Apache-2.0
"""Graphs in .npz files: <root>/graph/<name>.npz and, for fixed splits, <name>_splits.npz.

A graph:        edges [E, 2], num_nodes; times [E] where a split by time is wanted
Split links:    train_pos, [train_neg], valid_pos, valid_neg, test_pos, test_neg, num_nodes
                HeaRT:  heart_valid_neg, heart_test_neg [P, K, 2]
                OGB:    negatives may be private [P, K, 2]; late [X, 2] (edges seen at the test);
                        directed (true: the order of a pair counts)
Many splits:    split<i>_{train,test}_{pos,neg}, i from 0; valid_pos and valid_neg where they exist

Each may hold `features` [V, F] and `names` [V] too. Ids count from 0. Any file laid out so works.
"""

from pathlib import Path
from typing import Any

import numpy as np

from graph import csr
from graph.data.arrays import read_npz
from graph.data.raw import Raw, featured, find, maybe, named, raw

Arrays = dict[str, np.ndarray]
SPARE_NODES = 1 << 22
"""Nodes a file may claim whatever it holds."""
NODES_PER_END = 64
"""Nodes a larger file may claim for each end of a link that it holds."""


def load(path: str | Path) -> Arrays:
    """Arrays of a file, none of them objects.

    Raises:
        ValueError: missing, damaged, larger than it can be, or with objects inside (see
            `graph.data.arrays`); the file is named.
    """
    return read_npz(Path(path))


def find_graph(name: str, root: str | Path) -> Path:
    """<name>.npz, else <name>_splits.npz."""
    return find(root, f"{name}.npz", f"{name}_splits.npz")


def _is_links(name: str) -> bool:
    return name.endswith(("_pos", "_neg")) or name in ("edges", "late")


def checked(arrays: Arrays, path: Path) -> tuple[Arrays, int]:
    """(arrays with links as int32, num_nodes).

    Raises:
        ValueError: links that are not integers [.., 2], ids negative, out of range or counted from
            1, over all links of the file; a num_nodes that is no number of nodes.
    """
    links = {k: v for k, v in arrays.items() if _is_links(k)}
    low, high = np.iinfo(np.int64).max, -1
    for name, array in links.items():
        ranks = (2, 3) if name.endswith("_neg") else (2,)  # negatives may be private
        if array.ndim not in ranks or array.shape[-1] != 2 or array.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: {name} is {array.dtype} {list(array.shape)}, integers [.., 2] expected"
            )
        if array.size:
            low, high = min(low, int(array.min())), max(high, int(array.max()))
    if high > csr.LIMIT - 1:
        raise ValueError(f"{path}: node id {high} does not fit int32: ids are 0 .. {csr.LIMIT - 1}")
    if "num_nodes" in arrays:
        count = _num_nodes(arrays["num_nodes"], sum(x.size for x in links.values()), path)
    else:
        if low == 1:
            raise ValueError(
                f"{path}: the smallest id is 1 and there is no num_nodes: ids that count from 1 "
                "look so; subtract 1 from each, or add num_nodes"
            )
        count = high + 1
    if high >= 0:
        csr.check_ids(np.array([[low, high]]), count, str(path))
    return {k: v.astype(np.int32) if k in links else v for k, v in arrays.items()}, count


def _num_nodes(value: np.ndarray, link_ends: int, path: Path) -> int:
    """The number of nodes a file of so many ends of links claims."""
    number = value.reshape(-1)[0] if value.size == 1 and value.dtype.kind in "iuf" else np.nan
    if not number == number // 1:
        raise ValueError(
            f"{path}: num_nodes is {value.dtype} {list(value.shape)}, one whole number is expected"
        )
    most = min(csr.LIMIT, max(SPARE_NODES, NODES_PER_END * link_ends))
    if not 0 <= number <= most:
        raise ValueError(
            f"{path}: num_nodes={int(number)}: a file with {link_ends:,} ends of links may claim "
            f"0 .. {most}"
        )
    return int(number)


def _checked_times(times: np.ndarray, count: int, path: Path) -> np.ndarray:
    """Times of `count` edges as float64 [count]."""
    if times.shape != (count,):
        raise ValueError(f"{path}: times {list(times.shape)} for {count} edges")
    if times.dtype.kind not in "iufM":
        raise ValueError(f"{path}: times are {times.dtype}, numbers are expected")
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        raise ValueError(f"{path}: times[{bad[0]}] is {times[bad[0]]}, a finite time is expected")
    return times.astype(np.float64)


def extras(arrays: Arrays, num_nodes: int, path: Path) -> tuple[np.ndarray, list[str]]:
    """(features, names) of a file."""
    features = featured(arrays.get("features"), num_nodes, path)
    names = [str(x) for x in arrays["names"].reshape(-1)] if "names" in arrays else None
    return features, named(names, num_nodes, path)


def read_graph(name: str, root: str | Path) -> Raw:
    """The whole graph, whatever the file's split: all positives are its edges.

    Raises:
        ValueError: a missing or damaged file, bad ids (`checked`), features of another length.
    """
    path = find_graph(name, root)
    arrays, count = checked(load(path), path)
    parts = [arrays[k] for k in ("edges", "train_pos", "valid_pos", "test_pos") if k in arrays]
    if not parts:
        first = [arrays[k] for k in ("split0_train_pos", "split0_test_pos") if k in arrays]
        parts = first or [arrays.get("late", np.zeros((0, 2), np.int32))]
    features, names = extras(arrays, count, path)
    edges = np.concatenate(parts)
    times = None
    if "times" in arrays:
        times = _checked_times(arrays["times"], len(edges), path)
    return raw(edges, count, times, features, names)


def split_indices(name: str, root: str | Path) -> list[int]:
    """Fixed splits there are: [0] where the file of the graph is one, [] without any.

    Raises:
        ValueError: as `load`, or no file of that name.
    """
    path = find_graph(name, root)
    if "train_pos" in load(path):
        return [0]
    arrays = load(maybe(root, f"{name}_splits.npz") or path)
    return _split_indices(arrays)


def _split_indices(arrays: Arrays) -> list[int]:
    return sorted({_index(k) for k in arrays if k.startswith("split") and "_" in k})


def read_split(name: str, root: str | Path, index: int) -> tuple[Arrays, Raw, Path]:
    """Arrays of split `index`, named without their prefix; what else is known of the graph, whose
    edges are left empty; and the file.

    Raises:
        ValueError: as `read_graph`; the file has no split (what it has, and the way out, is said),
            or none of that index.
    """
    path = find_graph(name, root)
    plain, count = checked(load(path), path)
    arrays = plain
    if "train_pos" not in arrays:
        path = maybe(root, f"{name}_splits.npz") or path
        arrays, split_count = checked(load(path), path)
        count = max(count, split_count)
        indices = _split_indices(arrays)
        if not indices:
            raise ValueError(
                f"{path} has no fixed split (it holds {', '.join(sorted(arrays))}): choose "
                "split='random', or 'temporal' where edges have times"
            )
        if index not in indices:
            raise ValueError(f"{path}: split {index} is not there; choose from {indices}")
        prefix = f"split{index}_"
        arrays = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    elif index:
        raise ValueError(f"{path} has one split: index={index} must be 0")
    missing = [k for k in ("train_pos", "test_pos", "test_neg") if k not in arrays]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing (there are {', '.join(arrays)})")
    features, names = extras(plain, count, path)
    return arrays, raw(np.zeros((0, 2), np.int32), count, None, features, names), path


def _index(name: str) -> int:
    digits = name.removeprefix("split").split("_")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 10 else -1


def write(path: str | Path, **arrays: Any) -> None:
    """Arrays as a compressed file of this layout."""
    np.savez_compressed(Path(path), **arrays)
