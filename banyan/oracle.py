# SPDX-License-Identifier: Apache-2.0
"""A planner that knows the tree: proof that a task can be won, and how fast.

Items never block the way, so between two acts the agent may be anywhere in its component and
only three abstract acts matter:

    toggle  stand on x and transform it
    carry   pick x up, walk, drop it on a free cell q (its own cell counts as free): by the rule of
            `env`, x merges with the first of N, S, W, E that reacts, or lies inert if none does
    fetch   pick up the goal item (depth 1)

`plan` first dives greedily: of all operations the tree allows now, in any order, the cheapest by
walking distance; if every merge is blocked (a wrong neighbor would react first, no free cell), the
cheapest single relocation that unblocks one. A few dives with different look-ahead are made and
the shortest plan is kept. Only if all get stuck, `search` explores the abstract states best-first:
it is complete, so it fails only when all of them are exhausted or after `MAX_STATES` of them.

    python -m banyan.oracle_check --levels=FILE --trees=1000 --depths=1-6 --seed=0

draws tasks before any filter, plans each and executes each plan in the jitted environment.

    python -m banyan.oracle_check --shortcuts --trees=1000 --depths=2-6 --topology=random

counts the trees whose goal a single operation off the tree makes, which wins as well.
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int8

from banyan.types import (
    DIRECTIONS,
    DROP,
    EMPTY,
    NUM_CELLS,
    NUM_ITEMS,
    PICKUP,
    SIDE,
    SLOT_LEAF,
    TOGGLE,
    WALL,
    EnvParams,
    State,
)

MAX_STATES = 200_000  # abstract states `search` visits before it gives up
LOOK_AHEAD = (0.0, 0.5, 1.0)  # weights of the product's next walk, one greedy dive each
MAX_DROPS = 12  # places tried for an item that is in the hand already
FAR = 10_000  # distance between cells of different components

_ROW = NUM_ITEMS + 1


class Task(NamedTuple):
    """One (tree, layout, rules) in the form that plain Python reads fastest."""

    grid: bytes  # [64] first board: item, EMPTY or WALL
    start: int
    goal: int
    parent: bytes  # [81]
    sibling: bytes  # [81]
    combine: bytes  # [81 * 81] what really reacts, whatever the rule mode
    transform: bytes  # [81]
    neighbors: tuple[tuple[int, ...], ...]  # [64] floor cells around, in the order N, S, W, E
    distance: list[list[int]]  # [64][64] steps, FAR where there is no way
    complete: bool  # every leaf of the tree, or what it became, is there


class Act(NamedTuple):
    """One abstract act: pick up at `source` and drop at `target`, or act on `source` alone."""

    kind: int  # DROP (carry), TOGGLE or PICKUP (fetch)
    source: int
    target: int


class Outcome(NamedTuple):
    """What `solve` found: acts of a plan, or None and whether impossibility is proved."""

    acts: tuple[Act, ...] | None
    proved: bool


def _distances(free: np.ndarray) -> np.ndarray:
    """Walking distances [64, 64] between cells of free [8, 8], from all cells at once."""
    padded = np.zeros((NUM_CELLS, SIDE + 2, SIDE + 2), bool)
    inner = padded[:, 1:-1, 1:-1]
    reached = np.zeros((NUM_CELLS, SIDE, SIDE), bool)
    reached.reshape(NUM_CELLS, NUM_CELLS)[np.arange(NUM_CELLS), np.arange(NUM_CELLS)] = True
    reached &= free
    distance = np.full(reached.shape, FAR, np.int32)
    distance[reached] = 0
    for step in range(1, NUM_CELLS):
        inner[...] = reached
        grown = np.zeros_like(reached)
        for dr, dc in DIRECTIONS:
            grown |= padded[:, 1 + dr : 1 + dr + SIDE, 1 + dc : 1 + dc + SIDE]
        grown &= free & ~reached
        if not grown.any():
            break
        distance[grown] = step
        reached |= grown
    return distance.reshape(NUM_CELLS, NUM_CELLS)


def _neighbors(free: np.ndarray) -> tuple[tuple[int, ...], ...]:
    inside = lambda r, c: 0 <= r < SIDE and 0 <= c < SIDE and bool(free[r, c])
    return tuple(
        tuple((r + dr) * SIDE + c + dc for dr, dc in DIRECTIONS if inside(r + dr, c + dc))
        for r in range(SIDE)
        for c in range(SIDE)
    )


def _reactions(params: EnvParams, tree: int) -> tuple[np.ndarray, np.ndarray]:
    """(combine, transform) as they work in this task, whatever the rule mode."""
    combine = np.asarray(params.rules.combine)
    transform = np.asarray(params.rules.transform)
    if not bool(params.per_task):
        return combine, transform
    parent = np.asarray(params.trees.parent)[tree]
    sibling = np.asarray(params.trees.sibling)[tree]
    combine = np.zeros_like(combine)
    transform = np.zeros_like(transform)
    pairs = np.flatnonzero((parent > 0) & (sibling > 0))
    combine[pairs * _ROW + sibling[pairs]] = parent[pairs]
    single = np.flatnonzero((parent > 0) & (sibling == 0))
    transform[single] = parent[single]
    return combine, transform


def _complete(parent: bytes, leaves: Sequence[int], present: set[int]) -> bool:
    """True if every leaf, or something made of it, is there."""
    for item in leaves:
        while item and item not in present:
            item = parent[item]
        if not item:
            return False
    return True


def _task(params: EnvParams, tree: int, grid: np.ndarray, start: int, held: int = EMPTY) -> Task:
    trees = params.trees
    free = (grid != WALL).reshape(SIDE, SIDE)
    combine, transform = _reactions(params, tree)
    parent = np.asarray(trees.parent)[tree].tobytes()
    leaves = [int(item) for item in np.asarray(trees.leaf)[tree, SLOT_LEAF:] if item]
    return Task(
        grid=grid.tobytes(),
        start=start,
        goal=int(np.asarray(trees.goal)[tree]),
        parent=parent,
        sibling=np.asarray(trees.sibling)[tree].tobytes(),
        combine=combine.tobytes(),
        transform=transform.tobytes(),
        neighbors=_neighbors(free),
        distance=_distances(free).tolist(),
        complete=_complete(parent, leaves, {*grid.tolist(), held}),
    )


def read_task(params: EnvParams, tree: int, layout: int) -> Task:
    """Takes one task, as it is after reset, out of the tables of `params`.

    Raises:
        IndexError: no such tree or layout.
    """
    slots = np.asarray(params.layouts.slot)[layout]
    grid = np.asarray(params.trees.leaf)[tree][slots].astype(np.uint8)
    return _task(params, tree, grid, int(np.asarray(params.layouts.start)[layout]))


def first_reaction(task: Task, grid: bytearray, item: int, cell: int) -> tuple[int, int]:
    """(cell of the neighbor that merges, product) if `item` were dropped at `cell`; (-1, 0)."""
    row = item * _ROW
    for neighbor in task.neighbors[cell]:
        product = task.combine[row + grid[neighbor]]
        if product:
            return neighbor, product
    return -1, EMPTY


def _pairs(task: Task, where: dict[int, int]) -> Iterator[tuple[int, int]]:
    """(carrier, partner) of every combine whose two children are on the board, both ways."""
    for item in where:
        if task.sibling[item] in where and task.parent[item]:
            yield item, task.sibling[item]


def _toggles(task: Task, where: dict[int, int]) -> Iterator[int]:
    for item in where:
        if task.parent[item] and not task.sibling[item]:
            if task.transform[item] == task.parent[item]:
                yield item


def _merge_cells(task: Task, grid: bytearray, where: dict[int, int], a: int, b: int) -> list[int]:
    """Cells where dropping a merges it with b into their parent."""
    home = where[a]
    goal_cell = where[b]
    grid[home] = EMPTY  # a is in the hand when it looks for a cell
    cells = [
        cell
        for cell in task.neighbors[goal_cell]
        if grid[cell] == EMPTY
        and first_reaction(task, grid, a, cell) == (goal_cell, task.parent[a])
    ]
    grid[home] = a
    return cells


def _where(grid: bytes | bytearray) -> dict[int, int]:
    return {item: cell for cell, item in enumerate(grid) if 0 < item <= NUM_ITEMS}


def _apply(task: Task, grid: bytearray, where: dict[int, int], act: Act) -> int:
    """Performs an act on the board in place; returns the item it made, or EMPTY."""
    item = grid[act.source]
    del where[item]
    if act.kind == TOGGLE:
        product = task.transform[item]
        grid[act.source] = product
        where[product] = act.source
        return product
    grid[act.source] = EMPTY
    partner_cell, product = first_reaction(task, grid, item, act.target)
    if product:
        del where[grid[partner_cell]]
        grid[partner_cell] = EMPTY
    grid[act.target] = product or item
    where[product or item] = act.target
    return product


def _next_walk(task: Task, where: dict[int, int], product: int, cell: int) -> int:
    """Distance from a fresh product to the partner it needs next, 0 if that is not there yet."""
    partner = where.get(task.sibling[product], -1) if task.parent[product] else -1
    return task.distance[cell][partner] if partner >= 0 else 0


def _best_merge(
    task: Task,
    grid: bytearray,
    where: dict[int, int],
    pos: int,
    pairs: list[tuple[int, int]],
    weight: float,
) -> tuple[float, Act | None]:
    """Cheapest unblocked merge among `pairs` (FAR and None if there is none)."""
    best = float(FAR)
    choice = None
    for a, b in pairs:
        walk = task.distance[pos][where[a]]
        if walk + 2 >= best:
            continue
        for cell in _merge_cells(task, grid, where, a, b):
            cost = walk + task.distance[where[a]][cell] + 2
            cost += weight * _next_walk(task, where, task.parent[a], cell)
            if cost < best:
                best = cost
                choice = Act(DROP, where[a], cell)
    return best, choice


def _best_relocation(task: Task, grid: bytearray, where: dict[int, int], pos: int) -> Act | None:
    """The inert carry that, with the merge it makes possible, costs least; None if none helps."""
    best = float(FAR)
    choice = None
    floor = [cell for cell, code in enumerate(grid) if code == EMPTY]
    pairs = list(_pairs(task, where))
    near: dict[int, list[tuple[int, int]]] = {}  # item -> merges that its leaving could free
    for a, b in pairs:
        ring = {where[a], where[b]}
        for _ in range(2):
            ring |= {n for cell in ring for n in task.neighbors[cell]}
        for cell in ring:
            if grid[cell] != EMPTY:
                near.setdefault(grid[cell], []).append((a, b))
    for item, freed in near.items():
        home = where[item]
        walk = task.distance[pos][home] + 2
        for cell in floor:
            cost = walk + task.distance[home][cell]
            if cost + 2 >= best:
                continue
            grid[home] = EMPTY
            inert = first_reaction(task, grid, item, cell)[1] == EMPTY
            if inert:
                grid[cell], where[item] = item, cell
                cost += _best_merge(task, grid, where, cell, freed, 0.0)[0]
                grid[cell] = EMPTY
            grid[home], where[item] = item, home
            if inert and cost < best:
                best = cost
                choice = Act(DROP, home, cell)
    return choice


def _cheapest_toggle(task: Task, where: dict[int, int], pos: int) -> tuple[float, Act | None]:
    best = float(FAR)
    choice = None
    for item in _toggles(task, where):
        cost = task.distance[pos][where[item]] + 1.0
        if cost < best:
            best = cost
            choice = Act(TOGGLE, where[item], where[item])
    return float(best), choice


def _dive(task: Task, weight: float) -> tuple[Act, ...] | None:
    """Greedy plan, or None when it gets stuck."""
    grid = bytearray(task.grid)
    pos = task.start
    where = _where(grid)
    acts: list[Act] = []
    relocated = False
    while True:
        toggle_cost, act = _cheapest_toggle(task, where, pos)
        pairs = list(_pairs(task, where))
        merge_cost, merge = _best_merge(task, grid, where, pos, pairs, weight)
        if merge is not None and merge_cost < toggle_cost:
            act = merge
        if act is None:
            # Two relocations in a row would mean that the first did not unblock what it should.
            act = None if relocated else _best_relocation(task, grid, where, pos)
            if act is None:
                return None
        product = _apply(task, grid, where, act)
        relocated = product == EMPTY
        acts.append(act)
        pos = act.target
        if product == task.goal:
            return tuple(acts)


def _obstacles(task: Task, grid: bytearray, where: dict[int, int]) -> int:
    """Fewest items that stand in the way of some operation; guides `search`, promises nothing."""
    if next(_toggles(task, where), 0):
        return 0
    fewest = 5
    for a, b in _pairs(task, where):
        home = where[a]
        row = a * _ROW
        grid[home] = EMPTY
        for cell in task.neighbors[where[b]]:
            count = int(grid[cell] != EMPTY)
            for neighbor in task.neighbors[cell]:
                if neighbor == where[b]:
                    break
                count += task.combine[row + grid[neighbor]] != EMPTY
            fewest = min(fewest, count)
        grid[home] = a
    return fewest


def _moves(task: Task, grid: bytearray, where: dict[int, int], pos: int) -> Iterator[Act]:
    """Every act within the agent's reach that does not end the episode in a dead end."""
    reach = task.distance[pos]
    floor = [c for c, code in enumerate(grid) if code == EMPTY and reach[c] < FAR]
    for item, home in where.items():
        if reach[home] >= FAR:
            continue
        on_edge = task.parent[item] and not task.sibling[item]
        product = task.transform[item]
        if product and (product == task.goal or (on_edge and product == task.parent[item])):
            yield Act(TOGGLE, home, home)
        grid[home] = EMPTY
        allowed = []
        for cell in (*floor, home):
            partner_cell, product = first_reaction(task, grid, item, cell)
            on_edge = (
                product
                and product == task.parent[item]
                and grid[partner_cell] == task.sibling[item]
            )
            inert = not product and cell != home
            if inert or on_edge or (product and product == task.goal):
                allowed.append(Act(DROP, home, cell))
        grid[home] = item
        yield from allowed


def _trace(came_from: list[tuple[int, Act]], node: int) -> list[Act]:
    """The acts that lead from the root to a node of `search`."""
    acts = []
    while node > 0:
        node, act = came_from[node]
        acts.append(act)
    return acts[::-1]


def search(task: Task, max_states: int = MAX_STATES) -> Outcome:
    """Best-first over all abstract states: fewest items left, then fewest obstacles, then cost.

    A product that equals the goal wins even off the tree's edges, as in `env`; so an exhausted
    search proves that no sequence of actions wins.
    """
    seen = {task.grid}
    came_from: list[tuple[int, Act]] = [(-1, Act(TOGGLE, -1, -1))]  # of the root: never read
    queue = [(0, 0, 0, 0, task.grid, task.start)]
    while queue:
        *_, cost, node, board, pos = heapq.heappop(queue)
        grid = bytearray(board)
        for act in list(_moves(task, grid, _where(grid), pos)):
            child = bytearray(board)
            where = _where(child)
            product = _apply(task, child, where, act)
            if product == task.goal:
                return Outcome((*_trace(came_from, node), act), False)
            if (key := bytes(child)) in seen:
                continue
            if len(seen) >= max_states:
                return Outcome(None, False)
            seen.add(key)
            step = task.distance[pos][act.source] + task.distance[act.source][act.target] + 1
            came_from.append((node, act))
            todo = _steps_left(task, where)
            entry = (todo, _obstacles(task, child, where), cost + step)
            heapq.heappush(queue, (*entry, len(came_from) - 1, key, act.target))
    return Outcome(None, True)


def _steps_left(task: Task, where: dict[int, int]) -> int:
    """Operations that the tree still asks for: distinct ancestors of what lies on the board."""
    ahead = set()
    for item in where:
        item = task.parent[item]
        while item and item not in ahead:
            ahead.add(item)
            item = task.parent[item]
    return len(ahead)


def _length(task: Task, acts: tuple[Act, ...]) -> int:
    pos = task.start
    total = 0
    for act in acts:
        total += task.distance[pos][act.source] + 1
        if act.kind == DROP:
            total += task.distance[act.source][act.target] + 1
        pos = act.target
    return total


def solve(task: Task, max_states: int = MAX_STATES) -> Outcome:
    """Acts that win the task: greedy dives first, the complete `search` if they get stuck."""
    fetch = task.grid.find(task.goal)
    if fetch >= 0:
        if task.distance[task.start][fetch] >= FAR:
            return Outcome(None, True)
        return Outcome((Act(PICKUP, fetch, fetch),), False)
    if not task.complete:
        return Outcome(None, False)
    reach = task.distance[task.start]
    if all(reach[cell] < FAR for cell in _where(task.grid).values()):
        dives = [acts for weight in LOOK_AHEAD if (acts := _dive(task, weight))]
        if dives:
            return Outcome(min(dives, key=lambda acts: _length(task, acts)), False)
    return search(task, max_states)


def _walk(task: Task, source: int, target: int) -> list[int]:
    """Moves of a shortest way between two cells of one component."""
    to = task.distance[target]
    cell = source
    moves = []
    offsets = [dr * SIDE + dc for dr, dc in DIRECTIONS]
    while cell != target:
        cell, last = next(n for n in task.neighbors[cell] if to[n] == to[cell] - 1), cell
        moves.append(offsets.index(cell - last))
    return moves


def primitive(task: Task, acts: tuple[Act, ...]) -> Int8[np.ndarray, " T"]:
    """The actions 0..7 that carry out `acts` from the first board of the task."""
    pos = task.start
    actions = []
    for act in acts:
        actions += _walk(task, pos, act.source)
        if act.kind == DROP:
            actions += [PICKUP, *_walk(task, act.source, act.target)]
        actions.append(act.kind)
        pos = act.target
    return np.array(actions, np.int8)


def plan(params: EnvParams, tree: int, layout: int) -> Int8[np.ndarray, " T"] | None:
    """Actions that win the task (tree, layout) from reset; the last one earns the reward.

    Short, not shortest. NumPy leaves in `params` make it fast: about a millisecond.

    Returns:
        actions 0..7, or None: a leaf of the tree has no place in the layout, or `search`
        exhausted the abstract states, or it visited `MAX_STATES` of them without a win.
    """
    task = read_task(params, tree, layout)
    acts = solve(task).acts
    return None if acts is None else primitive(task, acts)


def _drops(task: Task, held: int) -> list[Act]:
    """Ways to put a carried item down that keep the task winnable, nearest first, merges first.

    The first `source` is where the agent stands; the item is in its hand, not there.
    """
    grid = bytearray(task.grid)
    reach = task.distance[task.start]
    merges = []
    inert = []
    for cell in sorted(range(NUM_CELLS), key=reach.__getitem__):
        if reach[cell] >= FAR or grid[cell] != EMPTY:
            continue
        partner_cell, product = first_reaction(task, grid, held, cell)
        if not product:
            inert.append(Act(DROP, task.start, cell))
        elif product == task.goal or (
            product == task.parent[held] and grid[partner_cell] == task.sibling[held]
        ):
            merges.append(Act(DROP, task.start, cell))
    return merges + inert


def plan_state(params: EnvParams, state: State) -> Int8[np.ndarray, " T"] | None:
    """Actions that win from any state of an episode; None if it is over or no plan is found.

    A carried item is put down first: where it merges, or on one of the nearest inert cells.
    """
    if bool(state.done):
        return None
    held = int(state.held)
    pos = int(state.pos)
    task = _task(params, int(state.tree), np.asarray(state.grid, np.uint8), pos, held)
    if held == EMPTY:
        acts = solve(task).acts
        return None if acts is None else primitive(task, acts)
    best: np.ndarray | None = None
    for tried, drop in enumerate(_drops(task, held)):
        if best is not None and tried >= MAX_DROPS:
            break
        first = [*_walk(task, pos, drop.target), DROP]
        grid = bytearray(task.grid)
        partner_cell, product = first_reaction(task, grid, held, drop.target)
        if product:
            grid[partner_cell] = EMPTY
        grid[drop.target] = product or held
        rest: tuple[Act, ...] | None = ()
        after = task._replace(grid=bytes(grid), start=drop.target)
        if product != task.goal:
            rest = solve(after, MAX_STATES // MAX_DROPS).acts
        if rest is not None:
            actions = np.concatenate([np.array(first, np.int8), primitive(after, rest)])
            best = actions if best is None or len(actions) < len(best) else best
    return best
