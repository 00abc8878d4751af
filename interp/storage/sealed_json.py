"""Small JSON files of formats of ours, with a hash of their content: a number changed afterwards is seen.

write_sealed(path, "interp-watermark", 1, {"key": 7919})
read_sealed(path, "interp-watermark", 1, what="a watermark", remedy="make it again")   # {"key": 7919}
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.storage.atomic_files import write_file
from interp.storage.paths import expanded
from interp.storage.typed_json import read_json


def write_sealed(path: str | Path, name: str, version: int, content: Mapping[str, Any]) -> Path:
    """Write content under the name and version of its format, atomically."""
    path, body = expanded(path), {"format": name, "format_version": version, **content}
    write_file(path, json.dumps({**body, "sha256": _hash(body)}, indent=1).encode())
    return path


def read_sealed(path: str | Path, name: str, version: int, *, what: str, remedy: str) -> dict[str, Any]:
    """Content that `write_sealed` wrote.

    Args:
        name: name of the format.
        version: the newest version that is known.
        what: what the file holds, for messages, such as `a watermark`.
        remedy: what to do instead, as the end of the message.

    Raises:
        ValueError: no such file, a damaged or changed one, another kind of file, or one of a newer version.
    """
    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"no such file of {what}: {path}; {remedy}")
    body = read_json(path, dict[str, Any], remedy=remedy)
    if body.get("format") != name:
        raise ValueError(f"{path} is not {what}; {remedy}")
    found = body.get("format_version")
    if not isinstance(found, int) or found > version:
        raise ValueError(
            f"{path} has format_version {found}, this interp reads up to {version}; upgrade interp"
        )
    if body.pop("sha256", None) != _hash(body):
        raise ValueError(f"{path} is damaged (its content is not what was written); {remedy}")
    return {key: value for key, value in body.items() if key not in ("format", "format_version")}


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
