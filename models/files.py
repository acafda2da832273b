"""The first look at a file from a person: is it there, and is there anything in it."""

from __future__ import annotations

from pathlib import Path

from models.errors import BadInput


def check_given(source: str | Path | bytes, what: str) -> None:
    """Raises `BadInput` if there is no such file, or nothing in it.

    Args:
        source: a path, or the file's bytes.
        what: how the message calls it: "picture".
    """
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise BadInput(f"There is no {what} called {Path(source).name!r}. Choose a file that exists.")
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    if size == 0:
        raise BadInput(f"The {what} is empty (0 bytes). Choose another file.")
