# SPDX-License-Identifier: Apache-2.0
"""Who is train, valid and test: random, by time, or as files fix it; and uniform negatives.

Everything follows from a seed. Validation and test links of the random and temporal splits are not
in the graph. A fixed split without validation links gets some [our choice]: a seeded share of the
training links, which stay in the graph (the sampler takes the link itself out), against as many
uniform pairs that are neither edges of the graph nor fixed negatives of training.
"""

from collections.abc import Mapping

import numpy as np

from graph import csr
from graph.links import Links, Split

EMPTY = np.zeros((0, 2), np.int32)


def _keys(pairs: np.ndarray, num_nodes: int) -> np.ndarray:
    """int64 [P] of pairs [P, 2], the same for both orders; ascending for cleaned edges."""
    keys = np.minimum(pairs[:, 0], pairs[:, 1]).astype(np.int64)
    keys *= num_nodes
    keys += np.maximum(pairs[:, 0], pairs[:, 1])
    return keys


def _found(keys: np.ndarray, sought: np.ndarray) -> np.ndarray:
    """Whether each of `sought` is among the ascending `keys`."""
    if not len(keys):
        return np.zeros(len(sought), bool)
    at = np.minimum(np.searchsorted(keys, sought), len(keys) - 1)
    return keys[at] == sought


def non_edges(
    edges: np.ndarray,
    num_nodes: int,
    count: int,
    rng: np.random.Generator,
    also: np.ndarray = EMPTY,
) -> np.ndarray:
    """int32 [count, 2], u < v: distinct pairs, uniform over those that are no edges.

    Args:
        edges: cleaned, int [E, 2]. also: int [A, 2], further pairs that are not wanted.

    Raises:
        ValueError: fewer than `count` such pairs.
    """
    taken = _keys(edges, num_nodes)
    barred = np.unique(_keys(also, num_nodes))
    inside = barred[barred // max(num_nodes, 1) != barred % max(num_nodes, 1)]
    inside = inside[~_found(taken, inside)]
    total = num_nodes * (num_nodes - 1) // 2 - len(edges) - len(inside)
    if count > total:
        raise ValueError(
            f"{count} pairs without an edge are wanted, a graph of {num_nodes} nodes and "
            f"{len(edges)} edges has {total}: choose smaller shares, or a sparser graph"
        )
    distinct = np.zeros(0, np.int64)
    while len(distinct) < count:
        drawn = rng.integers(0, num_nodes, (count - len(distinct) + 64, 2), np.int32)
        keys = _keys(drawn, num_nodes)[drawn[:, 0] != drawn[:, 1]]
        keys = keys[~_found(taken, keys) & ~_found(barred, keys)]
        both = np.concatenate([distinct, keys])
        distinct = both[np.sort(np.unique(both, return_index=True)[1])][:count]
    return np.stack(np.divmod(distinct, max(num_nodes, 1)), axis=1).astype(np.int32)


def _shares(total: int, valid_share: float, test_share: float) -> tuple[int, int]:
    if not (0 < valid_share < 1 and 0 < test_share < 1 and valid_share + test_share < 1):
        raise ValueError(
            f"valid_share={valid_share} and test_share={test_share} must be positive and leave "
            "something for training"
        )
    valid, test = round(total * valid_share), round(total * test_share)
    if not valid or not test or valid + test >= total:
        raise ValueError(
            f"{total} edges give an empty split at valid_share={valid_share} and "
            f"test_share={test_share} ({total - valid - test} train, {valid} valid, {test} test)"
        )
    return valid, test


def _labeled(edges: np.ndarray, label: np.ndarray, num_nodes: int, seed: int) -> Split:
    """Split of edges by label 0 train, 1 valid, 2 test; negatives avoid every edge."""
    valid, test = edges[label == 1], edges[label == 2]
    rng = np.random.default_rng([seed, 0x4E])
    neg = non_edges(edges, num_nodes, len(valid) + len(test), rng)
    train = edges[label == 0]
    return Split(
        train, train, EMPTY, Links(valid, neg[: len(valid)]), Links(test, neg[len(valid) :]), EMPTY
    )


def random(
    edges: np.ndarray, num_nodes: int, seed: int, valid_share: float, test_share: float
) -> Split:
    """Shares of cleaned edges [E, 2], drawn without replacement; as many uniform negatives.

    Raises:
        ValueError: shares that leave a side empty, too few pairs without an edge.
    """
    valid, test = _shares(len(edges), valid_share, test_share)
    drawn = np.random.default_rng([seed, 0x51]).permutation(len(edges))[: valid + test]
    label = np.zeros(len(edges), np.int8)
    label[drawn[:valid]], label[drawn[valid:]] = 1, 2
    del drawn
    return _labeled(edges, label, num_nodes, seed)


def temporal(
    edges: np.ndarray,
    times: np.ndarray,
    num_nodes: int,
    seed: int,
    valid_share: float,
    test_share: float,
) -> Split:
    """The latest share of cleaned edges is the test, the one before it valid. Edges of one time
    stay together, on the later side. Uniform negatives, as many.

    Raises:
        ValueError: no times, or too few distinct ones for three sides.
    """
    if len(times) != len(edges) or not len(edges):
        raise ValueError(f"a temporal split wants a time for each of {len(edges)} edges")
    valid, test = _shares(len(edges), valid_share, test_share)
    ordered = np.sort(times)
    from_test, from_valid = ordered[-test], ordered[-(valid + test)]
    label = (times >= from_valid).astype(np.int8) + (times >= from_test)
    counts = np.bincount(label, minlength=3)
    if not counts.all():
        raise ValueError(
            f"a split by time would leave {counts[0]} train, {counts[1]} valid and {counts[2]} "
            f"test edges: {len(np.unique(times))} distinct times are too few for these shares"
        )
    return _labeled(edges, label, num_nodes, seed)


def fixed(
    arrays: Mapping[str, np.ndarray], num_nodes: int, protocol: str, seed: int, valid_share: float
) -> tuple[Split, dict[str, int]]:
    """(split, rows of the training links left out) as a file fixes it (`graph.data.npz`).

    Args:
        protocol: "heart" takes heart_valid_neg and heart_test_neg; else valid_neg and test_neg.

    Raises:
        ValueError: no negatives of that protocol, or no training links.
    """
    cleaned = csr.clean(arrays["train_pos"], num_nodes)
    graph = cleaned.edges
    train_neg = arrays.get("train_neg", EMPTY)
    directed = bool(arrays.get("directed", False))
    train = arrays["train_pos"] if directed else graph
    if directed:
        train = train[train[:, 0] != train[:, 1]]
    prefix = "heart_" if protocol == "heart" else ""
    if f"{prefix}test_neg" not in arrays:
        raise ValueError(
            f"no {prefix}test_neg for protocol={protocol!r} (there are {', '.join(sorted(arrays))})"
        )
    test = Links(arrays["test_pos"], arrays[f"{prefix}test_neg"])
    if "valid_pos" in arrays:
        if f"{prefix}valid_neg" not in arrays:
            raise ValueError(f"valid_pos without {prefix}valid_neg")
        valid = Links(arrays["valid_pos"], arrays[f"{prefix}valid_neg"])
    else:
        train, valid = _held_out(train, graph, train_neg, num_nodes, seed, valid_share)
    split = Split(graph, train, train_neg, valid, test, arrays.get("late", EMPTY))
    return split, {"loops": cleaned.loops, "duplicates": cleaned.duplicates}


def _held_out(
    train: np.ndarray,
    graph: np.ndarray,
    train_neg: np.ndarray,
    num_nodes: int,
    seed: int,
    valid_share: float,
) -> tuple[np.ndarray, Links]:
    """(rest of train, links of validation); see the module."""
    if not 0 < valid_share < 1:
        raise ValueError(f"valid_share={valid_share} must lie between 0 and 1")
    count = round(len(train) * valid_share)
    if not 0 < count < len(train):
        raise ValueError(
            f"valid_share={valid_share} of {len(train)} training links leaves an empty split"
        )
    rng = np.random.default_rng([seed, 0x7A])
    is_valid = np.zeros(len(train), bool)
    is_valid[rng.permutation(len(train))[:count]] = True
    return train[~is_valid], Links(
        train[is_valid], non_edges(graph, num_nodes, count, rng, train_neg)
    )
