# SPDX-License-Identifier: Apache-2.0
"""A run put together from its config, and its first state; compiles and writes nothing itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.runner import checkpoint, hosts, names, serving, settings, sharding
from experiments.runner.contract import Experiment, State
from experiments.runner.errors import UserError


class Assembly(NamedTuple):
    """A system made from its config and artifacts, and where its state lives."""

    config: ConfigDict
    values: dict[str, Any]
    """The config as plain JSON values."""
    experiment: Experiment
    artifacts: dict[str, Any]
    """What `prepare` made, or a checkpoint held."""
    mesh: Mesh
    abstract: Any
    """The state as ShapeDtypeStructs with shardings."""
    shardings: Any
    """NamedSharding of every leaf of the state."""


def assemble(
    config: ConfigDict, artifacts: Mapping[str, Any] | None = None, *, exact: bool = True
) -> Assembly:
    """Validates, prepares (unless artifacts are given), makes; compiles and writes nothing.

    Args:
        exact: False replicates state leaves that do not divide among the devices of this machine.
    """
    settings.groups(config)
    mesh = sharding.make_mesh(config.mesh)
    experiment, artifacts = _make(config, artifacts)
    if config.train.steps and (experiment.step is None or experiment.batch is None):
        raise UserError(f"config.train.steps={config.train.steps}: {config.system} only evaluates")
    _check_select(config, experiment)
    abstract = jax.eval_shape(experiment.init, _initial_key(config))
    empty = [path for path, leaf in sharding.leaf_paths(abstract).items() if 0 in leaf.shape]
    if empty:
        raise UserError(f"{config.system}: empty arrays cannot be saved: {empty}")
    if config.fsdp:
        extra = sharding.fsdp_rules(abstract, mesh)
        experiment = experiment._replace(rules=(*experiment.rules, *extra))
    shards = sharding.shardings(mesh, experiment.rules, abstract, exact=exact)
    abstract = jax.tree.map(
        lambda leaf, shard: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shard),
        abstract,
        shards,
    )
    values = settings.to_json(config)
    return Assembly(config, values, experiment, dict(artifacts), mesh, abstract, shards)


def _make(
    config: ConfigDict, artifacts: Mapping[str, Any] | None
) -> tuple[Experiment, Mapping[str, Any]]:
    """The experiment of a config and its artifacts, prepared where none are given."""
    module = names.system_module(config.system)
    try:
        if artifacts is None:
            prepared = module.prepare(config) if hasattr(module, "prepare") else {}
            # What a fresh start uses is exactly what a resume will read back.
            artifacts = checkpoint.unpack_artifacts(checkpoint.pack_artifacts(prepared))
        return module.make(config, artifacts), artifacts
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def _check_select(config: ConfigDict, experiment: Experiment) -> None:
    name = config.eval.select[0]
    known = experiment.selectable
    if name and name not in known:
        raise UserError(
            f"config.eval.select: {name!r} is nothing {config.system} selects by; "
            + (f"there are: {', '.join(known)}" if known else "leave the name empty")
        )


def _initial_key(config: ConfigDict) -> jax.Array:
    return jax.random.key(config.seed)


def read_donor(asm: Assembly) -> dict[str, Any]:
    """Parameters of the run config.init_from names, by path; {} if it names none.

    Raises:
        UserError: there is no such checkpoint, or its parameters do not fit.
    """
    if not asm.config.init_from:
        return {}
    run = Path(asm.config.init_from)
    step, why = serving.step_to_serve(run)
    donor = sharding.leaf_paths(checkpoint.read_params(run, step))
    leaves = sharding.leaf_paths(asm.abstract["params"])
    shared = leaves.keys() & donor.keys()
    misfits = sorted(path for path in shared if leaves[path].shape != donor[path].shape)
    if misfits or not shared:
        raise UserError(
            f"config.init_from={asm.config.init_from}: "
            + (f"shapes differ at {misfits}" if misfits else "no parameter has the same path")
        )
    if hosts.is_main():
        print(f"init_from {run}: loaded {len(shared)} leaves of step {step}, {why}")
        print(f"  missing there: {sorted(leaves.keys() - donor.keys())}")
        print(f"  unused of it: {sorted(donor.keys() - leaves.keys())}")
    return donor


def initial_state(asm: Assembly, donor: Mapping[str, Any] | None = None) -> State:
    """Fresh sharded state, with parameters of config.init_from where it names a run."""
    donor = read_donor(asm) if donor is None else donor
    state = jax.jit(asm.experiment.init, out_shardings=asm.shardings)(_initial_key(asm.config))
    if not donor:
        return state

    def place(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in donor:
            return leaf
        value = np.asarray(donor[name], leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    return {**state, "params": jax.tree_util.tree_map_with_path(place, state["params"])}


def check_batch(asm: Assembly) -> None:
    """Raises UserError if the batch does not divide among the devices; sends nothing."""
    if asm.experiment.batch is not None and asm.config.train.steps:
        batch = asm.experiment.batch(0)
        sharding.shardings(asm.mesh, asm.experiment.rules, dict(batch), "batch/")
