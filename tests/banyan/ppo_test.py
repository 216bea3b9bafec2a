# SPDX-License-Identifier: Apache-2.0
"""PPO against NumPy written differently, memory and reset invariants, evaluation by brute force."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from banyan import env, tasks
from banyan.agents import networks, ppo
from banyan.agents.config import ModelConfig, PPOConfig
from banyan.agents.networks import NO_ACTION, ActorCritic
from banyan.task_config import TaskConfig
from banyan.types import Obs
from tests import jitter
from tests.tiers import deep

MODEL: dict[str, Any] = {
    "encoder": "mlp",
    "item_embed": "factored",
    "embed": 3,
    "channels": 4,
    "hidden": 8,
    "layers": 1,
    "memory": "gru",
    "memory_size": 6,
    "head": 8,
}
PPO: dict[str, Any] = {
    "num_envs": 8,
    "num_steps": 7,
    "epochs": 1,
    "minibatches": 2,
    "lr": 1e-3,
    "gamma": 0.9,
    "gae_lambda": 0.8,
    "clip": 0.2,
    "entropy_coef": 0.01,
    "value_coef": 0.5,
    "max_grad_norm": 0.5,
    "adam_eps": 1e-5,
    "reset_optimizer": False,
}

begin = jax.jit(ppo.init, static_argnums=(1, 2))


@pytest.fixture(scope="module")
def tables() -> Any:
    config = TaskConfig(
        depths=(1, 2),
        small_shape=(3, 4),
        num_walls=1,
        layouts=(4,),
        objects=(2,),
        topology_kind="balanced",
        max_steps=5,
        verify_pairs=0,
    )
    return jax.tree.map(jnp.asarray, tasks.make_tasks(0, config).params)


ROLLOUT = jax.jit(ppo.rollout, static_argnums=(1, 5))


def network(**changes: Any) -> ActorCritic:
    return ActorCritic(ModelConfig(**{**MODEL, **changes}), rows=3, cols=4)


def random_inputs(seed: int, steps: int, batch: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    obs = Obs(
        grid=jnp.asarray(rng.integers(0, 2, (steps, batch, 8, 8, 3)), jnp.uint8),
        goal=jnp.asarray(rng.integers(2, 9, (steps, batch, 2)), jnp.uint8),
        held=jnp.asarray(rng.integers(0, 9, (steps, batch, 2)), jnp.uint8),
    )
    action = jnp.asarray(rng.integers(0, 9, (steps, batch)), jnp.int32)
    reward = jnp.asarray(rng.normal(size=(steps, batch)), jnp.float32)
    return obs, action, reward


def numpy_gae(
    reward: Any, value: Any, last: Any, final: Any, term: Any, trunc: Any, g: float, lam: float
) -> np.ndarray:
    """Advantages as explicit sums of discounted TD errors up to the end of each episode."""
    steps, envs = reward.shape
    out = np.zeros((steps, envs))
    for n in range(envs):
        for t in range(steps):
            weight = 1.0
            for u in range(t, steps):
                ahead = value[u + 1, n] if u + 1 < steps else last[n]
                ahead = final[u, n] if trunc[u, n] else ahead
                ahead = 0.0 if term[u, n] else ahead
                out[t, n] += weight * (reward[u, n] + g * ahead - value[u, n])
                if term[u, n] or trunc[u, n]:
                    break
                weight *= g * lam
    return out


def test_gae_equals_explicit_sums() -> None:
    rng = np.random.default_rng(0)
    reward, value, final = rng.normal(size=(3, 9, 5)).astype(np.float32)
    last = rng.normal(size=5).astype(np.float32)
    term = rng.random((9, 5)) < 0.2
    trunc = (rng.random((9, 5)) < 0.2) & ~term
    assert term.any() and trunc.any()
    got = ppo.gae(*map(jnp.asarray, (reward, value, last, final, term, trunc)), 0.9, 0.8)
    want = numpy_gae(reward, value, last, final, term, trunc, 0.9, 0.8)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_loss_equals_numpy() -> None:
    net, config = network(), PPOConfig(**PPO)
    obs, prev_action, prev_reward = random_inputs(1, 4, 6)
    rng = np.random.default_rng(2)
    start = jnp.asarray(rng.random((4, 6)) < 0.3)
    memory = jnp.asarray(rng.normal(size=(6, 6)), jnp.float32)
    params = jax.jit(net.init)(jax.random.key(0), obs, prev_action, prev_reward, start, memory)
    action = jnp.asarray(rng.integers(0, 8, (4, 6)), jnp.int32)
    old = jnp.asarray(rng.normal(-2.0, 0.3, (4, 6)), jnp.float32)
    adv, ret = jnp.asarray(rng.normal(size=(2, 4, 6)), jnp.float32)
    sample = ppo.Sample(obs, prev_action, prev_reward, start, action, old, ret)
    total, metrics = ppo.loss(params, net, config, sample, memory, adv, ret)

    logits, value, _ = jax.jit(net.apply)(params, obs, prev_action, prev_reward, start, memory)
    logits, value = np.asarray(logits, np.float64), np.asarray(value, np.float64)
    prob = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.array([[prob[t, n, action[t, n]] for n in range(6)] for t in range(4)])
    ratio = chosen / np.exp(np.asarray(old, np.float64))
    a = np.asarray(adv, np.float64)
    a = (a - a.mean()) / a.std()
    surrogate = np.where(
        a > 0, np.minimum(ratio, 1.2) * a, np.maximum(ratio, 0.8) * a
    )  # the clipped objective by cases
    entropy = -(prob * np.log(prob)).sum(-1).mean()
    value_loss = 0.5 * ((value - np.asarray(ret)) ** 2).mean()
    want = -surrogate.mean() + 0.5 * value_loss - 0.01 * entropy
    assert float(metrics["clip_fraction"]) > 0.1  # the clip really acts here
    np.testing.assert_allclose(total, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-4)


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("encoder", ["mlp", "cnn"])
def test_sequence_equals_step_by_step(memory: str, encoder: str) -> None:
    """One call over T steps = T calls, and `start` clears memory before the observation."""
    net = network(memory=memory, encoder=encoder)
    obs, action, reward = random_inputs(3, 6, 4)
    start = jnp.asarray(np.random.default_rng(0).random((6, 4)) < 0.4)
    carry = networks.init_memory(net.config, 4) + 0.7
    params = jax.jit(net.init)(jax.random.key(0), obs, action, reward, start, carry)
    apply = jax.jit(net.apply)
    logits, value, last = apply(params, obs, action, reward, start, carry)
    for t in range(6):
        one = jax.tree.map(lambda x, t=t: x[t : t + 1], (obs, action, reward, start))
        cleared = jnp.where(start[t][:, None], 0.0, carry)
        step_logits, step_value, carry = apply(params, *one[:3], one[3] & False, cleared)
        np.testing.assert_allclose(step_logits[0], logits[t], atol=1e-5)
        np.testing.assert_allclose(step_value[0], value[t], atol=1e-5)
    if memory != "none":  # without memory the carry is a placeholder that nobody clears
        np.testing.assert_allclose(carry, last, atol=1e-5)


def test_memory_is_used_and_forgotten_at_starts() -> None:
    """The past matters until an episode starts, and not after."""
    net = network()
    obs, action, reward = random_inputs(4, 5, 3)
    carry = networks.init_memory(net.config, 3)
    never, at_three = jnp.zeros((5, 3), bool), jnp.zeros((5, 3), bool).at[3].set(True)
    params = jax.jit(net.init)(jax.random.key(0), obs, action, reward, never, carry)
    apply, other = jax.jit(net.apply), reward.at[0].add(5.0)
    for start, differs in ((never, True), (at_three, False)):
        a = apply(params, obs, action, reward, start, carry)[0][3:]
        b = apply(params, obs, action, other, start, carry)[0][3:]
        assert bool(jnp.abs(a - b).max() > 1e-6) == differs


def test_minibatches_are_a_partition_within_groups() -> None:
    rows = jnp.arange(24)
    data = {"x": jnp.tile(rows, (5, 1)), "y": jnp.tile(rows[:, None], (5, 1, 2))}
    seen = set()
    for seed in range(3):
        out = ppo.split_minibatches(jax.random.key(seed), data, 4, axis=1)
        assert out["x"].shape == (4, 5, 6) and out["y"].shape == (4, 5, 6, 2)
        np.testing.assert_array_equal(out["x"], out["y"][..., 0])
        assert sorted(np.asarray(out["x"][:, 0]).ravel().tolist()) == list(range(24))
        for batch in np.asarray(out["x"][:, 0]):
            assert sorted((batch // 4).tolist()) == list(range(6))  # one of each group
        seen.add(np.asarray(out["x"]).tobytes())
    assert len(seen) == 3


@pytest.mark.parametrize("steps", [7, deep(4)])
def test_final_values_are_those_of_the_last_views(tables: Any, steps: int) -> None:
    """The few observations evaluated give what evaluating every final_obs gives."""
    net = network()
    agent = begin(jax.random.key(0), net, PPOConfig(**PPO), tables)
    worker = agent.worker
    _, sample, outcome = ROLLOUT(jax.random.key(1), net, agent.params, worker, tables, steps)
    got = ppo.final_values(net, agent.params, sample, outcome, max_steps=5)
    _, every, _ = jax.jit(net.apply)(
        agent.params,
        jax.tree.map(lambda x: x.reshape((1, -1, *x.shape[2:])), outcome.final_obs),
        sample.action.reshape(1, -1),
        outcome.reward.reshape(1, -1),
        jnp.zeros((1, sample.action.size), bool),
        outcome.memory.reshape(-1, 6),
    )
    want = np.where(outcome.truncated, every.reshape(outcome.reward.shape), 0.0)
    assert np.asarray(outcome.truncated).any() == (steps >= 5)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_worker_carries_last_step(tables: Any) -> None:
    """Previous action and reward are those of the step before, and none at a start."""
    net = network()
    agent = begin(jax.random.key(0), net, PPOConfig(**PPO), tables)
    _, sample, outcome = ROLLOUT(jax.random.key(1), net, agent.params, agent.worker, tables, 12)
    ended = np.asarray(outcome.terminated | outcome.truncated)
    assert ended.any()
    np.testing.assert_array_equal(sample.start[1:], ended[:-1])
    want = np.where(ended[:-1], NO_ACTION, sample.action[:-1])
    np.testing.assert_array_equal(sample.prev_action[1:], want)
    np.testing.assert_array_equal(
        sample.prev_reward[1:], np.where(ended[:-1], 0.0, outcome.reward[:-1])
    )
    assert bool(sample.start[0].all())


@pytest.mark.deep
def test_evaluation_is_one_episode_per_env(tables: Any) -> None:
    """Success rates equal those of stepping each environment alone until it ends."""
    net = network(memory="none")
    agent = begin(jax.random.key(3), net, PPOConfig(**PPO), tables)
    tables = tables._replace(max_steps=jnp.int32(40))
    episodes, key = 16, jax.random.key(5)
    got = jax.jit(lambda p, t: ppo.evaluate(key, net, p, t, 2, episodes, True))(
        agent.params, tables
    )
    reset_key, _ = jax.random.split(key)
    keys = jax.random.split(reset_key, 2 * episodes)
    step = jax.jit(env.step_env)
    act = jax.jit(lambda w: jnp.argmax(ppo.apply(net, agent.params, w)[0], -1))
    success = np.zeros((2, episodes))
    for i in range(2 * episodes):
        depth = jnp.int32(1 + i // episodes)
        one = tables._replace(dist=tables.dist._replace(depth_min=depth, depth_max=depth))
        obs, state = env.reset(keys[i], one)
        assert int(one.trees.depth[state.tree]) == int(depth)
        worker = ppo.Worker(
            state, obs, jnp.int32(NO_ACTION), jnp.float32(0), jnp.bool_(True), jnp.zeros(1)
        )
        for _ in range(40):
            action = act(jax.tree.map(lambda x: x[None], worker))[0]
            obs, state, reward, term, trunc, info = step(keys[i], worker.env, action, one)
            worker = ppo.Worker(
                state, obs, action.astype(jnp.int32), reward, jnp.bool_(False), jnp.zeros(1)
            )
            success[i // episodes, i % episodes] += bool(info.success)
            if term or trunc:
                break
    np.testing.assert_allclose(got["success"], success.mean(1), atol=1e-6)


@pytest.mark.deep
@pytest.mark.trains
def test_nothing_recompiles_when_tasks_change(tables: Any) -> None:
    """Distribution, horizon and rewards are data: swapping them never traces again."""
    net, config = network(), PPOConfig(**PPO)
    traces = []

    @jax.jit
    def update(key: Any, agent: Any, tables: Any, new_phase: Any) -> Any:
        traces.append(1)
        return ppo.update(key, net, config, agent, tables, new_phase, 5)

    agent = begin(jax.random.key(0), net, config, tables)
    changed = [
        tables,
        tables._replace(dist=tables.dist._replace(num_layouts=jnp.int32(2))),
        tables._replace(max_steps=jnp.int32(9), reward_success=jnp.float32(2.0)),
        tables._replace(per_task=jnp.bool_(True)),
    ]
    for seed, now in enumerate(changed):
        agent, metrics = update(jax.random.key(seed), agent, now, jnp.bool_(seed == 1))
    assert len(traces) == 1
    assert all(np.isfinite(v) for v in metrics.values())


@pytest.mark.deep
@pytest.mark.trains
def test_conditions_train_side_by_side(tables: Any) -> None:
    """Several distributions and horizons under one vmap equal the same updates one by one."""
    net, config = network(), PPOConfig(**PPO)
    agent = begin(jax.random.key(0), net, config, tables)
    few = tables._replace(
        dist=tables.dist._replace(num_layouts=jnp.int32(1)), max_steps=jnp.int32(3)
    )
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), tables, few)
    shared = jax.tree.map(lambda _: None, tables)._replace(
        dist=jax.tree.map(lambda _: 0, tables.dist), max_steps=0
    )
    given = both._replace(
        **{k: getattr(tables, k) for k in tables._fields if k not in ("dist", "max_steps")}
    )
    key = jax.random.key(1)
    step = lambda now: ppo.update(key, net, config, agent, now, jnp.bool_(False), 3)
    together, metrics = jax.jit(jax.vmap(step, in_axes=(shared,)))(given)
    alone_step = jax.jit(step)
    for row, now in enumerate((tables, few)):
        alone, alone_metrics = alone_step(now)
        mine = jax.tree.map(lambda leaf, row=row: leaf[row], together.params)
        jitter.close("parameters", mine, alone.params, atol=1e-5)  # lr is 1e-3
        jitter.close("loss", metrics["loss"][row], alone_metrics["loss"], rtol=1e-4)
    assert float(metrics["episodes"][0]) != float(metrics["episodes"][1])


@pytest.mark.deep
@pytest.mark.trains
def test_new_phase_starts_fresh_episodes(tables: Any) -> None:
    net, config = network(), PPOConfig(**{**PPO, "reset_optimizer": True})
    agent = begin(jax.random.key(0), net, config, tables)
    agent, _ = ppo.update(jax.random.key(1), net, config, agent, tables, jnp.bool_(False), 5)
    fresh = ppo.begin_phase(jax.random.key(2), net, config, agent, tables)
    assert int(fresh.worker.env.t.max()) == 0 and bool(fresh.worker.start.all())
    moments = jax.tree.leaves(fresh.opt_state)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in moments)
    kept = ppo.begin_phase(jax.random.key(2), net, PPOConfig(**PPO), agent, tables)
    assert any(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(kept.opt_state))


@pytest.mark.parametrize(
    ("group", "change", "named"),
    [
        (PPOConfig, {"minibatches": 3}, "num_envs=8"),
        (PPOConfig, {"lr": 0.0}, "lr=0.0"),
        (PPOConfig, {"gamma": 1.5}, "gamma=1.5"),
        (PPOConfig, {"epochs": 0}, "epochs=0"),
        (ModelConfig, {"encoder": "resnet"}, "encoder='resnet'"),
        (ModelConfig, {"memory": "lstm"}, "memory='lstm'"),
        (ModelConfig, {"layers": 0}, "layers=0"),
    ],
)
def test_bad_settings_are_named(group: Any, change: dict, named: str) -> None:
    base = PPO if group is PPOConfig else MODEL
    with pytest.raises(ValueError, match=named.replace("(", r"\(")):
        group(**{**base, **change})


def test_gradient_is_that_of_the_loss() -> None:
    """Against finite differences along one direction through every part of the network."""
    net, config = (
        network(),
        PPOConfig(**{**PPO, "clip": 10.0, "value_coef": 2.0, "entropy_coef": 5.0}),
    )
    obs, prev_action, prev_reward = random_inputs(5, 4, 6)
    rng = np.random.default_rng(6)
    start = jnp.asarray(rng.random((4, 6)) < 0.3)
    memory = jnp.asarray(rng.normal(size=(6, 6)), jnp.float32)
    params = jax.jit(net.init)(jax.random.key(1), obs, prev_action, prev_reward, start, memory)
    params["params"]["actor"]["kernel"] *= 50.0  # else the policy is flat, its gradient tiny
    action = jnp.asarray(rng.integers(0, 8, (4, 6)), jnp.int32)
    old = jnp.full((4, 6), -2.0)
    adv, ret = jnp.asarray(rng.normal(size=(2, 4, 6)), jnp.float32)
    sample = ppo.Sample(obs, prev_action, prev_reward, start, action, old, ret)
    f = jax.jit(lambda p: ppo.loss(p, net, config, sample, memory, adv, ret)[0])
    grads = jax.grad(f)(params)
    for name in ("actor", "critic", "actor_hidden", "critic_hidden", "gru", "encoder0", "embed"):
        inside = grads["params"][name]
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(inside)))
        assert norm > 1e-3, name
        direction = jax.tree.map(jnp.zeros_like, params)
        direction["params"][name] = jax.tree.map(lambda g, n=norm: g / n, inside)
        ahead, back = (
            f(jax.tree.map(lambda p, d, s=s: p + s * 1e-2 * d, params, direction))
            for s in (1.0, -1.0)
        )
        np.testing.assert_allclose((ahead - back) / 2e-2, norm, rtol=2e-2, atol=2e-4, err_msg=name)


@pytest.mark.trains
def test_update_learns_from_its_own_rollout(tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advantages bootstrap from the state after the rollout, returns add the values, the memory is
    that of the first step, and the optimizer starts from the parameters that acted."""
    net, config = network(), PPOConfig(**PPO)
    agent = begin(jax.random.key(0), net, config, tables)
    agent = agent._replace(worker=agent.worker._replace(memory=agent.worker.memory + 0.5))
    agent = agent._replace(worker=agent.worker._replace(start=agent.worker.start & False))
    given: list[Any] = []

    def optimize(
        key: Any, net: Any, config: Any, params: Any, opt_state: Any, data: Any, memory: Any
    ) -> Any:
        given.append((params, data, memory))
        return params, opt_state, {}

    def rollout(*args: Any) -> Any:
        worker, sample, outcome = act(*args)
        ended = outcome.terminated | outcome.truncated
        return worker, sample, outcome._replace(success=ended, dead_end=ended & False)

    act = ppo.rollout
    monkeypatch.setattr(ppo, "rollout", rollout)
    monkeypatch.setattr(ppo, "optimize", optimize)
    key = jax.random.key(7)
    after, metrics = ppo.update(key, net, config, agent, tables, jnp.bool_(False), 5)
    ((params, (sample, advantages, returns), memory),) = given
    worker, want, outcome = ROLLOUT(
        jax.random.split(key, 3)[1], net, agent.params, agent.worker, tables, 7
    )
    np.testing.assert_array_equal(sample.action, want.action)
    np.testing.assert_array_equal(memory, agent.worker.memory)
    jax.tree.map(np.testing.assert_array_equal, params, agent.params)
    last = ppo.apply(net, agent.params, worker)[1]
    final = ppo.final_values(net, agent.params, want, outcome, 5)
    term, trunc = outcome.terminated, outcome.truncated
    expected = numpy_gae(outcome.reward, want.value, last, final, term, trunc, 0.9, 0.8)
    jitter.close("advantages", advantages, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns - advantages, sample.value, atol=1e-6)
    ended = np.asarray(term | trunc)
    assert ended.sum() > 0 and float(metrics["episodes"]) == ended.sum()
    assert float(metrics["success"]) == 1.0  # of the episodes that ended, not of all steps
    assert float(metrics["dead_end"]) == 0.0
    jax.tree.map(np.testing.assert_array_equal, after.worker.env.grid, worker.env.grid)
