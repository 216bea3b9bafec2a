# SPDX-License-Identifier: Apache-2.0
"""Names in a --query."""

import difflib
from collections.abc import Mapping

from experiments.runner.errors import UserError


def lookup(name: str, number: Mapping[str, int], what: str) -> int:
    """number[name].

    Raises:
        UserError: an unknown name; near ones are proposed, `what` says of what it should be one.
    """
    if name in number:
        return number[name]
    near = difflib.get_close_matches(name, number, 3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise UserError(
        f"--query: unknown {what} {name!r}{hint} (this run knows {len(number):,} {what}s, such as "
        f"{', '.join(list(number)[:3])})"
    )
