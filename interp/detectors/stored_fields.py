"""The fields of a stored detector that are no tensors, read by the types that its class declares."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from interp.storage.typed_json import from_json

_FINITE = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class _FittedOn:
    """What a stored detector says about its fit, as far as it is read again."""

    model: str
    weights_hash: str | None = None
    template_hash: str | None = None
    prompts: dict[str, Any] | None = None
    counts: dict[str, int] | None = None


def stored_fields(kind: type[Any], text: str, path: Path, *, remedy: str) -> dict[str, Any]:
    """The fields by name.

    Args:
        kind: class of the detector.
        text: JSON of its file.
        remedy: what to do about a damaged file, as the end of the message.

    Raises:
        ValueError: no JSON object, or a field of another type than the class declares.
    """
    about = from_json(dict[str, Any], text, source=f"{path}, metadata guard")
    hints = {name: hint for name, hint in get_type_hints(kind, include_extras=True).items() if name in about}
    for name, hint in {**hints, "fitted_on": _FittedOn}.items():
        try:
            adapter = TypeAdapter(hint, config=None if hint is _FittedOn else _FINITE)
            value = adapter.validate_python(about.get(name))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place, message = ".".join(map(str, (name, *first["loc"]))), first["msg"].lower()
            raise ValueError(f"{path} is damaged ({place}: {message}); {remedy}") from None
        about[name] = about[name] if hint is _FittedOn else value
    return about
