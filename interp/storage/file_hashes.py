"""SHA-256 of files: read anew, or remembered for as long as a file has the same size and time.

file_sha256(Path("model.safetensors"))        # proves the bytes that are on the disk now
remembered_sha256(Path("model.safetensors"))  # tells files apart that nobody damages, many times in one process
"""

import hashlib
from functools import cache
from pathlib import Path

from interp.storage.paths import expanded


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with expanded(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """`file_sha256`, computed once for each path, size, time of modification and inode.

    Raises:
        OSError: it cannot be read.
    """
    facts = path.stat()
    return _sha256_of(path.resolve(), facts.st_size, facts.st_mtime_ns, facts.st_ino)


@cache
def _sha256_of(path: Path, *_: int) -> str:
    return file_sha256(path)
