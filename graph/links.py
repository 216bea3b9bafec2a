# SPDX-License-Identifier: Apache-2.0
"""Links to predict: positives, negatives, splits, and the graph they are predicted on."""

from typing import NamedTuple

import numpy as np

from graph import csr


class Links(NamedTuple):
    """pos: int32 [P, 2]; neg: int32 [M, 2], shared by all positives, or [P, K, 2], private."""

    pos: np.ndarray
    neg: np.ndarray

    @property
    def private(self) -> bool:
        return self.neg.ndim == 3


class Split(NamedTuple):
    """graph: int32 [E, 2] cleaned edges that are seen by train, valid and test; train: int32 [T, 2]
    positives of training, by default all of `graph`; train_neg: int32 [N, 2] fixed negatives, or
    [0, 2] where they are drawn; late: int32 [X, 2] edges that are seen at the test too
    (ogbl-collab)."""

    graph: np.ndarray
    train: np.ndarray
    train_neg: np.ndarray
    valid: Links
    test: Links
    late: np.ndarray


class LinkData(NamedTuple):
    """One graph, split.

    name: of the dataset; num_nodes: V; split; features: float32 [V, F], or [V, 0] without; names:
    what users call the nodes, [V] (str of the id where a file has none); protocol: how negatives
    were made, "original", "heart" or "ogb"; dropped: {"loops", "duplicates"} left out on reading;
    directed: whether the order of a pair carries meaning (ogbl-citation2).
    """

    name: str
    num_nodes: int
    split: Split
    features: np.ndarray
    names: list[str]
    protocol: str
    dropped: dict[str, int]
    directed: bool = False


def check(data: LinkData) -> None:
    """Raises ValueError: ids out of range, loops among positives, an empty side, private negatives
    of another count, features of another length, or a test edge that stands in the graph (a leak;
    in a directed one: among the links of training)."""
    split = data.split
    for name, pairs in (
        ("graph", split.graph),
        ("train", split.train),
        ("train_neg", split.train_neg),
        ("late", split.late),
        *((f"{side}.{part}", getattr(getattr(split, side), part))
          for side in ("valid", "test") for part in ("pos", "neg")),
    ):  # fmt: skip
        csr.check_ids(pairs, data.num_nodes, name)
    if len(data.names) != data.num_nodes or len(data.features) != data.num_nodes:
        raise ValueError(
            f"{data.name}: {len(data.names)} names and {len(data.features)} rows of features for "
            f"{data.num_nodes} nodes"
        )
    graph = csr.build(split.graph, data.num_nodes)
    for side, links in (("train", Links(split.train, split.train_neg)), ("valid", split.valid),
                        ("test", split.test)):  # fmt: skip
        if not len(links.pos):
            raise ValueError(f"{data.name}: the {side} split has no positive link")
        if side != "train" and not links.neg.size:
            raise ValueError(f"{data.name}: the {side} split has no negative link")
        if links.private and len(links.neg) != len(links.pos):
            raise ValueError(
                f"{data.name}: {len(links.neg)} rows of negatives for {len(links.pos)} positives "
                f"of {side}"
            )
        loops = np.flatnonzero(links.pos[:, 0] == links.pos[:, 1])
        if len(loops):
            raise ValueError(f"{data.name}: {side} link {links.pos[loops[0]].tolist()} is a loop")
    # Where order counts, the same link the other way round is another link.
    leaked = np.flatnonzero(
        _among(split.test.pos, split.train, data.num_nodes)
        if data.directed
        else csr.contains(graph, split.test.pos)
    )
    if len(leaked):
        raise ValueError(
            f"{data.name}: test link {split.test.pos[leaked[0]].tolist()} stands in the training "
            f"graph, as {len(leaked)} of {len(split.test.pos)} do: take them out of the graph"
        )


def _among(pairs: np.ndarray, others: np.ndarray, num_nodes: int) -> np.ndarray:
    """Whether each of pairs [P, 2] is a row of others, order counting, bool [P]."""
    keys = [x[:, 0].astype(np.int64) * num_nodes + x[:, 1] for x in (pairs, others)]
    return np.isin(keys[0], keys[1])
