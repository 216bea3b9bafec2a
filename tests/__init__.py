# SPDX-License-Identifier: Apache-2.0
"""Tests of the checkout they lie in; the folders mirror its tree."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
