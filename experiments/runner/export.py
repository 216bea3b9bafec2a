# SPDX-License-Identifier: Apache-2.0
"""Parameters of a run as one safetensors file: --mode=export --workdir=DIR --out=FILE.safetensors.

Names are the paths of the leaves, "blocks/attn/q". The header says what made them: the whole config
as JSON, system, step, config_hash and commit.
"""

import json
from pathlib import Path

import numpy as np

from experiments.runner import checkpoint, folder, serving, settings, sharding
from experiments.runner.errors import UserError


def export(workdir: Path) -> bytes:
    """The parameters of the tested checkpoint, bit for bit.

    Raises:
        UserError: no run folder, a damaged file, a run without parameters, or safetensors is not
            installed.
    """
    try:
        from safetensors.numpy import save
    except ModuleNotFoundError as error:
        raise UserError(
            '--mode=export needs safetensors, which is not installed: pip install -e ".[lm]"'
        ) from error
    values = folder.read_json(workdir / "config.json")
    settings.check_source(values, workdir)
    settings.groups(settings.from_json(values))
    step, _ = serving.step_to_serve(workdir)
    checkpoint.check_owner(workdir, step, values)
    leaves = sharding.leaf_paths(checkpoint.read_params(workdir, step))
    if not leaves:
        raise UserError(f"{workdir}: {values['system']} trains nothing, there are no parameters")
    environment = workdir / "env.json"
    metadata = {
        "system": values["system"],
        "step": str(step),
        "config_hash": settings.config_hash(values),
        "commit": folder.read_json(environment)["commit"] if environment.exists() else "unknown",
        "config": json.dumps(values, sort_keys=True),
    }
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in sorted(leaves.items())}
    return save(arrays, metadata)
