# SPDX-License-Identifier: Apache-2.0
"""Every config: sound values, every leaf consumed; every `:tiny` honours the contract."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.runner import checkpoint, loop, names, settings, sharding
from experiments.runner.about import About, Headline
from experiments.runner.assemble import Assembly, assemble, initial_state
from experiments.runner.hosts import to_host
from tests import ROOT
from tests.jitter import jittered
from tests.tiers import deep_unless
from tests.tiny_systems import CONFIGS, assert_same_training, run_compiled, tiny


def variants() -> list[tuple[str, str]]:
    modules = {name: names.config_module(name) for name in CONFIGS}
    return [(name, variant) for name, module in modules.items() for variant in module.VARIANTS]


@pytest.mark.parametrize(("system", "variant"), variants())
def test_config_is_sound(system: str, variant: str) -> None:
    """No None, no list, JSON round trip, all groups valid, docstring says how to run it."""
    module = names.config_module(system)
    config = module.get_config(variant)
    settings.groups(config)
    for key, value in settings.flatten(config.to_dict()).items():
        assert value is not None and not isinstance(value, list), key
    back = settings.from_json(json.loads(json.dumps(settings.to_json(config))))
    assert back.to_dict() == config.to_dict()
    assert (config.system, config.variant) == (system, variant)
    assert re.search(rf"run\.py --config={system}\b", module.__doc__)


def is_sentence(text: str) -> bool:
    """Begins with a capital or a figure, ends with a full stop, has three words or more."""
    begins = text[:1].isupper() or text[:1].isdigit()
    return begins and text.endswith(".") and len(text.split()) >= 3


@pytest.mark.parametrize("system", CONFIGS)
def test_a_config_says_what_it_is(system: str) -> None:
    """No field of ABOUT and no line of HEADLINE is empty; each metric stands there once."""
    module = names.config_module(system)
    about = module.ABOUT
    assert isinstance(about, About)
    for name in ("asked", "data", "use", "failures"):
        assert is_sentence(getattr(about, name)), name
    assert {"tiny", "base"} <= set(about.cost) <= set(module.VARIANTS)
    for text in (*about.cost.values(), *about.actions.values()):
        assert text.strip() and not text.endswith(".")
    assert all("CPU core" in text for text in about.cost.values())
    metrics = [entry.metric for entry in module.HEADLINE]
    assert metrics and len(set(metrics)) == len(metrics)
    for entry in module.HEADLINE:
        assert isinstance(entry, Headline) and entry.better in ("higher", "lower")
        assert is_sentence(entry.sentence), entry.metric
        assert entry.metric not in entry.references
        assert len(set(entry.references)) == len(entry.references)


@pytest.mark.parametrize("system", CONFIGS)
def test_actions_are_the_ones_a_config_names(system: str) -> None:
    actions = names.config_module(system).ABOUT.actions
    assert set(actions) == set(assembled(system).experiment.actions)


@cache
def attributes_read() -> set[str]:
    """Names read as attributes, or passed to getattr, anywhere in the code."""
    found: set[str] = set()
    for package in ("banyan", "rec", "graph", "attention", "experiments"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.add(node.attr)
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)  # getattr(config, name) over a tuple of names
    return found


@pytest.mark.parametrize("system", CONFIGS)
def test_every_leaf_is_consumed(system: str) -> None:
    """Each leaf is a field of its group's dataclass, and each field is read somewhere."""
    module = names.config_module(system)
    read = attributes_read()
    config = module.get_config("tiny")
    for group, cls in {**settings.FRAME, **module.GROUPS}.items():
        fields = {f.name for f in dataclasses.fields(cls)}
        assert fields == set(config[group])
        assert not fields - read, f"{group}: never read: {fields - read}"


def test_hash_ignores_what_does_not_change_a_step() -> None:
    config = settings.to_json(tiny("banyan"))
    same = json.loads(json.dumps(config))
    same["mesh"], same["log"]["every_s"], same["train"]["steps"] = [2, 2], 3.0, 99
    same["data"]["root"] = "elsewhere"
    assert settings.config_hash(same) == settings.config_hash(config)
    for group, key, value in (("agent", "lr", 1.0), ("env", "num_walls", 1)):
        other = json.loads(json.dumps(config))
        other[group][key] = value
        assert settings.config_hash(other) != settings.config_hash(config)
    other = {**config, "seed": 5}
    assert settings.config_hash(other) != settings.config_hash(config)


@pytest.mark.parametrize("system", ["lm", "pencil", "sasrec", "tiger"])
def test_runs_from_before_a_choice_was_automatic_go_on(system: str) -> None:
    """Layers were scanned, then the backend chose: the same is computed, the hash is the same."""
    config = settings.to_json(tiny(system))
    assert config["model"]["scan"] == "auto"
    hashes = {}
    for scan in ("auto", True, False):
        values = {**config, "model": {**config["model"], "scan": scan}}
        hashes[scan] = settings.config_hash(values)
    assert hashes["auto"] == hashes[True] != hashes[False]


@cache
def assembled(system: str) -> Assembly:
    """`:tiny` of a system, put together once for the tests that compile nothing."""
    return assemble(tiny(system))


@pytest.mark.trains
@pytest.mark.parametrize("system", CONFIGS)
def test_shapes_of_state_and_metrics(system: str) -> None:
    """A step gives back a state of the same shapes and types, and flat float32 metrics; by
    tracing alone."""
    experiment = assembled(system).experiment
    state = jax.eval_shape(experiment.init, jax.random.key(0))
    assert {"step", "params", "key"} <= set(state)
    assert state["step"].dtype == np.int32 and state["step"].shape == ()
    if experiment.step is None or experiment.batch is None:
        return
    after, metrics = jax.eval_shape(experiment.step, state, dict(experiment.batch(0)))
    signature = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert signature(after) == signature(state)
    num_seeds = tiny(system).num_seeds
    assert any(name.endswith("loss") for name in metrics)
    for name, value in metrics.items():
        assert value.dtype == np.float32 and value.shape in ((), (num_seeds,)), name


# One whole battery a library with every run of the tests; the others' are deep.
BATTERY = deep_unless(lambda system: system in ("banyan", "lm", "pencil", "sasrec"), CONFIGS)


@pytest.mark.parametrize("system", BATTERY)
def test_tiny_honours_the_contract(system: str, tmp_path: Path) -> None:
    """init, steps without a retrace, finite; evaluate twice equal; saved, restored, resumed."""
    changes = {"train__steps": 8, "train__phase_steps": 4} if system == "banyan" else {}
    asm = assemble(tiny(system, mesh=(8, 1), **changes))
    experiment = asm.experiment
    traces: list[int] = []
    inner = experiment.step

    def counted(state: Any, batch: Any) -> Any:
        traces.append(1)
        assert inner is not None
        return inner(state, batch)

    step = None
    if inner is not None and experiment.batch is not None:
        asm = asm._replace(experiment=experiment._replace(step=counted))
        step = loop.jit_step(asm, experiment.batch(0))
    state, metrics = go_on(asm, step, initial_state(asm), 0, 3)
    assert all(np.all(np.isfinite(v)) for m in metrics for v in m.values())
    assert {"step", "params", "key"} <= set(state)
    assert int(state["step"]) == (3 if step else 0)
    first = to_host(experiment.evaluate(state, experiment.splits[0]))
    again = to_host(experiment.evaluate(state, experiment.splits[0]))
    assert first and first.keys() == again.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key], err_msg=key)
    if experiment.selectable:
        assert set(experiment.selectable) <= experiment.evaluate(state, loop.VALID).keys()

    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 3, state, asm.values, asm.artifacts)
        manager.wait_until_finished()
        back = checkpoint.restore(manager, 3, asm.abstract)
    copied = checkpoint.read_artifacts(tmp_path, 3)
    remade = assemble(tiny(system, mesh=(8, 1), **changes), copied)
    once_more = to_host(remade.experiment.evaluate(back, experiment.splits[0]))
    for key, value in first.items():
        np.testing.assert_array_equal(value, once_more[key], err_msg=key)

    # Resumed = uninterrupted, across a shift of phase, and nothing is traced again.
    state, later = go_on(asm, step, state, 3, 6)
    back, resumed = go_on(asm, step, back, 3, 6)
    assert len(traces) == (step is not None)
    for one, two in zip(later, resumed, strict=True):
        for key, value in one.items():
            np.testing.assert_array_equal(value, two[key], err_msg=key)
    one, two = sharding.leaf_paths(host(state)), sharding.leaf_paths(host(back))
    assert one.keys() == two.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, two[path], err_msg=path)


def host(state: Any) -> Any:
    """Leaves as NumPy arrays, keys as their words; comparing on the device compiles for each."""

    def one(leaf: Any) -> np.ndarray:
        typed = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if typed else leaf)

    return jax.tree.map(one, state)


def go_on(asm: Assembly, step: Any, state: Any, start: int, stop: int) -> tuple[Any, list]:
    """State and metrics after steps [start, stop) of a compiled step; none if it only evaluates."""
    feed, metrics = sharding.Feed(asm.mesh, asm.experiment.rules), []
    for t in range(start, stop) if step and asm.experiment.batch else ():
        state, found = step(state, feed.put(jittered(asm.experiment.batch(t)), None))
        metrics.append(to_host(found))
    return state, metrics


@pytest.mark.parametrize("system", CONFIGS)
def test_batch_is_a_pure_function_of_the_step(system: str) -> None:
    batch = assembled(system).experiment.batch
    again = assemble(tiny(system)).experiment.batch
    if batch is None or again is None:
        pytest.skip(f"{system} only evaluates")
    for step in (7, 0, 3, 7):
        for key, leaf in batch(step).items():
            np.testing.assert_array_equal(leaf, again(step)[key])


@pytest.mark.deep
@pytest.mark.trains
def test_meshes_agree_and_shard_for_real() -> None:
    """1 device = 4 = data 2 x model 2, with an all-reduce and no gathered environments."""
    runs = {}
    for mesh, count in (((1, 1), 1), ((4, 1), 4), ((2, 2), 4)):
        config = tiny("banyan", agent__num_envs=24, agent__minibatches=3)
        asm = on_devices(config, mesh, count)
        state, metrics, text = run_compiled(asm, 2)
        runs[mesh] = state, metrics
        grid = state["worker"]["env"]["grid"]
        assert grid.sharding.spec == P(None, "data")
        assert grid.addressable_shards[0].data.shape[1] == 24 // mesh[0]
        if count > 1:
            check_collectives(text, 24)
        if mesh == (2, 2):
            kernel = state["params"]["params"]["encoder0"]["kernel"]
            moment = state["opt_state"][1][0].mu["params"]["encoder0"]["kernel"]
            for leaf in (kernel, moment):
                assert leaf.addressable_shards[0].data.shape[2] == leaf.shape[2] // 2
    for mesh in ((4, 1), (2, 2)):
        # A loss of -.02 is a difference of larger parts: gaps of up to 7e-8 over three seeds.
        assert_same_training(runs[mesh], runs[1, 1], atol=2e-6)
    assert np.ptp([m["loss"] for m in runs[1, 1][1]]) > 1e-4  # the losses do move


def on_devices(config: Any, mesh: tuple[int, int], count: int, artifacts: Any = None) -> Assembly:
    """`assemble` on the first `count` devices."""
    devices = np.array(jax.devices()[:count]).reshape(mesh)
    axes = (jax.sharding.AxisType.Auto,) * 2
    asm = assemble(config, artifacts)
    small = jax.sharding.Mesh(devices, sharding.AXES, axis_types=axes)
    shards = sharding.shardings(small, asm.experiment.rules, asm.abstract)
    return asm._replace(mesh=small, shardings=shards)


def check_collectives(text: str, num_envs: int) -> None:
    """Gradients are summed over devices; no array over all environments is gathered."""
    assert re.search(r"\ball-reduce(-start)?\(", text)
    for shape in re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", text):
        assert num_envs not in [int(n) for n in shape.split(",") if n], shape


def test_no_tensorflow_no_torch_and_jax_only_after_validation() -> None:
    """Every system imported, a run and its check: neither is there; settings come before JAX."""
    code = """
import sys, tempfile
from pathlib import Path
from experiments.runner import names, settings
configs = [names.config_module(name) for name in sys.argv[1:]]
for config in configs:
    settings.groups(config.get_config("tiny"))
assert "jax" not in sys.modules and "tensorflow_datasets" not in sys.modules
for name in sys.argv[1:]:
    names.system_module(name)
from experiments.runner import loop, reopen
from experiments.runner.assemble import Assembly, assemble, initial_state
from experiments.runner.hosts import to_host
from tests import toy
toy.install()
with tempfile.TemporaryDirectory() as folder:
    loop.train(toy.tiny(), Path(folder) / "run")
    assert not reopen.check(Path(folder) / "run")
print("loaded", [m for m in ("tensorflow", "torch") if m in sys.modules])
"""
    run = subprocess.run(
        [sys.executable, "-c", code, *CONFIGS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip().endswith("loaded []")
