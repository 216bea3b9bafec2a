# SPDX-License-Identifier: Apache-2.0
"""The jitted environment against the slow reference, state for state."""

import ast
import inspect

import numpy as np
import pytest
from worlds import Episodes, draw_pairs, generator, mixed_actions, play, tasks

from banyan import reference
from banyan.reference import World
from banyan.types import DROP

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


@pytest.mark.parametrize("rules", ["global", "per_task"])
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
