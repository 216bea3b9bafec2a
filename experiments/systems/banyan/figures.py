# SPDX-License-Identifier: Apache-2.0
"""Pictures of a Banyan run: success across shifts, S[t, i], success by depth, the agent at work."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from banyan import gif, metrics, render, tasks
from banyan.agents import ppo
from banyan.agents.networks import ActorCritic
from banyan.types import State
from experiments.runner import settings
from experiments.runner.contract import Picture
from experiments.runner.errors import UserError
from experiments.runner.plots import INK, TYPE, color_bar, new_axes, png, style
from experiments.runner.queries import Query, text_of

Records = Sequence[Mapping[str, Any]]
QUERY = re.compile(
    r"d(?P<dist>\d+)\s+depth(?P<depth>\d+)(?:\s+seed(?P<seed>\d+))?(?:\s+(?P<gif>[\w.-]+\.gif))?"
)


def success_curve(records: Records, num_dists: int, phase_steps: int) -> bytes:
    """Success of every distribution over updates, mean and range of seeds, shifts marked."""
    figure, ((axes,),) = new_axes(8, 3.6)
    last = 0
    for i in range(1, num_dists + 1):
        name = f"valid/d{i}/success"
        points = [(r["step"], np.atleast_1d(r[name])) for r in records if name in r]
        if not points:
            continue
        steps = np.array([step for step, _ in points])
        values = np.stack([value for _, value in points])
        last = max(last, int(steps[-1]))
        (line,) = axes.plot(steps, values.mean(-1), marker=".", label=f"evaluated on d{i}")
        if values.shape[1] > 1:
            axes.fill_between(
                steps, values.min(-1), values.max(-1), color=line.get_color(), alpha=0.2
            )
    for i in range(1, num_dists):
        if phase_steps * i <= last:
            axes.axvline(phase_steps * i, color=INK, linestyle="--", linewidth=1)
            axes.text(
                phase_steps * i, 1.04, f"shift to d{i + 1}", ha="center", fontsize=TYPE, color=INK
            )
    axes.set(xlabel="PPO updates", ylabel="success per episode started", ylim=(-0.02, 1.02))
    style(axes, grid="both")
    return png(figure)


def heat_map(matrix: np.ndarray, untrained: np.ndarray) -> bytes:
    """S[t, i], mean over seeds; the first row is the untrained agent."""
    rows = np.concatenate([untrained[:, None], matrix], axis=1).mean(0)
    figure, ((axes,),) = new_axes(2.6 + 0.9 * rows.shape[1], 1.4 + 0.6 * rows.shape[0])
    image = axes.imshow(rows, vmin=0, vmax=1, cmap="viridis")
    for t, i in np.ndindex(rows.shape):
        if np.isfinite(rows[t, i]):
            color = "white" if rows[t, i] < 0.6 else "black"
            axes.text(i, t, f"{rows[t, i]:.2f}", ha="center", va="center", color=color)
    axes.set_xticks(range(rows.shape[1]), [f"d{i + 1}" for i in range(rows.shape[1])])
    names = ["untrained"] + [f"after d{t}" for t in range(1, rows.shape[0])]
    axes.set_yticks(range(rows.shape[0]), names)
    axes.set_xlabel("evaluated on")
    axes.set_ylabel("moment")
    style(axes, grid=None)
    color_bar(figure, image, axes, "success")
    return png(figure)


def depth_bars(records: Records, num_dists: int, depths: Sequence[int]) -> bytes:
    """Success by depth at the start and the end of every phase."""
    bars: dict[str, list[float]] = {}
    for i in range(1, num_dists + 1):
        for moment in ("start", "end"):
            names = [f"d{i}/{moment}/success/depth{k}" for k in depths]
            found = [r for r in records if all(n in r for n in names)]
            if found:
                bars[f"d{i} {moment}"] = [float(np.mean(found[-1][n])) for n in names]
    figure, ((axes,),) = new_axes(8, 3.2)
    for column, (label, heights) in enumerate(bars.items()):
        offset = (column - (len(bars) - 1) / 2) * 0.8 / max(1, len(bars))
        axes.bar(np.arange(len(depths)) + offset, heights, 0.8 / max(1, len(bars)), label=label)
    axes.set_xticks(range(len(depths)), [str(k) for k in depths])
    axes.set(xlabel="depth of the task", ylabel="success", ylim=(0, 1))
    style(axes)
    return png(figure)


def _player(config: ConfigDict, net: ActorCritic, made: tasks.Tasks) -> Callable[..., Any]:
    """(state, dist index, depth, seed) -> states, actions, rewards up to the end, on the host."""
    max_steps = settings.groups(config)["env"].max_steps
    run = jax.jit(
        lambda key, params, tables: ppo.play(key, net, params, tables, max_steps),
    )

    def play(
        state: Mapping[str, Any], dist: int, depth: int, seed: int
    ) -> tuple[State, np.ndarray, np.ndarray]:
        one = made.dists[dist]._replace(depth_min=np.int32(depth), depth_max=np.int32(depth))
        params = jax.tree.map(lambda leaf: leaf[0], state["params"])
        tables = jax.tree.map(jnp.asarray, made.params._replace(dist=one))
        states, actions, rewards = jax.device_get(run(jax.random.key(seed), params, tables))
        length = int(states.t[-1])
        return (
            jax.tree.map(lambda leaf: leaf[: length + 1], states),
            actions[:length],
            rewards[:length],
        )

    return play


def animation(
    play: Callable[..., Any], state: Mapping[str, Any], made: tasks.Tasks, dist: int, depths: Any
) -> bytes:
    """GIF of the agent: the first episode of each depth on one distribution."""
    frames: list[np.ndarray] = []
    for depth in depths:
        states, actions, rewards = play(state, dist, depth, seed=depth)
        episode = render.render_episode(states, made.params, actions, rewards, tile=32)
        frames += episode + [episode[-1]] * 6
    height = max(f.shape[0] for f in frames)
    width = max(f.shape[1] for f in frames)
    canvas = []
    for frame in frames:
        wide = np.tile(frame[-1:, -1:], (height, width, 1))
        wide[: frame.shape[0], : frame.shape[1]] = frame
        canvas.append(wide)
    return gif.gif_bytes(canvas, fps=6)


def make_figures(
    config: ConfigDict, net: ActorCritic, made: tasks.Tasks
) -> Callable[[Records, Mapping[str, Any]], dict[str, Picture]]:
    """Figures of the report, see the module."""
    groups = settings.groups(config)
    depths = groups["env"].all_depths
    phase_steps = groups["train"].phase_steps
    num_dists = len(made.dists)
    play = _player(config, net, made)

    def figures(records: Records, state: Mapping[str, Any]) -> dict[str, Picture]:
        tests = [r for r in records if r["split"] == "test"]
        out = {
            "Success across the shift": Picture(
                success_curve(records, num_dists, phase_steps),
                "Share of started episodes that reach their goal, over PPO updates: the mean over "
                "seeds, and a band from the lowest to the highest. A dashed line marks where the "
                "tasks change; a curve that falls behind it shows forgetting.",
            )
        }
        matrix = heat_map(*metrics.success_matrix(tests, phase_steps, num_dists))
        out["S[t, i]: success on d_i after each phase"] = Picture(
            matrix,
            "Success on every distribution (columns) before training and after each phase (rows), "
            "mean over seeds. Below the diagonal: what is kept of earlier tasks; above it: what "
            "helps with later ones.",
        )
        out["Success by depth"] = Picture(
            depth_bars(tests, num_dists, depths),
            "Success by depth of the task, which is the number of steps of its recipe, at the "
            "start and at the end of every phase.",
        )
        now = min((int(state["step"]) - 1) // phase_steps, num_dists - 1) if state["step"] else 0
        out[f"The agent on d{now + 1}, one episode per depth"] = Picture(
            animation(play, state, made, now, depths),
            f"The first agent plays one episode on d{now + 1} at each depth, the shallowest "
            "first. An episode chosen by its number, not for its ending.",
        )
        return out

    return figures


def make_watch(
    config: ConfigDict, net: ActorCritic, made: tasks.Tasks
) -> Callable[[Mapping[str, Any], Query], str | dict[str, bytes]]:
    """Makes the action `watch`: --query="d2 depth1 seed7" gives an episode of the agent as text,
    and with the name of a picture behind it, "d2 depth1 seed7 agent.gif", as that picture."""
    depths = settings.groups(config)["env"].all_depths
    play = _player(config, net, made)

    def watch(state: Mapping[str, Any], query: Query) -> str | dict[str, bytes]:
        text = text_of(query, "d<i> depth<k>")
        found = QUERY.fullmatch(text.strip())
        dist = int(found["dist"]) if found else 0
        depth = int(found["depth"]) if found else 0
        if not 1 <= dist <= len(made.dists) or depth not in depths:
            raise UserError(
                f"--query={text!r}: write d<i> depth<k> [seed<n>] [FILE.gif] with i in 1.."
                f"{len(made.dists)} and k in {depths[0]}..{depths[-1]}, e.g. "
                f'--query="d1 depth{depths[0]} seed0"'
            )
        assert found is not None
        states, actions, rewards = play(state, dist - 1, depth, int(found["seed"] or 0))
        if found["gif"]:
            frames = render.render_episode(states, made.params, actions, rewards, tile=40)
            return {found["gif"]: gif.gif_bytes(frames, fps=5)}
        lines = []
        for t in range(len(actions) + 1):
            one = jax.tree.map(lambda leaf, t=t: leaf[t], states)
            lines.append(render.render_text(one, made.params))
            if t < len(actions):
                lines.append(f"-> {render.ACTIONS[int(actions[t])]}")
        total = float(rewards.sum())
        word = "success" if total > 0 else "dead end" if total < 0 else "out of time"
        return "\n".join([*lines, f"{word} after {len(actions)} steps"])

    return watch
