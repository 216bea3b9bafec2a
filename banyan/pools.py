# SPDX-License-Identifier: Apache-2.0
"""Draws the pools of one distribution after another and lets the oracle check them.

Each axis of each distribution has a random stream of its own, so that the first layouts of a pool
stay the same when the pool grows or another axis changes. What a new distribution must not repeat
is remembered by canonical hashes: shapes by their string, assigned trees without the order of
children, layouts by walls and slots. New wall maps are preferred as long as they are easily found.
"""

import math
import zlib
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from banyan import layouts as lay
from banyan import trees as tr
from banyan.layouts import Layout, RawLevel
from banyan.oracle import plan
from banyan.rules import Recipes, make_rules, pool_items, recipes
from banyan.task_config import AXES, TaskConfig
from banyan.trees import Node, Topology
from banyan.types import (
    MAX_DEPTH,
    Dist,
    EnvParams,
    Layouts,
    Rules,
    Trees,
    host_leaf,
)

PLAN_SHARE = 0.8  # of max_steps: longest plan a pair may need
_SHAPE_TRIES = 2_000  # consecutive repeats; a draw takes microseconds
_TREE_TRIES = 2_000
_LAYOUT_TRIES = 2_000
_FRESH_WALL_TRIES = 20
_STRIKES = 3  # failures after which the tree, not the layout, is to blame


@dataclass
class Draft:
    """One distribution in the making. Lists of a shared axis are the same objects everywhere."""

    topologies: list[Topology]
    trees: list[list[Node]]  # [topology][object]: deepest trees
    layouts: dict[int, list[Layout]]  # size class -> layouts
    counts: Counter = field(default_factory=Counter)


class Pools(NamedTuple):
    """All distributions, drawn and checked."""

    rules: Rules
    drafts: tuple[Draft, ...]
    levels: Counter  # level files: read, unusable


def stream(seed: int, name: str) -> np.random.Generator:
    """Random stream of one purpose; byte-identical everywhere."""
    return np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))


def nested(config: TaskConfig, node: Node) -> list[Node]:
    """Trees of all configured depths designated by a deepest tree, least depth first."""
    spine = tr.spine(node)
    return [spine[config.num_levels(depth) - 1] for depth in config.all_depths]


def _shape_fits(config: TaskConfig, topology: Topology, room: dict[int, int], items: int) -> bool:
    spine = tr.spine_shapes(topology)
    return tr.num_nodes(topology) <= items and all(
        tr.num_leaves(spine[config.num_levels(depth) - 1]) <= room[config.size_class(depth)]
        for depth in config.all_depths
    )


class Drawer:
    """Random streams, and the memory of what has been used."""

    def __init__(self, seed: int, config: TaskConfig, rules: Rules, levels: list[RawLevel]):
        self.config = config
        self.recipes: Recipes | None = recipes(rules) if config.rules == "global" else None
        self.levels = levels
        self.next_level = 0
        self.streams = {
            name: stream(seed, name)
            for i in range(config.num_dists)
            for name in (f"objects/{i}", f"topologies/{i}", f"layouts/{i}/0", f"layouts/{i}/1")
        }
        order = stream(seed, "levels").permutation(len(levels))
        self.levels = [levels[i] for i in order]
        self.used: dict[str, set[str]] = {name: set() for name in (*AXES, "walls")}
        self.walls_exhausted = {size_class: False for size_class in config.classes}

    def items(self, dist: int) -> np.ndarray:
        """Items of a distribution."""
        return pool_items(dist % self.config.num_pools, self.config.num_pools)

    def topology(self, dist: int, room: dict[int, int]) -> Topology:
        """A shape not used before whose trees have at most `room[size class]` leaves."""
        config = self.config
        rng = self.streams[f"topologies/{dist}"]
        used = self.used["topologies"]
        levels = config.num_levels(config.depths[1])
        for _ in range(_SHAPE_TRIES):
            if config.topology_kind == "balanced":
                shape = tr.balanced(levels)
            elif config.topology_kind == "uniform":
                shape = tr.sample_topology_uniform(rng, levels)
            else:
                shape = tr.sample_topology(rng, levels, config.p_binary, config.p_stop)
            name = tr.topology_string(shape)
            if name not in used and _shape_fits(config, shape, room, len(self.items(dist))):
                used.add(name)
                return shape
        raise ValueError(
            f"topologies={config.topologies}: distribution {dist} found no further shape of "
            f"{levels} levels with at most {room} leaves (by board size) after {len(used)}; take "
            "fewer topologies or topology_kind='uniform'"
        )

    def check_assignments(self, dist: int, topology: Topology, wanted: int) -> None:
        """Raises ValueError if a shape cannot have that many different assignments."""
        items = self.items(dist)
        if self.recipes is None:
            bound = math.perm(len(items), tr.num_nodes(topology))
        else:
            bound = tr.count_assignments(topology, self.recipes, items)
        if bound < wanted:
            raise ValueError(
                f"objects={self.config.objects}: {wanted} different assignments asked of shape "
                f"{tr.topology_string(topology)}, the rules and items allow at most {bound}"
            )

    def tree(self, dist: int, topology: Topology) -> Node:
        """An assignment of a shape not used before."""
        used = self.used["objects"]
        for _ in range(_TREE_TRIES):
            node = tr.assign(
                self.streams[f"objects/{dist}"], topology, self.recipes, self.items(dist)
            )
            name = tr.canonical(node)
            if name not in used:
                used.add(name)
                return node
        raise ValueError(
            f"objects={self.config.objects}: distribution {dist} found no further assignment of "
            f"shape {tr.topology_string(topology)} after {len(used)}"
        )

    def _propose(self, dist: int, size_class: int) -> Layout:
        rng = self.streams[f"layouts/{dist}/{size_class}"]
        if not self.levels:
            return lay.sample_layout(rng, self.config.shape(size_class), self.config.num_walls)
        level = self.levels[self.next_level % len(self.levels)]
        self.next_level += 1
        return lay.from_level(rng, level)

    def layout(self, dist: int, size_class: int, leaves: int) -> Layout:
        """A layout not used before for trees of up to `leaves` leaves, if possible on new walls."""
        for attempt in range(_LAYOUT_TRIES + 2 * len(self.levels)):
            layout = self._propose(dist, size_class)
            if self.levels:
                self.walls_exhausted[size_class] = self.next_level > len(self.levels)
            elif attempt == _FRESH_WALL_TRIES:
                self.walls_exhausted[size_class] = True
            if lay.capacity(layout) < leaves or lay.layout_hash(layout) in self.used["layouts"]:
                continue
            if lay.wall_hash(layout) in self.used["walls"] and not self.walls_exhausted[size_class]:
                continue
            self.used["layouts"].add(lay.layout_hash(layout))
            self.used["walls"].add(lay.wall_hash(layout))
            return layout
        raise ValueError(
            f"layouts={self.config.layouts}: distribution {dist} found no further layout "
            f"{self.config.shape(size_class)} with room for {leaves} leaves"
        )


def _draw_trees(drawer: Drawer, draft: Draft, dist: int, room: dict[int, int]) -> None:
    """Fills topologies (unless shared ones are there already) and trees."""
    config = drawer.config
    if not draft.topologies:
        wanted = config.sizes("topologies")[dist]
        draft.topologies = [drawer.topology(dist, room) for _ in range(wanted)]
    per_shape = config.sizes("objects")[dist]
    wanted = per_shape
    if config.num_pools == 1 and "objects" in config.shift and "topologies" not in config.shift:
        wanted = sum(config.sizes("objects"))  # all distributions draw from the same shapes
    for topology in draft.topologies:
        drawer.check_assignments(dist, topology, wanted)
    draft.trees = [
        [drawer.tree(dist, topology) for _ in range(per_shape)] for topology in draft.topologies
    ]


def _max_leaves(config: TaskConfig, draft: Draft) -> dict[int, int]:
    """Most leaves by size class over the trees of a draft."""
    most = dict.fromkeys(config.classes, 1)
    for topology in draft.topologies:
        spine = tr.spine_shapes(topology)
        for depth in config.all_depths:
            count = tr.num_leaves(spine[config.num_levels(depth) - 1])
            most[config.size_class(depth)] = max(most[config.size_class(depth)], count)
    return most


def _draw_draft(drawer: Drawer, dist: int, first: Draft | None) -> tuple[Draft, frozenset[str]]:
    """A distribution before the oracle has seen it, and the axes it may still redraw."""
    config = drawer.config
    own = frozenset(AXES if first is None else config.shift)
    if "topologies" in own:
        own |= {"objects"}  # other shapes need assignments of their own
    room = {c: config.room(c) for c in config.classes}
    draft = Draft([], [], {})
    if first is not None:
        draft = Draft(first.topologies, first.trees, first.layouts)
    if "layouts" not in own:
        room = {c: min(map(lay.capacity, pool)) for c, pool in draft.layouts.items()}
    if "topologies" in own:
        draft.topologies = []
    if "objects" in own:
        _draw_trees(drawer, draft, dist, room)
    if "layouts" in own:
        leaves = _max_leaves(config, draft)
        wanted = config.sizes("layouts")[dist]
        draft.layouts = {
            c: [drawer.layout(dist, c, leaves[c]) for _ in range(wanted)] for c in config.classes
        }
    return draft, own


def draw_pools(seed: int, config: TaskConfig) -> Pools:
    """Draws rules and all distributions; every requested pair is solved by the oracle.

    Raises:
        ValueError: a pool cannot be filled; files without usable levels.
        FileNotFoundError: level files are missing.
    """
    dense = config.rules == "global"
    rules = make_rules(
        stream(seed, "rules"),
        config.combine_density if dense else 0.0,
        config.transform_density if dense else 0.0,
        config.num_pools,
    )
    raw = lay.read_levels(config.levels) if config.levels else []
    levels = [level for level in raw if not lay.usable(level)]
    if raw and not levels:
        raise ValueError(
            f"levels={config.levels!r}: none of {len(raw)} levels is usable; {lay.usable(raw[0])}"
        )
    drawer = Drawer(seed, config, rules, levels)
    drafts: list[Draft] = []
    for dist in range(config.num_dists):
        draft, own = _draw_draft(drawer, dist, drafts[0] if drafts else None)
        if config.verify_pairs:
            Verifier(drawer, draft, dist, own, rules).run(stream(seed, f"pairs/{dist}"))
        drafts.append(draft)
    return Pools(rules, tuple(drafts), Counter(read=len(raw), unusable=len(raw) - len(levels)))


def make_dist(
    config: TaskConfig,
    tree_ids: np.ndarray,
    layout_ids: dict[int, np.ndarray],
    widths: tuple[int, int],
) -> Dist:
    """Index table of a distribution.

    Args:
        tree_ids: [num trees, num depths], least depth first.
        layout_ids: size class -> [num layouts].
        widths: padded numbers of trees and layouts.
    """
    lo, hi = config.depths
    trees = np.zeros((MAX_DEPTH, widths[0]), np.int32)
    trees[lo - 1 : hi, : len(tree_ids)] = tree_ids.T
    layouts = np.zeros((2, widths[1]), np.int32)
    for size_class, ids in layout_ids.items():
        layouts[size_class, : len(ids)] = ids
    classes = [config.size_class(min(max(depth, lo), hi)) for depth in range(1, MAX_DEPTH + 1)]
    scalar = lambda value: host_leaf(np.array(value, np.int32))
    return Dist(
        tree_ids=host_leaf(trees),
        num_trees=scalar(len(tree_ids)),
        layout_ids=host_leaf(layouts),
        num_layouts=scalar(len(next(iter(layout_ids.values())))),
        size_class=host_leaf(np.array(classes, np.int32)),
        depth_min=scalar(lo),
        depth_max=scalar(hi),
    )


def make_params(
    config: TaskConfig, rules: Rules, trees: Trees, layouts: Layouts, dist: Dist
) -> EnvParams:
    """Tables and constants together, NumPy leaves."""
    return EnvParams(
        rules=rules,
        trees=trees,
        layouts=layouts,
        dist=dist,
        per_task=host_leaf(np.array(config.rules == "per_task")),
        max_steps=host_leaf(np.array(config.max_steps, np.int32)),
        reward_success=host_leaf(np.array(config.reward_success, np.float32)),
        reward_dead_end=host_leaf(np.array(config.reward_dead_end, np.float32)),
    )


class Verifier:
    """Asks the oracle about pairs of a draft and redraws what stands in the way.

    A pair is rejected when no plan is found or it is longer than PLAN_SHARE * max_steps. The
    layout is redrawn if the distribution owns it, else the tree gets other items. A tree that fails
    repeatedly is to blame itself: it gets another shape, or other items where shapes are shared.
    Pairs of what was redrawn are asked about again.
    """

    def __init__(
        self, drawer: Drawer, draft: Draft, dist: int, own: frozenset[str], rules: Rules
    ) -> None:
        config = drawer.config
        self.drawer = drawer
        self.draft = draft
        self.dist = dist
        self.own = own
        self.per_shape = len(draft.trees[0])
        flat = [node for group in draft.trees for node in group]
        self.num_depths = len(config.all_depths)
        depths = list(config.all_depths) * len(flat)
        trees = tr.pack([sub for node in flat for sub in nested(config, node)], depths)
        self.width = len(draft.layouts[config.classes[0]])
        layouts = lay.pack([one for c in config.classes for one in draft.layouts[c]])
        ids = np.arange(len(depths)).reshape(-1, self.num_depths)
        classes = {c: k * self.width + np.arange(self.width) for k, c in enumerate(config.classes)}
        table = make_dist(config, ids, classes, (len(flat), self.width))
        self.params = make_params(config, rules, trees, layouts, table)
        self.limit = int(PLAN_SHARE * config.max_steps)
        self.strikes: Counter = Counter()

    def pairs(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """(tree row, layout row): all if there are few, else deepest trees first, evenly drawn."""
        config = self.drawer.config
        rows = self.num_depths * sum(map(len, self.draft.trees))
        first_layout = {c: k * self.width for k, c in enumerate(config.classes)}

        def start(row: int) -> int:
            return first_layout[config.size_class(config.depths[0] + row % self.num_depths)]

        if rows * self.width <= config.verify_pairs:
            return [(row, start(row) + m) for row in range(rows) for m in range(self.width)]
        deepest = np.arange(self.num_depths - 1, rows, self.num_depths)
        deck = [rng.permutation(deepest)]
        while sum(map(len, deck)) < config.verify_pairs:
            deck.append(rng.permutation(rows))
        chosen = np.concatenate(deck)[: config.verify_pairs]
        drawn = [(row, start(row) + int(rng.integers(self.width))) for row in chosen.tolist()]
        return list(dict.fromkeys(drawn))

    def run(self, rng: np.random.Generator) -> None:
        """Checks and repairs until every chosen pair is solved.

        Raises:
            ValueError: too many rejections: the configuration does not fit its horizon.
        """
        pairs = self.pairs(rng)
        budget = 30 + len(pairs) // 4
        queue = deque(pairs)
        waiting = set(pairs)
        counts = self.draft.counts
        while queue:
            pair = queue.popleft()
            waiting.discard(pair)
            actions = plan(self.params, *pair)
            counts["pairs_checked"] += 1
            if actions is not None and len(actions) <= self.limit:
                continue
            counts["pairs_rejected"] += 1
            if counts["pairs_rejected"] > budget:
                raise ValueError(
                    f"distribution {self.dist}: {budget + 1} of {counts['pairs_checked']} checked "
                    f"tasks have no plan within {PLAN_SHARE} * max_steps = {self.limit} steps; "
                    f"raise max_steps={self.drawer.config.max_steps}, lower num_walls, or take "
                    "smaller trees"
                )
            tree, layout = self._repair(*pair)
            again = [p for p in pairs if p[0] in tree or p[1] == layout]
            queue.extend(p for p in again if p not in waiting)  # `pair` itself is among them
            waiting.update(again)

    def _repair(self, row: int, layout: int) -> tuple[range, int]:
        """Redraws one thing; returns the tree rows and the layout row that changed."""
        which = row // self.num_depths
        self.strikes[which] += 1
        strikes = self.strikes[which]
        if "layouts" in self.own and (strikes < _STRIKES or "objects" not in self.own):
            self._redraw_layout(layout)
            return range(0), layout
        more_shapes = len(self.drawer.used["topologies"]) < self.drawer.config.num_shapes
        if "topologies" in self.own and more_shapes and strikes >= _STRIKES:
            return self._redraw_shape(which // self.per_shape), -1
        self._redraw_tree(which)
        return range(which * self.num_depths, (which + 1) * self.num_depths), -1

    def _redraw_layout(self, row: int) -> None:
        config = self.drawer.config
        k, m = divmod(row, self.width)
        size_class = config.classes[k]
        leaves = _max_leaves(config, self.draft)[size_class]
        new = self.drawer.layout(self.dist, size_class, leaves)
        self.draft.layouts[size_class][m] = new
        for table, value in zip(self.params.layouts, lay.pack([new]), strict=True):
            np.asarray(table)[row] = np.asarray(value)[0]
        self.draft.counts["layouts_redrawn"] += 1

    def _redraw_tree(self, which: int) -> None:
        config = self.drawer.config
        group, member = divmod(which, self.per_shape)
        node = self.drawer.tree(self.dist, self.draft.topologies[group])
        self.draft.trees[group][member] = node
        rows = slice(which * self.num_depths, (which + 1) * self.num_depths)
        packed = tr.pack(nested(config, node), list(config.all_depths))
        for table, value in zip(self.params.trees, packed, strict=True):
            np.asarray(table)[rows] = np.asarray(value)
        self.draft.counts["trees_redrawn"] += 1

    def _redraw_shape(self, group: int) -> range:
        draft = self.draft
        room = {c: min(map(lay.capacity, pool)) for c, pool in draft.layouts.items()}
        draft.topologies[group] = self.drawer.topology(self.dist, room)
        draft.counts["topologies_redrawn"] += 1
        first = group * self.per_shape
        for which in range(first, first + self.per_shape):
            self.strikes[which] = 0
            self._redraw_tree(which)
        return range(first * self.num_depths, (first + self.per_shape) * self.num_depths)
