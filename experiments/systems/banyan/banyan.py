# SPDX-License-Identifier: Apache-2.0
"""Wiring of Banyan: task tables as artifacts, one PPO update as the step, S[t, i] as the test.

State leaves have a leading axis of seeds; environments are the second axis of everything a
rollout carries and the one that is sharded. The batch is the phase's task distribution.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from banyan import metrics as measures
from banyan import tasks
from banyan.agents import ppo
from banyan.agents.networks import ActorCritic
from banyan.agents.ppo import Agent, Worker
from banyan.types import EnvParams, Obs, State
from experiments.runner import data, settings
from experiments.runner.contract import Experiment
from experiments.runner.sharding import leaf_paths
from experiments.systems.banyan import figures as banyan_figures

RULES = (
    (r"worker/.*", P(None, "data")),
    (r"(.*/)?params/.*(encoder\d|_hidden|input)/kernel", P(None, None, "model")),
    (r"batch/.*", P()),
)
EVAL_SEED = 20_260_530  # evaluation episodes are the same at every step of every run


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Task tables and their manifest; the rate of rejected tasks is printed."""
    env_config = settings.groups(config)["env"]
    levels = find_levels(env_config.levels, config.data.root)
    made = tasks.make_tasks(config.seed, dataclasses.replace(env_config, levels=levels))
    print(describe(made.manifest))
    return tasks.to_arrays(made)


def find_levels(levels: str, root: str) -> str:
    """config.env.levels as a path or glob: as given, or the name of a dataset or a path below the
    data root, verified where it is a dataset that is known."""
    if not levels or Path(levels).is_absolute() or Path(levels).exists():
        return levels
    if levels in data.declared():
        data.fingerprints(levels, root)  # every file there, and with the content it should have
        return str(data.locate(levels, root))
    return str(data.root(root) / data.inside(levels))


def describe(manifest: Mapping[str, Any]) -> str:
    """One line per distribution: sizes, shared walls, and what the planner rejected."""
    lines = [
        f"tasks {manifest['sha256'][:12]}: {manifest['num_trees']} trees, "
        f"{manifest['num_layouts']} layouts, rules version {manifest['rule_version']}"
    ]
    for i, dist in enumerate(manifest["dists"], 1):
        checked = dist["pairs_checked"]
        rejected = dist["pairs_rejected"]
        rate = f"{rejected / checked:.1%}" if checked else "no pair"
        lines.append(
            f"  d{i}: {dist['topologies']} topologies x {dist['objects']} objects x "
            f"{dist['layouts']} layouts ({dist['wall_maps_shared_with_earlier']} of "
            f"{dist['wall_maps']} wall maps seen before); planner rejected {rejected} of "
            f"{checked} tasks ({rate})"
        )
    return "\n".join(lines)


def _to_state(step: jax.Array, key: jax.Array, agent: Agent) -> dict[str, Any]:
    """Plain dicts only, so that a checkpoint reads without our classes."""
    worker = agent.worker._asdict()
    worker["env"], worker["obs"] = agent.worker.env._asdict(), agent.worker.obs._asdict()
    return {
        "step": step,
        "key": key,
        "params": agent.params,
        "opt_state": agent.opt_state,
        "worker": worker,
    }


def _to_agent(state: Mapping[str, Any]) -> Agent:
    worker = dict(state["worker"])
    worker["env"], worker["obs"] = State(**worker["env"]), Obs(**worker["obs"])
    return Agent(state["params"], state["opt_state"], Worker(**worker))


def network(config: ConfigDict, made: tasks.Tasks) -> ActorCritic:
    """The agent's network, reading no more of the board than the largest layout fills."""
    rows, cols = np.max(np.asarray(made.params.layouts.shape), axis=0)
    return ActorCritic(settings.groups(config)["model"], rows=int(rows), cols=int(cols))


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config.

    Raises:
        ValueError: more updates than there are phases for.
    """
    groups = settings.groups(config)
    env_config = groups["env"]
    agent_config = groups["agent"]
    train = groups["train"]
    made = tasks.from_arrays(dict(artifacts))
    net = network(config, made)
    tables = made.params
    num_dists = len(made.dists)
    seeds = config.num_seeds
    if train.steps > num_dists * train.phase_steps:
        raise ValueError(
            f"config.train.steps={train.steps} exceeds config.env.num_dists={num_dists} x "
            f"config.train.phase_steps={train.phase_steps}; raise one of those or lower steps"
        )
    treedef = jax.tree.structure(tables)
    names = tuple(leaf_paths(tables))
    # The same host objects at every step: within a phase nothing is sent twice.
    batches = [leaf_paths(tables._replace(dist=dist)) for dist in made.dists]

    def init(key: jax.Array) -> dict[str, Any]:
        one = lambda k: ppo.init(k, net, agent_config, jax.tree.map(jnp.asarray, tables))
        agent = jax.vmap(one)(jax.random.split(jax.random.fold_in(key, 0), seeds))
        return _to_state(jnp.int32(0), key, agent)

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict, dict]:
        key = jax.random.fold_in(state["key"], state["step"] + 1)
        new_phase = (state["step"] % train.phase_steps == 0) & (state["step"] > 0)
        now = jax.tree.unflatten(treedef, [batch[name] for name in names])
        one = lambda k, agent: ppo.update(
            k, net, agent_config, agent, now, new_phase, env_config.max_steps
        )
        agent, metrics = jax.vmap(one)(jax.random.split(key, seeds), _to_agent(state))
        return _to_state(state["step"] + 1, state["key"], agent), metrics

    def batch(step: int, rows: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        del rows  # tables are replicated
        return batches[min(step // train.phase_steps, num_dists - 1)]

    evaluate = make_evaluate(config, net, tables, made.dists)

    return Experiment(
        init=init,
        step=step,
        batch=batch,
        evaluate=evaluate,
        rules=RULES,
        splits=("test",),
        milestones=tuple(train.phase_steps * i for i in range(num_dists + 1)),
        summary=lambda records: summarize(records, train.phase_steps, num_dists),
        figures=banyan_figures.make_figures(config, net, made),
        actions={"watch": banyan_figures.make_watch(config, net, made)},
    )


def make_evaluate(config: ConfigDict, net: ActorCritic, tables: EnvParams, dists: Any) -> Any:
    """(state, split) -> {full key: [num_seeds]}.

    Split "valid": `valid/d<i>/success`, few episodes, every distribution.
    Split "test": the same with `eval.episodes` per depth, under the names of the phase boundary.
    """
    groups = settings.groups(config)
    depths = groups["env"].all_depths
    train = groups["train"]
    evaluation = groups["eval"]

    @jax.jit(static_argnames="episodes")
    def run(
        params: Any, tables: EnvParams, index: jax.Array, episodes: int
    ) -> dict[str, jax.Array]:
        key = jax.random.fold_in(jax.random.key(EVAL_SEED), index)
        one = lambda p: ppo.evaluate(key, net, p, tables, len(depths), episodes, evaluation.greedy)
        return jax.vmap(one)(params)

    def evaluate(state: Mapping[str, Any], split: str) -> dict[str, jax.Array]:
        step = int(state["step"])
        episodes = evaluation.curve_episodes if split == "valid" else evaluation.episodes
        out: dict[str, jax.Array] = {}
        for i, dist in enumerate(dists):
            found = run(state["params"], tables._replace(dist=dist), jnp.int32(i), episodes)
            if split == "valid":
                out[f"valid/d{i + 1}/success"] = found["success"].mean(-1)
                out[f"valid/d{i + 1}/dead_end"] = found["dead_end"].mean(-1)
                continue
            for name in split_names(step, i, train.phase_steps):
                out[f"{name}/success"] = found["success"].mean(-1)
                if name.startswith("after"):
                    continue  # an entry of S[t, i]; the rest stands under start and end
                out[f"{name}/dead_end"] = found["dead_end"].mean(-1)
                for column, depth in enumerate(depths):
                    out[f"{name}/success/depth{depth}"] = found["success"][:, column]
        return out

    return evaluate


def split_names(step: int, index: int, phase_steps: int) -> list[str]:
    """Names of S values of distribution `index` at an update: at the end of phase t (1-based) all
    distributions are `after<t>/d<i>`; d_t also `d<t>/end` and d_{t+1} `d<t+1>/start`."""
    done, rest = divmod(step, phase_steps)
    if rest:
        return [f"at{step}/d{index + 1}"]
    if not done:
        return [f"untrained/d{index + 1}"]
    names = [f"after{done}/d{index + 1}"]
    if index == done - 1:
        names.append(f"d{index + 1}/end")
    if index == done:
        names.append(f"d{index + 1}/start")
    return names


def summarize(records: Any, phase_steps: int, num_dists: int) -> dict[str, np.ndarray]:
    """gap/<i>, jump_start/<i>, backward/<t>/<i> and forgetting/<i> of the phases that are done."""
    matrix, untrained = measures.success_matrix(records, phase_steps, num_dists)
    gaps = measures.transfer_gap(matrix)
    jumps = measures.jump_start(matrix, untrained)
    backward = measures.backward_transfer(matrix)
    lost = measures.forgetting(matrix)
    out: dict[str, np.ndarray] = {}
    for i in range(1, num_dists):
        out[f"gap/{i + 1}"] = gaps[:, i - 1]
        out[f"jump_start/{i + 1}"] = jumps[:, i - 1]
        out[f"forgetting/{i}"] = lost[:, i - 1]
        for t in range(i, num_dists):
            out[f"backward/{t + 1}/{i}"] = backward[:, t, i - 1]
    return {k: v for k, v in out.items() if np.isfinite(v).all()}
