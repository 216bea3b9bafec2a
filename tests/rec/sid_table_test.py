# SPDX-License-Identifier: Apache-2.0
"""Conflicts, reports and tables of semantic IDs."""

import itertools

import numpy as np
import pytest

from rec.sid import conflict, report, table


def clustered(items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(rows [items, 4], codebooks [3, 4, 4]): crowded around few code sums."""
    rng = np.random.default_rng(seed)
    books = rng.normal(size=(3, 4, 4)) * np.array([4.0, 1.0, 0.3])[:, None, None]
    codes = rng.integers(0, 2, (items, 3))
    rows = sum(books[level][codes[:, level]] for level in range(3))
    return (rows + 0.1 * rng.normal(size=rows.shape)).astype(np.float32), books.astype(np.float32)


def test_the_digit_counts_within_groups_and_leaves_unique_items_at_zero() -> None:
    codes = np.array([[1, 2], [0, 0], [1, 2], [3, 1], [1, 2], [0, 0]], np.int32)
    sids = conflict.add_digit(codes, 4)
    assert sids.dtype == np.int32 and (sids[:, :2] == codes).all()
    assert sids[:, 2].tolist() == [1, 1, 2, 0, 3, 2]
    rng = np.random.default_rng(1)
    for _ in range(20):
        codes = rng.integers(0, 4, (30, 2)).astype(np.int32)
        sids = conflict.add_digit(codes, 31)
        assert table.unique(sids)  # a bijection: every item one SID, every SID one item
        for row, sid in zip(codes, sids, strict=True):
            alone = (codes == row).all(axis=1).sum() == 1
            assert (sid[-1] == 0) == alone
    with pytest.raises(ValueError, match=r"3 items share the codes \[1, 2\].*2 apart"):
        conflict.add_digit(np.array([[1, 2]] * 3 + [[0, 0]] * 2, np.int32), 3)
    assert conflict.add_digit(np.array([[5]], np.int32), 1).tolist() == [[5, 0]]


@pytest.mark.parametrize("how", ["ecm", "rrs"])
@pytest.mark.parametrize("normalise", [False, True])
def test_psid_gives_every_item_a_sid_of_its_own(how: str, normalise: bool) -> None:
    rows, books = clustered(40)
    found = conflict.psid(rows, books, how, normalise)
    assert found.sids.dtype == np.int32 and table.unique(found.sids)
    table.check(found.sids, (4, 4, 4))
    assert found.greedy > 0 and found.moved > 0
    space = conflict._Space(books, normalise)
    assert found.distortion == pytest.approx(space.errors(rows, found.sids).sum())


@pytest.mark.parametrize("how", ["ecm", "rrs"])
def test_psid_leaves_items_without_conflict_alone(how: str) -> None:
    _, books = clustered(1)
    codes = np.array(list(itertools.product(range(4), repeat=3)), np.int32)
    rows = sum(books[level][codes[:, level]] for level in range(3))
    space = conflict._Space(books, False)
    greedy = space.greedy(rows)
    rows = rows[np.unique(greedy, axis=0, return_index=True)[1]]
    found = conflict.psid(rows, books, how, False)
    np.testing.assert_array_equal(found.sids, space.greedy(rows))
    assert found.moved == 0 and found.distortion == pytest.approx(found.greedy)


@pytest.mark.parametrize("how", ["ecm", "rrs"])
def test_psid_fills_the_space_to_the_last_sid_and_not_beyond(how: str) -> None:
    rows, books = clustered(64)
    assert table.unique(conflict.psid(rows, books, how, False).sids)
    with pytest.raises(ValueError, match="65 items for 4\\^3 = 64 SIDs"):
        conflict.psid(clustered(65)[0], books, how, False)


def test_the_first_to_choose_is_the_best_served_and_the_next_gets_the_second_best() -> None:
    books = np.array([[[0.0], [10.0]], [[0.0], [1.0]]], np.float32)
    rows = np.array([[0.2], [0.1], [0.3]], np.float32)  # all nearest to (0, 0)
    for how in ("ecm", "rrs"):
        sids = conflict.psid(rows, books, how, False).sids
        assert sids.tolist() == [[0, 1], [0, 0], [1, 0]], how
    # Exhaustive matching looks beyond the deepest level where that is nearer.
    books = np.array([[[0.0], [0.4]], [[0.0], [5.0]]], np.float32)
    rows = np.array([[0.0], [0.01]], np.float32)
    assert conflict.psid(rows, books, "ecm", False).sids.tolist() == [[0, 0], [1, 0]]
    assert conflict.psid(rows, books, "rrs", False).sids.tolist() == [[0, 0], [0, 1]]


def test_candidates_are_the_best_tuples_where_the_beam_holds_all() -> None:
    rows, books = clustered(5)
    space = conflict._Space(books, False)
    found = conflict.candidates(rows, space, 4, 64)
    every = np.array(list(itertools.product(range(4), repeat=3)), np.int32)
    for row, ranked in zip(rows, found, strict=True):
        errors = space.errors(np.repeat(row[None], 64, axis=0), ranked)
        assert (np.diff(errors) > -1e-5).all()
        assert {tuple(r) for r in ranked.tolist()} == {tuple(r) for r in every.tolist()}


def test_report_against_figures_by_hand() -> None:
    codes = np.array([[0, 0], [0, 1], [1, 1], [1, 1]], np.int32)
    x = np.ones((4, 2), np.float32)
    decoded = np.stack([np.zeros((4, 2)), np.full((4, 2), 0.5)]).astype(np.float32)
    figures = report.report(codes, (4, 2), x, decoded)
    assert figures["usage/level1"] == 0.5 and figures["usage/level2"] == 1.0
    assert figures["entropy/level1"] == pytest.approx(np.log(2))
    assert figures["perplexity/level1"] == pytest.approx(0.5)
    assert figures["distinct"] == 3 and figures["uniqueness"] == 0.75
    assert figures["largest_group"] == 2 and figures["collisions"] == 0.5
    assert figures["reconstruction/level1"] == 2 and figures["reconstruction/level2"] == 0.5
    assert figures["reconstruction"] == 0.5
    assert all(isinstance(value, float) for value in figures.values())
    assert report.report(codes, (4, 2), x, decoded[-1])["reconstruction"] == 0.5
    with pytest.raises(ValueError, match="decoded must be"):
        report.report(codes, (4, 2), x[:3], decoded)


def test_the_alarm_says_which_level_collapsed_and_how() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (300, 2)).astype(np.int32)
    healthy = report.report(codes, (16, 16))
    assert healthy["alarm"] == 0 and report.reason(healthy, (16, 16)) == ""
    one = codes.copy()
    one[:, 1] = 3
    figures = report.report(one, (16, 16))
    why = report.reason(figures, (16, 16))
    assert figures["alarm"] == 1 and "level 2: only 1 of 16 codes" in why and "level 1:" not in why
    most = codes.copy()
    most[:200, 0] = 5  # every code in use, most items under one
    figures = report.report(most, (16, 16))
    assert figures["alarm"] == 1 and "of the items have the same code" in report.reason(
        figures, (16, 16)
    )
    # Fewer items than codes is no collapse.
    few = np.arange(8, dtype=np.int32)[:, None]
    assert report.report(few, (256,))["alarm"] == 0


def test_the_hash_sees_every_code_the_order_and_the_sizes() -> None:
    sids = np.array([[0, 1], [1, 0], [2, 2]], np.int32)
    sizes = (3, 3)
    first = table.sha256(sids, sizes)
    assert len(first) == 64 and first == table.sha256(np.asfortranarray(sids), sizes)
    changed = sids.copy()
    changed[0, 0] = 2
    others = [
        table.sha256(changed, sizes),
        table.sha256(sids[::-1], sizes),
        table.sha256(sids, (3, 4)),
        table.sha256(sids.reshape(1, 6), (3,) * 6),
    ]
    assert len({first, *others}) == 5
    with pytest.raises(ValueError, match="item 2: code 2 of level 1"):
        table.sha256(sids, (2, 3))


def test_shuffling_keeps_the_sids_and_moves_the_items() -> None:
    sids = np.arange(40, dtype=np.int32).reshape(20, 2)
    moved = table.shuffled(sids, 0)
    assert (moved != sids).any() and sorted(moved.tolist()) == sids.tolist()
    np.testing.assert_array_equal(moved, table.shuffled(sids, 0))
    assert (moved != table.shuffled(sids, 1)).any()
