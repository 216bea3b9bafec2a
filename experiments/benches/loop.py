# SPDX-License-Identifier: Apache-2.0
"""What the frame costs: the loop against a bare `for` over the same jitted 1 ms step.

The frame's row holds all it does per step: batches made ahead, every metric fetched, checked for
NaN and logged. A checkpoint costs by its size and not by steps, so it has a row of its own.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.runner import loop, settings, sharding
from experiments.runner.assemble import Assembly, initial_state
from experiments.runner.bench import Case
from experiments.runner.clock import Timer
from experiments.runner.contract import Experiment
from experiments.runner.writer import open_writer

STEPS = 3000
TARGET_S = 1e-3


def _experiment(turns: int) -> Experiment:
    def init(key: jax.Array) -> dict[str, Any]:
        return {"step": jnp.int32(0), "key": key, "params": {"w": jnp.eye(128) * 0.5}}

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict, dict]:
        w = state["params"]["w"] + batch["x"]
        w = jax.lax.fori_loop(0, turns, lambda _, m: jnp.tanh(m @ m), w)
        state = {**state, "step": state["step"] + 1, "params": {"w": w}}
        return state, {"loss": w.mean(), "norm": jnp.abs(w).max()}

    return Experiment(
        init=init,
        step=step,
        batch=lambda t, rows=None: {"x": np.full((128, 128), t, np.float32)},
        evaluate=lambda state, split: {},
        rules=((r"batch/.*", PartitionSpec()),),
    )


def _turns() -> int:
    """Inner iterations that make a step of about one millisecond here."""
    turns = 8
    while turns < 1 << 20:
        body = jax.jit(_experiment(turns).step)  # type: ignore[arg-type]
        state = _experiment(turns).init(jax.random.key(0))
        batch = {"x": jnp.zeros((128, 128))}
        jax.block_until_ready(body(state, batch))
        began = time.perf_counter()
        for _ in range(100):  # queued, as a loop queues them
            state, _ = body(state, batch)
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - began) / 100
        if seconds >= 0.8 * TARGET_S:
            return max(1, round(turns * TARGET_S / seconds))
        turns *= 2
    return turns


class _Unsaved(loop.Session):
    """A session whose saves cost nothing."""

    def save(self, step: int, state: Any) -> None:
        pass


def cases() -> Iterable[Case]:
    """The same experiment, steps and batches through a bare loop and through the frame."""
    experiment = _experiment(_turns())
    assert experiment.step is not None and experiment.batch is not None
    make_batch = experiment.batch
    bare = jax.jit(experiment.step, donate_argnums=0)

    def run_bare(repeat: int) -> None:
        state = experiment.init(jax.random.key(repeat))
        for t in range(STEPS):
            state, _metrics = bare(state, jax.device_put(make_batch(t)))
        jax.block_until_ready(state)

    config = settings.base_config("loop", "bench")
    config.train.update({"steps": STEPS, "save_every": STEPS + 1})
    config.eval.every = STEPS + 1
    config.log.update({"every_s": 1e9})
    mesh = sharding.make_mesh((-1, 1))
    abstract = jax.eval_shape(experiment.init, jax.random.key(0))
    shards = sharding.shardings(mesh, experiment.rules, abstract)
    asm = Assembly(config, settings.to_json(config), experiment, {}, mesh, abstract, shards)
    step_fn: list[Any] = []  # compiled once, as the bare one is

    def run_frame(repeat: int) -> None:
        with tempfile.TemporaryDirectory() as name, _open(_Unsaved, Path(name)) as session:
            state = initial_state(asm)
            step_fn[:] = step_fn or [loop.jit_step(asm, make_batch(0))]
            state = loop.run_steps(session, state, 0, False, step_fn[0])
            jax.block_until_ready(state)

    def run_save(repeat: int) -> None:
        with tempfile.TemporaryDirectory() as name, _open(loop.Session, Path(name)) as session:
            session.save(STEPS, initial_state(asm))

    @contextmanager
    def _open(kind: type[loop.Session], workdir: Path) -> Iterator[loop.Session]:
        (workdir / "metrics.jsonl").touch()
        with open_writer(workdir, config.log, STEPS, 0, True) as writer:
            session = kind(asm, workdir, writer, Timer({}))
            with session.manager:
                yield session

    yield Case("bare-loop-1ms", 0, STEPS, run_bare)
    yield Case("frame-loop-1ms", 0, STEPS, run_frame)
    yield Case("save", 0, 1, run_save)


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    rate = {row["row"]: row["steps_per_s"] for row in rows}
    return {"frame / bare": rate["frame-loop-1ms"] / rate["bare-loop-1ms"]}
