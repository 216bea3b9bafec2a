# SPDX-License-Identifier: Apache-2.0
"""Packed sequences, events, cards, planted corpora: against loops over plain lists."""

import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rec import text
from rec.data import cards, embeddings, tfds_builder
from rec.data.events import Events, Policy, from_events, from_rows
from rec.data.planted import bayes_ranks, bayes_recall, expected_recall, planted
from rec.data.sequences import (
    Corpus,
    Queries,
    Sequences,
    Split,
    kcore,
    leave_one_out,
    newest,
    pack,
    select,
    take,
    temporal,
)
from tests import jitter
from tests.jitter import jittered


def random_rows(seed: int, users: int = 30, items: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [
        rng.permutation(items)[: rng.integers(3, 12)].tolist() for _ in range(users)
    ]  # no repeats, as in the real files


def corpus_of(rows: list[list[int]], times: list[list[int]] | None = None) -> Corpus:
    num_items = 1 + max(i for row in rows for i in row)
    names = [f"i{i}" for i in range(num_items)]
    users = [f"u{u}" for u in range(len(rows))]
    return Corpus(
        "toy", users, names, pack(rows, num_items, times or ()), [f"t {n}" for n in names]
    )


def as_lists(sequences: Sequences) -> list[list[int]]:
    return [sequences.of(u).tolist() for u in range(sequences.num_users)]


# -------------------------------------------------------------------------------------- sequences


def test_pack_take_select_newest() -> None:
    rows = random_rows(0)
    packed = pack(rows, 40)
    assert as_lists(packed) == rows and packed.items.dtype == np.int32
    assert packed.lengths.tolist() == [len(row) for row in rows]
    start, stop = np.ones(30, np.int64), packed.lengths - 1
    assert as_lists(take(packed, start, stop)) == [row[1:-1] for row in rows]
    users = np.array([7, 3, 3])
    assert as_lists(select(packed, users)) == [rows[7], rows[3], rows[3]]
    items, mask = newest(packed, 5)
    for row, line, kept in zip(rows, items, mask, strict=True):
        assert line[kept].tolist() == row[-5:] and kept.sum() == min(5, len(row))
        assert not line[~kept].any() and kept[: kept.sum()].all()
    empty = pack([], 4)
    assert empty.num_users == 0 and len(empty.items) == 0
    assert as_lists(pack([[], [1]], 4)) == [[], [1]]
    with pytest.raises(ValueError, match="times: 1 for 2"):
        pack([[0, 1]], 2, [[5]])


def test_times_go_along() -> None:
    packed = pack([[0, 1, 2], [2, 1, 0]], 3, [[10, 20, 30], [1, 2, 3]])
    assert select(packed, np.array([1])).times.tolist() == [1, 2, 3]
    assert take(packed, np.array([1, 0]), np.array([3, 1])).times.tolist() == [20, 30, 1]


def test_leave_one_out() -> None:
    rows = random_rows(1)
    split = leave_one_out(pack(rows, 40))
    assert as_lists(split.train) == [row[:-2] for row in rows]
    assert as_lists(split.valid.history) == [row[:-2] for row in rows]
    assert as_lists(split.test.history) == [row[:-1] for row in rows]
    assert split.valid.targets.tolist() == [row[-2] for row in rows]
    assert split.test.targets.tolist() == [row[-1] for row in rows]
    assert split.test.users.tolist() == list(range(30))
    with pytest.raises(ValueError, match="user 1 has 2 items"):
        leave_one_out(pack([[0, 1, 2], [0, 1]], 3))


def test_temporal_against_a_loop() -> None:
    rows = random_rows(2)
    rng = np.random.default_rng(0)
    times = [np.sort(rng.integers(0, 100, len(row))).tolist() for row in rows]
    split = temporal(pack(rows, 40, times), 50, 80)
    wanted: dict[str, list[tuple[int, list[int], int]]] = {"valid": [], "test": []}
    for user, (row, when) in enumerate(zip(rows, times, strict=True)):
        for side, low, high in (("valid", 50, 80), ("test", 80, 1000)):
            before = [i for i, t in zip(row, when, strict=True) if t < low]
            inside = [i for i, t in zip(row, when, strict=True) if low <= t < high]
            if before and inside:
                wanted[side].append((user, before, inside[0]))
    for side, queries in (("valid", split.valid), ("test", split.test)):
        found = zip(queries.users, as_lists(queries.history), queries.targets, strict=True)
        assert [(int(u), h, int(t)) for u, h, t in found] == wanted[side]
    assert as_lists(split.train) == [
        [i for i, t in zip(row, when, strict=True) if t < 50]
        for row, when in zip(rows, times, strict=True)
    ]
    with pytest.raises(ValueError, match="needs times"):
        temporal(pack(rows, 40), 50, 80)
    with pytest.raises(ValueError, match="must be before"):
        temporal(pack(rows, 40, times), 80, 80)
    for valid_from, test_from, side in (
        (0, 50, "training"),
        (50, 200, "test"),
        (200, 300, "valid"),
    ):
        with pytest.raises(ValueError, match=f"{side} side"):
            temporal(pack(rows, 40, times), valid_from, test_from)


def test_kcore_against_a_loop() -> None:
    rows = random_rows(3, users=60, items=60)
    times = [[100 * u + t for t in range(len(row))] for u, row in enumerate(rows)]
    core = kcore(corpus_of(rows, times), 5)
    left = [list(enumerate(row)) for row in rows]
    for _ in range(100):
        count = Counter(i for row in left for _, i in row)
        left = [[(t, i) for t, i in row if count[i] >= 5] for row in left]
        left = [row if len(row) >= 5 else [] for row in left]
    names = [[f"i{i}" for _, i in row] for row in left if row]
    assert names and len(names) < 60
    assert [[core.items[i] for i in row] for row in as_lists(core.sequences)] == names
    assert core.users == [f"u{u}" for u, row in enumerate(left) if row]
    assert core.items == list(dict.fromkeys(i for row in names for i in row)), "first appearance"
    assert core.texts == [f"t {name}" for name in core.items]
    stamps = [100 * u + t for u, row in enumerate(left) for t, _ in row]
    assert core.sequences.times.tolist() == stamps
    again = kcore(core, 5)
    assert as_lists(again.sequences) == as_lists(core.sequences) and again.items == core.items
    with pytest.raises(ValueError, match="core=50"):
        kcore(corpus_of(rows), 50)


# ----------------------------------------------------------------------------------------- events


def events(rows: list[tuple[str, str, int]]) -> Events:
    users, items, times = zip(*rows, strict=True)
    stamps = np.array(times)
    return Events(list(users), list(items), stamps.astype(float), stamps, "toy.csv")


TEXTS = {name: f"text of {name}" for name in "abcdef"}
TIED = [("v", "c", 5), ("u", "b", 5), ("u", "a", 5), ("v", "a", 1), ("u", "d", 1), ("u", "c", 5)]


def named_rows(corpus: Corpus) -> dict[str, str]:
    rows = as_lists(corpus.sequences)
    return {
        user: "".join(corpus.items[i] for i in row)
        for user, row in zip(corpus.users, rows, strict=True)
    }


def test_ties_are_settled_by_the_policy() -> None:
    corpus = from_events("toy", events(TIED), TEXTS)
    assert named_rows(corpus) == {"v": "ac", "u": "dbac"}
    assert corpus.items == ["a", "c", "d", "b"], "numbered by first appearance in the rows"
    assert corpus.texts == [TEXTS[i] for i in corpus.items]
    assert corpus.sequences.times.tolist() == [1, 5, 1, 5, 5, 5]
    assert named_rows(from_events("toy", events(TIED), TEXTS, Policy("item")))["u"] == "dabc"
    orders = [
        named_rows(from_events("toy", events(TIED), TEXTS, Policy("shuffle", seed)))["u"]
        for seed in (*range(30), *range(30))
    ]
    assert orders[:30] == orders[30:] and len(set(orders)) == 6
    assert all(order[0] == "d" for order in orders), "only ties are shuffled"
    with pytest.raises(ValueError, match="use file, item or shuffle"):
        from_events("toy", events(TIED), TEXTS, Policy("coin"))  # type: ignore[arg-type]


def test_repeats_and_items_without_text() -> None:
    rows = [("u", item, at) for at, item in enumerate("abacb")]
    with pytest.raises(ValueError, match=r"toy\.csv: user 'u' has item 'a' twice \(2 repeats"):
        from_events("toy", events(rows), TEXTS)
    assert named_rows(from_events("toy", events(rows), TEXTS, Policy(repeats="first"))) == {
        "u": "abc"
    }
    kept = from_events("toy", events(rows), TEXTS, Policy(repeats="keep"))
    assert named_rows(kept) == {"u": "abacb"} and cards.repeats(kept.sequences) == 2
    rows = [("u", "a", 0), ("u", "x", 1), ("w", "y", 1)]
    with pytest.raises(ValueError, match="2 items have no text, the first one is 'x'"):
        from_events("toy", events(rows), TEXTS)
    dropped = from_events("toy", events(rows), TEXTS, Policy(textless="drop"))
    assert named_rows(dropped) == {"u": "a"}
    with pytest.raises(ValueError, match="no interaction is left"):
        from_events("toy", events(rows), {}, Policy(textless="drop"))
    with pytest.raises(ValueError, match="no interactions"):
        from_rows("toy", [], [], TEXTS, "toy.csv")
    plain = from_rows("toy", ["u", "v"], ["fa", "ab"], TEXTS, "toy.csv")
    assert named_rows(plain) == {"u": "fa", "v": "ab"} and len(plain.sequences.times) == 0


# ------------------------------------------------------------------------------------------ cards


def test_card_against_loops() -> None:
    rows = [[0, 1, 2, 3, 4], [4, 3, 2, 1], [2, 0, 5]]
    corpus = corpus_of(rows)._replace(items=["b", "a", "c", "f", "e", "d"])
    found = cards.card(corpus, leave_one_out(corpus.sequences))
    names = [[corpus.items[i] for i in row] for row in rows]
    pairs = [(a, b) for row in names for a, b in pairwise(row)]
    assert found["ascending_pairs"] == np.mean([a < b for a, b in pairs])
    assert found["ascending_valid_test"] == np.mean([row[-2] < row[-1] for row in names])
    train = [row[:-2] for row in rows]
    assert found["prefix_pairs"] == sum(len(row) - 1 for row in train)
    windows = [(a, b) for row in train for b in range(len(row)) for a in range(b)]
    assert found["windows"] == len(windows)
    seen = {i for row in train for i in row}
    assert found["test_unseen_in_train"] == sum(row[-1] not in seen for row in rows) == 1
    counts = ("users", "items", "interactions", "length_min", "length_max", "has_times")
    assert [found[key] for key in counts] == [3, 6, 12, 3, 5, False]
    other = corpus_of([*rows[:2], [2, 5, 0]])
    for key, changed in (("sha256_sequences", other), ("sha256_texts", other)):
        again = cards.card(changed, leave_one_out(changed.sequences))[key]
        assert (again == found[key]) == (key == "sha256_texts")


# ---------------------------------------------------------------------------------------- planted


def test_planted_law_is_respected() -> None:
    made = planted(3, (4, 4), users=6000, length=(4, 8))
    sequences, law = made.corpus.sequences, made.law
    np.testing.assert_allclose(law.sum(1), 1)
    assert (law > 0).all() and made.sids.shape == (16, 2) and made.sids.dtype == np.int32
    assert len(np.unique(made.sids, axis=0)) == 16
    assert cards.repeats(sequences) == 0
    assert sorted(set(sequences.lengths.tolist())) == [4, 5, 6, 7, 8]
    _, first = np.unique(sequences.items, return_index=True)
    assert (np.diff(first) > 0).all(), "numbered by first appearance"
    # First steps of users are drawn from the law with one item taken out.
    start, then = (
        sequences.items[sequences.offsets[:-1]],
        sequences.items[sequences.offsets[:-1] + 1],
    )
    for item in range(16):
        counted = np.bincount(then[start == item], minlength=16)
        chances = law[item] * (np.arange(16) != item)
        chances /= chances.sum()
        expected = chances * counted.sum()
        error = np.sqrt(np.maximum(expected * (1 - chances), 1))
        assert (np.abs(counted - expected) < 5 * error).all()
    # The tree: items that share the first code have the same chances of the next first code.
    group = made.sids[:, 0]
    by_branch = np.stack([law[:, group == branch].sum(1) for branch in range(4)], 1)
    for branch in range(4):
        np.testing.assert_allclose(
            by_branch[group == branch] - by_branch[group == branch][:1], 0, atol=1e-9
        )
    same = planted(3, (4, 4), users=6000, length=(4, 8))
    assert as_lists(same.corpus.sequences) == as_lists(sequences)
    assert as_lists(planted(4, (4, 4), users=6000, length=(4, 8)).corpus.sequences) != as_lists(
        sequences
    )
    with pytest.raises(ValueError, match="below 16"):
        planted(0, (4, 4), users=5, length=(4, 16))


def test_bayes_recall_is_the_best_and_what_the_law_promises() -> None:
    made = planted(0)
    queries = leave_one_out(made.corpus.sequences).test
    assert made.sids.shape == (512, 3)
    for row in range(0, 2000, 97):  # by a loop
        chances = made.law[queries.history.of(row)[-1]].copy()
        chances[queries.history.of(row)] = -1
        order = np.lexsort((np.arange(512), -chances))
        assert order[bayes_ranks(made.law, queries)[row]] == queries.targets[row]
    for k in (1, 10):
        recall = bayes_recall(made.law, queries, k)
        promised = expected_recall(made.law, queries, k)
        assert abs(recall - promised) < 4 * np.sqrt(promised * (1 - promised) / 2000)
    assert 0.5 < bayes_recall(made.law, queries, 10) < 0.9, "neither trivial nor hopeless"


@pytest.mark.trains
def test_planted_texts_carry_the_tree() -> None:
    """Longer common paths are nearer, and residual k-means finds the very codes."""
    from sklearn.cluster import KMeans

    made = planted(0, users=500)
    vectors = jittered(text.encode(made.corpus.texts))
    near = vectors @ vectors.T
    shared = (made.sids[:, None] == made.sids[None]).cumprod(-1).sum(-1)
    means = [near[shared == depth].mean() for depth in range(4)]
    # Six seeds and three draws of last bits: .558, .287, .105, and the very codes every time.
    jitter.at_least("gaps of similarity", [b - a for a, b in pairwise(means)], 0.02)
    rest = vectors
    for level in range(3):
        found = KMeans(8, n_init=5, random_state=0).fit(rest)
        pairs = np.stack([found.labels_, made.sids[:, level]])
        assert len(np.unique(pairs, axis=1).T) == 8, "one cluster per code"
        rest = rest - found.cluster_centers_[found.labels_]


# ----------------------------------------------------------------------------------- text vectors


def test_encode_small_vocabularies_and_empty_rows() -> None:
    vectors = text.encode(["red nail", "red lip", "nail lip", "zzz", "red nail lip"], 256)
    assert vectors.dtype == np.float32 and vectors.shape == (5, 3), "no wider than its words"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0, 1], atol=1e-6)
    assert text.encode(["one", "two", "three"], 2).shape == (3, 2), "no word occurs twice"
    with pytest.raises(ValueError, match="no text holds a word"):
        text.encode(["-", "!"])
    with pytest.raises(ValueError, match="no texts"):
        text.encode([])


def test_encode_is_the_svd_of_tf_idf() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(60)]
    texts = [" ".join(rng.choice(words[12 * (t % 5) :][: 12 - t % 5], 9)) for t in range(80)]
    found = text.encode(texts, 5)
    assert found.shape == (80, 5)
    np.testing.assert_allclose(text.encode(texts, 5), found, atol=1e-6)
    tf = np.array([[t.split().count(w) for w in words] for t in texts], float)
    idf = np.log((1 + 80) / (1 + (tf > 0).sum(0))) + 1
    weights = np.where(tf > 0, 1 + np.log(np.maximum(tf, 1)), 0) * idf
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    left, size, _ = np.linalg.svd(weights, full_matrices=False)
    exact = left[:, :5] * size[:5]
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert np.abs(found @ found.T - exact @ exact.T).max() < 0.01, "randomised, few iterations"


def test_embeddings_of_a_user(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, np.arange(12.0).reshape(4, 3))
    found = embeddings.load(path, 4)
    assert found.dtype == np.float32 and found[3].tolist() == [9, 10, 11]
    for rows, message in ((5, r"\[4, 3\], \[5, d\] is expected"), (4, "not finite")):
        with pytest.raises(ValueError, match=rf"vectors\.npy: .*{message}"):
            if rows == 4:
                np.save(path, np.array([[1.0], [2.0], [np.nan], [0.0]]))
            embeddings.load(path, rows)
    np.save(path, np.array(["a", "b"]))
    with pytest.raises(ValueError, match="array of numbers"):
        embeddings.load(path, 2)
    path.write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(ValueError, match=r"vectors\.npy is no \.npy file"):
        embeddings.load(path, 2)
    with pytest.raises(ValueError, match="missing file"):
        embeddings.load(tmp_path / "none.npy", 2)


# ------------------------------------------------------------------------------------------- TFDS


@pytest.mark.parametrize("timed", [False, True])
def test_split_round_trips_through_tfds(tmp_path: Path, timed: bool) -> None:
    rows = random_rows(5)
    times = [[7 * t for t in range(len(row))] for row in rows]
    packed = pack(rows, 50, times if timed else ())
    split = temporal(packed, 21, 42) if timed else leave_one_out(packed)
    builder = tfds_builder.sequences_builder(lambda: split, tmp_path)
    builder.download_and_prepare()
    assert list(Path(builder.data_dir).glob("*.array_record*"))
    found = tfds_builder.read_split(
        tfds_builder.sequences_builder(lambda: pytest.fail("was prepared"), tmp_path)
    )
    for one, other in zip(leaves(found), leaves(split), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert found.train.num_items == found.test.history.num_items == 50
    assert "tensorflow" not in sys.modules


def leaves(split: Split) -> list[np.ndarray]:
    of = lambda s: [s.items, s.offsets, s.times]
    asked = lambda q: [q.users, q.targets, *of(q.history)]
    return [*of(split.train), *asked(split.valid), *asked(split.test)]


def test_queries_are_plain_tuples() -> None:
    queries = leave_one_out(pack([[0, 1, 2]], 3)).test
    assert isinstance(queries, Queries) and queries.users.dtype == np.int32
