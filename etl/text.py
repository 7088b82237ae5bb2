"""Makes names and values safe where a person reads them: in a line of a log, a terminal, a message or a comment.

They may hold line ends, which forge lines, terminal sequences, which overwrite them, and marks that reorder text.
Begin at `printable`; JSON output does without it, because it escapes on its own and has to be exact.
"""

from __future__ import annotations

import shlex

MOST_IN_FOUR_DIGITS = 0xFFFF


def printable(text: str) -> str:
    r"""Return a text as one line: whatever is not printable is escaped, such as \n, \x1b or \u202e."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def quote_word(text: str) -> str:
    r"""Quote a word for a shell; whatever is not printable is escaped as bash and zsh read it: $'a\x0ab'."""
    if text.isprintable():
        return shlex.quote(text)
    parts = [
        char if char.isprintable() and char not in "\\'" else "".join(f"\\x{byte:02x}" for byte in char.encode())
        for char in text
    ]
    return f"$'{''.join(parts)}'"


def escape_identifier(name: str) -> str:
    r"""Quote a name that is not printable for SQL ("Identifiers and Key Words" in the manual): U&"a\000ab"."""
    parts = []
    for char in name:
        if char == '"':
            parts.append('""')
        elif char.isprintable() and char != "\\":
            parts.append(char)
        else:
            number = ord(char)
            parts.append(f"\\+{number:06x}" if number > MOST_IN_FOUR_DIGITS else f"\\{number:04x}")
    return f'U&"{"".join(parts)}"'


def escape_in_quotes(quoted: str) -> str:
    r"""Escape what is not printable in a text in double quotes, as YAML and Jinja read it: "a\u202eb"."""
    parts = []
    for char in quoted:
        number = ord(char)
        escaped = f"\\U{number:08x}" if number > MOST_IN_FOUR_DIGITS else f"\\u{number:04x}"
        parts.append(char if char.isprintable() else escaped)
    return "".join(parts)
