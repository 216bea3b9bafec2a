# SPDX-License-Identifier: Apache-2.0
"""Generators and rankers: tiger (semantic IDs), sasrec (items). Further peers belong here."""
