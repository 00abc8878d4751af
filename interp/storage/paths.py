"""Paths as people write them."""

import os
from pathlib import Path
from typing import Any


def expanded(path: Any) -> Path:
    """A path with `~` and `~user` expanded; unchanged where there is no such user, so that it is said not to be there.

    `Path.expanduser` raises a RuntimeError for them, which names neither path nor user.

    Raises:
        ValueError: what is no path, such as None, a number, bytes or a list of one.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"a path is a text or a pathlib.Path, got {type(path).__name__}: {path!r:.60}")
    return Path(os.path.expanduser(path))  # noqa: PTH111
