# SPDX-License-Identifier: Apache-2.0
"""Benches: one module each, `cases(quick) -> list of Case` and `ratios(rows) -> dict`."""
