# SPDX-License-Identifier: Apache-2.0
"""The world once more, slow and plain: what `env` is tested against.

Written from the rules alone: a board of rows and columns, the tree as nested nodes, reactions as
dictionaries. It shares no code and no look-up table with `env`; the tree is walked, not indexed.
"""

from typing import NamedTuple

import numpy as np

from banyan.trees import Node, unpack
from banyan.types import EMPTY, SIDE, WALL, EnvParams

_MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_NAMES = ("up", "down", "left", "right", "stay", "pickup", "drop", "toggle")
_NORTH_SOUTH_WEST_EAST = ((-1, 0), (1, 0), (0, -1), (0, 1))


class Snapshot(NamedTuple):
    """Everything there is to know about the world between two steps."""

    grid: np.ndarray  # uint8 [8, 8]
    position: tuple[int, int]
    held: int
    t: int
    done: bool


class World:
    """One environment that is stepped by calls.

    Reactions are keyed by the frozen set of the items that go in: two for a combine, one for a
    toggle.
    """

    def __init__(self, params: EnvParams) -> None:
        self.params = params
        self.max_steps = int(params.max_steps)
        self.reward_success = float(params.reward_success)
        self.reward_dead_end = float(params.reward_dead_end)
        self.global_rules = _reactions(params)
        self.per_task = bool(params.per_task)

    def reset_to(self, tree: int, layout: int) -> Snapshot:
        """Starts the task (tree, layout) of the tables."""
        self.root = unpack(self.params.trees, tree)
        self.edges = _edges(self.root)
        self.rules = self.edges if self.per_task else self.global_rules
        leaves = [int(x) for x in np.asarray(self.params.trees.leaf)[tree]]
        codes = np.asarray(self.params.layouts.slot)[layout].reshape(SIDE, SIDE)
        self.items: dict[tuple[int, int], int] = {}
        self.walls: set[tuple[int, int]] = set()
        for row in range(SIDE):
            for col in range(SIDE):
                code = int(codes[row, col])
                if code == 1:
                    self.walls.add((row, col))
                elif code > 1 and leaves[code]:
                    self.items[row, col] = leaves[code]
        self.position = divmod(int(np.asarray(self.params.layouts.start)[layout]), SIDE)
        self.bare = np.where(codes == 1, WALL, EMPTY).astype(np.uint8)
        self.held = EMPTY
        self.t = 0
        self.done = False
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        """The state as arrays and numbers."""
        grid = self.bare.copy()
        for cell, item in self.items.items():
            grid[cell] = item
        return Snapshot(grid, self.position, self.held, self.t, self.done)

    def _is_floor(self, cell: tuple[int, int]) -> bool:
        row, col = cell
        return 0 <= row < SIDE and 0 <= col < SIDE and cell not in self.walls

    def _drop(self) -> tuple[frozenset[int], int] | None:
        """Puts the carried item down; the reaction that follows, if any."""
        item = self.held
        self.held = EMPTY
        row, col = self.position
        for d_row, d_col in _NORTH_SOUTH_WEST_EAST:
            cell = (row + d_row, col + d_col)
            if cell not in self.items:
                continue
            inputs = frozenset((item, self.items[cell]))
            if len(inputs) == 2 and inputs in self.rules:
                del self.items[cell]
                self.items[self.position] = self.rules[inputs]
                return inputs, self.rules[inputs]
        self.items[self.position] = item
        return None

    def _act(self, name: str) -> tuple[bool, tuple[frozenset[int], int] | None]:
        """Carries an action out: (goal picked up, reaction)."""
        here = self.items.get(self.position, EMPTY)
        if name in _MOVES:
            row, col = self.position
            target = (row + _MOVES[name][0], col + _MOVES[name][1])
            if self._is_floor(target):
                self.position = target
        elif name == "pickup" and here and not self.held:
            self.held = self.items.pop(self.position)
            return self.held == self.root.item, None
        elif name == "drop" and self.held and not here:
            return False, self._drop()
        elif name == "toggle" and here and frozenset((here,)) in self.rules:
            inputs = frozenset((here,))
            self.items[self.position] = self.rules[inputs]
            return False, (inputs, self.rules[inputs])
        return False, None

    def step(self, action: int) -> tuple[float, bool, bool]:
        """One action 0..7: reward, terminated, truncated. Nothing happens after the end."""
        if self.done:
            return 0.0, False, False
        self.t += 1
        fetched, reaction = self._act(_NAMES[action])
        success = fetched or (reaction is not None and reaction[1] == self.root.item)
        dead_end = False
        if reaction is not None and not success:
            inputs, result = reaction
            dead_end = self.edges.get(inputs) != result
        terminated = success or dead_end
        truncated = self.t >= self.max_steps and not terminated
        self.done = terminated or truncated
        reward = self.reward_success * success + self.reward_dead_end * dead_end
        return reward, terminated, truncated


def _edges(node: Node) -> dict[frozenset[int], int]:
    """What the tree itself allows: inputs of each inner node -> its item."""
    found: dict[frozenset[int], int] = {}
    todo = [node]
    while todo:
        node = todo.pop()
        if node.children:
            found[frozenset(child.item for child in node.children)] = node.item
            todo.extend(node.children)
    return found


def _reactions(params: EnvParams) -> dict[frozenset[int], int]:
    """The global tables as a dictionary; raises ValueError if combine is not symmetric."""
    transform = [int(x) for x in np.asarray(params.rules.transform)]
    size = len(transform)
    combine = np.asarray(params.rules.combine).reshape(size, size)
    if not np.array_equal(combine, combine.T):
        raise ValueError("rules.combine: must be symmetric")
    found = {frozenset((a,)): made for a, made in enumerate(transform) if a and made}
    for a in range(1, size):
        for b in range(a + 1, size):
            if combine[a, b]:
                found[frozenset((a, b))] = int(combine[a, b])
    return found
