# SPDX-License-Identifier: Apache-2.0
"""The Banyan system: phases, names of S values, summary, pictures, the watch action."""

import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.runner import loop, results
from experiments.runner.assemble import assemble, initial_state
from experiments.runner.contract import Picture
from experiments.runner.errors import UserError
from experiments.runner.hosts import to_host
from experiments.runner.queries import Query
from experiments.systems.banyan import banyan as system
from tests.tiny_systems import tiny


def test_names_at_the_shifts() -> None:
    assert [system.split_names(0, i, 10) for i in (0, 1)] == [["untrained/d1"], ["untrained/d2"]]
    assert system.split_names(10, 0, 10) == ["after1/d1", "d1/end"]
    assert system.split_names(10, 1, 10) == ["after1/d2", "d2/start"]
    assert system.split_names(20, 0, 10) == ["after2/d1"]
    assert system.split_names(20, 1, 10) == ["after2/d2", "d2/end"]
    assert system.split_names(13, 1, 10) == ["at13/d2"]


def test_summary_of_a_run_by_hand() -> None:
    """Two seeds; S = [[.8, .3], [.6, .9]] and [[1, .5], [1, 1]]."""
    rows = {0: [[0.1, 0.2], [0.1, 0.1]], 10: [[0.8, 0.3], [1.0, 0.5]], 20: [[0.6, 0.9], [1, 1]]}
    records = []
    for step, seeds in rows.items():
        moment = f"after{step // 10}" if step else "untrained"
        values = np.array(seeds)
        record: dict[str, Any] = {"step": step, "split": "test"}
        record |= {f"{moment}/d{i + 1}/success": values[:, i] for i in range(2)}
        records.append(record)
    got = system.summarize(records, 10, 2)
    np.testing.assert_allclose(got["gap/2"], [0.5, 0.5])
    np.testing.assert_allclose(got["backward/2/1"], [-0.2, 0.0])
    np.testing.assert_allclose(got["forgetting/1"], [0.2, 0.0])
    np.testing.assert_allclose(got["jump_start/2"], [0.1, 0.4])
    half = system.summarize(records[:2], 10, 2)  # the second phase is not done yet
    assert set(half) == {"gap/2", "jump_start/2"}


def test_milestones_are_the_shifts() -> None:
    assert assemble(tiny("banyan")).experiment.milestones == (0, 6, 12)


@pytest.fixture(scope="module")
def state() -> Any:
    return initial_state(assemble(tiny("banyan", mesh=(8, 1))))


def test_start_is_measured_before_any_update(state: Any) -> None:
    """At the boundary step, d2/start is the frozen agent on d2, equal to after1/d2."""
    asm = assemble(tiny("banyan", mesh=(8, 1)))
    at_shift = {**state, "step": jax.numpy.int32(6)}
    found = to_host(asm.experiment.evaluate(at_shift, "test"))
    assert {"d1/end/success", "d2/start/success", "d1/end/success/depth2"} <= set(found)
    assert found["d2/start/success"] == found["after1/d2/success"]
    per_depth = [found[f"d1/end/success/depth{k}"] for k in (1, 2)]
    np.testing.assert_allclose(found["d1/end/success"], np.mean(per_depth, axis=0))


@pytest.mark.deep
def test_pictures_and_watch(state: Any) -> None:
    asm = assemble(tiny("banyan", mesh=(8, 1)))
    experiment = asm.experiment
    record = {"step": 0, "split": "valid", "valid/d1/success": np.array([0.25])}
    test = results.record_of(0, "test", to_host(experiment.evaluate(state, "test")))
    assert experiment.figures is not None
    pictures = experiment.figures([record, test], jax.device_get(state))
    assert len(pictures) == 4
    for title, picture in pictures.items():
        assert isinstance(picture, Picture) and len(picture.caption) > 40, title
        image = Image.open(io.BytesIO(picture.data))
        assert image.format in ("PNG", "GIF") and min(image.size) > 100, title
    film = list(pictures.values())[-1]
    assert isinstance(film, Picture)
    frames = Image.open(io.BytesIO(film.data))
    assert getattr(frames, "n_frames", 1) > 3
    watch = experiment.actions["watch"]
    text = watch(state, Query("d2 depth1 seed3"))
    assert isinstance(text, str) and text == watch(state, Query("d2 depth1 seed3"))
    assert text.splitlines()[-1].split(" after ")[0] in ("success", "dead end", "out of time")
    drawing = watch(state, Query("d2 depth1 seed3 agent.gif"))
    assert isinstance(drawing, dict) and list(drawing) == ["agent.gif"]
    with Image.open(io.BytesIO(drawing["agent.gif"])) as drawn:
        assert getattr(drawn, "n_frames", 1) > 1
    for query in ("", "d3 depth1", "d1 depth9", "first"):
        with pytest.raises(UserError, match="depth"):
            watch(state, Query(query))


def test_too_many_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.steps=13 exceeds"):
        loop.train(tiny("banyan", train__steps=13), tmp_path / "run")
    assert not (tmp_path / "run").exists()
