# SPDX-License-Identifier: Apache-2.0
"""The generator of a layout."""

from rec.models.config import TigerConfig
from rec.models.packed import Packed
from rec.models.tiger import Tiger


def make(cfg: TigerConfig, sizes: tuple[int, ...]) -> Tiger | Packed:
    """Makes the model of cfg.layout over SIDs with sizes[l] codes on level l. All answer to
    `__call__`, `read`, `write`, `start`, `advance` and `logits`, see `Tiger`."""
    return Packed(cfg, sizes) if cfg.layout == "packed" else Tiger(cfg, sizes)
