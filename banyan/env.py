# SPDX-License-Identifier: Apache-2.0
"""The world as pure functions of one environment; vmap them for thousands.

Per step (g: grid, p: cell of the agent, h: carried item, d_j: N, S, W, E):

    move    q = p + d          if q is inside the board and no wall, else p
    pickup  h' = g[p], g[p] = 0                        if h = 0 and an item lies here
    drop    c_j = combine[h, g[p + d_j]]; j* = first c_j > 0        if h > 0 and g[p] = 0
            none: g[p] = h;  else g[p] = c_j*, g[p + d_j*] = 0;      h' = 0
    toggle  g[p] = transform[g[p]]                     if that is > 0
    success the goal item was created, or picked up (depth 1: fetch)
    dead    an item was created, but not along an edge of this tree, and no success

Success goes before dead end, termination before truncation; one merge per drop and no chain
reaction; carried items do not react; items that touch at reset do not merge. There is no branch
and no scatter: reads and writes of a cell are masks over 64 cells, rules are table look-ups, so
cost depends neither on the number of rules nor on the number of trees or layouts.

Under `jax.vmap` on a CPU this is fast; calling `step` un-jitted is not. Use `rollout`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, UInt8

from banyan.types import (
    DIRECTIONS,
    DROP,
    EMPTY,
    NUM_ACTIONS,
    NUM_CELLS,
    NUM_ITEMS,
    PICKUP,
    SIDE,
    TOGGLE,
    WALL,
    EnvParams,
    Info,
    Obs,
    State,
)


class TimeStep(NamedTuple):
    """dm_env view of a transition: step_type 0 first, 1 mid, 2 last; discount 0 at termination."""

    step_type: jax.Array  # int32 []
    reward: jax.Array  # float32 []
    discount: jax.Array  # float32 []
    observation: Obs


class Transition(NamedTuple):
    """What `rollout` records of each step, [num_steps, num_envs]."""

    action: jax.Array  # int32
    reward: jax.Array  # float32
    terminated: jax.Array  # bool
    truncated: jax.Array  # bool
    success: jax.Array  # bool
    dead_end: jax.Array  # bool
    depth: jax.Array  # int32


def is_item(code: UInt8[Array, "..."]) -> jax.Array:
    """True for codes 1..80, False for EMPTY and WALL."""
    return (code - jnp.uint8(1)) < NUM_ITEMS


def encode(code: UInt8[Array, "*dims"]) -> UInt8[Array, "*dims 2"]:
    """Item codes to (shape, color): shape 0 empty, 1 wall, 2..9; color 0 none, 1..10."""
    index = code - jnp.uint8(1)
    item = index < NUM_ITEMS
    shape = jnp.where(item, (index & 7) + jnp.uint8(2), (code == WALL).astype(jnp.uint8))
    color = jnp.where(item, (index >> 3) + jnp.uint8(1), jnp.uint8(0))
    return jnp.stack([shape, color], axis=-1)


def _as_jax(params: EnvParams) -> EnvParams:
    """NumPy tables cannot be indexed by traced ids (a vmap outside jit): make them JAX arrays."""
    return jax.tree.map(jnp.asarray, params)


def observe(state: State, params: EnvParams) -> Obs:
    """Whole board, goal item and hand as small integers; embedding them is the agent's job."""
    params = _as_jax(params)
    agent = (jnp.arange(NUM_CELLS) == state.pos).astype(jnp.uint8)
    grid = jnp.concatenate([encode(state.grid), agent[:, None]], axis=-1)
    return Obs(
        grid=grid.reshape(SIDE, SIDE, 3),
        goal=encode(params.trees.goal[state.tree]),
        held=encode(state.held),
    )


def reset_to(tree: Int[Array, ""], layout: Int[Array, ""], params: EnvParams) -> State:
    """First state of the task (tree, layout)."""
    params = _as_jax(params)
    return State(
        grid=params.trees.leaf[tree][params.layouts.slot[layout]],
        pos=params.layouts.start[layout],
        held=jnp.uint8(EMPTY),
        tree=tree,
        layout=layout,
        t=jnp.int32(0),
        done=jnp.bool_(False),
    )


def sample_task(key: PRNGKeyArray, params: EnvParams) -> tuple[jax.Array, jax.Array]:
    """Draws (tree, layout) ids: depth, tree and layout uniform and independent.

    Remainders of 32-bit words are used; their bias is below n / 2^32 for n alternatives.
    """
    dist = _as_jax(params).dist
    bits = jax.random.bits(key, (3,), jnp.uint32)

    def below(word: jax.Array, n: jax.Array) -> jax.Array:
        return (word % n.astype(jnp.uint32)).astype(jnp.int32)

    row = dist.depth_min - 1 + below(bits[0], dist.depth_max - dist.depth_min + 1)
    tree = dist.tree_ids[row, below(bits[1], dist.num_trees)]
    layout = dist.layout_ids[dist.size_class[row], below(bits[2], dist.num_layouts)]
    return tree, layout


def reset(key: PRNGKeyArray, params: EnvParams) -> tuple[Obs, State]:
    """Starts an episode of a task drawn from `params.dist`."""
    state = reset_to(*sample_task(key, params), params)
    return observe(state, params), state


def _transition(
    state: State, action: Int[Array, ""], params: EnvParams
) -> tuple[State, jax.Array, jax.Array, jax.Array, jax.Array]:
    """(next state, success, dead end, truncated, created); the equations of the module."""
    params = _as_jax(params)
    cells = jnp.arange(NUM_CELLS)
    grid = state.grid
    pos = state.pos
    held = state.held
    row = pos // SIDE
    col = pos % SIDE
    read = lambda cell: jnp.sum(jnp.where(cells == cell, grid, 0), dtype=jnp.uint8)

    inside = jnp.stack([row > 0, row < SIDE - 1, col > 0, col < SIDE - 1])
    neighbor_cells = pos + jnp.array([dr * SIDE + dc for dr, dc in DIRECTIONS])
    neighbors = jnp.where(inside, jnp.stack([read(c) for c in neighbor_cells]), jnp.uint8(WALL))
    here = read(pos)

    moves = (jnp.arange(4) == action) & (neighbors != WALL)
    new_pos = jnp.where(moves.any(), jnp.sum(jnp.where(moves, neighbor_cells, 0)), pos)

    parent = params.trees.parent[state.tree]
    sibling = params.trees.sibling[state.tree]
    pickup = (action == PICKUP) & (held == EMPTY) & is_item(here)
    drop = (action == DROP) & (held != EMPTY) & (here == EMPTY)
    toggle = (action == TOGGLE) & is_item(here)
    source = jnp.where(toggle, here, held)
    edge_to = parent[source]
    partner = sibling[source]

    # What each neighbor would make with the dropped item, what the toggle would make.
    items = jnp.where(is_item(neighbors), neighbors, jnp.uint8(EMPTY))
    pair_edge = (items == partner) & (items != EMPTY)
    merged = params.rules.combine[held.astype(jnp.int32) * (NUM_ITEMS + 1) + items]
    merged = jnp.where(params.per_task, jnp.where(pair_edge, edge_to, EMPTY), merged)
    reacts = drop & (merged != EMPTY)
    first = reacts & (jnp.cumsum(reacts) == 1)
    merge = reacts.any()
    toggled = params.rules.transform[jnp.where(toggle, here, 0)]
    toggled = jnp.where(params.per_task, jnp.where(partner == EMPTY, edge_to, EMPTY), toggled)
    toggle &= toggled != EMPTY

    product = jnp.where(toggle, toggled, jnp.sum(jnp.where(first, merged, 0), dtype=jnp.uint8))
    created = jnp.where(toggle | merge, product, jnp.uint8(EMPTY))
    on_edge = jnp.where(toggle, partner == EMPTY, (first & pair_edge).any())
    on_edge &= edge_to == created

    left_here = jnp.where(drop, jnp.where(merge, created, held), here)
    left_here = jnp.where(toggle, created, jnp.where(pickup, jnp.uint8(EMPTY), left_here))
    used_cell = jnp.sum(jnp.where(first, neighbor_cells, 0))
    new_grid = jnp.where(cells == pos, left_here, grid)
    new_grid = jnp.where(merge & (cells == used_cell), jnp.uint8(EMPTY), new_grid)
    new_held = jnp.where(pickup, here, jnp.where(drop, jnp.uint8(EMPTY), held))

    goal = params.trees.goal[state.tree]
    success = ((created != EMPTY) & (created == goal)) | (pickup & (here == goal))
    dead_end = (created != EMPTY) & ~on_edge & ~success
    t = state.t + 1
    truncated = (t >= params.max_steps) & ~(success | dead_end)
    new_state = State(
        grid=new_grid,
        pos=new_pos,
        held=new_held,
        tree=state.tree,
        layout=state.layout,
        t=t,
        done=success | dead_end | truncated,
    )
    return new_state, success, dead_end, truncated, created


def step_env(
    key: PRNGKeyArray, state: State, action: Int[Array, ""], params: EnvParams
) -> tuple[Obs, State, jax.Array, jax.Array, jax.Array, Info]:
    """One raw step, deterministic (the key is there for the gymnax call shape only).

    Args:
        action: 0..7 (see `types.ACTIONS`); any other number stays put.

    Returns:
        obs, state, reward in {-1, 0, 1} by default, terminated, truncated, info. After the end of
        an episode every further raw step leaves the state as it is, with reward 0 and no flag.
    """
    del key
    new, success, dead_end, truncated, created = _transition(state, action, params)
    live = ~state.done
    new = jax.tree.map(lambda old, now: jnp.where(live, now, old), state, new)
    success = success & live
    dead_end = dead_end & live
    truncated = truncated & live
    reward = success * params.reward_success + dead_end * params.reward_dead_end
    obs = observe(new, params)
    info = Info(
        final_obs=obs,
        success=success,
        dead_end=dead_end,
        depth=_as_jax(params).trees.depth[state.tree],
        t=new.t,
        created=jnp.where(live, created, jnp.uint8(EMPTY)),
    )
    return obs, new, reward, success | dead_end, truncated, info


def step(
    key: PRNGKeyArray, state: State, action: Int[Array, ""], params: EnvParams
) -> tuple[Obs, State, jax.Array, jax.Array, jax.Array, Info]:
    """`step_env`, then a fresh episode if this one ended; `info.final_obs` is the last view of it.

    The observation returned beside terminated or truncated is the first one of the new episode.
    """
    obs, raw, reward, terminated, truncated, info = step_env(key, state, action, params)
    fresh = reset_to(*sample_task(key, params), params)
    ended = terminated | truncated
    new = jax.tree.map(lambda a, b: jnp.where(ended, a, b), fresh, raw)
    return observe(new, params), new, reward, terminated, truncated, info._replace(final_obs=obs)


def step_timestep(
    key: PRNGKeyArray, state: State, action: Int[Array, ""], params: EnvParams
) -> tuple[State, TimeStep]:
    """`step_env` as a dm_env TimeStep (no auto-reset)."""
    obs, new, reward, terminated, truncated, _ = step_env(key, state, action, params)
    last = (terminated | truncated).astype(jnp.int32)
    return new, TimeStep(1 + last, reward, 1.0 - terminated.astype(jnp.float32), obs)


Policy = Callable[[Any, Obs, PRNGKeyArray], tuple[jax.Array, Any]]


def random_policy(policy_state: Any, obs: Obs, key: PRNGKeyArray) -> tuple[jax.Array, Any]:
    """Uniform actions for a batch of observations."""
    return jax.random.randint(key, obs.held.shape[:-1], 0, NUM_ACTIONS), policy_state


@partial(jax.jit, static_argnames=("policy", "num_envs", "num_steps"), donate_argnums=2)
def rollout(
    key: PRNGKeyArray,
    policy: Policy,
    policy_state: Any,
    params: EnvParams,
    num_envs: int,
    num_steps: int,
) -> tuple[State, Any, Transition]:
    """Steps `num_envs` environments `num_steps` times with auto-reset, in one compiled program.

    Args:
        policy: (policy_state, obs [N, ...], key) -> (actions [N], policy_state).
        policy_state: any pytree; its buffers are donated.

    Returns:
        last states [N], last policy_state, transitions [num_steps, num_envs].
    """
    reset_key, run_key = jax.random.split(key)
    keys = jax.random.split(reset_key, num_envs)
    obs, states = jax.vmap(reset, in_axes=(0, None))(keys, params)

    def body(carry: tuple, step_key: PRNGKeyArray) -> tuple[tuple, Transition]:
        obs, states, policy_state = carry
        act_key, env_key = jax.random.split(step_key)
        action, policy_state = policy(policy_state, obs, act_key)
        obs, states, reward, terminated, truncated, info = jax.vmap(step, in_axes=(0, 0, 0, None))(
            jax.random.split(env_key, num_envs), states, action, params
        )
        record = Transition(
            action, reward, terminated, truncated, info.success, info.dead_end, info.depth
        )
        return (obs, states, policy_state), record

    carry, records = jax.lax.scan(
        body, (obs, states, policy_state), jax.random.split(run_key, num_steps)
    )
    return carry[1], carry[2], records
