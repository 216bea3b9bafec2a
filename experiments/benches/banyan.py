# SPDX-License-Identifier: Apache-2.0
"""Banyan against its peers: random policy, vmap + scan + auto-reset, observation consumed.

Also: the same with other table sizes (speed should not depend on them), and one PPO update of
`banyan:base`, network, epochs and minibatches alike, against a bare loop of the same
rollout and optax updates, and against the optax updates alone on a fixed rollout; the profile is
how an update splits into acting and learning.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from banyan import env, tasks
from banyan.agents import ppo
from banyan.task_config import TaskConfig
from banyan.types import NUM_ACTIONS, EnvParams
from experiments.runner import loop, names, settings
from experiments.runner.assemble import assemble, initial_state
from experiments.runner.bench import Case, Missing

ENVS = (1024, 8192)
CALL_STEPS = 1 << 18  # environment steps per timed call
REFERENCE = "xminigrid-XLand-R1-9x9-1rule"
Stepper = tuple[Callable[[jax.Array], Any], Callable[..., Any], int]  # init, step, num_actions


def consumed(obs: Any) -> jax.Array:
    """A number that needs every entry of the observation, so that none is optimized away."""
    means = [leaf.astype(jnp.float32).mean() for leaf in jax.tree.leaves(obs)]
    return jnp.stack(means).sum()


def stepping_case(row: str, stepper: Stepper, num_envs: int, call_steps: int) -> Case:
    """Random actions for call_steps / num_envs steps inside one scan."""
    init, step, num_actions = stepper
    steps = max(4, call_steps // num_envs)

    @jax.jit
    def run(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        def body(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            act_key, env_key = jax.random.split(key)
            action = jax.random.randint(act_key, (num_envs,), 0, num_actions)
            return step(carry, action, env_key)

        carry, seen = jax.lax.scan(body, carry, jax.random.split(key, steps))
        return carry, seen.sum()

    carry = jax.jit(init)(jax.random.key(0))

    def call(repeat: int) -> None:
        jax.block_until_ready(run(carry, jax.random.key(repeat)))

    return Case(row, num_envs, steps * num_envs, call)


def banyan_stepper(tables: EnvParams, num_envs: int) -> Stepper:
    tables = jax.tree.map(jnp.asarray, tables)

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, num_envs)
        return jax.vmap(env.reset, in_axes=(0, None))(keys, tables)[1]

    def step(state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        obs, state, reward, *_ = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            jax.random.split(key, num_envs), state, action, tables
        )
        return state, reward.sum() + consumed(obs)

    return init, step, NUM_ACTIONS


def task_tables(**changes: Any) -> EnvParams:
    """Full world, depths 1-6, all boards 8x8."""
    given = {
        "small_max_depth": 0,
        "num_dists": 1,
        "layouts": (1024,),
        "topologies": (256,),
        "verify_pairs": 0,
    }
    return tasks.make_tasks(0, TaskConfig(**{**given, **changes})).params


def xminigrid_stepper(num_envs: int, num_rules: int, num_objects: int) -> Stepper:
    """XLand-R1-9x9 with random near-rules, GymAutoReset."""
    import xminigrid  # type: ignore[import-not-found]
    from xminigrid.core.goals import AgentHoldGoal  # type: ignore[import-not-found]
    from xminigrid.core.rules import TileNearRule  # type: ignore[import-not-found]
    from xminigrid.types import RuleSet  # type: ignore[import-not-found]
    from xminigrid.wrappers import GymAutoResetWrapper  # type: ignore[import-not-found]

    rng = np.random.default_rng(0)
    shapes = (3, 4, 5, 7, 11, 12)
    colors = (1, 2, 3, 4, 5, 6, 8, 9, 10, 11)
    draw = lambda: jnp.array([rng.choice(shapes), rng.choice(colors)], jnp.uint8)
    rule = lambda: TileNearRule(tile_a=draw(), tile_b=draw(), prod_tile=draw()).encode()
    rules = RuleSet(
        goal=AgentHoldGoal(tile=draw()).encode(),
        rules=jnp.stack([rule() for _ in range(num_rules)]),
        init_tiles=jnp.stack([draw() for _ in range(num_objects)]),
    )
    world, params = xminigrid.make("XLand-MiniGrid-R1-9x9")
    params = params.replace(ruleset=rules)
    world = GymAutoResetWrapper(world)

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, num_envs)
        return jax.vmap(world.reset, in_axes=(None, 0))(params, keys)

    def step(timestep: Any, action: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        timestep = jax.vmap(world.step, in_axes=(None, 0, 0))(params, timestep, action)
        return timestep, timestep.reward.sum() + consumed(timestep.observation)

    return init, step, world.num_actions(params)


def gym_stepper(world: Any, params: Any, num_actions: int, num_envs: int) -> Stepper:
    """A peer with gymnax's calls: reset and step of one environment that resets itself."""

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, num_envs)
        return jax.vmap(world.reset, in_axes=(0, None))(keys, params)[1]

    def step(state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        keys = jax.random.split(key, num_envs)
        obs, state, reward, *_ = jax.vmap(world.step, in_axes=(0, 0, 0, None))(
            keys, state, action, params
        )
        return state, reward.sum() + consumed(obs)

    return init, step, num_actions


def gymnax_stepper(num_envs: int, name: str) -> Stepper:
    import gymnax  # type: ignore[import-not-found]

    world, params = gymnax.make(name)
    return gym_stepper(world, params, world.num_actions, num_envs)


def craftax_stepper(num_envs: int, name: str) -> Stepper:
    from craftax.craftax_env import (  # type: ignore[import-not-found]
        make_craftax_env_from_name,
    )

    world = make_craftax_env_from_name(name, auto_reset=True)
    params = world.default_params
    return gym_stepper(world, params, world.action_space(params).n, num_envs)


def navix_stepper(num_envs: int, name: str) -> Stepper:
    import navix  # type: ignore[import-not-found]

    world = navix.make(name)

    def init(key: jax.Array) -> Any:
        return jax.vmap(world.reset)(jax.random.split(key, num_envs))

    def step(timestep: Any, action: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        timestep = jax.vmap(world.step)(timestep, action)
        return timestep, timestep.reward.sum() + consumed(timestep.observation)

    return init, step, int(world.action_space.n)


def peers() -> list[tuple[str, str, Callable[[int], Stepper], tuple[int, ...], int]]:
    """(row, package, stepper of num_envs, sizes, environment steps per timed call)."""
    few = CALL_STEPS >> 2
    return [
        (REFERENCE, "xminigrid", partial(xminigrid_stepper, num_rules=1, num_objects=6), ENVS, few),
        (
            "xminigrid-XLand-R1-9x9-9rules",
            "xminigrid",
            partial(xminigrid_stepper, num_rules=9, num_objects=10),
            ENVS,
            few >> 1,
        ),
        (
            "gymnax-Breakout-MinAtar",
            "gymnax",
            partial(gymnax_stepper, name="Breakout-MinAtar"),
            ENVS,
            CALL_STEPS,
        ),
        (
            "navix-Empty-8x8",
            "navix",
            partial(navix_stepper, name="Navix-Empty-8x8-v0"),
            ENVS,
            few,
        ),
        (
            "navix-DoorKey-8x8",
            "navix",
            partial(navix_stepper, name="Navix-DoorKey-8x8-v0"),
            ENVS,
            few,
        ),
        (
            "craftax-classic",
            "craftax",
            partial(craftax_stepper, name="Craftax-Classic-Symbolic-v1"),
            (256,),
            1024,
        ),
    ]


def ppo_cases() -> Iterable[Case]:
    """One contract step of :base, its rollout alone, and the bare optimization of one rollout."""
    config = names.config_module("banyan").get_config("base")
    asm = assemble(config)
    agent_config = settings.groups(config)["agent"]
    work = agent_config.num_envs * agent_config.num_steps
    assert asm.experiment.batch is not None
    batch = jax.device_put(dict(asm.experiment.batch(0)))
    step = loop.jit_step(asm, batch)
    holder = [initial_state(asm)]

    def full(repeat: int) -> None:
        holder[0], metrics = step(holder[0], batch)
        jax.block_until_ready(metrics)

    from experiments.systems.banyan import banyan as system

    made = tasks.from_arrays(asm.artifacts)
    net = system.network(config, made)
    tables = jax.tree.map(jnp.asarray, made.params)
    agent = ppo.init(jax.random.key(0), net, agent_config, tables)
    act = jax.jit(
        lambda key, agent: ppo.rollout(
            key, net, agent.params, agent.worker, tables, agent_config.num_steps
        )
    )
    _, sample, outcome = act(jax.random.key(1), agent)
    data = (sample, outcome.reward, outcome.reward)
    learn_on = jax.jit(
        lambda key, params, opt_state, data, memory: ppo.optimize(
            key, net, agent_config, params, opt_state, data, memory
        )
    )

    def acting(repeat: int) -> None:
        jax.block_until_ready(act(jax.random.key(repeat), agent))

    def bare(repeat: int) -> None:
        args = (agent.params, agent.opt_state, data, agent.worker.memory)
        jax.block_until_ready(learn_on(jax.random.key(repeat), *args))

    loop_state = [agent]

    def bare_loop(repeat: int) -> None:
        """Acting and learning as two jitted calls: no frame, no bookkeeping."""
        now = loop_state[0]
        worker, sample, outcome = act(jax.random.key(repeat), now)
        rollout = (sample, outcome.reward, outcome.reward)
        params, opt_state, _ = learn_on(
            jax.random.key(repeat), now.params, now.opt_state, rollout, now.worker.memory
        )
        loop_state[0] = ppo.Agent(params, opt_state, worker)
        jax.block_until_ready(params)

    yield Case("ppo-update-base", agent_config.num_envs, work, full)
    yield Case("ppo-rollout-alone", agent_config.num_envs, work, acting)
    yield Case("ppo-bare-loop", agent_config.num_envs, work, bare_loop)
    yield Case("ppo-bare-optax", agent_config.num_envs, work, bare)


def cases() -> Iterable[Case | Missing]:
    """All rows; peers that are not installed are named with the extra that brings them."""
    for envs in ENVS:
        yield stepping_case("banyan-8x8", banyan_stepper(task_tables(), envs), envs, CALL_STEPS)
    variants = {
        "banyan-8x8-one-task": {"layouts": (1,), "topologies": (1,)},
        "banyan-8x8-10240-layouts": {"layouts": (10240,), "topologies": (1024,)},
        "banyan-8x8-sparse-rules": {"combine_density": 0.3, "topologies": (16,)},
    }
    for row, changes in variants.items():
        tables = task_tables(**changes)
        yield stepping_case(row, banyan_stepper(tables, ENVS[0]), ENVS[0], CALL_STEPS)
    for row, package, make, sizes, call_steps in peers():
        for envs in sizes:
            if importlib.util.find_spec(package) is None:
                yield Missing(f"{row}@{envs}", f'{package} missing: pip install -e ".[peers]"')
            else:
                yield stepping_case(row, make(envs), envs, call_steps)
    yield from ppo_cases()


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Banyan / peer at the same number of environments; table sizes; PPO / bare optimization."""
    rate = {(row["row"], row["envs"]): row["steps_per_s"] for row in rows}
    out: dict[str, float] = {}
    for (row, envs), value in rate.items():
        if row.startswith("banyan-8x8-"):
            out[f"{row} / banyan-8x8@{envs}"] = value / rate["banyan-8x8", envs]
        elif not row.startswith(("banyan", "ppo")):
            base = rate.get(("banyan-8x8", envs), rate["banyan-8x8", ENVS[0]])
            out[f"{row}@{envs}"] = base / value
    for (row, envs), value in rate.items():
        if row == "ppo-update-base":
            for bare in ("ppo-bare-loop", "ppo-bare-optax"):
                out[f"{row} / {bare}@{envs}"] = value / rate[bare, envs]
            seconds = {k: 1 / rate[k, envs] for k in (row, "ppo-rollout-alone", "ppo-bare-optax")}
            out["share of an update: acting"] = seconds["ppo-rollout-alone"] / seconds[row]
            out["share of an update: learning"] = seconds["ppo-bare-optax"] / seconds[row]
    return out
