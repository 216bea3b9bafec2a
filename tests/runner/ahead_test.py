# SPDX-License-Identifier: Apache-2.0
"""What is made ahead comes in order, errors in their turn, and no thread is left."""

import threading
import time

import pytest

from experiments.runner.ahead import working_ahead


def test_order_errors_and_end() -> None:
    loaded = []

    def load(step: int) -> int:
        loaded.append(step)
        if step == 3:
            raise ValueError("step 3 has no batch")
        return 10 * step

    before = threading.active_count()
    with working_ahead(load, range(9), 2) as take:
        assert [take() for _ in range(3)] == [0, 10, 20]
        with pytest.raises(ValueError, match="step 3 has no batch"):
            take()
    assert loaded == [0, 1, 2, 3] and threading.active_count() == before
    with working_ahead(load, range(2), 5) as take:
        assert [take(), take()] == [0, 10]
        with pytest.raises(IndexError, match="no step is left"):
            take()


def test_no_more_than_its_depth_and_an_early_end() -> None:
    loaded = []
    before = threading.active_count()
    with working_ahead(loaded.append, range(100), 3) as take:
        take()
        while len(loaded) < 4:  # one taken, three ready
            time.sleep(1e-3)
        time.sleep(0.05)
        assert loaded == [0, 1, 2, 3]
    assert threading.active_count() == before
