# SPDX-License-Identifier: Apache-2.0
"""Which cases of a parametrised test run by default, and which with `pytest -m deep`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def deep_unless(is_default: Callable[[Any], bool], cases: Iterable[Any]) -> list[Any]:
    """Marks deep every value of one parameter that `is_default` does not want in each run."""
    return [case if is_default(case) else deep(case) for case in cases]


def deep(*values: Any) -> Any:
    """Marks one case deep; one value for every parameter."""
    return pytest.param(*values, marks=pytest.mark.deep)
