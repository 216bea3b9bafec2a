# SPDX-License-Identifier: Apache-2.0
"""Graphs: raw formats, splits, made-up graphs, and where files come from.

`graph.data.reading.read` is the one door to all formats.
"""

from graph.data.sources import ABOUT, FILES

__all__ = ["ABOUT", "FILES"]
