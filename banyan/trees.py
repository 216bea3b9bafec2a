# SPDX-License-Identifier: Apache-2.0
"""Task trees: abstract shapes, items on them, and the tables the environment reads.

A topology is a nested tuple: `()` a leaf, `(child,)` a transform, `(child, child)` a combine.
`levels` counts nodes on the longest path from root to leaf. Canonical topologies have sorted
children (plain tuple order), so equal shapes are equal tuples. The shape sampler is our choice:
binary with probability 1/2, side branches stop with probability 0.4 per level; uniform sampling
over canonical shapes is the alternative.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from banyan.rules import Recipes
from banyan.types import (
    EMPTY,
    MAX_DEPTH,
    MAX_LEAVES,
    NUM_ITEMS,
    SLOT_LEAF,
    SLOT_WALL,
    WALL,
    Trees,
    host_leaf,
)

Topology = tuple  # of 0, 1 or 2 topologies
MAX_LEVELS = MAX_DEPTH + 1  # depth 6 counted in edges
_MAX_ENUMERATED = 5  # levels; 6 has 2,595,782 shapes
_RESTARTS = 2000
ALL_ITEMS = np.arange(1, NUM_ITEMS + 1)


class Node(NamedTuple):
    """An item and the sub-trees it is made of. All items of a tree are distinct."""

    item: int
    children: tuple["Node", ...] = ()


def _check_levels(levels: int, most: int = MAX_LEVELS) -> None:
    if not 1 <= levels <= most:
        raise ValueError(f"levels={levels}: must lie in 1..{most}")


def levels(tree: Topology | Node) -> int:
    """Nodes on the longest path from the root to a leaf, of a topology or an assigned tree."""
    children = tree.children if isinstance(tree, Node) else tree
    return 1 + max((levels(child) for child in children), default=0)


def num_leaves(topology: Topology) -> int:
    """Leaves of a shape."""
    return sum(map(num_leaves, topology)) if topology else 1


def num_nodes(topology: Topology) -> int:
    """Nodes of a shape."""
    return 1 + sum(map(num_nodes, topology))


def canonical_topology(topology: Topology) -> Topology:
    """The same unordered shape with sorted children."""
    return tuple(sorted(map(canonical_topology, topology)))


def topology_string(topology: Topology) -> str:
    """Canonical name of an unordered shape, e.g. "(()(()))" for one leaf beside a transform."""
    return "(" + "".join(sorted(map(topology_string, topology))) + ")"


def topology_of(node: Node) -> Topology:
    """Canonical shape of an assigned tree."""
    return tuple(sorted(map(topology_of, node.children)))


def balanced(levels: int) -> Topology:
    """The full binary shape: 2^(levels-1) leaves."""
    _check_levels(levels)
    shape: Topology = ()
    for _ in range(levels - 1):
        shape = (shape, shape)
    return shape


def enumerate_topologies(levels: int) -> list[Topology]:
    """All canonical shapes of exactly these levels, sorted: 1, 2, 7, 56, 2212 for 1..5."""
    _check_levels(levels, _MAX_ENUMERATED)
    exact: list[Topology] = [()]
    lower: list[Topology] = []
    for _ in range(levels - 1):
        grown = [(shape,) for shape in exact]
        grown += [tuple(sorted((a, b))) for a in exact for b in lower]
        grown += [tuple(sorted((a, b))) for i, a in enumerate(exact) for b in exact[i:]]
        lower = lower + exact
        exact = grown
    return sorted(exact)


@cache
def count_topologies(levels: int) -> int:
    """Number of canonical shapes of exactly these levels (exact integer)."""
    _check_levels(levels)
    if levels == 1:
        return 1
    exact = count_topologies(levels - 1)
    lower = sum(count_topologies(k) for k in range(1, levels - 1))
    return exact + exact * lower + exact * (exact + 1) // 2


def sample_topology(
    rng: np.random.Generator, levels: int, p_binary: float = 0.5, p_stop: float = 0.4
) -> Topology:
    """A canonical shape of exactly these levels, grown from the root.

    Args:
        p_binary: probability that an inner node has two children.
        p_stop: probability that a node off the longest path is a leaf although it may grow.
    """
    _check_levels(levels)
    for name, value in (("p_binary", p_binary), ("p_stop", p_stop)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}={value}: must lie in 0..1")

    def grow(room: int, exact: bool) -> Topology:
        if room == 1 or (not exact and rng.random() < p_stop):
            return ()
        if rng.random() < p_binary:
            return tuple(sorted((grow(room - 1, exact), grow(room - 1, False))))
        return (grow(room - 1, exact),)

    return grow(levels, True)


def sample_topology_uniform(rng: np.random.Generator, levels: int) -> Topology:
    """A canonical shape drawn uniformly from all `count_topologies(levels)` of them."""
    _check_levels(levels)
    if levels == 1:
        return ()
    exact = count_topologies(levels - 1)
    lower = [count_topologies(k) for k in range(1, levels - 1)]
    draw = int(rng.integers(count_topologies(levels)))
    tall = sample_topology_uniform(rng, levels - 1)
    if draw < exact:
        return (tall,)
    draw -= exact
    for k, count in enumerate(lower, start=1):
        if draw < exact * count:
            return tuple(sorted((tall, sample_topology_uniform(rng, k))))
        draw -= exact * count
    if draw < exact:  # of the exact * (exact + 1) / 2 pairs of equal height, `exact` are twins
        return (tall, tall)
    other = tall
    while other == tall:
        other = sample_topology_uniform(rng, levels - 1)
    return tuple(sorted((tall, other)))


def _arrange(item: int, children: Sequence[Node]) -> Node:
    """A node with its children in canonical order: by shape, twins by item.

    Twins are compared by their cyclic distance behind the parent rather than by id: following
    the first child then favors no item.
    """
    key = lambda child: (topology_of(child), (child.item - item) % (NUM_ITEMS + 1))
    return Node(item, tuple(sorted(children, key=key)))


def assign(
    rng: np.random.Generator,
    topology: Topology,
    recipes: Recipes | None,
    items: Integer[np.ndarray, "N"] = ALL_ITEMS,
) -> Node:
    """Puts distinct items on a shape, root first: root uniform in `items`, then a random recipe.

    Args:
        recipes: inverse rule tables; None assigns any distinct items (rules of its own per task).
        items: items allowed in the tree; a closed pool of the rules, or all.

    Raises:
        ValueError: more nodes than items, or no assignment found in many restarts.
    """
    if num_nodes(topology) > len(items):
        raise ValueError(
            f"shape {topology_string(topology)} has {num_nodes(topology)} nodes, but only "
            f"{len(items)} distinct items are allowed"
        )
    barred = np.ones(NUM_ITEMS + 1, bool)
    barred[items] = False
    for _ in range(_RESTARTS):
        used = barred.copy()
        root = int(items[rng.integers(len(items))])
        used[root] = True
        node = _fill(rng, topology, root, recipes, used)
        if node is not None:
            return node
    raise ValueError(
        f"no assignment of items to shape {topology_string(topology)} found in {_RESTARTS} tries: "
        "raise combine_density or transform_density, or take smaller shapes"
    )


def _fill(
    rng: np.random.Generator,
    topology: Topology,
    item: int,
    recipes: Recipes | None,
    used: np.ndarray,
) -> Node | None:
    """Tree of this shape rooted at `item`, marking what it uses; None if a recipe is missing."""
    if not topology:
        return Node(item)
    arity = len(topology)
    if recipes is None:
        free = np.flatnonzero(~used)[:, None] if arity == 1 else _random_pair(rng, used)
    elif arity == 1:
        free = recipes.singles[item][~used[recipes.singles[item]]][:, None]
    else:
        free = recipes.pairs[item][~used[recipes.pairs[item]].any(axis=1)]
    if not len(free):
        return None
    inputs = [int(x) for x in free[rng.integers(len(free))]]
    if arity == 2 and rng.random() < 0.5:  # a recipe is unordered, the two branches may differ
        inputs.reverse()
    used[inputs] = True
    children = []
    for shape, chosen in zip(topology, inputs, strict=True):
        child = _fill(rng, shape, chosen, recipes, used)
        if child is None:
            return None
        children.append(child)
    return _arrange(item, children)


def _random_pair(rng: np.random.Generator, used: np.ndarray) -> np.ndarray:
    free = np.flatnonzero(~used)
    return rng.permutation(free)[None, :2] if len(free) >= 2 else np.zeros((0, 2), np.intp)


def count_assignments(topology: Topology, recipes: Recipes, items: np.ndarray) -> int:
    """Upper bound on the distinct assigned trees of a shape: items may repeat in this count."""
    allowed = np.zeros(NUM_ITEMS + 1)
    allowed[items] = 1.0

    @cache
    def ways(shape: Topology) -> np.ndarray:  # [81] floats: the bound may exceed int64
        if not shape:
            return allowed
        if len(shape) == 1:
            below = ways(shape[0])
            return np.array([below[single].sum() for single in recipes.singles]) * allowed
        left = ways(shape[0])
        right = ways(shape[1])
        total = np.array([(left[p[:, 0]] * right[p[:, 1]]).sum() for p in recipes.pairs])
        if shape[0] != shape[1]:
            total += np.array([(right[p[:, 0]] * left[p[:, 1]]).sum() for p in recipes.pairs])
        return total * allowed

    return int(min(ways(topology).sum(), 2.0**62))


def leaves(node: Node) -> list[int]:
    """Items of the leaves from left to right."""
    if not node.children:
        return [node.item]
    return [item for child in node.children for item in leaves(child)]


def edges(node: Node) -> list[tuple[tuple[int, ...], int]]:
    """(inputs, result) of every inner node, children before parents."""
    below = [edge for child in node.children for edge in edges(child)]
    if not node.children:
        return below
    return [*below, (tuple(child.item for child in node.children), node.item)]


def items_of(node: Node) -> list[int]:
    """Items of all nodes, root first."""
    return [node.item, *(item for child in node.children for item in items_of(child))]


def spine(node: Node) -> tuple[Node, ...]:
    """The nested sub-trees, smallest first: entry l-1 has l levels, the last is `node` itself.

    From the root always to the child that is one level lower, the first one where both are. Which
    sub-tree is designated is our choice; the paper demands only that there is one per depth.
    """
    nested = [node]
    while node.children:
        below = levels(node) - 1
        node = next(child for child in node.children if levels(child) == below)
        nested.append(node)
    return tuple(reversed(nested))


def spine_shapes(topology: Topology) -> tuple[Topology, ...]:
    """Shapes of the nested sub-trees of any tree of this canonical shape, smallest first."""
    nested = [topology]
    while topology:
        below = levels(topology) - 1
        topology = next(child for child in topology if levels(child) == below)
        nested.append(topology)
    return tuple(reversed(nested))


def canonical(node: Node) -> str:
    """Hash of an assigned tree (hex) that does not depend on the order of children."""

    def text(node: Node) -> str:
        return f"{node.item}(" + ",".join(sorted(map(text, node.children))) + ")"

    return hashlib.blake2b(text(node).encode(), digest_size=16).hexdigest()


def pack(nodes: Sequence[Node], depths: Sequence[int]) -> Trees:
    """Tables of K trees.

    Args:
        depths: 1..6 per tree: the depth its success is counted under.

    Raises:
        ValueError: more than 32 leaves, an item twice in a tree, depth out of range.
    """
    count = len(nodes)
    if len(depths) != count:
        raise ValueError(f"{len(depths)} depths given for {count} trees")
    leaf = np.zeros((count, SLOT_LEAF + MAX_LEAVES), np.uint8)
    leaf[:, SLOT_WALL] = WALL
    parent = np.zeros((count, NUM_ITEMS + 1), np.uint8)
    sibling = np.zeros((count, NUM_ITEMS + 1), np.uint8)
    for k, node in enumerate(nodes):
        on_board = leaves(node)
        everything = items_of(node)
        if len(on_board) > MAX_LEAVES:
            raise ValueError(f"tree {k} has {len(on_board)} leaves: at most {MAX_LEAVES} allowed")
        if len(set(everything)) != len(everything):
            raise ValueError(f"tree {k} uses an item twice: all items of a tree must differ")
        if min(everything) < 1 or max(everything) > NUM_ITEMS:
            raise ValueError(f"tree {k} has items outside 1..{NUM_ITEMS}")
        if not 1 <= depths[k] <= MAX_DEPTH:
            raise ValueError(f"depth {depths[k]} of tree {k}: must lie in 1..{MAX_DEPTH}")
        leaf[k, SLOT_LEAF : SLOT_LEAF + len(on_board)] = on_board
        for inputs, result in edges(node):
            parent[k, list(inputs)] = result
            if len(inputs) == 2:
                sibling[k, list(inputs)] = inputs[::-1]
    return Trees(
        leaf=host_leaf(leaf),
        parent=host_leaf(parent),
        sibling=host_leaf(sibling),
        goal=host_leaf(np.array([node.item for node in nodes], np.uint8)),
        depth=host_leaf(np.array(depths, np.int32)),
    )


def unpack(trees: Trees, k: int) -> Node:
    """Tree `k` rebuilt from goal, parent and sibling.

    Raises:
        ValueError: the tables contradict each other.
    """
    parent = np.asarray(trees.parent)[k]
    sibling = np.asarray(trees.sibling)[k]

    def build(item: int, path: tuple[int, ...]) -> Node:
        below = [int(child) for child in np.flatnonzero(parent == item)]
        partners = {int(sibling[child]) for child in below}
        wanted = {EMPTY} if len(below) == 1 else set(below)
        if below and (partners != wanted or len(below) > 2 or item in path):
            raise ValueError(f"tree {k}: parent and sibling tables contradict at item {item}")
        return _arrange(item, [build(child, (*path, item)) for child in below])

    return build(int(np.asarray(trees.goal)[k]), ())
