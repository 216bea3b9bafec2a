# SPDX-License-Identifier: Apache-2.0
"""Data cards: what a corpus and its split hold, in one flat dictionary for reports."""

import hashlib

import numpy as np

from rec.data.sequences import Corpus, Sequences, Split

Card = dict[str, int | float | str | bool]


def card(corpus: Corpus, split: Split) -> Card:
    """Counts, the artefact of ties, and hashes.

    `ascending_pairs` is the share of adjacent items of a row whose raw names ascend, and
    `ascending_valid_test` that among pairs (last item of the test history, test target): .5 where
    order says nothing about names. Far more means that ties of time stand in the order of names,
    which any model of succession can learn.
    """
    sequences, lengths = corpus.sequences, corpus.sequences.lengths
    train = split.train.lengths
    counted = np.bincount(split.train.items, minlength=sequences.num_items)
    return {
        "name": corpus.name,
        "users": sequences.num_users,
        "items": sequences.num_items,
        "interactions": len(sequences.items),
        "length_mean": float(lengths.mean()),
        "length_min": int(lengths.min()),
        "length_median": float(np.median(lengths)),
        "length_max": int(lengths.max()),
        "repeats": repeats(sequences),
        "train_interactions": len(split.train.items),
        "valid_queries": len(split.valid.targets),
        "test_queries": len(split.test.targets),
        "prefix_pairs": int(np.maximum(train - 1, 0).sum()),
        "windows": int((train * (train - 1) // 2).sum()),
        "test_unseen_in_train": int((counted[split.test.targets] == 0).sum()),
        "ascending_pairs": ascending(corpus, *_adjacent(sequences)),
        "ascending_valid_test": ascending(corpus, *_last_pair(split)),
        "has_times": len(sequences.times) > 0,
        "sha256_sequences": sequences_sha256(sequences),
        "sha256_texts": texts_sha256(corpus.texts),
    }


def repeats(sequences: Sequences) -> int:
    """Interactions whose user had the same item before."""
    rows = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    pairs = rows * sequences.num_items + sequences.items
    return len(pairs) - len(np.unique(pairs))


def _adjacent(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    rows = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    same = rows[1:] == rows[:-1]
    return sequences.items[:-1][same], sequences.items[1:][same]


def _last_pair(split: Split) -> tuple[np.ndarray, np.ndarray]:
    history = split.test.history
    return history.items[history.offsets[1:] - 1], split.test.targets


def ascending(corpus: Corpus, first: np.ndarray, second: np.ndarray) -> float:
    """Share of pairs (first[p], second[p]) of internal ids whose raw names ascend; 0 of none."""
    order = np.argsort(np.argsort(np.asarray(corpus.items), kind="stable"))
    return float((order[second] > order[first]).mean()) if len(first) else 0.0


def sequences_sha256(sequences: Sequences) -> str:
    """Hex digest of rows, ids and times."""
    sha = hashlib.sha256(f"{sequences.num_items}|".encode())
    for array in (sequences.offsets, sequences.items, sequences.times):
        sha.update(np.ascontiguousarray(array).tobytes() + b"|")
    return sha.hexdigest()


def texts_sha256(texts: list[str]) -> str:
    """Hex digest of item texts in the order of internal ids."""
    sha = hashlib.sha256()
    for text in texts:
        sha.update(text.encode() + b"\0")
    return sha.hexdigest()
