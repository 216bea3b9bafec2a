# SPDX-License-Identifier: Apache-2.0
"""The one exception the runner turns into a plain message and a non-zero exit."""


class UserError(Exception):
    """A mistake of the caller: the message names the value, what is allowed and the fix."""
