# SPDX-License-Identifier: Apache-2.0
"""Layouts: walls, the start cell, and the order in which free cells take the leaves of a tree.

A layout fixes walls and placements together, as slot codes on the 8x8 board (see `types`). The
agent starts in the top-left cell of generated layouts, which never holds an item. Boards are at
most 8x8 and sit in the top-left corner; 6x6 and 8x8 with six walls are what the paper's clip shows.

Real layouts come from Boxoban level files (text, 10x10 with a solid border, so the inside is 8x8);
boxes and targets are dropped and slots are drawn.
"""

import glob
import gzip
import hashlib
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from banyan.types import (
    MAX_LEAVES,
    NUM_CELLS,
    SIDE,
    SLOT_FLOOR,
    SLOT_LEAF,
    SLOT_WALL,
    Layouts,
    host_leaf,
)

_ATTEMPTS = 200
_LEFT_COLUMN = sum(1 << (SIDE * row) for row in range(SIDE))
_RIGHT_COLUMN = _LEFT_COLUMN << (SIDE - 1)
_LEVEL_SIDE = SIDE + 2  # a Boxoban level with its border
_MOST_INFLATED = 1 << 26  # bytes a level file inflates to: 500,000 levels
_LEVEL_CHARS = frozenset("# @+$*.")


class Layout(NamedTuple):
    """One layout on the host."""

    slot: np.ndarray  # uint8 [64], slot codes
    start: int
    shape: tuple[int, int]


class RawLevel(NamedTuple):
    """Walls and start of a Boxoban level, before anything is checked but its form."""

    walls: np.ndarray  # bool [8, 8]
    start: int
    source: str  # "file:line" of its first row


def _bits(cells: np.ndarray) -> int:
    return sum(1 << int(cell) for cell in cells)


def _reach(free: int, start: int) -> int:
    """Bitboard of the free cells reachable from `start`; cell c is bit c."""
    seen = (1 << start) & free
    while True:
        grown = seen | (seen << SIDE) | (seen >> SIDE)
        grown |= ((seen & ~_RIGHT_COLUMN) << 1) | ((seen & ~_LEFT_COLUMN) >> 1)
        grown &= free
        if grown == seen:
            return seen
        seen = grown


def connected(walls: Bool[np.ndarray, "rows cols"], start: int = 0) -> bool:
    """True if every free cell is 4-connected to `start` (a cell number of the 8x8 board)."""
    rows, cols = np.nonzero(~walls)
    free = _bits(rows * SIDE + cols)
    return free >> start & 1 == 1 and _reach(free, start) == free


def check_shape(shape: Sequence[int], num_walls: int) -> None:
    """Raises ValueError unless a board of this shape and wall count leaves start and one slot."""
    if len(shape) != 2 or not all(1 <= side <= SIDE for side in shape):
        raise ValueError(f"shape={tuple(shape)}: rows and columns must lie in 1..{SIDE}")
    most = shape[0] * shape[1] - 2
    if not 0 <= num_walls <= most:
        raise ValueError(
            f"num_walls={num_walls}: a {shape[0]}x{shape[1]} board takes 0..{most} walls"
        )


def num_slots(shape: Sequence[int], num_walls: int) -> int:
    """Leaves a layout of this kind can hold."""
    return min(MAX_LEAVES, shape[0] * shape[1] - num_walls - 1)


def _place_slots(
    rng: np.random.Generator, free: Sequence[int] | np.ndarray, start: int, shape: tuple[int, int]
) -> Layout:
    slot = np.full(NUM_CELLS, SLOT_WALL, np.uint8)
    slot[np.asarray(free)] = SLOT_FLOOR
    places = rng.permutation([cell for cell in free if cell != start])[:MAX_LEAVES]
    slot[places] = SLOT_LEAF + np.arange(len(places))
    return Layout(slot, start, shape)


def sample_layout(rng: np.random.Generator, shape: tuple[int, int], num_walls: int) -> Layout:
    """Random walls, redrawn until all free cells hang together, then a random order of slots.

    So many walls that this hardly ever happens are placed one by one instead, each where it cuts
    nothing off (such boards are not uniform).

    Args:
        shape: rows, columns, each 1..8.
        num_walls: walls inside the board; never on the start cell 0.

    Raises:
        ValueError: impossible numbers.
    """
    check_shape(shape, num_walls)
    inside = np.array([row * SIDE + col for row in range(shape[0]) for col in range(shape[1])])
    everything = _bits(inside)
    for _ in range(_ATTEMPTS):
        walls = rng.permutation(inside[1:])[:num_walls]
        free = everything & ~_bits(walls)
        if _reach(free, 0) == free:
            return _place_slots(rng, [int(c) for c in inside if free >> int(c) & 1], 0, shape)
    free = _carve(rng, inside[1:], everything, num_walls)
    return _place_slots(rng, [int(c) for c in inside if free >> int(c) & 1], 0, shape)


def _carve(rng: np.random.Generator, cells: np.ndarray, free: int, num_walls: int) -> int:
    """Takes cells away one at a time so that the rest stays connected to cell 0.

    A connected board has at least two cells whose loss disconnects nothing, so it never gets stuck.
    """
    while num_walls:
        for cell in rng.permutation(cells):
            rest = free & ~(1 << int(cell))
            if num_walls and rest != free and _reach(rest, 0) == rest:
                free = rest
                num_walls -= 1
    return free


def walls_of(layout: Layout) -> Bool[np.ndarray, "64"]:
    """Wall cells of the 8x8 board, padding included."""
    return layout.slot == SLOT_WALL


def _hash(layout: Layout, content: np.ndarray) -> str:
    head = bytes([layout.start, *layout.shape])
    return hashlib.blake2b(head + content.tobytes(), digest_size=16).hexdigest()


def wall_hash(layout: Layout) -> str:
    """Hash (hex) of walls, start and board shape, blind to the slots."""
    head = bytes([layout.start, *layout.shape])
    return hashlib.blake2b(
        head + np.packbits(walls_of(layout)).tobytes(), digest_size=16
    ).hexdigest()


def layout_hash(layout: Layout) -> str:
    """Hash (hex) of the whole layout: walls, start, shape and slots."""
    return _hash(layout, layout.slot)


def capacity(layout: Layout) -> int:
    """Number of leaves the layout can hold."""
    return int((layout.slot >= SLOT_LEAF).sum())


def pack(layouts: Sequence[Layout]) -> Layouts:
    """Tables of M layouts."""
    return Layouts(
        slot=host_leaf(np.stack([layout.slot for layout in layouts]).astype(np.uint8)),
        start=host_leaf(np.array([layout.start for layout in layouts], np.int32)),
        shape=host_leaf(np.array([layout.shape for layout in layouts], np.int32)),
    )


def _parse_block(rows: Sequence[str], source: str) -> RawLevel:
    if len(rows) != _LEVEL_SIDE or any(len(row) != _LEVEL_SIDE for row in rows):
        widths = sorted({len(row) for row in rows})
        raise ValueError(
            f"{source}: level of {len(rows)} rows and widths {widths}, "
            f"must be {_LEVEL_SIDE}x{_LEVEL_SIDE}"
        )
    board = np.array([list(row) for row in rows])
    unknown = set(board.reshape(-1).tolist()) - _LEVEL_CHARS
    if unknown:
        raise ValueError(f"{source}: unknown characters {sorted(unknown)} in the level")
    border = np.ones_like(board, bool)
    border[1:-1, 1:-1] = False
    if not (board[border] == "#").all():
        raise ValueError(f"{source}: the border of the level is not solid")
    inside = board[1:-1, 1:-1]
    starts = np.argwhere((inside == "@") | (inside == "+"))
    if len(starts) != 1:
        raise ValueError(f"{source}: level has {len(starts)} players, must be 1")
    return RawLevel(inside == "#", int(starts[0, 0] * SIDE + starts[0, 1]), source)


def parse_raw(text: str, name: str) -> list[RawLevel]:
    """Levels of a Boxoban text (`; number`, ten rows, blank line), connected or not.

    Raises:
        ValueError: a level that is mis-sized, open at the border or without a single player,
            named as `name:line`; a text without any level.
    """
    levels: list[RawLevel] = []
    block: list[str] = []
    first = 0
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if line.startswith("#"):
            first = first if block else number
            block.append(line.rstrip("\r"))
        elif line.strip() and not line.startswith(";"):
            raise ValueError(f"{name}:{number}: {line!r} is neither a level row nor a comment")
        elif block:
            levels.append(_parse_block(block, f"{name}:{first}"))
            block = []
    if not levels:
        raise ValueError(f"{name}: no level found")
    return levels


def usable(level: RawLevel) -> str:
    """Why a level cannot serve as a layout; empty if it can."""
    if not connected(level.walls, level.start):
        return f"{level.source}: free cells are not connected to the player"
    if (~level.walls).sum() < 2:
        return f"{level.source}: no free cell besides the player's"
    return ""


def from_level(rng: np.random.Generator, level: RawLevel) -> Layout:
    """Layout of a level: its walls and start, random slots.

    Raises:
        ValueError: the level is not usable (see `usable`).
    """
    reason = usable(level)
    if reason:
        raise ValueError(reason)
    free = np.flatnonzero(~level.walls.reshape(-1))
    return _place_slots(rng, [int(cell) for cell in free], level.start, (SIDE, SIDE))


def parse_boxoban(text: str, name: str, rng: np.random.Generator) -> list[Layout]:
    """All levels of a text as layouts; any bad or disconnected level raises ValueError."""
    return [from_level(rng, level) for level in parse_raw(text, name)]


def find_level_files(pattern: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files named by a path, a folder (its *.txt and *.txt.gz), a glob, or several of these.

    Raises:
        FileNotFoundError: nothing there.
    """
    if not isinstance(pattern, str | Path):
        return [path for one in pattern for path in find_level_files(one)]
    path = Path(pattern)
    if path.is_dir():
        found = sorted([*path.glob("*.txt"), *path.glob("*.txt.gz")])
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
    if not found:
        raise FileNotFoundError(f"levels={str(pattern)!r}: no such file, folder or match")
    return found


def read_text(path: Path) -> str:
    """Text of a plain or gzip file (by content), without its byte-order mark; one that is
    truncated, corrupt or inflates to more than 64 MiB is named."""
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(_MOST_INFLATED + 1)
            if len(content) > _MOST_INFLATED:
                raise ValueError(
                    f"{path} inflates to more than {_MOST_INFLATED:,} bytes; give its levels in "
                    "several files"
                )
        return content.decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: truncated or corrupt level file ({error})") from error


def read_levels(pattern: str | Path | Sequence[str | Path]) -> list[RawLevel]:
    """All levels of the files found, connected or not; check each with `usable`."""
    return [
        level
        for path in find_level_files(pattern)
        for level in parse_raw(read_text(path), path.name)
    ]
