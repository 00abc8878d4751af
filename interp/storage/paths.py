"""Paths as users write them."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~user` expanded; unchanged where there is no such user, so that it is said not to be there.

    `Path.expanduser` raises a RuntimeError for them, which names neither path nor user.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111
