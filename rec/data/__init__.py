# SPDX-License-Identifier: Apache-2.0
"""Interaction sequences: what every reader gives, splits, raw formats and where they come from."""
