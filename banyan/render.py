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
from io import BytesIO
from pathlib import Path
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
    NUM_COLORS,
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
FLOOR, LINE = (30, 33, 40), (44, 48, 57)
BRICK, MORTAR = (92, 98, 112), (62, 67, 78)
AGENT, HERE = (70, 160, 255), (28, 50, 84)  # HERE: floor under the agent
FRAME = (200, 204, 212)
TEXT, FAINT = (225, 228, 234), (120, 126, 138)
DONE, READY = (67, 190, 80), (250, 220, 50)

MIN_TILE, MAX_TILE = 8, 256
_SAMPLES, _SHADES = 4, 4
_BASE = NUM_ITEMS + 2  # floor, items 1..80, wall; then the same again with the agent on top
_WALL_TILE = NUM_ITEMS + 1

Mask = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _box(x: np.ndarray, y: np.ndarray, left: float, top: float, right: float, bottom: float):
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def _triangle_up(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (y < 0.66) & (np.abs(x) < 0.8 * (y + 0.76) / 1.42)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: radius along the straight line between an outer and an inner corner."""
    outer, inner, half = 0.88, 0.38, np.pi / 5
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
    x, y = x + 0.52, y - 0.5
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
    for course, (top, bottom) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
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
        light = tuple(c - 48 if min(rgb) > 200 else (c + 255) // 2 for c in rgb)
        spot = lambda x, y: np.hypot(x + 0.25, y + 0.27) < 0.19
        tile = _paint(tile, _coverage(spot, size), light)
    return tile


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
    small, full = _coverage(_small_agent, tile), _coverage(_agent, tile)
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
    inside = _flat(size - 2, FLOOR)
    pictures = np.empty((NUM_ITEMS + 1, size, size, 3), np.uint8)
    pictures[...] = FRAME
    for item in range(1, NUM_ITEMS + 1):
        pictures[item, 1:-1, 1:-1] = _item_tile(item, size - 2, inside)
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
    pos, held = int(state.pos), int(state.held)
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
    table, small = jnp.asarray(atlas(tile)), jnp.asarray(badges(tile))
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
