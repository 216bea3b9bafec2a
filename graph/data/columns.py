# SPDX-License-Identifier: Apache-2.0
"""Which column of a user's own table holds what: named by a flag, or recognized by its name.

`rec.data.columns` is alike: libraries share no code.
"""

from collections.abc import Mapping, Sequence

COMMON = {
    "source": ("source", "from", "src"),
    "target": ("target", "to", "dst"),
    "time": ("time", "timestamp", "ts", "date"),
}
"""{role: names of columns that have it, in lower case}."""
FLAG = "--config.data.columns"


def parse(flag: str) -> dict[str, str]:
    """{role: column} of "source=from,target=to"; {} of "".

    Raises:
        ValueError: another form, an unknown role, or one twice.
    """
    chosen: dict[str, str] = {}
    for part in flag.split(",") if flag else ():
        role, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column or role not in COMMON:
            raise ValueError(
                f"columns={flag!r}: {part!r} is no ROLE=COLUMN with a role of "
                f'{", ".join(COMMON)}, such as "source=from,target=to"'
            )
        if role in chosen:
            raise ValueError(f"columns={flag!r}: {role} is there twice")
        chosen[role] = column
    return chosen


def choose(
    place: object, header: Sequence[str], roles: Sequence[str], chosen: Mapping[str, str]
) -> dict[str, str]:
    """{role: column} for every role of a table.

    Args:
        place: the file, for messages.
        chosen: what the flag says.

    Raises:
        ValueError: a column of the flag that is not there; no column for a role, or several. The
            message holds the flag to type.
    """
    found: dict[str, str] = {}
    unclear: list[str] = []
    for role in roles:
        if role in chosen:
            if chosen[role] not in header:
                raise ValueError(
                    f"{place}: no column {chosen[role]!r} for {role} (there are "
                    f"{', '.join(header)}); see {FLAG}"
                )
            found[role] = chosen[role]
            continue
        candidates = [name for name in header if name.lower() in COMMON[role]]
        if len(candidates) == 1:
            found[role] = candidates[0]
        else:
            several = f"several columns may be the {role} ({', '.join(candidates)})"
            unclear.append(several if candidates else f"no column is known as the {role}")
    if unclear:
        raise ValueError(
            f"{place}: {'; '.join(unclear)}; there are {', '.join(header)}. Say which is which: "
            f'{FLAG}="{suggest(header, roles, found)}"'
        )
    return found


def suggest(header: Sequence[str], roles: Sequence[str], found: Mapping[str, str]) -> str:
    """A flag for this header: known columns, and for the others those that are left, in order."""
    left = [name for name in header if name not in found.values()]
    parts = []
    for role in roles:
        guess = [name for name in left if name.lower() in COMMON[role]] or left
        column = found.get(role) or (guess[0] if guess else "COLUMN")
        if column in left:
            left.remove(column)
        parts.append(f"{role}={column}")
    return ",".join(parts)
