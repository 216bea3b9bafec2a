# SPDX-License-Identifier: Apache-2.0
"""Pictures of the world: boards in NumPy or jitted JAX (equal pixels), frames, GIFs, text.

A tile is drawn once per size by supersampling implicit shapes (4x4 samples, coverage rounded to
quarters, so that a frame keeps far below 256 colors and a GIF of it is lossless). A board is a
gather of tiles. The agent is a blue triangle pointing right on blue ground: large on bare floor,
small in the lower left corner over an item; what it carries is a small framed picture in the upper
right corner of its cell.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from banyan.types import (
    ACTIONS,
    COLORS,
    EMPTY,
    NUM_CELLS,
    NUM_ITEMS,
    NUM_SHAPES,
    SHAPES,
    SIDE,
    WALL,
    EnvParams,
    State,
)

RGB = {
    "red": (229, 57, 53),
    "green": (67, 190, 80),
    "blue": (48, 92, 240),
    "purple": (156, 72, 214),
    "yellow": (250, 220, 50),
    "grey": (140, 144, 152),
    "orange": (255, 138, 20),
    "white": (248, 248, 248),
    "brown": (142, 86, 46),
    "pink": (255, 138, 190),
}
FLOOR = (30, 33, 40)
LINE = (44, 48, 57)
BRICK = (92, 98, 112)
MORTAR = (62, 67, 78)
AGENT = (70, 160, 255)  # HERE: floor under the agent
HERE = (28, 50, 84)
FRAME = (200, 204, 212)
TEXT = (225, 228, 234)
FAINT = (120, 126, 138)
DONE = (67, 190, 80)
READY = (250, 220, 50)

MIN_TILE = 8
MAX_TILE = 256
_SAMPLES = 4
_SHADES = 4
_BASE = NUM_ITEMS + 2  # floor, items 1..80, wall; then the same again with the agent on top
_WALL_TILE = NUM_ITEMS + 1
_TICK_SIZE = 16  # smaller nodes of a tree get a green frame instead of a tick

Mask = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _box(x: np.ndarray, y: np.ndarray, left: float, top: float, right: float, bottom: float):
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def _triangle_up(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (y < 0.66) & (np.abs(x) < 0.8 * (y + 0.76) / 1.42)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: radius along the straight line between an outer and an inner corner."""
    outer = 0.88
    inner = 0.38
    half = np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    edge = outer * inner * np.sin(half)
    line = outer * np.sin(angle) + inner * np.sin(half - angle)
    return np.hypot(x, y) < edge / line


def _key(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    ring = np.hypot(x, y + 0.42)
    bow = (ring < 0.38) & (ring > 0.16)
    shaft = _box(x, y, -0.11, -0.1, 0.11, 0.82)
    return bow | shaft | _box(x, y, 0.0, 0.34, 0.4, 0.52) | _box(x, y, 0.0, 0.64, 0.4, 0.82)


def _hexagon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.abs(y) < 0.68) & (np.abs(x) * np.sqrt(3) / 2 + np.abs(y) / 2 < 0.68)


# In coordinates -1..1 of the tile, x to the right, y down.
_MASKS: dict[str, Mask] = {
    "ball": lambda x, y: np.hypot(x, y) < 0.72,
    "square_small": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.4,
    "square_large": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.74,
    "pyramid_up": _triangle_up,
    "pyramid_down": lambda x, y: _triangle_up(x, -y),
    "hexagon": _hexagon,
    "star": _star,
    "key": _key,
}


def _agent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Triangle that points right."""
    return _triangle_up(y, -x)


def _small_agent(x: np.ndarray, y: np.ndarray, grow: float = 0.0) -> np.ndarray:
    """The same in the lower left corner, its sides moved outward by `grow`."""
    x = x + 0.52
    y = y - 0.5
    return (x > -0.4 - grow) & (np.abs(y) * 0.86 + x * 0.5 < 0.2 + grow)


def _coverage(mask: Mask, size: int) -> np.ndarray:
    """Share of each pixel inside the shape, in quarters: int32 [size, size], 0..4."""
    at = (np.arange(size * _SAMPLES) + 0.5) / (size * _SAMPLES) * 2 - 1
    inside = mask(at[None, :], at[:, None])
    inside = np.broadcast_to(inside, (size * _SAMPLES, size * _SAMPLES))
    count = inside.reshape(size, _SAMPLES, size, _SAMPLES).sum((1, 3), dtype=np.int32)
    return (count * _SHADES + _SAMPLES**2 // 2) // _SAMPLES**2


def _paint(image: np.ndarray, cover: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """`color` over `image` with coverage 0..4, in integers."""
    shade = cover[..., None]
    mixed = image.astype(np.int32) * (_SHADES - shade) + np.array(color, np.int32) * shade
    return ((mixed + _SHADES // 2) // _SHADES).astype(np.uint8)


def _flat(size: int, color: tuple[int, int, int]) -> np.ndarray:
    return np.full((size, size, 3), color, np.uint8)


def _brick(size: int) -> np.ndarray:
    """Three courses of bricks; they fit together from tile to tile."""
    tile = _flat(size, BRICK)
    joint = max(1, size // 16)
    edges = np.linspace(0, size, 4).round().astype(int)
    for course, (top, bottom) in enumerate(pairwise(edges)):
        tile[bottom - joint : bottom] = MORTAR
        for part in (0.5,) if course % 2 else (0.0, 1.0):
            center = round(part * size)
            tile[top:bottom, max(0, center - joint // 2 - joint % 2) : center + joint // 2] = MORTAR
    return tile


def _item_tile(item: int, size: int, ground: np.ndarray) -> np.ndarray:
    shape = SHAPES[(item - 1) % NUM_SHAPES]
    rgb = RGB[COLORS[(item - 1) // NUM_SHAPES]]
    tile = _paint(ground, _coverage(_MASKS[shape], size), rgb)
    if shape == "ball":  # a highlight tells it from the hexagon at any size
        red, green, blue = (c - 48 if min(rgb) > 200 else (c + 255) // 2 for c in rgb)
        spot = lambda x, y: np.hypot(x + 0.25, y + 0.27) < 0.19
        tile = _paint(tile, _coverage(spot, size), (red, green, blue))
    return tile


@lru_cache(maxsize=1024)
def _on_floor(item: int, size: int) -> np.ndarray:
    """Picture of an item on plain floor, of plain floor for EMPTY."""
    ground = _flat(size, FLOOR)
    return _item_tile(item, size, ground) if item else ground


def check_tile(tile: int) -> None:
    """Raises ValueError unless the tile size is usable."""
    if not MIN_TILE <= tile <= MAX_TILE:
        raise ValueError(f"tile={tile}: must lie in {MIN_TILE}..{MAX_TILE} pixels")


@lru_cache(maxsize=16)
def atlas(tile: int) -> UInt8[np.ndarray, "164 tile tile 3"]:
    """All tiles: floor, items 1..80, wall; then the same 82 with the agent on top. Read-only."""
    check_tile(tile)
    tiles = []
    for ground in (FLOOR, HERE):
        floor = _flat(tile, ground)
        floor[0], floor[:, 0] = LINE, LINE
        items = [_item_tile(item, tile, floor) for item in range(1, NUM_ITEMS + 1)]
        tiles += [floor, *items, _brick(tile)]
    tiles = np.stack(tiles)
    # A hard edge around the small triangle: blending it with 40 colors would fill a palette.
    halo = _coverage(lambda x, y: _small_agent(x, y, 0.1), tile) >= _SHADES // 2
    small = _coverage(_small_agent, tile)
    full = _coverage(_agent, tile)
    for index in range(_BASE, 2 * _BASE):
        if index in (_BASE + EMPTY, _BASE + _WALL_TILE):
            tiles[index] = _paint(tiles[index], full, AGENT)
        else:
            tiles[index][halo] = HERE
            tiles[index] = _paint(tiles[index], small, AGENT)
    tiles.setflags(write=False)
    return tiles


@lru_cache(maxsize=16)
def badges(tile: int) -> UInt8[np.ndarray, "81 size size 3"]:
    """Small framed pictures of the items (entry 0 unused), half a tile wide. Read-only."""
    check_tile(tile)
    size = max(5, tile // 2)
    pictures = np.empty((NUM_ITEMS + 1, size, size, 3), np.uint8)
    pictures[...] = FRAME
    for item in range(1, NUM_ITEMS + 1):
        pictures[item, 1:-1, 1:-1] = _on_floor(item, size - 2)
    pictures.setflags(write=False)
    return pictures


def render(state: State, params: EnvParams, tile: int = 32) -> UInt8[np.ndarray, "h w 3"]:
    """The board of one state, cropped to its layout: [rows * tile, cols * tile, 3].

    Raises:
        ValueError: tile size outside 8..256.
    """
    rows, cols = np.asarray(params.layouts.shape)[int(state.layout)]
    code = np.asarray(state.grid)
    index = np.where(code == WALL, _WALL_TILE, code).astype(np.int32)
    pos = int(state.pos)
    held = int(state.held)
    index[pos] += _BASE
    tiles = atlas(tile)[index]
    if held != EMPTY:
        badge = badges(tile)[held]
        tiles[pos, : len(badge), -len(badge) :] = badge
    board = tiles.reshape(SIDE, SIDE, tile, tile, 3).transpose(0, 2, 1, 3, 4)
    return board.reshape(SIDE * tile, SIDE * tile, 3)[: rows * tile, : cols * tile]


@partial(jax.jit, static_argnames="tile")
def render_jax(state: State, tile: int = 32) -> UInt8[jax.Array, "h h 3"]:
    """The whole 8x8 board as [8 * tile, 8 * tile, 3]; the same pixels as `render`, vmappable."""
    table = jnp.asarray(atlas(tile))
    small = jnp.asarray(badges(tile))
    agent = jnp.arange(NUM_CELLS) == state.pos
    index = jnp.where(state.grid == WALL, _WALL_TILE, state.grid.astype(jnp.int32))
    tiles = table[index + _BASE * agent]
    size = small.shape[1]
    badge = jnp.zeros((tile, tile, 3), jnp.uint8).at[:size, -size:].set(small[state.held])
    shown = jnp.zeros((tile, tile), bool).at[:size, -size:].set(state.held != EMPTY)
    shown = agent[:, None, None, None] & shown[None, :, :, None]
    tiles = jnp.where(shown, badge[None], tiles)
    board = tiles.reshape(SIDE, SIDE, tile, tile, 3).transpose(0, 2, 1, 3, 4)
    return board.reshape(SIDE * tile, SIDE * tile, 3)


class _Place(NamedTuple):
    """A node of the drawn tree: its item, grid position (column in half tiles, row), children."""

    item: int
    column: int
    row: int
    children: tuple[int, ...]


def tree_places(params: EnvParams, tree: int) -> tuple[_Place, ...]:
    """Where the nodes of a tree are drawn: goal on top, leaves spread from left to right."""
    parent = np.asarray(params.trees.parent)[tree]
    places: list[_Place] = []

    def place(item: int, row: int, left: int) -> tuple[int, int]:
        """Places a sub-tree from half-tile column `left` on: (its own column, next free one)."""
        children = tuple(int(child) for child in np.flatnonzero(parent == item))
        columns = []
        right = left
        for child in children:
            column, right = place(child, row + 1, right)
            columns.append(column)
        column = sum(columns) // len(columns) if columns else left
        places.append(_Place(item, column, row, children))
        return column, max(right, left + 3)

    place(int(np.asarray(params.trees.goal)[tree]), 0, 0)
    return tuple(places)


def made(params: EnvParams, tree: int, present: set[int]) -> set[int]:
    """Items of the tree that exist or existed: those present and all they were made of."""
    parent = np.asarray(params.trees.parent)[tree]
    past = set()
    frontier = list(present)
    while frontier:
        item = frontier.pop()
        if item not in past:
            past.add(item)
            frontier += [int(child) for child in np.flatnonzero(parent == item)]
    return past


def items_present(state: State) -> set[int]:
    """Items on the board and in the hand."""
    codes = {int(code) for code in np.asarray(state.grid)} | {int(state.held)}
    return codes - {EMPTY, WALL}


def _fit(size: int, wide: int, high: int, most: int | None) -> int:
    """Largest tile in MIN_TILE..size at which a tree stays within `most` pixels of width."""
    return size if most is None else max(MIN_TILE, min(size, most * 2 // (wide + 2)))


def render_tree(
    state: State, params: EnvParams, tile: int = 24, width: int | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The task tree, goal on top: a picture for people, the agent never sees it.

    Framed white: on the board or in the hand. Framed yellow: all it is made of is there, so it
    can be made now. Green tick: made and used up. Dimmed: still to come.

    Args:
        width: makes tiles smaller until the tree is at most this wide (if 8 pixels suffice).
    """
    check_tile(tile)
    tree = int(state.tree)
    places = tree_places(params, tree)
    present = items_present(state)
    past = made(params, tree, present)
    columns = max(p.column for p in places)
    rows = max(p.row for p in places)
    size = _fit(tile, columns, rows, width)
    step = size + max(12, size // 2)
    corner = lambda p: (2 + p.column * size // 2, 2 + p.row * step)
    image = Image.new("RGB", (columns * size // 2 + size + 4, rows * step + size + 4), FLOOR)
    draw = ImageDraw.Draw(image)
    at = {p.item: corner(p) for p in places}
    for p in places:
        for child in p.children:
            (x, y), (below_x, below_y) = at[p.item], at[child]
            color = DONE if p.item in past else FAINT
            line = (x + size // 2, y + size, below_x + size // 2, below_y)
            draw.line(line, fill=color, width=max(1, size // 12))
    for p in places:
        ready = bool(p.children) and p.item not in past and set(p.children) <= present
        _draw_node(image, draw, at[p.item], size, p.item, present, past, ready)
    return np.asarray(image)


def _draw_node(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    size: int,
    item: int,
    present: set[int],
    past: set[int],
    ready: bool,
) -> None:
    x, y = corner
    picture = _on_floor(item, size)
    waiting = item not in past and not ready
    if waiting:
        picture = (picture // 2 + np.array(FLOOR, np.uint8) // 2).astype(np.uint8)
    image.paste(Image.fromarray(picture), corner)
    box = (x - 1, y - 1, x + size, y + size)
    line = max(1, size // 16)
    used = item in past and item not in present
    small = size < _TICK_SIZE
    color = DONE if used and small else FRAME if item in present else READY if ready else LINE
    draw.rectangle(box, outline=color, width=line)
    if used and not small:
        unit = size / 8
        points = [(x + 4 * unit, y + 6 * unit), (x + 5.4 * unit, y + 7.3 * unit)]
        points.append((x + 7.6 * unit, y + 4.4 * unit))
        draw.line(points, fill=FLOOR, width=max(3, size // 6))
        draw.line(points, fill=DONE, width=max(2, size // 10))


def _text(text: str, size: int, color: tuple[int, int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """One line in Pillow's default font, its edges in quarters like those of the tiles."""
    font = ImageFont.load_default(size)
    mask = Image.new("L", (max(1, int(font.getlength(text)) + 2), round(size * 1.4)), 0)
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=font)
    cover = (np.asarray(mask).astype(np.int32) * _SHADES + 127) // 255
    return _paint(np.full((*cover.shape, 3), FLOOR, np.uint8), cover, color)


def _put(canvas: np.ndarray, picture: np.ndarray, x: int, y: int) -> None:
    """Copies a picture into the canvas, cut at its edges."""
    room = canvas[y : y + picture.shape[0], x : x + picture.shape[1]]
    room[...] = picture[: room.shape[0], : room.shape[1]]


def render_frame(
    state: State,
    params: EnvParams,
    tile: int = 32,
    action: int | None = None,
    reward: int | float | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Board, goal, hand and task tree side by side, with a line of step, action and reward.

    The size depends on the task and `tile` only, so the frames of an episode fit together.
    """
    board = render(state, params, tile)
    pad = max(6, tile // 3)
    letter = max(10, tile * 7 // 16)
    tree = render_tree(state, params, max(MIN_TILE, tile * 3 // 4), 16 * tile)
    goal = int(np.asarray(params.trees.goal)[int(state.tree)])
    held = int(state.held)
    side = pad + board.shape[1] + pad
    head = tile + 2 * pad
    height = pad + max(board.shape[0], head + tree.shape[0]) + pad + round(letter * 1.4) + pad // 2
    width = max(side + max(tree.shape[1], 6 * tile) + pad, 13 * letter + 2 * pad)
    canvas = np.full((height, width, 3), FLOOR, np.uint8)
    _put(canvas, board, pad, pad)
    for column, (name, item) in enumerate((("goal", goal), ("hand", held))):
        x = side + column * 3 * tile + (pad if column else 0)
        label = _text(name, letter, TEXT)
        _put(canvas, label, x, pad + (tile - label.shape[0]) // 2)
        slot = _flat(tile, FRAME)
        slot[1:-1, 1:-1] = _on_floor(item, tile - 2)
        _put(canvas, slot, x + label.shape[1] + pad // 2, pad)
    _put(canvas, tree, side, head)
    words = [f"step {int(state.t)}/{int(params.max_steps)}"]
    words += [] if action is None else [ACTIONS[action]]
    words += [] if reward is None else [f"reward {reward:+g}" if reward else "reward 0"]
    line = _text("   ".join(words), letter, TEXT)
    _put(canvas, line, pad, height - line.shape[0] - pad // 4)
    return canvas


def render_episode(
    states: State | Sequence[State],
    params: EnvParams,
    actions: Sequence[int] | np.ndarray | None = None,
    rewards: Sequence[float] | np.ndarray | None = None,
    tile: int = 32,
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """A frame per state.

    Args:
        states: T+1 states of one episode in order, as a sequence or stacked on a leading axis.
        actions: T actions; the i-th leads to state i+1.
        rewards: T rewards, likewise.

    Raises:
        ValueError: actions or rewards do not fit the states.
    """
    if isinstance(states, State):
        leaves = [np.asarray(leaf) for leaf in states]
        states = [State(*row) for row in zip(*leaves, strict=True)]
    for name, values in (("actions", actions), ("rewards", rewards)):
        if values is not None and len(values) != len(states) - 1:
            raise ValueError(f"{name}: {len(values)} given for {len(states)} states, not one fewer")
    frames = []
    for i, state in enumerate(states):
        action = int(actions[i - 1]) if actions is not None and i else None
        reward = float(rewards[i - 1]) if rewards is not None and i else None
        frames.append(render_frame(state, params, tile, action, reward))
    return frames


SHAPE_LETTERS = "osSAVH*K"  # by shape, as in `types.SHAPES`
COLOR_LETTERS = "rgbpyeownk"  # by color: grE(e)y, browN, pinK


def item_letters(item: int) -> str:
    """Two letters, color then shape: "rA" is the red pyramid; two blanks for EMPTY."""
    if item == EMPTY:
        return "  "
    return COLOR_LETTERS[(item - 1) // NUM_SHAPES] + SHAPE_LETTERS[(item - 1) % NUM_SHAPES]


def item_name(item: int) -> str:
    """For people: "red pyramid up"; "nothing" for EMPTY."""
    if item == EMPTY:
        return "nothing"
    shape = SHAPES[(item - 1) % NUM_SHAPES].replace("_", " ")
    return f"{COLORS[(item - 1) // NUM_SHAPES]} {shape}"


def paint_text(text: str, item: int, color: bool) -> str:
    """`text` in the 24-bit terminal color of an item, or as it is."""
    if not color or item == EMPTY:
        return text
    red, green, blue = RGB[COLORS[(item - 1) // NUM_SHAPES]]
    return f"\x1b[1;38;2;{red};{green};{blue}m{text}\x1b[0m"


def render_text(state: State, params: EnvParams, color: bool = False) -> str:
    """Board, goal, hand and step as lines of text.

    A cell is four characters: `rA` an item (see `item_letters`), `.` floor, `####` wall,
    `[rA]` or `[  ]` the agent. Colors only repeat what the letters say.
    """
    rows, cols = (int(n) for n in np.asarray(params.layouts.shape)[int(state.layout)])
    grid = np.asarray(state.grid)
    pos = int(state.pos)
    held = int(state.held)

    def cell(index: int) -> str:
        code = int(grid[index])
        if code == WALL:
            return "####"
        letters = paint_text(item_letters(code), code, color)
        if index == pos:
            left, right = ("\x1b[1;96m[\x1b[0m", "\x1b[1;96m]\x1b[0m") if color else "[]"
            return left + letters + right
        return f" {letters} " if code else "  . "

    lines = ["".join(cell(r * SIDE + c) for c in range(cols)) for r in range(rows)]
    goal = int(np.asarray(params.trees.goal)[int(state.tree)])
    for name, item in (("goal", goal), ("hand", held)):
        letters = paint_text(item_letters(item), item, color)
        lines.append(f"{name} {letters} {item_name(item)}")
    lines.append(f"step {int(state.t)} of {int(params.max_steps)}")
    return "\n".join(lines)
