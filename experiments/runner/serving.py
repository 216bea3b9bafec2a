# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint of a run counts: what is served, or started from, is what was tested."""

from pathlib import Path

from experiments.runner import checkpoint, folder
from experiments.runner.errors import UserError


def tested_step(workdir: Path) -> int | None:
    """Step of the checkpoint whose numbers results.json claims; None where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not (workdir / "results.json").exists():
        return None
    claimed = folder.read_results(workdir)
    if "tested" in claimed:
        return int(claimed["tested"])
    # Files without that key: the last step, or the best one, which is later than milestones before.
    selected = folder.read_json(workdir / "config.json")["eval"]["select"][0]
    return max(claimed["checkpoint_of"].values()) if selected else claimed["step"]


def step_to_serve(workdir: Path) -> tuple[int, str]:
    """The checkpoint that actions and later runs take, and why: the tested one, else the last.

    Raises:
        UserError: there are no checkpoints, or not the one that was tested.
    """
    available = checkpoint.steps(workdir)
    if not available:
        raise UserError(f"no checkpoints in {workdir}")
    tested = tested_step(workdir)
    if tested is None:
        return available[-1], "the last one; there is no results.json"
    if tested not in available:
        raise UserError(
            f"{workdir}: results.json was made from step {tested}, which is not among the "
            f"checkpoints {available}"
        )
    return tested, "the one results.json was made from"
