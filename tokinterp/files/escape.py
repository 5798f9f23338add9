"""What was received is shown and not obeyed: in a terminal, in a spreadsheet, in a page."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks that change the direction of writing, lone surrogates."""


def for_terminal(text: object) -> str:
    """Return a text in which what a terminal would obey is written out; newlines and tabs stay.

    Examples
    --------
    >>> for_terminal("the " + chr(27) + "[31mNile")
    'the ␛[31mNile'
    """
    return _OBEYED.sub(lambda m: _picture(m[0]), str(text))


def in_one_line(text: object) -> str:
    r"""Return a text as `for_terminal` does, with newlines and tabs shown too.

    Examples
    --------
    >>> in_one_line("two\n\tlines")
    'two⏎⇥lines'
    """
    return for_terminal(str(text).replace("\n", "⏎").replace("\t", "⇥"))


def for_cell(value: object) -> object:
    """Return a value for a table of a spreadsheet; a string that it would run as a formula begins with an apostrophe.

    Examples
    --------
    >>> for_cell("=1+1"), for_cell("Nile"), for_cell(-0.5)
    ("'=1+1", 'Nile', -0.5)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@\t\r\n")) else value


def say(text: object, err: bool = False) -> None:
    """Print a text on the terminal, as `for_terminal` shows it."""
    import typer

    typer.echo(for_terminal(text), err=err)


def page_policy(scripts: Sequence[str] = (), styles: Sequence[str] = ()) -> str:
    """Return the ``<meta>`` of a page in which nothing runs, loads or paints but these scripts and style sheets.

    Parameters
    ----------
    scripts, styles : sequence of str
        All that stands between the tags of each ``<script>`` and ``<style>``, to the last space.
    """
    allowed = [
        f"{kind}-src {' '.join(map(_hash, texts))}" for kind, texts in (("script", scripts), ("style", styles)) if texts
    ]
    policy = "; ".join(["default-src 'none'", "base-uri 'none'", "form-action 'none'", "img-src data:", *allowed])
    return f'<meta http-equiv="Content-Security-Policy" content="{policy}">'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _picture(c: str) -> str:
    if c < " ":
        return chr(0x2400 + ord(c))
    return "␡" if c == "\x7f" else c.encode("unicode_escape").decode()
