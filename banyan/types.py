# SPDX-License-Identifier: Apache-2.0
"""Constants and pytrees of the world.

Every table is an array leaf, so a distribution, horizon, reward or rule swaps in without
recompiling. Cells of a grid are flattened row by row on an 8x8 board; smaller boards are
embedded in its top-left corner and padded with walls. An item is one byte:
`1 + 8 * color + shape`, so that shape and color come out by bit operations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # configs are validated before JAX is loaded, and they need these constants
    import jax

RULE_VERSION = 1  # bumped whenever a rule of the world changes; see CHANGELOG, errata

SIDE = 8
NUM_CELLS = SIDE * SIDE
MAX_DEPTH = 6
MAX_LEAVES = 32

SHAPES = (
    "ball",
    "square_small",
    "square_large",
    "pyramid_up",
    "pyramid_down",
    "hexagon",
    "star",
    "key",
)
COLORS = (
    "red",
    "green",
    "blue",
    "purple",
    "yellow",
    "grey",
    "orange",
    "white",
    "brown",
    "pink",
)
NUM_SHAPES = len(SHAPES)
NUM_COLORS = len(COLORS)
NUM_ITEMS = NUM_SHAPES * NUM_COLORS

EMPTY = 0  # item code of a free cell, an empty hand, "no such node"
WALL = 255

UP, DOWN, LEFT, RIGHT, STAY, PICKUP, DROP, TOGGLE = range(8)
NUM_ACTIONS = 8
ACTIONS = ("up", "down", "left", "right", "stay", "pickup", "drop", "toggle")

# Order in which a dropped item looks for a partner (and of the four moves): N, S, W, E.
DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))

# Codes of `Layouts.slot`.
SLOT_FLOOR = 0
SLOT_WALL = 1
SLOT_LEAF = 2  # SLOT_LEAF + k: position of the k-th leaf


def host_leaf(array: np.ndarray) -> Any:
    """A NumPy table as a leaf of the pytrees below; jitted functions take it as it is."""
    return array


class Rules(NamedTuple):
    """What combining two items, or toggling one, makes; 0 where nothing happens."""

    combine: jax.Array  # uint8 [81 * 81], symmetric, flattened [a * 81 + b]
    transform: jax.Array  # uint8 [81]


class Trees(NamedTuple):
    """K task trees. All items of a tree are distinct, so item -> node is a lookup."""

    leaf: jax.Array  # uint8 [K, 2 + 32]: item by slot code; column 0 EMPTY, column 1 WALL
    parent: jax.Array  # uint8 [K, 81]: item -> item it becomes, 0 at the root and elsewhere
    sibling: jax.Array  # uint8 [K, 81]: item -> partner it needs, 0 if its parent has one child
    goal: jax.Array  # uint8 [K]: item at the root
    depth: jax.Array  # int32 [K], 1..6


class Layouts(NamedTuple):
    """M layouts: walls and placements together."""

    slot: jax.Array  # uint8 [M, 64]: slot codes
    start: jax.Array  # int32 [M]: cell the agent starts on
    shape: jax.Array  # int32 [M, 2]: rows, columns


class Dist(NamedTuple):
    """One task distribution: depth ~ U{depth_min..depth_max}, then tree, then layout.

    Rows are padded; only the first `num_trees` / `num_layouts` entries are drawn.
    """

    tree_ids: jax.Array  # int32 [6, N]: row depth-1
    num_trees: jax.Array  # int32 []
    layout_ids: jax.Array  # int32 [2, M]: row = size class
    num_layouts: jax.Array  # int32 []
    size_class: jax.Array  # int32 [6]: depth-1 -> row of layout_ids
    depth_min: jax.Array  # int32 []
    depth_max: jax.Array  # int32 []


class EnvParams(NamedTuple):
    """Everything an episode depends on. All leaves are traced: nothing here recompiles."""

    rules: Rules
    trees: Trees
    layouts: Layouts
    dist: Dist
    per_task: jax.Array  # bool []: only the edges of the episode's own tree react
    max_steps: jax.Array  # int32 []
    reward_success: jax.Array  # float32 []
    reward_dead_end: jax.Array  # float32 []


class State(NamedTuple):
    """State of one environment (about 85 bytes)."""

    grid: jax.Array  # uint8 [64]: item, EMPTY or WALL
    pos: jax.Array  # int32 []: cell of the agent
    held: jax.Array  # uint8 []: carried item or EMPTY
    tree: jax.Array  # int32 []
    layout: jax.Array  # int32 []
    t: jax.Array  # int32 []: steps taken
    done: jax.Array  # bool []: the episode is over; raw steps no longer change anything


class Obs(NamedTuple):
    """What the agent sees: the board and the goal item, never the tree."""

    grid: jax.Array  # uint8 [8, 8, 3]: shape 0..9, color 0..10, agent 0..1 (see env.encode)
    goal: jax.Array  # uint8 [2]: shape, color
    held: jax.Array  # uint8 [2]: shape, color


class Info(NamedTuple):
    """Facts about the transition just made; the same structure on every call."""

    final_obs: Obs  # observation before any auto-reset
    success: jax.Array  # bool []
    dead_end: jax.Array  # bool []
    depth: jax.Array  # int32 []: depth of the task that was acted in
    t: jax.Array  # int32 []: length of that episode so far
    created: jax.Array  # uint8 []: item produced by this action, 0 if none
