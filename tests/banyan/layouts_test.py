# SPDX-License-Identifier: Apache-2.0
"""Generated layouts and Boxoban text levels."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from banyan import layouts as lay
from tests.banyan.worlds import generator

ROWS = [
    "##########",
    "#@ $     #",
    "#  ####  #",
    "#  #  .  #",
    "#  #     #",
    "#        #",
    "#    ### #",
    "#      # #",
    "#        #",
    "##########",
]


def text_of(rows: list[str]) -> str:
    return "; 0\n" + "\n".join(rows) + "\n\n"


def flood(walls: np.ndarray, start: tuple[int, int]) -> set[tuple[int, int]]:
    """Plain search, independent of the bit boards."""
    seen, todo = set(), [start]
    while todo:
        row, col = todo.pop()
        inside = 0 <= row < walls.shape[0] and 0 <= col < walls.shape[1]
        if inside and not walls[row, col] and (row, col) not in seen:
            seen.add((row, col))
            todo += [(row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)]
    return seen


@pytest.mark.parametrize(
    ("shape", "num_walls"),
    [((6, 6), 6), ((8, 8), 6), ((1, 8), 0), ((5, 3), 4), ((8, 8), 30), ((4, 4), 14)],
)
def test_generated_layouts(shape: tuple[int, int], num_walls: int) -> None:
    rng = generator(0)
    for _ in range(30):
        layout = lay.sample_layout(rng, shape, num_walls)
        board = layout.slot.reshape(8, 8)
        assert layout.start == 0 and board[0, 0] == lay.SLOT_FLOOR
        outside = np.ones((8, 8), bool)
        outside[: shape[0], : shape[1]] = False
        assert (board[outside] == lay.SLOT_WALL).all()
        walls = board == lay.SLOT_WALL
        assert walls[~outside].sum() == num_walls
        assert len(flood(walls, (0, 0))) == (~walls).sum()
        slots = np.sort(board[board >= lay.SLOT_LEAF])
        assert len(slots) == lay.capacity(layout) == lay.num_slots(shape, num_walls)
        np.testing.assert_array_equal(slots, 2 + np.arange(len(slots)))


def test_slots_are_uniform_over_free_cells() -> None:
    rng = generator(1)
    where = [
        int(np.flatnonzero(lay.sample_layout(rng, (3, 3), 0).slot == 2)[0]) for _ in range(1600)
    ]
    counts = np.bincount(where, minlength=64)
    free = [1, 2, 8, 9, 10, 16, 17, 18]
    assert set(np.flatnonzero(counts)) == set(free)
    assert ((counts[free] - 200) ** 2 / 200).sum() < 30  # 7 degrees of freedom


def test_connected_agrees_with_a_plain_search() -> None:
    rng = generator(2)
    seen = set()
    for _ in range(300):
        walls = rng.random((8, 8)) < 0.3
        walls[0, 0] = False
        expected = len(flood(walls, (0, 0))) == (~walls).sum()
        assert lay.connected(walls) == expected
        seen.add(expected)
        start = int(rng.integers(64))
        here = len(flood(walls, divmod(start, 8))) == (~walls).sum()
        assert lay.connected(walls, start) == here
    wrap = np.ones((8, 8), bool)
    wrap[0, 7] = wrap[1, 0] = False  # neighbors in memory, not on the board
    assert not lay.connected(wrap, 7)
    assert seen == {True, False}


def test_hashes_tell_walls_from_slots() -> None:
    a = lay.sample_layout(generator(3), (6, 6), 6)
    b = lay.Layout(np.where(a.slot == 2, 3, np.where(a.slot == 3, 2, a.slot)), 0, (6, 6))
    b = b._replace(slot=b.slot.astype(np.uint8))
    assert lay.wall_hash(a) == lay.wall_hash(b) and lay.layout_hash(a) != lay.layout_hash(b)
    other = lay.sample_layout(generator(4), (6, 6), 6)
    assert lay.wall_hash(a) != lay.wall_hash(other)
    assert lay.wall_hash(a) != lay.wall_hash(a._replace(start=1))


def test_pack() -> None:
    drawn = [lay.sample_layout(generator(5), (6, 6), 6), lay.sample_layout(generator(5), (8, 8), 6)]
    tables = lay.pack(drawn)
    assert tables.slot.dtype == np.uint8 and tables.slot.shape == (2, 64)
    np.testing.assert_array_equal(tables.shape, [[6, 6], [8, 8]])


@pytest.mark.parametrize(
    ("shape", "num_walls", "message"),
    [
        ((9, 8), 6, "rows and columns"),
        ((0, 8), 0, "rows and columns"),
        ((3, 3), 8, r"3x3 board takes 0\.\.7"),
        ((3, 3), -1, "num_walls=-1"),
    ],
)
def test_impossible_boards_are_refused(shape: tuple, num_walls: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lay.sample_layout(generator(0), shape, num_walls)


def test_boxoban_level() -> None:
    (layout,) = lay.parse_boxoban(text_of(ROWS), "levels.txt", generator(6))
    board = layout.slot.reshape(8, 8)
    np.testing.assert_array_equal(board == 1, [[c == "#" for c in row[1:9]] for row in ROWS[1:9]])
    assert layout.start == 0 and layout.shape == (8, 8)
    assert board[0, 0] == lay.SLOT_FLOOR
    on_goal = [row.replace("@", " ").replace(".", "+") for row in ROWS]
    (level,) = lay.parse_raw(text_of(on_goal), "levels.txt")
    assert level.start == 2 * 8 + 5 and level.source == "levels.txt:2"
    assert lay.from_level(generator(0), level).slot[level.start] == lay.SLOT_FLOOR


def replaced(row: int, text: str) -> list[str]:
    return [*ROWS[:row], text, *ROWS[row + 1 :]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:-1], r"bad\.txt:2: level of 9 rows"),
        (replaced(3, "#  #  .  ##"), r"bad\.txt:2: level of 10 rows and widths \[10, 11\]"),
        (replaced(1, "#  $     #"), "has 0 players"),
        (replaced(5, "#   @    #"), "has 2 players"),
        (replaced(5, "#   x    #"), "unknown characters"),
        (replaced(9, "#### #####"), "border of the level is not solid"),
        (replaced(5, "oops"), r"bad\.txt:7: 'oops' is neither"),
        (replaced(5, "##########"), r"bad\.txt:2: free cells are not connected"),
        ([], "no level found"),
    ],
)
def test_bad_levels_are_named_with_file_and_line(rows: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lay.parse_boxoban(text_of(rows), "bad.txt", generator(0))


def test_disconnected_levels_can_be_skipped_with_a_reason() -> None:
    split = text_of(ROWS) + text_of(replaced(5, "##########"))
    good, bad = lay.parse_raw(split, "two.txt")
    assert lay.usable(good) == "" and lay.usable(bad).startswith("two.txt:14: free cells")


def test_reading_files_plain_gzip_and_by_pattern(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text_of(ROWS))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text_of(ROWS).encode()))
    for pattern, count in (("a.txt", 1), ("b.txt.gz", 1), ("*.txt*", 2), ("", 2)):
        assert len(lay.read_levels(tmp_path / pattern)) == count
    assert len(lay.read_levels([tmp_path / "a.txt", tmp_path / "b.txt.gz"])) == 2
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"):
        lay.read_levels(tmp_path / "nothing.txt")


def test_broken_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(text_of(ROWS).encode() * 50)
    for name, content in (
        ("cut.txt.gz", whole[: len(whole) // 2]),
        ("flipped.txt.gz", whole[:40] + bytes([whole[40] ^ 255]) + whole[41:]),
        ("binary.txt", b"\xff\xfe\x00"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}.*truncated or corrupt"):
            lay.read_levels(tmp_path / name)
