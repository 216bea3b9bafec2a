# SPDX-License-Identifier: Apache-2.0
"""Students of trained generators (marker `slow`): what they keep of their teacher on Beauty's 8-core
and on a planted tree, beside students that lack one thing each.

One teacher of each kind, three seeds of the students; of those controls that must fail, one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.runner import checkpoint, reopen
from experiments.runner.results import read
from experiments.systems.rec.recommenders import distillation
from rec import metrics
from rec.models.sid_mlp_pp import Mixer
from tests.learning import SEEDS, leave, mean, place, train, train_all
from tests.rec.learning_test import PLANTED

pytestmark = pytest.mark.slow
# tiger:t5 for the twenty minutes that it takes on one core.
LONG = (
    "--config.train.steps=13000",
    "--config.optim.decay=13000",
    "--config.eval.every=3250",
    "--config.train.save_every=3250",
)
