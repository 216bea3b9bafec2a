# SPDX-License-Identifier: Apache-2.0
"""Pictures: NumPy equals jitted pixels, tiles are distinct, GIFs lossless, trees tell the truth."""

import re
from functools import cache
from io import BytesIO
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from banyan import gif, layouts, oracle, oracle_check, render, trees
from banyan.rules import make_rules, recipes
from banyan.types import EMPTY, NUM_ITEMS, SIDE, WALL, EnvParams, State
from tests.banyan import worlds


@cache
def episode(depth: int, topology: str = "random", seed: int = 0) -> tuple:
    """(params, states of the oracle's episode, actions, rewards)."""
    rng = worlds.generator(seed)
    rules = make_rules(rng)
    node = oracle_check.draw_tree(rng, depth, topology, recipes(rules))
    layout = oracle_check.draw_layout(rng, depth)
    params = oracle_check.single_params(rules, trees.pack([node], [depth]), layouts.pack([layout]))
    actions = oracle.plan(params, 0, 0)
    zero = np.zeros(1, np.int32)
    played = worlds.play(params, zero, zero, actions[:, None])
    states = State(*(leaf[:, 0] for leaf in played.states))
    return params, states, actions, played.reward[:, 0]


def at(states: State, index: int) -> State:
    return State(*(leaf[index] for leaf in states))


def random_states(num: int, seed: int) -> State:
    """States that need not be possible: any item, wall or nothing anywhere, the agent too."""
    rng = worlds.generator(seed)
    codes = np.array([EMPTY, WALL, *range(1, NUM_ITEMS + 1)], np.uint8)
    zeros = np.zeros(num, np.int32)
    return State(
        grid=rng.choice(codes, size=(num, 64)),
        pos=rng.integers(0, 64, num).astype(np.int32),
        held=rng.integers(0, NUM_ITEMS + 1, num).astype(np.uint8) * (rng.random(num) < 0.7),
        tree=zeros,
        layout=zeros,
        t=zeros,
        done=zeros.astype(bool),
    )


def board_params(shape: tuple[int, int]) -> EnvParams:
    params = episode(1)[0]
    shaped = params.layouts._replace(shape=np.array([shape], np.int32))
    return params._replace(layouts=shaped)


@pytest.mark.parametrize("tile", [8, 13, 32])
def test_numpy_equals_jitted(tile: int) -> None:
    states = random_states(40, tile)
    pictures = np.asarray(jax.vmap(lambda state: render.render_jax(state, tile))(states))
    assert pictures.shape == (40, SIDE * tile, SIDE * tile, 3) and pictures.dtype == np.uint8
    params = board_params((SIDE, SIDE))
    for i, picture in enumerate(pictures):
        np.testing.assert_array_equal(render.render(at(states, i), params, tile), picture)


def test_crop_and_single_jit() -> None:
    state = at(random_states(1, 3), 0)
    picture = render.render(state, board_params((5, 7)), 16)
    assert picture.shape == (80, 112, 3)
    np.testing.assert_array_equal(picture, np.asarray(render.render_jax(state, 16))[:80, :112])


@pytest.mark.parametrize("tile", [8, 12, 16, 32, 48])
def test_every_tile_is_distinct(tile: int) -> None:
    tiles = render.atlas(tile)
    assert tiles.shape == (164, tile, tile, 3) and not tiles.flags.writeable
    assert len({picture.tobytes() for picture in tiles}) == 164
    small = render.badges(tile)[1:]
    assert tile < 12 or len({picture.tobytes() for picture in small}) == NUM_ITEMS
    assert len(np.unique(tiles.reshape(-1, 3), axis=0)) <= 128


def test_shapes_are_what_they_are_called() -> None:
    tiles = render.atlas(32)[: NUM_ITEMS + 1, 1:, 1:].astype(int)
    lit = np.abs(tiles - tiles[0]).sum(-1) > 30
    ink = lit.sum((1, 2))
    ball, small, large, up, down, *_ = range(1, 9)
    assert ink[small] * 2 < ink[large] and ink[large] > ink[ball] > ink[small]
    widths_up, widths_down = lit[up].sum(1), lit[down].sum(1)
    assert (np.diff(widths_up[widths_up > 0]) >= 0).all()
    assert (np.diff(widths_down[widths_down > 0]) <= 0).all()


def test_item_under_the_agent_stays_visible() -> None:
    tiles = render.atlas(32).astype(int)
    for item in range(1, NUM_ITEMS + 1):
        drawn = np.abs(tiles[item] - tiles[0]).sum(-1) > 30
        kept = (tiles[item] == tiles[item + 82]).all(-1) & drawn
        assert kept.sum() > 0.55 * drawn.sum(), item
        assert np.abs(tiles[item] - tiles[item + 82]).sum() > 0


@pytest.mark.parametrize("tile", [7, 257, 0])
def test_bad_tile(tile: int) -> None:
    params, states, *_ = episode(1)
    with pytest.raises(ValueError, match=f"tile={tile}"):
        render.render(at(states, 0), params, tile)


def test_made_follows_the_tree() -> None:
    params, states, *_ = episode(5, "balanced")
    leaves = set(np.asarray(params.trees.leaf)[0, 2:].tolist()) - {EMPTY}
    first = render.items_present(at(states, 0))
    assert first == leaves and render.made(params, 0, first) == leaves
    sizes = []
    for i in range(len(states.t)):
        past = render.made(params, 0, render.items_present(at(states, i)))
        assert leaves <= past
        sizes.append(len(past))
    assert sizes == sorted(sizes) and sizes[-1] == 31


def test_tree_picture_changes_with_progress() -> None:
    params, states, *_ = episode(5, "random", 4)
    pictures = [render.render_tree(at(states, i), params) for i in range(len(states.t))]
    assert len({picture.shape for picture in pictures}) == 1
    assert not np.array_equal(pictures[0], pictures[-1])
    wide, *_ = episode(6, "balanced")
    narrow = render.render_tree(at(episode(6, "balanced")[1], 0), wide, 24, 500)
    assert narrow.shape[1] <= 500
    places = render.tree_places(wide, 0)
    assert len({(p.column, p.row) for p in places}) == len(places) == 63
    for row in range(6):  # neighbors in a row do not touch
        columns = sorted(p.column for p in places if p.row == row)
        assert all(np.diff(columns) >= 3)


def test_episode_frames_and_gif_are_lossless(tmp_path: Path) -> None:
    params, states, actions, rewards = episode(4, "balanced", 2)
    frames = render.render_episode(states, params, actions, rewards, 24)
    assert len(frames) == len(actions) + 1 and len({f.shape for f in frames}) == 1
    each = [at(states, i) for i in range(len(frames))]
    again = render.render_episode(each, params, actions, rewards, 24)
    np.testing.assert_array_equal(np.stack(frames), np.stack(again))
    path = tmp_path / "episode.gif"
    gif.save_gif(path, frames, fps=5)
    with Image.open(path) as image:
        assert image.n_frames == len(frames) and image.info["loop"] == 0
        for i, frame in enumerate(frames):
            image.seek(i)
            assert image.info["duration"] == 200
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frame)


def test_gif_of_equal_frames_keeps_its_time() -> None:
    red, blue = np.zeros((2, 9, 9, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    image = Image.open(BytesIO(gif.gif_bytes([red, red, red, blue], fps=10)))
    shown, pictures = [], []
    for i in range(image.n_frames):
        image.seek(i)
        shown.append(image.info["duration"])
        pictures.append(np.asarray(image.convert("RGB")))
    assert shown == [300, 100]
    np.testing.assert_array_equal(np.stack(pictures), np.stack([red, blue]))


def test_gif_with_exactly_256_colors_is_lossless() -> None:
    rng = worlds.generator(1)
    colors = rng.permutation(1 << 24)[:256]
    table = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], 1).astype(np.uint8)
    frames = table[np.stack([rng.permutation(256).reshape(16, 16) for _ in range(5)])]
    image = Image.open(BytesIO(gif.gif_bytes(list(frames), fps=20)))
    for i, frame in enumerate(frames):
        image.seek(i)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frame)


def test_gif_beyond_256_colors_stays_close() -> None:
    ramp = np.arange(4096)
    table = np.stack([ramp // 256 * 16, ramp // 16 % 16 * 16, ramp % 16 * 16], 1).astype(np.uint8)
    frame = table.reshape(64, 64, 3)
    image = Image.open(BytesIO(gif.gif_bytes([frame])))
    error = np.abs(np.asarray(image.convert("RGB")).astype(int) - frame)
    assert error.mean() < 20


def test_gif_misuse() -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    for frames, fps, words in (
        ([], 10, "none given"),
        ([frame, frame[:4]], 10, "sizes differ"),
        ([frame], 0, "fps=0"),
        ([frame], 51, "fps=51"),
    ):
        with pytest.raises(ValueError, match=words):
            gif.gif_bytes(frames, fps)


def test_episode_misuse() -> None:
    params, states, actions, _ = episode(1)
    with pytest.raises(ValueError, match="actions"):
        render.render_episode(states, params, actions[:-1])


def test_text() -> None:
    params, states, *_ = episode(3, "balanced", 1)
    state = at(states, 0)
    lines = render.render_text(state, params).splitlines()
    rows, cols = params.layouts.shape[0]
    assert len(lines) == rows + 3 and all(len(line) == 4 * cols for line in lines[:rows])
    grid = np.asarray(state.grid).reshape(SIDE, SIDE)
    for r in range(rows):
        for c in range(cols):
            cell, code = lines[r][4 * c : 4 * c + 4], int(grid[r, c])
            agent = r * SIDE + c == int(state.pos)
            assert (cell[0] == "[") == agent
            assert (cell == "####") == (code == WALL)
            if 0 < code <= NUM_ITEMS:
                assert cell[1:3] == render.item_letters(code)
    goal = int(params.trees.goal[0])
    assert lines[rows] == f"goal {render.item_letters(goal)} {render.item_name(goal)}"
    assert lines[rows + 1] == "hand    nothing"
    colored = render.render_text(state, params, color=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == "\n".join(lines)


def test_letters_are_distinct() -> None:
    assert len({render.item_letters(item) for item in range(NUM_ITEMS + 1)}) == NUM_ITEMS + 1
    assert render.item_name(1 + 8 * 9 + 3) == "pink pyramid up"
