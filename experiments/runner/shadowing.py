# SPDX-License-Identifier: Apache-2.0
"""Notices that `rec`, `graph` or another top-level name belongs to somebody else's package here.

Imports no JAX, and nothing of what it looks at.
"""

import importlib.util
from importlib import metadata
from pathlib import Path

from experiments.runner.errors import UserError

PACKAGES = ("banyan", "rec", "graph", "attention", "experiments")


def refuse_foreign_packages(root: Path) -> None:
    """Checks that every package of this project would be imported from below `root`.

    Raises:
        UserError: one is another's; where that lies, of which distribution, what to do.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent != root / name:
            raise UserError(
                f"the package {name!r} of {root} is shadowed by {_owner(name, origin)}: uninstall "
                "that, or run in an environment without it"
            )


def _owner(name: str, origin: Path | None) -> str:
    others = [
        distribution
        for distribution in metadata.packages_distributions().get(name, ())
        if distribution != "banyan-stack"
    ]
    place = str(origin) if origin else f"a folder named {name}"
    return place + (f" of the distribution {', '.join(others)}" if others else "")
