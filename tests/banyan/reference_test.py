# SPDX-License-Identifier: Apache-2.0
"""The jitted environment against the slow reference, state for state."""

import ast
import inspect

import numpy as np
import pytest

from banyan import reference
from banyan.reference import World
from banyan.trees import Node, pack
from banyan.types import DROP, PICKUP, RIGHT, EnvParams
from tests.banyan.worlds import Episodes, draw_pairs, generator, mixed_actions, play, tasks
from tests.tiers import deep

STEPS, HORIZON, PER_DEPTH = 84, 80, 175


def replay(world: World, episodes: Episodes, n: int, tree: int, layout: int) -> None:
    """Steps the reference through episode n and compares everything after every step."""
    states = episodes.states
    snapshots = [world.reset_to(tree, layout)]
    results = []
    last = min(int(np.argmax(states.done[:, n])) + 3, STEPS)  # a few steps after the end as well
    assert states.done[-1, n]
    for action in episodes.action[:last, n]:
        results.append(world.step(int(action)))
        snapshots.append(world.snapshot())
    grids = np.stack([s.grid.reshape(64) for s in snapshots])
    np.testing.assert_array_equal(grids, states.grid[: last + 1, n], f"episode {n}")
    plain = [(8 * s.position[0] + s.position[1], s.held, s.t, s.done) for s in snapshots]
    ours = [x[: last + 1, n] for x in (states.pos, states.held, states.t, states.done)]
    np.testing.assert_array_equal(np.array(plain), np.stack(ours, 1), f"episode {n}")
    ours = [x[:last, n] for x in (episodes.reward, episodes.terminated, episodes.truncated)]
    np.testing.assert_array_equal(np.array(results, float), np.stack(ours, 1), f"episode {n}")


@pytest.mark.parametrize("rules", [deep("global"), "per_task"])
def test_environment_agrees_with_the_reference(rules: str) -> None:
    params = tasks(rules=rules, max_steps=HORIZON).params
    rng = generator(1)
    trees, layouts = draw_pairs(params, PER_DEPTH, rng)
    episodes = play(params, trees, layouts, mixed_actions(params, trees, layouts, STEPS, rng))
    world = World(params)
    for n in range(len(trees)):
        replay(world, episodes, n, int(trees[n]), int(layouts[n]))
    merges = int(((episodes.created > 0) & (episodes.action == DROP)).sum())
    dead_ends = int((episodes.reward < 0).sum())
    successes = int((episodes.reward > 0).sum())
    counts = f"{rules}: {len(trees)} episodes, {merges=} {dead_ends=} {successes=}"
    print(counts)
    assert len(trees) >= 1000 and merges >= 500 and successes >= 200, counts
    assert dead_ends >= 200 if rules == "global" else dead_ends == 0, counts
    assert episodes.truncated.any(), counts


def test_one_operation_at_depth_one_and_other_boards_agree() -> None:
    config = {"depth1": "one_op", "depths": (1, 3), "small_shape": (4, 7), "num_walls": 5}
    params = tasks(**config, combine_density=0.5, transform_density=0.5, max_steps=60).params
    rng = generator(2)
    trees, layouts = draw_pairs(params, 40, rng)
    episodes = play(params, trees, layouts, mixed_actions(params, trees, layouts, STEPS, rng))
    world = World(params)
    for n in range(len(trees)):
        replay(world, episodes, n, int(trees[n]), int(layouts[n]))


def test_the_reference_is_independent() -> None:
    imports = [
        name.name if isinstance(node, ast.Import) else f"{node.module}.{name.name}"
        for node in ast.walk(ast.parse(inspect.getsource(reference)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    ]
    assert imports and not [name for name in imports if "env" in name or "oracle" in name]


def test_asymmetric_rules_are_refused() -> None:
    params = tasks().params
    combine = np.asarray(params.rules.combine).copy()
    combine[1 * 81 + 2] ^= 1
    with pytest.raises(ValueError, match="symmetric"):
        World(params._replace(rules=params.rules._replace(combine=combine)))


def hand_made(beside: int) -> EnvParams:
    """A row with item 1 at cell 1 and `beside` at cell 3; 1+2 and 1+3 both make 9, 1+4 the goal."""
    combine = np.zeros((81, 81), np.uint8)
    for a, b, made in ((1, 2, 9), (1, 3, 9), (1, 4, 10), (9, 8, 10)):
        combine[a, b] = combine[b, a] = made
    transform = np.zeros(81, np.uint8)
    transform[3], transform[4] = 7, 3
    params = tasks().params
    chain = Node(8, (Node(7, (Node(3, (Node(4),)),)),))
    trees = pack([Node(10, (Node(9, (Node(1), Node(2))), chain))], [6])
    np.asarray(trees.leaf)[0, 2:5] = 1, beside, 0
    slot = np.zeros((1, 64), np.uint8)
    slot[0, [1, 3]] = 2, 3
    layouts = params.layouts._replace(slot=slot, start=np.zeros(1, np.int32))
    rules = params.rules._replace(combine=combine.reshape(-1), transform=transform)
    return params._replace(rules=rules, trees=trees, layouts=layouts)


@pytest.mark.parametrize(
    ("beside", "created", "reward"), [(2, 9, 0.0), (3, 9, -1.0), (4, 10, 1.0), (5, 0, 0.0)]
)
def test_the_right_item_made_with_the_wrong_partner_is_a_dead_end(
    beside: int, created: int, reward: float
) -> None:
    params = hand_made(beside)
    actions = np.array([[RIGHT], [PICKUP], [RIGHT], [DROP]])
    ids = np.zeros(1, np.int32)
    episodes = play(params, ids, ids, actions)
    assert episodes.created[3, 0] == created and episodes.reward[3, 0] == reward
    world = World(params)
    world.reset_to(0, 0)
    assert [world.step(int(a))[0] for a in actions[:, 0]] == [0.0, 0.0, 0.0, reward]


@pytest.mark.parametrize("beside", [2, 3, 4])
def test_per_task_rules_react_only_to_the_right_partner(beside: int) -> None:
    params = hand_made(beside)._replace(per_task=np.array(True))
    ids = np.zeros(1, np.int32)
    episodes = play(params, ids, ids, np.array([[RIGHT], [PICKUP], [RIGHT], [DROP]]))
    assert episodes.created[3, 0] == (9 if beside == 2 else 0) and not episodes.reward.any()
