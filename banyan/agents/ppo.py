# SPDX-License-Identifier: Apache-2.0
"""Recurrent PPO as pure functions: one `update` is one rollout and its optimization.

Rollout of T steps in N environments, then with G = (1 - ended):

    delta_t = r_t + gamma v'_t - v_t          A_t = delta_t + gamma lambda G_t A_{t+1}
    v'_t = 0 if terminated, V(final_obs_t) if truncated, else v_{t+1}
    L = -min(rho A, clip(rho, 1 +- eps) A) + c_v (V - R)^2 / 2 - c_e H(pi)

Minibatches are whole sequences of N / minibatches environments. Membership is drawn within
groups of `minibatches` neighboring environments, so that on a sharded environment axis no row
ever leaves its device. Learning rate constant and no return normalization: annealing inside a
phase would confound a study of shifts. Reference: Schulman et al. 2017 (PPO), 2016 (GAE).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from banyan import env
from banyan.agents import networks
from banyan.agents.networks import NO_ACTION, ActorCritic
from banyan.agents.config import PPOConfig
from banyan.types import EnvParams, Obs, State


class Worker(NamedTuple):
    """What the rollout carries for each of N environments."""

    env: State
    obs: Obs
    prev_action: jax.Array  # int32 [N], NO_ACTION at the start of an episode
    prev_reward: jax.Array  # float32 [N]
    start: jax.Array  # bool [N]: obs is the first one of its episode
    memory: jax.Array  # float32 [N, H]


class Agent(NamedTuple):
    """A learner: parameters, optimizer and its environments."""

    params: Any
    opt_state: Any
    worker: Worker


class Sample(NamedTuple):
    """Rollout, leaves [T, N, ...]."""

    obs: Obs
    prev_action: jax.Array
    prev_reward: jax.Array
    start: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array


class Outcome(NamedTuple):
    """What each step led to, leaves [T, N, ...]."""

    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    success: jax.Array
    dead_end: jax.Array
    final_obs: Obs
    memory: jax.Array


def optimizer(config: PPOConfig) -> optax.GradientTransformation:
    """Clipped Adam at a constant rate."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.adam(config.lr, eps=config.adam_eps)
    )


def reset_worker(key: PRNGKeyArray, net: ActorCritic, tables: EnvParams, num_envs: int) -> Worker:
    """Fresh episodes and empty memories."""
    obs, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key, num_envs), tables)
    return Worker(
        env=state,
        obs=obs,
        prev_action=jnp.full(num_envs, NO_ACTION, jnp.int32),
        prev_reward=jnp.zeros(num_envs),
        start=jnp.ones(num_envs, bool),
        memory=networks.init_memory(net.config, num_envs),
    )


def apply(net: ActorCritic, params: Any, worker: Worker) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits [N, A], values [N] and next memory [N, H] for the observations at hand."""
    sequence = jax.tree.map(
        lambda x: x[None], (worker.obs, worker.prev_action, worker.prev_reward, worker.start)
    )
    logits, value, memory = net.apply(params, *sequence, worker.memory)
    return logits[0], value[0], memory


def init(key: PRNGKeyArray, net: ActorCritic, config: PPOConfig, tables: EnvParams) -> Agent:
    """A new learner in fresh environments."""
    net_key, env_key = jax.random.split(key)
    worker = reset_worker(env_key, net, tables, config.num_envs)
    sequence = jax.tree.map(
        lambda x: x[None, :1],
        (worker.obs, worker.prev_action, worker.prev_reward, worker.start),
    )
    params = net.init(net_key, *sequence, worker.memory[:1])
    return Agent(params, optimizer(config).init(params), worker)


def advance(
    action: jax.Array,
    memory: jax.Array,
    new: tuple[Obs, State],
    reward: jax.Array,
    ended: jax.Array,
) -> Worker:
    """Worker after a step; episode memory is cleared by `start` on the next observation."""
    obs, state = new
    return Worker(
        env=state,
        obs=obs,
        prev_action=jnp.where(ended, NO_ACTION, action).astype(jnp.int32),
        prev_reward=jnp.where(ended, 0.0, reward),
        start=ended,
        memory=memory,
    )


def rollout(
    key: PRNGKeyArray, net: ActorCritic, params: Any, worker: Worker, tables: EnvParams, steps: int
) -> tuple[Worker, Sample, Outcome]:
    """Acts for `steps` steps with auto-reset; actions are drawn from the policy."""

    def body(worker: Worker, key: PRNGKeyArray) -> tuple[Worker, tuple[Sample, Outcome]]:
        act_key, env_key = jax.random.split(key)
        logits, value, memory = apply(net, params, worker)
        action = jax.random.categorical(act_key, logits)
        log_prob = _log_prob(logits, action)
        keys = jax.random.split(env_key, action.shape[0])
        obs, state, reward, terminated, truncated, info = jax.vmap(
            env.step, in_axes=(0, 0, 0, None)
        )(keys, worker.env, action, tables)
        sample = Sample(
            worker.obs, worker.prev_action, worker.prev_reward, worker.start, action, log_prob, value
        )
        outcome = Outcome(
            reward, terminated, truncated, info.success, info.dead_end, info.final_obs, memory
        )
        ended = terminated | truncated
        return advance(action, memory, (obs, state), reward, ended), (sample, outcome)

    worker, (sample, outcome) = jax.lax.scan(body, worker, jax.random.split(key, steps))
    return worker, sample, outcome


def _log_prob(logits: jax.Array, action: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]


def final_values(
    net: ActorCritic, params: Any, sample: Sample, outcome: Outcome, max_steps: int
) -> Float[Array, "T N"]:
    """V(final_obs) where an episode was truncated, 0 elsewhere.

    An environment is truncated at most ceil(T / max_steps) times in T steps, so only that many
    observations per environment are evaluated instead of T.
    """
    steps = sample.action.shape[0]
    count = math.ceil(steps / max_steps)
    order = jnp.argsort(~outcome.truncated, axis=0, stable=True)[:count]  # [K, N]

    def pick(leaf: jax.Array) -> jax.Array:
        index = order.reshape(order.shape + (1,) * (leaf.ndim - 2))
        return jnp.take_along_axis(leaf, index, axis=0)

    obs = jax.tree.map(pick, outcome.final_obs)
    flat = lambda leaf: leaf.reshape((1, -1, *leaf.shape[2:]))
    _, value, _ = net.apply(
        params,
        jax.tree.map(flat, obs),
        flat(pick(sample.action)).astype(jnp.int32),
        flat(pick(outcome.reward)),
        jnp.zeros((1, order.size), bool),
        pick(outcome.memory).reshape(order.size, outcome.memory.shape[-1]),
    )
    value = value.reshape(order.shape)
    chosen = jnp.arange(steps)[:, None, None] == order[None]  # [T, K, N]
    return jnp.sum(jnp.where(chosen & outcome.truncated[:, None], value[None], 0.0), axis=1)


def gae(
    reward: Float[Array, "T N"],
    value: Float[Array, "T N"],
    last_value: Float[Array, " N"],
    final_value: Float[Array, "T N"],
    terminated: Bool[Array, "T N"],
    truncated: Bool[Array, "T N"],
    gamma: float,
    lam: float,
) -> Float[Array, "T N"]:
    """Generalized advantage estimates with truncated episodes bootstrapped from their last view."""
    following = jnp.concatenate([value[1:], last_value[None]])
    following = jnp.where(truncated, final_value, following)
    following = jnp.where(terminated, 0.0, following)
    delta = reward + gamma * following - value
    keep = gamma * lam * (1.0 - (terminated | truncated))

    def body(later: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d, k = step
        now = d + k * later
        return now, now

    _, advantages = jax.lax.scan(body, jnp.zeros_like(last_value), (delta, keep), reverse=True)
    return advantages


def loss(
    params: Any,
    net: ActorCritic,
    config: PPOConfig,
    sample: Sample,
    memory: Float[Array, "B H"],
    advantages: Float[Array, "T B"],
    returns: Float[Array, "T B"],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped surrogate, value and entropy terms over a minibatch of sequences."""
    logits, value, _ = net.apply(
        params, sample.obs, sample.prev_action, sample.prev_reward, sample.start, memory
    )
    log_probs = jax.nn.log_softmax(logits)
    ratio = jnp.exp(_log_prob(logits, sample.action) - sample.log_prob)
    adv = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    policy_loss = -jnp.minimum(ratio * adv, clipped * adv).mean()
    value_loss = 0.5 * jnp.square(value - returns).mean()
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    total = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    metrics = {
        "loss": total,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": ((ratio - 1.0) - jnp.log(ratio)).mean(),
        "clip_fraction": (jnp.abs(ratio - 1.0) > config.clip).mean(),
    }
    return total, metrics


def split_minibatches(key: PRNGKeyArray, tree: Any, count: int, axis: int) -> Any:
    """Leaves [.., N, ..] -> [count, .., N / count, ..]; each group of `count` neighbors along
    `axis` gives one member to every minibatch, in random order."""
    size = jax.tree.leaves(tree)[0].shape[axis]
    order = jnp.argsort(jax.random.uniform(key, (size // count, count)), axis=-1)

    def one(leaf: jax.Array) -> jax.Array:
        shape = leaf.shape
        grouped = leaf.reshape((*shape[:axis], size // count, count, *shape[axis + 1 :]))
        index = order.reshape((1,) * axis + order.shape + (1,) * (leaf.ndim - axis - 1))
        mixed = jnp.take_along_axis(grouped, index, axis=axis + 1)
        return jnp.moveaxis(mixed, axis + 1, 0)

    return jax.tree.map(one, tree)


def optimize(
    key: PRNGKeyArray,
    net: ActorCritic,
    config: PPOConfig,
    params: Any,
    opt_state: Any,
    data: tuple[Sample, jax.Array, jax.Array],
    memory: Float[Array, "N H"],
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """`epochs` passes over (sample, advantages, returns); metrics are means over minibatches."""
    transform = optimizer(config)

    def minibatch(carry: tuple, batch: tuple) -> tuple[tuple, dict[str, jax.Array]]:
        params, opt_state = carry
        (sample, advantages, returns), memory = batch
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
            params, net, config, sample, memory, advantages, returns
        )
        updates, opt_state = transform.update(grads, opt_state, params)
        metrics["grad_norm"] = optax.tree.norm(grads)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def epoch(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, dict[str, jax.Array]]:
        batches = (
            split_minibatches(key, data, config.minibatches, axis=1),
            split_minibatches(key, memory, config.minibatches, axis=0),
        )
        return jax.lax.scan(minibatch, carry, batches)

    keys = jax.random.split(key, config.epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (params, opt_state), keys)
    return params, opt_state, jax.tree.map(jnp.mean, metrics)


def begin_phase(
    key: PRNGKeyArray, net: ActorCritic, config: PPOConfig, agent: Agent, tables: EnvParams
) -> Agent:
    """Leaves the old tasks: fresh environments, and a fresh optimizer if the config says so."""
    worker = reset_worker(key, net, tables, config.num_envs)
    opt_state = agent.opt_state
    if config.reset_optimizer:
        opt_state = optimizer(config).init(agent.params)
    return Agent(agent.params, opt_state, worker)


def update(
    key: PRNGKeyArray,
    net: ActorCritic,
    config: PPOConfig,
    agent: Agent,
    tables: EnvParams,
    new_phase: Bool[Array, ""],
    max_steps: int,
) -> tuple[Agent, dict[str, jax.Array]]:
    """One PPO update on `tables.dist`.

    Args:
        new_phase: the distribution has just changed; see `begin_phase`.
        max_steps: horizon, static; bounds the number of truncations in a rollout.

    Returns:
        agent, metrics: losses, entropy, KL, gradient norm; `success` and `dead_end` are shares of
        the episodes that ended in this rollout (a window rate; S values come from evaluation).
    """
    phase_key, roll_key, opt_key = jax.random.split(key, 3)
    fresh = begin_phase(phase_key, net, config, agent, tables)
    agent = jax.tree.map(lambda a, b: jnp.where(new_phase, a, b), fresh, agent)
    first_memory = agent.worker.memory
    worker, sample, outcome = rollout(
        roll_key, net, agent.params, agent.worker, tables, config.num_steps
    )
    _, last_value, _ = apply(net, agent.params, worker)
    final_value = final_values(net, agent.params, sample, outcome, max_steps)
    advantages = gae(
        outcome.reward,
        sample.value,
        last_value,
        final_value,
        outcome.terminated,
        outcome.truncated,
        config.gamma,
        config.gae_lambda,
    )
    data = (sample, advantages, advantages + sample.value)
    params, opt_state, metrics = optimize(
        opt_key, net, config, agent.params, agent.opt_state, data, first_memory
    )
    ended = (outcome.terminated | outcome.truncated).sum()
    episodes = jnp.maximum(ended, 1)
    metrics |= {
        "episodes": ended.astype(jnp.float32),
        "success": outcome.success.sum() / episodes,
        "dead_end": outcome.dead_end.sum() / episodes,
        "reward": outcome.reward.mean(),
        "value": sample.value.mean(),
    }
    return Agent(params, opt_state, worker), metrics


def evaluate(
    key: PRNGKeyArray,
    net: ActorCritic,
    params: Any,
    tables: EnvParams,
    num_depths: int,
    episodes: int,
    greedy: bool,
) -> dict[str, Float[Array, " D"]]:
    """Exactly one episode per environment, `episodes` environments per depth.

    Args:
        num_depths: depths depth_min..depth_min + num_depths - 1 of `tables.dist`, static.

    Returns:
        success, dead_end (shares of episodes started) and length (mean steps), each [D].
    """
    dist = tables.dist
    depths = jnp.repeat(dist.depth_min + jnp.arange(num_depths), episodes)
    reset_key, run_key = jax.random.split(key)

    def first(key: PRNGKeyArray, depth: jax.Array) -> tuple[Obs, State]:
        one = dist._replace(depth_min=depth, depth_max=depth)
        return env.reset(key, tables._replace(dist=one))

    count = num_depths * episodes
    obs, state = jax.vmap(first)(jax.random.split(reset_key, count), depths)
    worker = Worker(
        state,
        obs,
        jnp.full(count, NO_ACTION, jnp.int32),
        jnp.zeros(count),
        jnp.ones(count, bool),
        networks.init_memory(net.config, count),
    )
    nothing = jnp.zeros(count, bool)

    def body(carry: tuple) -> tuple:
        t, worker, success, dead_end = carry
        step_key = jax.random.fold_in(run_key, t)
        logits, _, memory = apply(net, params, worker)
        action = jnp.argmax(logits, -1) if greedy else jax.random.categorical(step_key, logits)
        keys = jax.random.split(step_key, count)
        obs, state, reward, _, _, info = jax.vmap(env.step_env, in_axes=(0, 0, 0, None))(
            keys, worker.env, action, tables
        )
        live = jnp.zeros(count, bool)  # memory never needs clearing: one episode only
        worker = advance(action, memory, (obs, state), reward, live)
        return t + 1, worker, success | info.success, dead_end | info.dead_end

    def going(carry: tuple) -> jax.Array:
        t, worker, _, _ = carry
        return (t < tables.max_steps) & ~worker.env.done.all()

    _, worker, success, dead_end = jax.lax.while_loop(
        going, body, (jnp.int32(0), worker, nothing, nothing)
    )
    per_depth = lambda x: x.astype(jnp.float32).reshape(num_depths, episodes).mean(-1)
    return {
        "success": per_depth(success),
        "dead_end": per_depth(dead_end),
        "length": per_depth(worker.env.t),
    }


def play(
    key: PRNGKeyArray, net: ActorCritic, params: Any, tables: EnvParams, steps: int
) -> tuple[State, jax.Array, jax.Array]:
    """One episode of a task of `tables.dist` with drawn actions, for pictures.

    Returns:
        states [steps + 1, ...], actions [steps], rewards [steps]; after the end nothing changes.
    """
    reset_key, run_key = jax.random.split(key)
    first = reset_worker(reset_key, net, tables, 1)

    def body(worker: Worker, key: PRNGKeyArray) -> tuple[Worker, tuple]:
        logits, _, memory = apply(net, params, worker)
        action = jax.random.categorical(key, logits)
        obs, state, reward, *_ = jax.vmap(env.step_env, in_axes=(0, 0, 0, None))(
            key[None], worker.env, action, tables
        )
        live = jnp.zeros(1, bool)
        worker = advance(action, memory, (obs, state), reward, live)
        return worker, (state, action, reward)

    _, (states, actions, rewards) = jax.lax.scan(body, first, jax.random.split(run_key, steps))
    states = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b])[:, 0], first.env, states)
    return states, actions[:, 0], rewards[:, 0]
