"""Files of named data sets: where they are looked for, whether they have changed, and how they get here.

    located(data_set("advbench"))                   # the files of each part
    fetch(data_set("xstest"))                       # from the Hub or GitHub, at the pinned revision
    adopt(data_set("xstest"), Path("Downloads"))    # a copy of files that were downloaded by hand

A set's files are in a folder of its name, or in one file of its name, below `$INTERP_DATA` (several folders, separated
as in `$PATH`), `data/` here, or the cache. SHA-256 of each file is recorded at first use and compared afterwards; a
hash that the table of sets holds is compared from the start.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from urllib.request import urlopen

from interp.data.files import DATA_SUFFIXES, ends_as_data
from interp.data.registry import DataSet, SetPart, plain_name
from interp.storage.atomic_files import replacing_file, write_file
from interp.storage.file_hashes import remembered_sha256
from interp.storage.paths import expanded

logger = logging.getLogger(__name__)

VARIABLE = "INTERP_DATA"
"""Environment variable with folders of downloaded data sets."""
GITHUB_FILES = "https://raw.githubusercontent.com"
"""Where files of GitHub repositories are served: `<address>/owner/name/commit/path`."""
_PATIENCE = 20.0
"""Seconds that a server has to answer."""
_NO_DATA = {"readme", "license", "licence", "source", "datasetinfo", "datasetinfos", "requirements"}
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?")
Files = Mapping[SetPart, Sequence[Path]]
"""Files by part of a set."""


def store_folder() -> Path:
    """The folder in the cache that data sets are downloaded to."""
    from interp.models.gguf import cache_folder

    return cache_folder() / "data"


def data_folders() -> list[Path]:
    """Folders in which data sets are looked for, the first first."""
    given = [expanded(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    return [*given, Path("data"), store_folder()]


def located(found: DataSet) -> Files | None:
    """The files of the parts of a set that are on this machine; None where no folder holds any.

    Raises:
        ValueError: a folder of the set with files of none of its parts, or two that could be the same one.
    """
    for root in data_folders():
        if files := _files_of(found, root):
            return _by_part(found, files)
    return None


def here(found: DataSet) -> bool:
    """Whether a folder holds files of a set, right or wrong."""
    return any(_files_of(found, root) for root in data_folders())


def checked_files(found: DataSet) -> Files:
    """The files of the parts of a set that are on this machine, proven to be those of its first use.

    Raises:
        ValueError: not on this machine (the message says what to download and where to put it), or changed.
    """
    parts = located(found)
    if parts is None:
        raise ValueError(how_to_get(found))
    _compare(found, parts)
    return parts


def how_to_get(found: DataSet) -> str:
    """One line on what to download and where to put it."""
    paths = list(dict.fromkeys(path for part in found.parts for path in part.download))
    shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    terms = f"licence {found.licence}" + (
        ", for an account that agreed to its terms" if found.gated and not found.github else ""
    )
    return (
        f"{found.name} is not on this machine: download {shown or 'its files'} from {found.source} ({terms}) into "
        f"{store_folder() / found.name}, or on a connected machine run `interp data fetch {found.name}`; files that "
        f"are elsewhere: `interp data fetch {found.name} --from FOLDER`, or ${VARIABLE}"
    )


def record(found: DataSet, parts: Files) -> None:
    """Write down the hashes of the files of these parts, in place of those recorded before."""
    table = _recorded()
    table[found.name] = {**table.get(found.name, {}), **_hashes(parts)}
    store_folder().mkdir(parents=True, exist_ok=True)
    write_file(_record_file(), json.dumps(table, indent=1, sort_keys=True).encode())


def fetch(found: DataSet) -> list[Path]:
    """Download a set at its pinned revision into the cache.

    Raises:
        ValueError: no connection, no such file, or terms that the account has not agreed to.
    """
    target = store_folder() / found.name
    target.mkdir(parents=True, exist_ok=True)
    paths = list(dict.fromkeys(path for part in found.parts for path in part.download))
    try:
        if found.github and found.revision and paths:
            return [_from_github(found, path, target) for path in paths]
        if found.hub is None:
            raise ValueError("its files are not recorded here")
        return _from_hub(found, paths, target)
    except Exception as error:  # the Hub's client and the HTTP library raise many classes
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"cannot download {found.name} ({reason}). {how_to_get(found)}") from error


def offered(found: DataSet, place: Path) -> Files:
    """The files of a set's parts in a folder, or in one file, that were downloaded by hand.

    Raises:
        ValueError: no data files there, or not those of the set.
    """
    place = expanded(place)
    if not place.exists():
        raise ValueError(f"no such file or folder: {place}")
    files = _data_files(place) if place.is_dir() else [place] if _is_data(place) else []
    if not files:
        raise ValueError(f"{place} holds no data files ({', '.join(DATA_SUFFIXES)})")
    return _by_part(found, files)


def adopt(found: DataSet, place: Path) -> list[Path]:
    """Copy the downloaded files of a set from a folder, or one file, into the cache.

    Raises:
        ValueError: no data files there, or not those of the set.
    """
    place = expanded(place)
    chosen = dict.fromkeys(file for of_part in offered(found, place).values() for file in of_part)
    target = store_folder() / found.name
    copied = []
    for file in chosen:
        inside = file.relative_to(place) if place.is_dir() else Path(file.name)
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(target / inside) as draft:
            shutil.copyfile(file, draft)
        copied.append(target / inside)
    return copied


def _is_data(path: Path) -> bool:
    return ends_as_data(path.name) and plain_name(_stem(path)) not in _NO_DATA


def _data_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and _is_data(path) and not any(part.startswith(".") for part in path.parts)
    )


def _files_of(found: DataSet, root: Path) -> list[Path]:
    """Data files of a set below a folder: in a folder of its name, or one file of its name."""
    if not root.is_dir():
        return []
    wanted = plain_name(found.name)
    entries = sorted(root.iterdir())
    folder = next((entry for entry in entries if entry.is_dir() and plain_name(entry.name) == wanted), None)
    if folder is not None and (files := _data_files(folder)):
        return files
    return [e for e in entries if e.is_file() and _is_data(e) and plain_name(_stem(e)) == wanted]


def _stem(path: Path) -> str:
    """A file's name without its endings, of which the last may be of a compression."""
    name = path.name
    ending = next((e for e in DATA_SUFFIXES if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def _by_part(found: DataSet, files: Sequence[Path]) -> Files:
    """The files of every part that is among these.

    Raises:
        ValueError: no part's, or several for a part that has one.
    """
    parts = {part: _part_files(found, part, files) for part in found.parts}
    if not any(parts.values()):
        paths = dict.fromkeys(Path(path).name for part in found.parts for path in part.download)
        raise ValueError(
            f"{files[0].parent} holds {', '.join(file.name for file in files[:4])}, none of them a file of "
            f"{found.name}; expected {', '.join(paths) or ', '.join(found.parts[0].files)}"
        )
    return {part: of_part for part, of_part in parts.items() if of_part}


def _part_files(found: DataSet, part: SetPart, files: Sequence[Path]) -> list[Path]:
    """The files of a part: those of its first pattern that any match; of one name, those at the published path."""
    for pattern in part.files:
        matching = [file for file in files if fnmatch(_stem(file).lower(), pattern)]
        if len(matching) > 1 and not part.several:
            same = len({file.name for file in matching}) == 1
            if same:  # a repository downloaded whole holds other releases in other folders
                matching = [file for file in matching if _is_published(file, part)] or matching
            if len({(file.parent, _SHARD.sub("", file.name)) for file in matching}) > 1:
                place, n = (matching[0].parent.parent, 2) if same else (matching[0].parent, 1)
                shown = ", ".join("/".join(file.parts[-n:]) for file in matching[:3])
                raise ValueError(
                    f"{place} holds {shown}, and {found.name} has one file of {part.label}; keep that one there"
                )
        if matching:
            return matching
    return []


def _is_published(file: Path, part: SetPart) -> bool:
    return any(file.parts[-len(parts) :] == parts for path in part.download for parts in [Path(path).parts])


def _hashes(parts: Mapping[SetPart, Sequence[Path]]) -> dict[str, dict[str, str]]:
    return {
        part.label: {file.name: remembered_sha256(file) for file in files} for part, files in parts.items()
    }


def _compare(found: DataSet, parts: Mapping[SetPart, Sequence[Path]]) -> None:
    """Compare a set's files with their published and recorded hashes; record those of parts that are used first.

    Raises:
        ValueError: a file that differs.
    """
    for part, files in parts.items():
        for file in files:
            published = part.sha256.get(file.name)
            if published is not None and remembered_sha256(file) != published:
                raise ValueError(
                    f"{file} is not the published file of {found.name}: SHA-256 {remembered_sha256(file)[:12]}, "
                    f"published {published[:12]}; download it again, or give it another name"
                )
    before, now = _recorded().get(found.name, {}), _hashes(parts)
    # By content alone: the same files may have moved to another folder, or have other names now.
    changed = [
        name for name in now if name in before and sorted(now[name].values()) != sorted(before[name].values())
    ]
    if changed:
        files = dict.fromkeys(
            str(file) for part, of_part in parts.items() for file in of_part if part.label in changed
        )
        raise ValueError(
            f"{found.name} ({', '.join(changed)}) has another content than at first use: "
            f"{', '.join(files)}; put the earlier files back, or accept these "
            f"with `interp data check {found.name} --record`"
        )
    if now.keys() - before.keys():
        try:
            record(found, parts)
        except OSError as error:
            logger.warning("the hashes of %s cannot be recorded: %s", found.name, error)


def _record_file() -> Path:
    return store_folder() / "hashes.json"


def _recorded() -> dict[str, dict[str, dict[str, str]]]:
    try:
        return json.loads(_record_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{_record_file()} cannot be read ({error}); remove it") from None


def _from_github(found: DataSet, path: str, target: Path) -> Path:
    address = f"{GITHUB_FILES}/{found.github}/{found.revision}/{path}"
    with urlopen(address, timeout=_PATIENCE) as answer:  # an address made of the table's fields
        write_file(target / Path(path).name, answer.read())
    return target / Path(path).name


def _from_hub(found: DataSet, paths: list[str], target: Path) -> list[Path]:
    from huggingface_hub import constants, hf_hub_download, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set")
    # The client retries for half a minute where there is no network.
    with urlopen(constants.ENDPOINT, timeout=_PATIENCE):
        pass
    # Where the commit is one of the GitHub repository, the Hub set is taken as it is.
    revision = None if found.github else found.revision
    assert found.hub is not None
    if not paths or found.github:
        patterns = [f"*{ending}" for ending in DATA_SUFFIXES]
        folder = snapshot_download(
            found.hub, repo_type="dataset", revision=revision, local_dir=target, allow_patterns=patterns
        )
        return _data_files(Path(folder))
    return [
        Path(hf_hub_download(found.hub, path, repo_type="dataset", revision=revision, local_dir=target))
        for path in paths
    ]
