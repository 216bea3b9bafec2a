# SPDX-License-Identifier: Apache-2.0
"""Recommenders without training: counts and content. Every table prints them beside its rows."""
