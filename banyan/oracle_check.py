# SPDX-License-Identifier: Apache-2.0
"""Draws tasks, plans them, and executes every plan in the jitted environment.

    python -m banyan.oracle_check --help

Nothing is filtered before it is counted: the only tasks left out
are those that a rule without any planning excludes (free cells that do not hang together, or fewer
free cells than leaves + 2). A plan that is missing, too short, too long or dead counts as a loss.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from banyan import layouts, oracle, trees
from banyan.env import reset_to, step_env
from banyan.rules import Recipes, make_rules, recipes
from banyan.types import (
    MAX_DEPTH,
    NUM_ITEMS,
    SLOT_WALL,
    STAY,
    Dist,
    EnvParams,
    Layouts,
    Rules,
    Trees,
    host_leaf,
)

MAX_STEPS = 160  # default horizon of an episode
POOL_SHARE = 0.8  # pools keep tasks whose plan fits in this share of the horizon
NUM_WALLS = 6
SMALL_DEPTH = 4  # deepest tree on the small board
SMALL = (6, 6)
LARGE = (8, 8)
MAX_TREES = 1_000_000
CHUNK = 256  # tasks executed at once
TOPOLOGIES = ("random", "uniform", "balanced")
DISCONNECTED = "free cells disconnected"
CROWDED = "fewer free cells than leaves + 2"


class Drawn(NamedTuple):
    """Tasks before any filter: tree i belongs on layout i."""

    nodes: list[trees.Node]
    depths: list[int]
    layouts: list[layouts.Layout]
    skipped: Counter[str]
    num_levels: int  # different levels used


class Executed(NamedTuple):
    """What the environment said about N plans."""

    reward: np.ndarray  # float32 [N], sum over the episode
    terminated: np.ndarray  # bool [N]
    length: np.ndarray  # int32 [N], steps until the episode ended


def single_params(
    rules: Rules,
    task_trees: Trees,
    task_layouts: Layouts,
    max_steps: int = MAX_STEPS,
    per_task: bool = False,
) -> EnvParams:
    """Parameters for tasks that are named by (tree, layout); `reset` always draws the first."""
    scalar = lambda value, dtype: host_leaf(np.array(value, dtype))
    dist = Dist(
        tree_ids=host_leaf(np.zeros((MAX_DEPTH, 1), np.int32)),
        num_trees=scalar(1, np.int32),
        layout_ids=host_leaf(np.zeros((2, 1), np.int32)),
        num_layouts=scalar(1, np.int32),
        size_class=host_leaf(np.zeros(MAX_DEPTH, np.int32)),
        depth_min=scalar(1, np.int32),
        depth_max=scalar(1, np.int32),
    )
    return EnvParams(
        rules=rules,
        trees=task_trees,
        layouts=task_layouts,
        dist=dist,
        per_task=scalar(per_task, np.bool_),
        max_steps=scalar(max_steps, np.int32),
        reward_success=scalar(1.0, np.float32),
        reward_dead_end=scalar(-1.0, np.float32),
    )


def draw_tree(
    rng: np.random.Generator, depth: int, topology: str, table: Recipes | None
) -> trees.Node:
    """A tree of exactly `depth` levels; any distinct items if `table` is None."""
    match topology:
        case "random":
            shape = trees.sample_topology(rng, depth)
        case "uniform":
            shape = trees.sample_topology_uniform(rng, depth)
        case "balanced":
            shape = trees.balanced(depth)
        case _:
            raise ValueError(f"topology={topology!r}: must be one of {', '.join(TOPOLOGIES)}")
    return trees.assign(rng, shape, table)


def draw_layout(rng: np.random.Generator, depth: int) -> layouts.Layout:
    """A generated layout of the size class of this depth."""
    return layouts.sample_layout(rng, SMALL if depth <= SMALL_DEPTH else LARGE, NUM_WALLS)


def draw(
    rng: np.random.Generator,
    depths: Sequence[int],
    num_trees: int,
    topology: str = "random",
    table: Recipes | None = None,
    levels: Sequence[layouts.RawLevel] = (),
) -> Drawn:
    """`num_trees` tasks per depth; levels are taken in turn, in a random order."""
    order = rng.permutation(len(levels))
    drawn = Drawn([], [], [], Counter(), min(len(levels), num_trees * len(depths)))
    for i in range(num_trees * len(depths)):
        depth = depths[i // num_trees]
        node = draw_tree(rng, depth, topology, table)
        if levels:
            level = levels[order[i % len(levels)]]
            num_free = int((~level.walls).sum())
            connected = layouts.connected(level.walls, level.start)
        else:
            layout = draw_layout(rng, depth)
            num_free = int((layout.slot != SLOT_WALL).sum())
            connected = True  # by construction
        if not connected:
            drawn.skipped[DISCONNECTED] += 1
        elif num_free < len(trees.leaves(node)) + 2:
            drawn.skipped[CROWDED] += 1
        else:
            drawn.nodes.append(node)
            drawn.depths.append(depth)
            drawn.layouts.append(layouts.from_level(rng, level) if levels else layout)
    return drawn


@jax.jit
def _execute(
    params: EnvParams,
    tree: Int[Array, " N"],
    layout: Int[Array, " N"],
    actions: Int[Array, "T N"],
) -> tuple[Float[Array, " N"], Bool[Array, " N"], Int[Array, " N"]]:
    """Total reward, terminated and length of N episodes under fixed actions."""
    key = jax.random.key(0)  # raw steps are deterministic
    state = jax.vmap(reset_to, in_axes=(0, 0, None))(tree, layout, params)

    def body(carry: tuple, action: Int[Array, " N"]) -> tuple[tuple, None]:
        state, reward, terminated = carry
        _, state, gain, ended, _, _ = jax.vmap(step_env, in_axes=(None, 0, 0, None))(
            key, state, action, params
        )
        return (state, reward + gain, terminated | ended), None

    start = (state, jnp.zeros(tree.shape), jnp.zeros(tree.shape, bool))
    (state, reward, terminated), _ = jax.lax.scan(body, start, actions)
    return reward, terminated, state.t


def _buckets(lengths: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(padded length, at most CHUNK task numbers); powers of two keep compilations few."""
    padded = 1 << np.ceil(np.log2(np.maximum(lengths, 32))).astype(int)
    for size in np.unique(padded):
        members = np.flatnonzero(padded == size)
        for first in range(0, len(members), CHUNK):
            yield int(size), members[first : first + CHUNK]


def execute(
    params: EnvParams, tree: np.ndarray, layout: np.ndarray, plans: Sequence[np.ndarray]
) -> Executed:
    """Runs N action sequences in the jitted environment, the horizon beyond their ends."""
    count = len(plans)
    reward = np.zeros(count, np.float32)
    terminated = np.zeros(count, bool)
    length = np.zeros(count, np.int32)
    lengths = np.array([len(actions) for actions in plans])
    for size, members in _buckets(lengths) if count else ():
        actions = np.full((size, CHUNK), STAY, np.int32)
        for column, member in enumerate(members):
            actions[: lengths[member], column] = plans[member]
        rows = np.resize(members, CHUNK)
        longer = params._replace(max_steps=host_leaf(np.array(size + 1, np.int32)))
        result = _execute(
            longer, tree[rows].astype(np.int32), layout[rows].astype(np.int32), actions
        )
        for out, values in zip((reward, terminated, length), result, strict=True):
            out[members] = np.asarray(values)[: len(members)]
    return Executed(reward, terminated, length)


class Report(NamedTuple):
    """Per task: depth, planned length (-1: no plan), won, and what went wrong in words."""

    depth: np.ndarray
    length: np.ndarray
    won: np.ndarray
    proved: int  # of the missing plans, how many are proved impossible


def check(params: EnvParams) -> Report:
    """Plans task i = (tree i, layout i) for every tree of `params` and executes the plans.

    A task is won if the episode ends exactly with the last action, terminated, at reward +1.
    """
    depth = np.asarray(params.trees.depth)
    length = np.full(len(depth), -1)
    won = np.zeros(len(depth), bool)
    plans = []
    planned = []
    proved = 0
    for i in range(len(depth)):
        task = oracle.read_task(params, i, i)
        outcome = oracle.solve(task)
        if outcome.acts is None:
            proved += outcome.proved
            continue
        plans.append(oracle.primitive(task, outcome.acts))
        planned.append(i)
        length[i] = len(plans[-1])
    ids = np.array(planned, np.int32)
    done = execute(params, ids, ids, plans)
    won[ids] = (done.reward == 1.0) & done.terminated & (done.length == length[ids])
    return Report(depth, length, won, proved)


def print_report(report: Report, skipped: Counter[str]) -> bool:
    """Prints the table; True if every task was won."""
    for depth in np.unique(report.depth):
        mine = report.depth == depth
        planned = report.length[mine & (report.length >= 0)]
        words = f"depth {depth}: won {report.won[mine].sum()} of {mine.sum()}"
        if len(planned):
            words += (
                f", plan length mean {planned.mean():.1f} "
                f"p95 {np.percentile(planned, 95):.0f} max {planned.max()}"
            )
        print(words)
    total = len(report.depth)
    limit = POOL_SHARE * MAX_STEPS
    missing = report.length < 0
    rejected = int((missing | (report.length > limit)).sum())
    print(
        f"pools would reject {rejected} of {total} ({100 * rejected / max(total, 1):.2f} %): "
        f"plan missing or longer than {limit:.0f} actions"
    )
    if missing.any():
        print(
            f"no plan for {missing.sum()}: {report.proved} proved impossible, "
            f"{missing.sum() - report.proved} given up"
        )
    for i in np.flatnonzero(~report.won)[:10]:
        reason = "no plan" if missing[i] else "the environment disagrees with the plan"
        print(f"lost: task {i}, depth {report.depth[i]}: {reason}")
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(skipped.items()))
    print(
        f"won {report.won.sum()} of {total} "
        f"(skipped {skipped.total()}: {reasons or 'no task excluded'})"
    )
    return bool(report.won.all()) and total > 0


def has_shortcut(node: trees.Node, rules: Rules) -> bool:
    """True if one operation on two leaves, or on one, makes the goal by a recipe off the tree.

    The world counts a success whenever the goal item is created, so such a task needs no plan.
    """
    combine = np.asarray(rules.combine).reshape(NUM_ITEMS + 1, NUM_ITEMS + 1)
    transform = np.asarray(rules.transform)
    below = trees.leaves(node)
    own = {child.item for child in node.children}
    pairs = {frozenset((a, b)) for a in below for b in below if combine[a, b] == node.item}
    singles = {frozenset((a,)) for a in below if transform[a] == node.item}
    return bool((pairs | singles) - {frozenset(own)})


def count_shortcuts(
    rng: np.random.Generator, depths: Sequence[int], num_trees: int, topology: str, rules: Rules
) -> dict[int, int]:
    """Prints and returns how many of the drawn trees have a shortcut, by depth; a tree of depth 1
    has no operation."""
    table = recipes(rules)
    found = {}
    for depth in depths:
        drawn = (draw_tree(rng, depth, topology, table) for _ in range(num_trees))
        found[depth] = count = sum(has_shortcut(node, rules) for node in drawn)
        print(
            f"depth {depth}: {count} of {num_trees} {topology} trees "
            f"({100 * count / num_trees:.1f} %) have a one-operation shortcut",
            flush=True,
        )
    return found


def parse_depths(text: str) -> list[int]:
    """`3` or `1-6` to a list of depths.

    Raises:
        ValueError: not of that form, or outside 1..6.
    """
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise ValueError(f"{text!r} is neither a depth nor a range like 1-{MAX_DEPTH}")
    low = int(first)
    high = int(last or first)
    if not 1 <= low <= high <= MAX_DEPTH:
        raise ValueError(f"{text!r}: depths rise and lie in 1..{MAX_DEPTH}")
    return list(range(low, high + 1))


def _depths(text: str) -> list[int]:
    try:
        return parse_depths(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def whole_number(low: int, high: int):
    """Argparse type: an integer in low..high."""

    def parse(text: str) -> int:
        digits = text.removeprefix("-")
        if not digits.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number in {low}..{high}")
        return int(text)

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m banyan.oracle_check",
        description="Plan drawn tasks and execute every plan in the jitted environment.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--levels", action="append", default=[], help="Boxoban file, folder or glob; repeatable")
    add("--trees", type=whole_number(1, MAX_TREES), default=1000, help="tasks per depth")
    add("--depths", type=_depths, default=_depths(f"1-{MAX_DEPTH}"), help="one depth or 1-6")
    add("--seed", type=whole_number(0, 2**63 - 1), default=0)
    add("--topology", choices=TOPOLOGIES, default="random", help="how tree shapes are drawn")
    add("--rules", choices=("global", "per_task"), default="global")
    add(
        "--shortcuts",
        action="store_true",
        help="plan nothing: count the trees whose goal one operation off the tree makes",
    )
    parser.add_argument("--json", type=Path, help="write the counts of --shortcuts here too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 every task won (or shortcuts counted), 1 not, 2 bad arguments or files."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.shortcuts and (args.levels or args.rules == "per_task"):
        parser.error(
            "--shortcuts looks at trees under --rules=global: layouts do not matter, and under "
            "--rules=per_task nothing off the tree reacts; leave out --levels and --rules"
        )
    if args.json and not args.shortcuts:
        parser.error("--json goes with --shortcuts")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json={args.json}: no folder {args.json.parent}")
    try:
        levels = layouts.read_levels(args.levels) if args.levels else []
    except (OSError, ValueError) as error:
        parser.error(str(error))
    rng = np.random.Generator(np.random.Philox(key=[args.seed, 0]))
    rules = make_rules(rng)
    if args.shortcuts:
        counts = count_shortcuts(rng, args.depths, args.trees, args.topology, rules)
        if args.json:
            given = {"topology": args.topology, "trees": args.trees, "seed": args.seed}
            text = json.dumps({"shortcuts": counts, **given}, indent=1)
            args.json.write_text(text + "\n")
        return 0
    per_task = args.rules == "per_task"
    table = None if per_task else recipes(rules)
    drawn = draw(rng, args.depths, args.trees, args.topology, table, levels)
    kind = f"{drawn.num_levels} of {len(levels)} levels" if levels else "generated layouts"
    print(f"{args.trees} tasks per depth on {kind}, seed {args.seed}", flush=True)
    if not drawn.nodes:
        print(f"won 0 of 0 (skipped {drawn.skipped.total()}: {dict(drawn.skipped)})")
        return 1
    params = single_params(
        rules,
        trees.pack(drawn.nodes, drawn.depths),
        layouts.pack(drawn.layouts),
        per_task=per_task,
    )
    return 0 if print_report(check(params), drawn.skipped) else 1


if __name__ == "__main__":
    raise SystemExit(main())
