# SPDX-License-Identifier: Apache-2.0
"""Banyan: a continual-RL world with three diversity dials, and the agents that learn in it.

    from banyan import env
    states, _, records = env.rollout(key, env.random_policy, (), params, num_envs, num_steps)

Rooms: types (pytrees), rules, trees, layouts, tasks (generation on the host), env (the world as
pure functions), reference (a slow NumPy interpreter), oracle (planner), render, play, metrics,
data (real layouts), agents (networks, PPO).
"""
