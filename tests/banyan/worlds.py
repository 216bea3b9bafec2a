# SPDX-License-Identifier: Apache-2.0
"""Small worlds and recorded raw episodes that several test files look at."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from banyan.env import reset_to, step_env
from banyan.oracle import plan
from banyan.tasks import TaskConfig, Tasks, make_tasks
from banyan.types import EnvParams, State

BIASED = (0.13, 0.13, 0.13, 0.13, 0.02, 0.2, 0.2, 0.06)  # pickup and drop often: merges happen

# Drop and toggle often: most of what they do off the tree is a dead end.
EAGER = (0.1, 0.1, 0.1, 0.1, 0.02, 0.2, 0.18, 0.2)


class Episodes(NamedTuple):
    """Raw steps of N episodes, arrays [T, N, ...]; `states` has T + 1 entries, reset first."""

    states: State
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    created: np.ndarray


@cache
def tasks(seed: int = 0, **config: object) -> Tasks:
    """One distribution with a variety of trees, not checked by the oracle unless asked."""
    defaults = {"num_dists": 1, "topologies": (24,), "layouts": (12,), "verify_pairs": 0}
    return make_tasks(seed, TaskConfig(**(defaults | config)))  # type: ignore[arg-type]


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 0]))


def draw_pairs(
    params: EnvParams, per_depth: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`per_depth` random (tree, layout) ids for every depth of params.dist."""
    dist = params.dist
    trees, layouts = [], []
    for depth in range(int(dist.depth_min), int(dist.depth_max) + 1):
        row = np.asarray(dist.tree_ids)[depth - 1]
        trees.append(row[rng.integers(int(dist.num_trees), size=per_depth)])
        pool = np.asarray(dist.layout_ids)[int(dist.size_class[depth - 1])]
        layouts.append(pool[rng.integers(int(dist.num_layouts), size=per_depth)])
    return np.concatenate(trees), np.concatenate(layouts)


def mixed_actions(
    params: EnvParams, trees: np.ndarray, layouts: np.ndarray, steps: int, rng: np.random.Generator
) -> np.ndarray:
    """Biased random play; half of the episodes first follow the oracle, all or some of the way."""
    actions = rng.choice(8, size=(steps, len(trees)), p=EAGER)
    for n in range(0, len(trees), 2):
        solution = plan(params, int(trees[n]), int(layouts[n]))
        if solution is not None:
            kept = len(solution) if n % 4 == 0 else int(rng.integers(len(solution) + 1))
            kept = min(kept, steps)
            actions[:kept, n] = solution[:kept]
    return actions


@jax.jit
def _scan(trees: jax.Array, layouts: jax.Array, actions: jax.Array, params: EnvParams) -> tuple:
    key = jax.random.key(0)
    start = jax.vmap(reset_to, in_axes=(0, 0, None))(trees, layouts, params)

    def body(states: State, action: jax.Array) -> tuple:
        step = jax.vmap(step_env, in_axes=(None, 0, 0, None))
        _, states, reward, terminated, truncated, info = step(key, states, action, params)
        return states, (states, reward, terminated, truncated, info.created)

    _, (states, *rest) = jax.lax.scan(body, start, actions)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, states), rest


def play(
    params: EnvParams, trees: np.ndarray, layouts: np.ndarray, actions: np.ndarray
) -> Episodes:
    """Plays an action table [T, N] without auto-reset."""
    actions = actions.astype(np.int32)
    out = _scan(trees.astype(np.int32), layouts.astype(np.int32), actions, params)
    states, (reward, terminated, truncated, created) = jax.tree.map(np.asarray, out)
    return Episodes(states, actions, reward, terminated, truncated, created)
