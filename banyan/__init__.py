# SPDX-License-Identifier: Apache-2.0
"""A continual-RL environment with three diversity dials, and the agents that learn in it.

    from banyan import TaskConfig, make_tasks, random_policy, rollout

    params = make_tasks(0, TaskConfig(...)).params
    states, _, records = rollout(key, random_policy, (), params, num_envs, num_steps)

Names here are imported on first use, so that `import banyan` loads no JAX. Modules: types
(pytrees), rules, trees, layouts, tasks (generation on the host), env (the environment as pure
functions), reference (a slow NumPy interpreter), oracle (planner), render, play, metrics, data
(real layouts), agents (networks, PPO).
"""

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

__all__ = [
    "RULE_VERSION",
    "Dist",
    "EnvParams",
    "Info",
    "Layouts",
    "Obs",
    "Rules",
    "State",
    "TaskConfig",
    "Tasks",
    "TimeStep",
    "Transition",
    "Trees",
    "make_tasks",
    "observe",
    "plan",
    "random_policy",
    "render_frame",
    "render_text",
    "reset",
    "rollout",
    "step",
    "step_env",
    "step_timestep",
]

# Public name -> module:name. A submodule's name may not be one: whichever is imported last would
# hide the other.
_PUBLIC = MappingProxyType(
    {
        "Dist": "banyan.types:Dist",
        "EnvParams": "banyan.types:EnvParams",
        "Info": "banyan.types:Info",
        "Layouts": "banyan.types:Layouts",
        "Obs": "banyan.types:Obs",
        "RULE_VERSION": "banyan.types:RULE_VERSION",
        "Rules": "banyan.types:Rules",
        "State": "banyan.types:State",
        "TaskConfig": "banyan.task_config:TaskConfig",
        "Tasks": "banyan.tasks:Tasks",
        "TimeStep": "banyan.env:TimeStep",
        "Transition": "banyan.env:Transition",
        "Trees": "banyan.types:Trees",
        "make_tasks": "banyan.tasks:make_tasks",
        "observe": "banyan.env:observe",
        "plan": "banyan.oracle:plan",
        "random_policy": "banyan.env:random_policy",
        "render_frame": "banyan.render:render_frame",
        "render_text": "banyan.render:render_text",
        "reset": "banyan.env:reset",
        "rollout": "banyan.env:rollout",
        "step": "banyan.env:step",
        "step_env": "banyan.env:step_env",
        "step_timestep": "banyan.env:step_timestep",
    }
)

if TYPE_CHECKING:  # the same names for type checkers, which do not run `__getattr__`
    from banyan.env import (
        TimeStep,
        Transition,
        observe,
        random_policy,
        reset,
        rollout,
        step,
        step_env,
        step_timestep,
    )
    from banyan.oracle import plan
    from banyan.render import render_frame, render_text
    from banyan.task_config import TaskConfig
    from banyan.tasks import Tasks, make_tasks
    from banyan.types import RULE_VERSION, Dist, EnvParams, Info, Layouts, Obs, Rules, State, Trees
else:

    def __getattr__(name: str) -> Any:
        """Imports a public name on first use (PEP 562)."""
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _PUBLIC[name].partition(":")
        value = getattr(importlib.import_module(module), attribute)
        globals()[name] = value  # the next use finds it without a call
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
