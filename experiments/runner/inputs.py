# SPDX-License-Identifier: Apache-2.0
"""The data that config.data declares: read when it is first needed, compared with what the run
began with, and failures explained.

Interactions and links are no artifacts of a run, for they may be large: they are read again through
the data root, and their SHA-256, which is an artifact, is compared.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

from ml_collections import ConfigDict

from experiments.runner.errors import UserError
from experiments.runner.transfer import DataError

NO_FILES = "  without files: the variant :tiny, or --config.data.format=planted"
Data = TypeVar("Data")


@contextlib.contextmanager
def explain_failures() -> Iterator[None]:
    """Turns the errors of a reader into ones that name config.data and say what needs no file.

    Raises:
        UserError: missing or malformed files, unknown names, values that do not go together.
    """
    try:
        yield
    except DataError as error:
        raise UserError(f"{error}\n{NO_FILES}") from error
    except (ValueError, OSError) as error:
        missing = "missing" in str(error) or isinstance(error, FileNotFoundError)
        raise UserError(f"config.data: {error}" + (f"\n{NO_FILES}" if missing else "")) from error


def check_same(config: ConfigDict, what: str, sha256: str, expected: str) -> None:
    """Raises UserError where the data are not those a run began with.

    Args:
        what: word for the data, such as "links".
        sha256, expected: of the data now, and of those the run began with.
    """
    if sha256 != expected:
        raise UserError(
            f"config.data.name={config.data.name}: not the {what} this run began with: SHA-256 "
            f"{sha256}, expected {expected}"
        )


def read_once(
    read: Callable[[], Data],
    digest: Callable[[Data], str],
    config: ConfigDict,
    what: str,
    expected: str,
) -> Callable[[], Data]:
    """Returns a function that reads the data at its first call, so that an action which needs none
    reads none.

    Raises (when called):
        UserError: other data than the run began with, see `check_same`; whatever `read` raises.
    """

    @functools.cache
    def load() -> Data:
        data = read()
        check_same(config, what, digest(data), expected)
        return data

    return load
