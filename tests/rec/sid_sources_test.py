# SPDX-License-Identifier: Apache-2.0
"""What tokenizers read beside text: PPMI of co-occurrence, its vectors, and that they see training
alone."""

import numpy as np
import pytest

from rec.data import planted
from rec.data import sequences as seq
from rec.sid import sources


def count_pairs(train: seq.Sequences) -> np.ndarray:
    """Pairs within five places, direct neighbors three times, by plain loops; symmetric."""
    counts = np.zeros((train.num_items, train.num_items))
    for user in range(train.num_users):
        items = train.of(user).tolist()
        for i, first in enumerate(items):
            for distance, second in enumerate(items[i + 1 : i + 6], 1):
                weight = 3 if distance == 1 else 1
                counts[first, second] += weight
                counts[second, first] += weight
    return counts


def corpus() -> seq.Sequences:
    rng = np.random.default_rng(0)
    return seq.pack([rng.integers(0, 11, rng.integers(0, 9)) for _ in range(30)], 12)  # 11: unseen


def test_ppmi_is_that_of_counted_pairs() -> None:
    train = corpus()
    counts = count_pairs(train)
    sums = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.log(counts * counts.sum() / np.outer(sums, sums))
    expected = np.where(counts > 0, np.maximum(expected, 0), 0)
    np.testing.assert_allclose(sources.ppmi(train).toarray(), expected, atol=1e-12)


@pytest.mark.parametrize("dense", [2000, 4])
def test_vectors_are_those_of_the_svd(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs are free, so inner products are compared; with few items and by iteration."""
    monkeypatch.setattr(sources, "DENSE", dense)
    train = corpus()
    matrix = sources.ppmi(train).toarray()
    values, left = np.linalg.eigh(matrix @ matrix.T)
    order = np.argsort(-values)[:5]
    expected = left[:, order] * values[order] ** 0.25
    found = sources.cooccurrence(train, rank=5)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)
    assert (found[11] == 0).all() and (np.abs(found[:11]).max(axis=1) > 0).all()
    if dense > 12:
        assert sources.cooccurrence(train, rank=20).shape == (12, 20)


def test_sources_weigh_the_same_and_unseen_items_live_on_text() -> None:
    train = corpus()
    text = np.random.default_rng(1).normal(size=(12, 7)).astype(np.float32)
    joined, widths = sources.inputs("text+cooccurrence", text, train)
    assert widths == (7, sources.RANK) and joined.shape == (12, 7 + sources.RANK)
    np.testing.assert_allclose(np.linalg.norm(joined[:, :7], axis=1), 1, atol=1e-5)
    lengths = np.linalg.norm(joined[:, 7:], axis=1)
    np.testing.assert_allclose(lengths, [1] * 11 + [0], atol=1e-5)
    alone, none = sources.inputs("text", text, train)
    assert alone is text and none == ()
    with pytest.raises(ValueError, match="sources='pixels': must be one of"):
        sources.inputs("pixels", text, train)


def test_validation_and_test_items_do_not_leak() -> None:
    """Other items held out, the same vectors."""
    made = planted.planted(0, users=200).corpus.sequences
    split = seq.leave_one_out(made)
    other = made._replace(items=made.items.copy())
    ends = made.offsets[1:]
    held_out = np.concatenate([ends - 1, ends - 2])
    other.items[held_out] = np.random.default_rng(0).permutation(other.items[held_out])
    assert (other.items != made.items).any()
    text = np.eye(made.num_items, 8, dtype=np.float32)
    vectors = [
        sources.inputs("text+cooccurrence", text, seq.leave_one_out(s).train)[0]
        for s in (made, other)
    ]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    whole, _ = sources.inputs("text+cooccurrence", text, made)
    assert np.abs(whole - vectors[0]).max() > 1e-3 and split.train.num_items == made.num_items
