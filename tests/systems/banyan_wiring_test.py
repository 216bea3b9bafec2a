# SPDX-License-Identifier: Apache-2.0
"""The wiring of Banyan with its mathematics replaced by recorders: which tasks, keys, phases and
names go where. Nothing heavy is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments.runner.assemble import assemble
from experiments.runner.hosts import to_host

from banyan.agents import ppo
from tests.tiny_systems import tiny

PHASE, DISTS = 3, 3
LAYOUTS = (4, 5, 6)  # tell the distributions apart


@pytest.fixture(scope="module")
def artifacts() -> dict[str, Any]:
    return assemble(config()).artifacts


def config(**changes: Any) -> Any:
    changes = {"env__layouts": LAYOUTS, "env__num_dists": DISTS, **changes}
    changes = {"train__phase_steps": PHASE, "train__steps": PHASE * DISTS, **changes}
    return tiny("banyan", num_seeds=2, **changes)


def recorder(
    key: Any, net: Any, config: Any, agent: Any, tables: Any, new_phase: Any, max_steps: int
) -> Any:
    """In place of `ppo.update`: passes the agent on and reports what it was given."""
    word = jax.random.key_data(key)[-1].astype(jnp.uint32)
    seen = {"low": word % 65536, "high": word // 65536, "new_phase": new_phase}
    seen |= {"layouts": tables.dist.num_layouts, "max_steps": jnp.int32(max_steps)}
    return agent, {k: v.astype(jnp.float32) for k, v in seen.items()}


def steps_of(experiment: Any, step: Any, state: Any) -> list[dict[str, np.ndarray]]:
    found = []
    for t in range(PHASE * DISTS):
        state, metrics = step(state, dict(experiment.batch(t)))
        assert int(state["step"]) == t + 1
        found.append({k: np.asarray(v) for k, v in metrics.items()})
    return found


def test_phases_tasks_and_keys_of_training(
    artifacts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Update t trains on distribution t // phase_steps, a phase begins with its first update and
    no key is used twice, by any step, seed or run."""
    monkeypatch.setattr(ppo, "update", recorder)
    keys = []
    experiment = assemble(config(), artifacts).experiment
    init, step = jax.jit(experiment.init), jax.jit(experiment.step)
    for seed in (0, 1):
        found = steps_of(experiment, step, init(jax.random.key(seed)))
        for t, seen in enumerate(found):
            assert np.all(seen["new_phase"] == (t in (PHASE, 2 * PHASE))), t
            assert np.all(seen["layouts"] == LAYOUTS[t // PHASE]), t
            assert np.all(seen["max_steps"] == 20)
            keys += list(zip(seen["low"], seen["high"], strict=True))
    assert len(keys) == len(set(keys)) == 2 * PHASE * DISTS * 2


def test_tasks_within_a_phase_are_the_same_objects(artifacts: dict[str, Any]) -> None:
    batch = assemble(config(), artifacts).experiment.batch
    assert batch is not None
    for t in range(PHASE * DISTS):
        for name, leaf in batch(t).items():
            assert leaf is batch(t - t % PHASE)[name]


def test_seeds_start_differently(artifacts: dict[str, Any]) -> None:
    state = jax.jit(assemble(config(), artifacts).experiment.init)(jax.random.key(0))
    for leaf in (state["params"]["params"]["encoder0"]["kernel"], state["worker"]["env"]["grid"]):
        assert leaf.shape[0] == 2 and np.any(leaf[0] != leaf[1])


def test_evaluation_knows_its_distributions(
    artifacts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every distribution under its own name, per depth, with the number of episodes and the choice
    of actions of the config; the same episodes at every step."""
    calls: list[tuple[int, bool]] = []

    def evaluated(
        key: Any, net: Any, params: Any, tables: Any, depths: int, episodes: int, greedy: bool
    ) -> Any:
        calls.append((episodes, greedy))
        rows = tables.dist.num_layouts + 0.1 * jnp.arange(depths)
        word = jax.random.key_data(key)[-1] % 65536
        return {"success": rows, "dead_end": jnp.full(depths, word.astype(jnp.float32))}

    monkeypatch.setattr(ppo, "evaluate", evaluated)
    asm = assemble(config(eval__episodes=11, eval__curve_episodes=7), artifacts)
    state = jax.jit(asm.experiment.init)(jax.random.key(0))
    valid = to_host(asm.experiment.evaluate(state, "valid"))
    assert calls == [(7, False)]
    assert set(valid) == {f"valid/d{i}/{k}" for i in (1, 2, 3) for k in ("success", "dead_end")}
    for i, layouts in enumerate(LAYOUTS, 1):
        np.testing.assert_allclose(valid[f"valid/d{i}/success"], [layouts + 0.05] * 2, rtol=1e-6)
    later = to_host(asm.experiment.evaluate({**state, "step": jnp.int32(2)}, "valid"))
    for name, value in valid.items():
        np.testing.assert_array_equal(later[name], value)
    assert len({float(valid[f"valid/d{i}/dead_end"][0]) for i in (1, 2, 3)}) == 3  # own episodes

    test = to_host(asm.experiment.evaluate({**state, "step": jnp.int32(PHASE)}, "test"))
    assert calls[-1] == (11, False)
    np.testing.assert_allclose(test["after1/d3/success"], [6.05] * 2, rtol=1e-6)
    for name, layouts in (("d1/end", 4), ("d2/start", 5)):
        np.testing.assert_allclose(test[f"{name}/success/depth1"], [layouts] * 2, rtol=1e-6)
        np.testing.assert_allclose(test[f"{name}/success/depth2"], [layouts + 0.1] * 2, rtol=1e-6)
