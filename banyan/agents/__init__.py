# SPDX-License-Identifier: Apache-2.0
"""Agents: networks and learning rules as pure functions."""
