# SPDX-License-Identifier: Apache-2.0
"""Static description of a sequence of task distributions (the config group `env`)."""

from dataclasses import dataclass

from banyan.layouts import check_shape, num_slots
from banyan.trees import balanced, count_topologies, num_leaves, num_nodes
from banyan.types import MAX_DEPTH, MAX_LEAVES, NUM_ITEMS, SIDE

AXES = ("layouts", "objects", "topologies")
SMALL = 0  # size classes: rows of Dist.layout_ids
LARGE = 1


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value}: must be at least {least}")


@dataclass(frozen=True)
class TaskConfig:
    """What `make_tasks` draws. Our choices where the paper is silent; see the field comments.

    A distribution has `topologies` shapes at the greatest depth, `objects` assignments of items to
    each, and `layouts` layouts per board size; the trees of smaller depths are the designated
    sub-trees of the deepest ones. Successive distributions are disjoint along the axes named in
    `shift` and share the other axes.
    """

    depths: tuple[int, ...] = (1, 6)  # least and greatest
    depth1: str = "fetch"  # "fetch": depth counts nodes, depth 1 = pick up; "one_op": counts edges
    small_shape: tuple[int, ...] = (6, 6)  # board of depths up to small_max_depth
    large_shape: tuple[int, ...] = (8, 8)  # board of the others
    small_max_depth: int = 4
    num_walls: int = 6
    rules: str = "global"  # "per_task": only the edges of the episode's own tree react
    combine_density: float = 0.9  # share of item pairs that react
    transform_density: float = 1.0  # share of items that react to toggle
    item_pools: str = "shared"  # "disjoint": every distribution has items of its own
    topology_kind: str = "random"  # "balanced": full binary; "uniform": uniform over shapes
    p_binary: float = 0.5
    p_stop: float = 0.4
    num_dists: int = 2
    shift: tuple[str, ...] = ("layouts",)
    layouts: tuple[int, ...] = (64,)  # per distribution and board size; one number is for all
    objects: tuple[int, ...] = (1,)  # assignments per topology
    topologies: tuple[int, ...] = (1,)
    levels: str = ""  # path, folder or glob of Boxoban files that replace generated walls
    max_steps: int = 160  # random play then solves about 7% of the tasks, as in the paper
    reward_success: float = 1.0
    reward_dead_end: float = -1.0
    verify_pairs: int = 256  # (tree, layout) pairs per distribution the oracle must solve; 0: none

    def __post_init__(self) -> None:
        self._check_values()
        self._check_boards()
        self._check_axes()
        self._check_shapes()

    def _check_values(self) -> None:
        _one_of("depth1", self.depth1, ("fetch", "one_op"))
        _one_of("rules", self.rules, ("global", "per_task"))
        _one_of("item_pools", self.item_pools, ("shared", "disjoint"))
        _one_of("topology_kind", self.topology_kind, ("random", "balanced", "uniform"))
        for name in ("combine_density", "transform_density", "p_binary", "p_stop"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)}: must lie in 0..1")
        for name, least in (("num_dists", 1), ("max_steps", 1), ("verify_pairs", 0)):
            _at_least(name, getattr(self, name), least)
        if len(self.depths) != 2 or not 1 <= self.depths[0] <= self.depths[1] <= MAX_DEPTH:
            raise ValueError(
                f"depths={self.depths}: must be (least, greatest) within 1..{MAX_DEPTH}"
            )
        if not 0 <= self.small_max_depth <= MAX_DEPTH:
            raise ValueError(f"small_max_depth={self.small_max_depth}: must lie in 0..{MAX_DEPTH}")

    def _check_boards(self) -> None:
        if self.levels:
            return
        for size_class in self.classes:
            check_shape(self.shape(size_class), self.num_walls)

    def _check_axes(self) -> None:
        if not self.shift or len(set(self.shift)) != len(self.shift):
            raise ValueError(f"shift={self.shift}: must name one or more different axes of {AXES}")
        for axis in self.shift:
            _one_of("shift", axis, AXES)
        for axis in AXES:
            given = getattr(self, axis)
            if len(given) not in (1, self.num_dists):
                raise ValueError(
                    f"{axis}={given}: must hold 1 number or num_dists={self.num_dists}"
                )
            for count in given:
                _at_least(axis, count, 1)
            if axis not in self.shift and len(set(given)) > 1:
                raise ValueError(
                    f"{axis}={given}: an axis that is not in shift={self.shift} is shared by all "
                    "distributions and has one size"
                )
        if self.item_pools == "disjoint" and "objects" not in self.shift:
            raise ValueError(
                f"item_pools='disjoint' needs 'objects' in shift, which is {self.shift}"
            )

    def _check_shapes(self) -> None:
        levels = self.num_levels(self.depths[1])
        items = NUM_ITEMS // self.num_pools
        if self.topology_kind == "balanced":
            full = balanced(levels)
            if num_leaves(full) > MAX_LEAVES or num_nodes(full) > items:
                raise ValueError(
                    f"topology_kind='balanced' at depth {self.depths[1]} (depth1={self.depth1!r}) "
                    f"has {num_leaves(full)} leaves and {num_nodes(full)} nodes: at most "
                    f"{MAX_LEAVES} leaves and {items} items fit"
                )
        elif levels > items:
            raise ValueError(f"{levels} levels need as many items, a pool has {items}")
        sizes = self.sizes("topologies")
        wanted = sum(sizes) if "topologies" in self.shift else sizes[0]
        if wanted > self.num_shapes:
            raise ValueError(
                f"topologies={self.topologies} over {self.num_dists} distributions needs {wanted} "
                f"different shapes, but topology_kind={self.topology_kind!r} has only "
                f"{self.num_shapes} at depth {self.depths[1]}"
            )

    def sizes(self, axis: str) -> tuple[int, ...]:
        """Size of an axis in every distribution, [num_dists]."""
        given = tuple(getattr(self, axis))
        return given * self.num_dists if len(given) == 1 else given

    def num_levels(self, depth: int) -> int:
        """Node levels of a tree of this depth."""
        return depth + (self.depth1 == "one_op")

    def size_class(self, depth: int) -> int:
        """Which board a task of this depth is set on; level files are always large."""
        return SMALL if depth <= self.small_max_depth and not self.levels else LARGE

    def shape(self, size_class: int) -> tuple[int, int]:
        """Rows and columns of a size class."""
        if self.levels:
            return SIDE, SIDE
        rows, cols = self.small_shape if size_class == SMALL else self.large_shape
        return rows, cols

    def room(self, size_class: int) -> int:
        """Most leaves a generated board of a size class holds; level files: what they have."""
        if self.levels:
            return MAX_LEAVES
        return num_slots(self.shape(size_class), self.num_walls)

    @property
    def all_depths(self) -> range:
        """Depths of the tasks, least first."""
        return range(self.depths[0], self.depths[1] + 1)

    @property
    def num_shapes(self) -> int:
        """Different shapes there are at the greatest depth."""
        if self.topology_kind == "balanced":
            return 1
        if self.topology_kind == "random" and self.p_binary == 0.0:
            return 1  # the chain
        return count_topologies(self.num_levels(self.depths[1]))

    @property
    def classes(self) -> tuple[int, ...]:
        """Size classes in use."""
        return tuple(sorted({self.size_class(depth) for depth in self.all_depths}))

    @property
    def num_pools(self) -> int:
        """Disjoint item pools."""
        return self.num_dists if self.item_pools == "disjoint" else 1
