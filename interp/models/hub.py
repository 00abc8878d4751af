"""Models on the Hub: whether it answers, and what of it is in the local cache.

`huggingface_hub` retries each of a model's files for tens of seconds when there is no network. One short question
beforehand tells whether there is one; where there is none, only the cache is read.
"""

from pathlib import Path
from typing import Any

_PATIENCE = 3.0
"""Seconds that the Hub has to answer before it counts as out of reach."""


def hub_options(name: str, *, revision: str | None, file: str = "config.json") -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` for a Hub id: `local_files_only` where the Hub does not answer."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    options: dict[str, Any] = {"revision": revision} if revision else {}
    if constants.HF_HUB_OFFLINE:
        return options
    try:
        get_hf_file_metadata(hf_hub_url(name, file, revision=revision), timeout=_PATIENCE)
    except HfHubHTTPError:
        return options  # it answers; `from_pretrained` says what it answers
    except Exception:  # of the HTTP library, which has changed from one version of the client to the next
        return {**options, "local_files_only": True}
    return options


def cached_commit(name: str, *, revision: str | None, file: str = "config.json") -> str | None:
    """The commit of a Hub id that is in the local cache; None where it is not. Asks no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent.name if isinstance(found, str) else None


def holds_file(name: str, file: str) -> bool:
    """Whether a Hub id has a file: in the local cache or, where it answers, on the Hub."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if cached_commit(name, revision=None, file=file) is not None:
        return True
    if constants.HF_HUB_OFFLINE or name.count("/") != 1:
        return False
    try:
        get_hf_file_metadata(hf_hub_url(name, file), timeout=_PATIENCE)
    except Exception:  # as in `hub_options`; that the model cannot be read is said where it is loaded
        return False
    return True
