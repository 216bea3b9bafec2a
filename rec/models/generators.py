# SPDX-License-Identifier: Apache-2.0
"""The generator of a layout, and what all of them are.

A `Model` answers to `__call__`, `read`, `write`, `start`, `advance` and `logits`, see `Tiger`.
"""

from rec.models.config import TigerConfig
from rec.models.packed import Packed
from rec.models.sid_mlp import SidMlp
from rec.models.tiger import Tiger

Model = Tiger | Packed | SidMlp


def make(cfg: TigerConfig, sizes: tuple[int, ...]) -> Tiger | Packed:
    """Makes the model of cfg.layout over SIDs with sizes[l] codes on level l."""
    return Packed(cfg, sizes) if cfg.layout == "packed" else Tiger(cfg, sizes)
