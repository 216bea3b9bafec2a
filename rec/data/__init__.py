# SPDX-License-Identifier: Apache-2.0
"""Interaction sequences: what every reader gives, splits, raw formats and where they come from.

`rec.data.reading.read` is the one door to all formats; `rec.data.sequences` holds the structures.
"""

from rec.data.sources import ABOUT, FILES

__all__ = ["ABOUT", "FILES"]
