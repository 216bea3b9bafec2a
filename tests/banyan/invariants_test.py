# SPDX-License-Identifier: Apache-2.0
"""What must hold in every episode, and transformations that must change nothing."""

from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from banyan import trees as tr
from banyan.env import NUM_ACTIONS, observe, random_policy, reset, reset_to, rollout, step, step_env
from banyan.rules import combine_matrix, relabel
from banyan.tasks import from_arrays, to_arrays
from banyan.types import (
    DIRECTIONS,
    DROP,
    LEFT,
    PICKUP,
    RIGHT,
    SIDE,
    TOGGLE,
    WALL,
    EnvParams,
    Trees,
)
from tests.banyan.worlds import BIASED, Episodes, draw_pairs, generator, mixed_actions, play, tasks
from tests.tiers import deep

HORIZON, STEPS, PER_DEPTH = 70, 75, 200


class Sample:
    """Random episodes of all depths under the global rules, played once for this file."""

    def __init__(self) -> None:
        self.params = tasks(max_steps=HORIZON).params
        rng = generator(3)
        self.trees, self.layouts = draw_pairs(self.params, PER_DEPTH, rng)
        self.actions = mixed_actions(self.params, self.trees, self.layouts, STEPS, rng)
        self.episodes = play(self.params, self.trees, self.layouts, self.actions)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample()


def same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_board_and_items(sample: Sample) -> None:
    states, episodes = sample.episodes.states, sample.episodes
    walls = states.grid == WALL
    np.testing.assert_array_equal(walls, np.broadcast_to(walls[0], walls.shape))
    assert not np.take_along_axis(walls, states.pos[..., None], 2).any()
    on_board = ((states.grid > 0) & ~walls).sum(2) + (states.held > 0)
    merged = (episodes.created > 0) & (episodes.action == DROP)
    assert merged.sum() > 100
    np.testing.assert_array_equal(on_board[1:], on_board[:-1] - merged)
    assert np.isin(states.grid, [*range(81), WALL]).all() and (states.held <= 80).all()
    assert not np.isin(episodes.action[episodes.created > 0], [DROP, TOGGLE], invert=True).any()


def test_rewards_and_ends(sample: Sample) -> None:
    states, episodes = sample.episodes.states, sample.episodes
    assert np.isin(episodes.reward, [-1, 0, 1]).all()
    assert (np.abs(episodes.reward.sum(0)) <= 1).all()
    assert not (episodes.terminated & episodes.truncated).any()
    np.testing.assert_array_equal(episodes.terminated, episodes.reward != 0)
    assert (states.t[1:][episodes.truncated] == HORIZON).all() and episodes.truncated.any()
    ended = episodes.terminated | episodes.truncated
    assert (ended.sum(0) == 1).all()  # the horizon ends what nothing else has ended
    np.testing.assert_array_equal(np.cumsum(ended, 0) > 0, states.done[1:])
    frozen = states.done[:-1]
    for before, after in zip(states, states, strict=True):
        np.testing.assert_array_equal(after[1:][frozen], before[:-1][frozen])


def test_at_reset_nothing_merges_and_the_goal_is_hidden(sample: Sample) -> None:
    params, first = sample.params, jax.tree.map(lambda x: x[0], sample.episodes.states)
    depth = np.asarray(params.trees.depth)[sample.trees]
    goal = np.asarray(params.trees.goal)[sample.trees]
    shown = (first.grid == goal[:, None]).any(1)
    np.testing.assert_array_equal(shown, depth == 1)
    grid = first.grid.reshape(-1, SIDE, SIDE).astype(int)
    items = np.where(grid == WALL, 0, grid)
    combine = combine_matrix(params.rules)
    beside = combine[items[:, :, 1:], items[:, :, :-1]].any((1, 2))
    above = combine[items[:, 1:], items[:, :-1]].any((1, 2))
    touching = np.flatnonzero(beside | above)
    assert len(touching) > 20
    walk = generator(4).integers(0, 5, (HORIZON - 1, len(touching)))  # moves and stay only
    walked = play(params, sample.trees[touching], sample.layouts[touching], walk)
    np.testing.assert_array_equal(
        walked.states.grid, np.broadcast_to(first.grid[touching], walked.states.grid.shape)
    )
    assert not walked.reward.any() and len(np.unique(walked.states.pos)) > 30


def test_final_obs_is_the_view_before_the_reset() -> None:
    params = tasks(max_steps=5).params
    keys = jax.random.split(jax.random.key(0), 16)
    obs, states = jax.jit(jax.vmap(reset, in_axes=(0, None)))(keys, params)
    raw_step = jax.jit(jax.vmap(step_env, in_axes=(0, 0, 0, None)))
    auto_step = jax.jit(jax.vmap(step, in_axes=(0, 0, 0, None)))
    structure = None
    for i in range(12):
        keys = jax.random.split(jax.random.key(i + 1), 16)
        action = jax.random.randint(jax.random.key(100 + i), (16,), 0, NUM_ACTIONS)
        raw = raw_step(keys, states, action, params)
        obs, states, reward, terminated, truncated, info = auto_step(keys, states, action, params)
        same(info.final_obs, raw[0])
        same((reward, terminated, truncated), raw[2:5])
        ended = np.asarray(terminated | truncated)
        assert ended.any() == (i % 5 == 4) or np.asarray(terminated).any()
        assert (np.asarray(states.t)[ended] == 0).all() and not np.asarray(states.done).any()
        same(obs, jax.jit(jax.vmap(observe, in_axes=(0, None)))(states, params))
        structure = structure or jax.tree.structure(info)
        assert jax.tree.structure(info) == structure


@pytest.mark.deep
def test_vmap_scan_and_jit_are_the_plain_loop(sample: Sample) -> None:
    params = jax.tree.map(jnp.asarray, sample.params)
    chosen = np.arange(0, len(sample.trees), 97)
    key = jax.random.key(0)
    one_step = jax.jit(step_env)
    for n in chosen:
        state = jax.jit(reset_to)(jnp.int32(sample.trees[n]), jnp.int32(sample.layouts[n]), params)
        for t in range(25):
            _, state, reward, *_ = one_step(key, state, jnp.int32(sample.actions[t, n]), params)
            same(state, jax.tree.map(lambda x, t=t, n=n: x[t + 1, n], sample.episodes.states))
            assert reward == sample.episodes.reward[t, n]
    with jax.disable_jit():
        n = chosen[1]
        state = reset_to(jnp.int32(sample.trees[n]), jnp.int32(sample.layouts[n]), params)
        for t in range(3):
            _, state, *_ = step_env(key, state, jnp.int32(sample.actions[t, n]), params)
            same(state, jax.tree.map(lambda x, t=t, n=n: x[t + 1, n], sample.episodes.states))


@pytest.mark.deep
def test_eight_devices_give_what_one_gives() -> None:
    params = tasks().params
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    batch = NamedSharding(mesh, PartitionSpec("data"))

    def run(key: jax.Array, params: EnvParams, sharding: NamedSharding | None) -> Any:
        def body(states: Any, key: jax.Array) -> tuple:
            act_key, env_key = jax.random.split(key)
            actions = jax.random.randint(act_key, (16,), 0, NUM_ACTIONS)
            out = jax.vmap(step, in_axes=(0, 0, 0, None))(
                jax.random.split(env_key, 16), states, actions, params
            )
            return out[1], (out[0], out[2])

        _, states = jax.vmap(reset, in_axes=(0, None))(jax.random.split(key, 16), params)
        if sharding is not None:
            states = jax.lax.with_sharding_constraint(states, sharding)
        return jax.lax.scan(body, states, jax.random.split(key, 40))

    one = jax.jit(run, static_argnums=2)(jax.random.key(1), params, None)
    spread = jax.jit(run, static_argnums=2)(
        jax.random.key(1), jax.device_put(params, everywhere), batch
    )
    assert len(spread[0].pos.sharding.device_set) == 8
    same(one, spread)


def test_tables_survive_npz_and_orbax(tmp_path: Path) -> None:
    made = tasks()
    arrays = to_arrays(made)
    np.savez_compressed(tmp_path / "tasks.npz", **arrays)
    with np.load(tmp_path / "tasks.npz", allow_pickle=False) as stored:
        again = from_arrays({name: stored[name] for name in stored.files})
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "tables", arrays)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "tables", jax.tree.map(np.zeros_like, arrays))
    for loaded in (again, from_arrays(restored)):
        same(loaded.params, made.params)
        for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(made.params), strict=True):
            assert np.asarray(a).dtype == np.asarray(b).dtype


def renamed_trees(trees: Trees, permutation: np.ndarray) -> Trees:
    names = permutation.astype(np.uint8)
    leaf = np.asarray(trees.leaf).copy()
    leaf[:, 2:] = names[leaf[:, 2:]]
    parent, sibling = np.zeros_like(trees.parent), np.zeros_like(trees.sibling)
    parent[:, permutation] = names[np.asarray(trees.parent)]
    sibling[:, permutation] = names[np.asarray(trees.sibling)]
    return trees._replace(
        leaf=leaf, parent=parent, sibling=sibling, goal=names[np.asarray(trees.goal)]
    )


def test_renaming_the_items_renames_the_episode(sample: Sample) -> None:
    permutation = np.concatenate([[0], 1 + generator(5).permutation(80)])
    params = sample.params._replace(
        rules=relabel(sample.params.rules, permutation),
        trees=renamed_trees(sample.params.trees, permutation),
    )
    renamed = play(params, sample.trees, sample.layouts, sample.actions)
    names = np.arange(256, dtype=np.uint8)
    names[:81] = permutation
    old = sample.episodes
    np.testing.assert_array_equal(renamed.states.grid, names[old.states.grid])
    np.testing.assert_array_equal(renamed.states.held, names[old.states.held])
    np.testing.assert_array_equal(renamed.created, names[old.created])
    same(
        (renamed.reward, renamed.terminated, renamed.states.pos),
        (old.reward, old.terminated, old.states.pos),
    )


def ambiguous_drops(params: EnvParams, episodes: Episodes) -> np.ndarray:
    """Episodes [N] with a drop that could merge with several neighbors."""
    combine = combine_matrix(params.rules)
    states = jax.tree.map(lambda x: x[:-1], episodes.states)
    grid = np.where(states.grid == WALL, 0, states.grid).reshape(*states.pos.shape, SIDE, SIDE)
    padded = np.pad(grid, ((0, 0), (0, 0), (1, 1), (1, 1)))
    time, env = np.indices(states.pos.shape)
    row, col = np.divmod(states.pos, SIDE)
    partners = sum(
        (combine[states.held, padded[time, env, row + 1 + dr, col + 1 + dc]] > 0).astype(int)
        for dr, dc in DIRECTIONS
    )
    return ((episodes.action == DROP) & (states.held > 0) & (partners > 1)).any(0)


def test_a_mirrored_world_mirrors_the_episode(sample: Sample) -> None:
    layouts = sample.params.layouts
    square = lambda cells: cells.reshape(*cells.shape[:-1], SIDE, SIDE)
    flip = lambda cells: square(cells)[..., ::-1].reshape(cells.shape)
    mirror = lambda pos: pos // SIDE * SIDE + SIDE - 1 - pos % SIDE
    params = sample.params._replace(
        layouts=layouts._replace(slot=flip(np.asarray(layouts.slot)), start=mirror(layouts.start))
    )
    swap = np.arange(8)
    swap[[LEFT, RIGHT]] = RIGHT, LEFT
    mirrored = play(params, sample.trees, sample.layouts, swap[sample.actions])
    clear = ~ambiguous_drops(sample.params, sample.episodes)
    old = sample.episodes
    assert clear.sum() > 500 and (old.created[:, clear] > 0).sum() > 100
    same(mirrored.states.grid[:, clear], flip(old.states.grid)[:, clear])
    same(mirrored.states.pos[:, clear], mirror(old.states.pos)[:, clear])
    same(mirrored.reward[:, clear], old.reward[:, clear])


def fewest_reactions(items: list[int], params: EnvParams) -> np.ndarray:
    """[81] least number of reactions that make each item out of some of these, inf if none.

    Exhaustive over multisets by dynamic programming over subsets: what a subset can be turned into
    is what two parts of it can combine to, closed under toggling. Space is ignored.
    """
    combine, transform = combine_matrix(params.rules), np.asarray(params.rules.transform)
    best = np.full((1 << len(items), 81), np.inf)
    for subset in range(1, 1 << len(items)):
        members = [i for i in range(len(items)) if subset >> i & 1]
        if len(members) == 1:
            best[subset, items[members[0]]] = 0
        for part in range(1, subset):
            if part & ~subset or part > subset ^ part:
                continue
            left, right = np.isfinite(best[part]), np.isfinite(best[subset ^ part])
            for a, b in product(np.flatnonzero(left), np.flatnonzero(right)):
                made = combine[a, b]
                if made:
                    cost = best[part, a] + best[subset ^ part, b] + 1
                    best[subset, made] = min(best[subset, made], cost)
        for _ in range(80 * bool(transform.any())):  # relax along the toggles
            before = best[subset].copy()
            sources = np.flatnonzero(transform)
            np.minimum.at(best[subset], transform[sources], before[sources] + 1)
            if np.array_equal(before, best[subset]):
                break
    best[:, 0] = np.inf
    return best.min(0)


def on_tree_goal_reachable(items: list[int], node: tr.Node) -> bool:
    """Whether the tree's own reactions lead from these items to its root."""
    if node.item in items:
        return True
    return bool(node.children) and all(on_tree_goal_reachable(items, c) for c in node.children)


@pytest.mark.parametrize("transform_density", [deep(0.0), 0.5, deep(1.0)])
def test_dead_ends_cannot_be_mended(transform_density: float) -> None:
    """How often a flagged state could still be solved: counted, printed, bounded.

    Along the tree that takes an off-tree reaction that happened to make an item of the tree. Other
    recipes hardly help where few items transform. A dense transform table is a permutation with
    long cycles: by toggling on and on almost everything can still be made, so the exact notion of
    a dead end would be empty there, and the edge-based one is what ends episodes.
    """
    shapes = {"topologies": (5,), "objects": (10,)}
    if transform_density == 0:
        shapes = {"topologies": (2,), "objects": (25,), "p_binary": 1.0}
    made = tasks(depths=(2, 3), transform_density=transform_density, max_steps=60, **shapes)
    params, rng = made.params, generator(6)
    trees, layouts = draw_pairs(params, 1500, rng)
    episodes = play(params, trees, layouts, rng.choice(8, size=(60, len(trees)), p=BIASED))
    flagged = np.flatnonzero((episodes.reward < 0).any(0))
    checked = mended_any = mended_in_time = still_on_tree = 0
    for n in flagged:
        node = tr.unpack(params.trees, int(trees[n]))
        if len(tr.leaves(node)) > 4:
            continue
        board = episodes.states.grid[-1, n]
        left = [int(x) for x in (*board, episodes.states.held[-1, n]) if 0 < x <= 80]
        cost = fewest_reactions(left, params)[node.item]
        still_on_tree += on_tree_goal_reachable(left, node)
        mended_any += bool(np.isfinite(cost))
        mended_in_time += bool(cost <= len(tr.edges(node)))
        checked += 1
        if checked == 120:
            break
    on_tree, rate, in_time = (x / checked for x in (still_on_tree, mended_any, mended_in_time))
    print(
        f"transform_density={transform_density}: {len(flagged)} dead ends, {checked} searched; "
        f"still solvable along the tree: {on_tree:.3f}; goal makeable by any recipes: {rate:.3f}, "
        f"with no more reactions than the whole task has: {in_time:.3f}"
    )
    assert checked >= 50 and on_tree <= 0.05 and in_time <= 0.25
    if transform_density == 0:
        assert rate <= 0.10


@pytest.mark.deep
def test_random_play_scores_as_in_the_paper() -> None:
    params = tasks(topologies=(64,), layouts=(64,)).params  # default rules, boards and horizon
    per_depth, horizon = 640, int(params.max_steps)
    trees, layouts = draw_pairs(params, per_depth, generator(7))
    actions = generator(8).integers(0, NUM_ACTIONS, (horizon, len(trees)))
    episodes = play(params, trees, layouts, actions)
    ended = episodes.terminated | episodes.truncated
    assert (ended.sum(0) == 1).all()  # exactly one episode in every environment
    success = (episodes.reward > 0).any(0).reshape(6, per_depth).mean(1)
    dead = (episodes.reward < 0).any(0).reshape(6, per_depth).mean(1)
    print("random play, success by depth:", success.round(3), "mean", success.mean().round(3))
    print("random play, dead ends by depth:", dead.round(3))
    assert 0.05 <= success.mean() <= 0.10
    assert success[5] < 0.02
    noise = 3 * np.sqrt(2 * 0.25 * success.max() / per_depth)
    assert (np.diff(success) <= noise).all()


@pytest.mark.deep
def test_numpy_tables_work_without_jit() -> None:
    params = tasks().params
    keys = jax.random.split(jax.random.key(2), 3)
    obs, states = jax.vmap(reset, in_axes=(0, None))(keys, params)
    same((obs, states), jax.jit(jax.vmap(reset, in_axes=(0, None)))(keys, params))
    stepped = jax.vmap(step, in_axes=(0, 0, 0, None))(keys, states, jnp.array([1, 3, 4]), params)
    assert (np.asarray(stepped[1].t) == 1).all()


def test_rollout_counts_and_unknown_actions() -> None:
    params = tasks(max_steps=20).params
    _, _, record = rollout(jax.random.key(0), random_policy, (), params, 8, 50)
    assert record.reward.shape == (50, 8)
    ends = np.asarray(record.terminated | record.truncated)
    assert (ends.sum(0) >= 2).all()
    np.testing.assert_array_equal(record.success, np.asarray(record.reward) > 0)
    np.testing.assert_array_equal(record.dead_end, np.asarray(record.reward) < 0)
    trees, layouts = draw_pairs(params, 4, generator(9))
    odd = play(params, trees, layouts, np.full((5, len(trees)), 99))
    np.testing.assert_array_equal(odd.states.pos, np.broadcast_to(odd.states.pos[0], (6, 24)))
    assert PICKUP == 5 and not odd.reward.any()
