"""Judges by their names, as commands take them: `NAME` or `NAME=WHERE`, several with commas between them.

judges("arditi,zhao,wildguard=path/to/folder")
judges("strong_reject=http://127.0.0.1:8000/v1#some-model", cache="~/.cache/interp/judges")
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from interp.evaluation.judges.judgements import Judge
from interp.evaluation.records import REFUSAL_LISTS, RefusalList

if TYPE_CHECKING:
    from interp.models.chat_model import ChatModel


class Kind(NamedTuple):
    """A kind of judge that has a name."""

    where: str
    """What stands behind `=`; empty where nothing does."""
    summary: str
    """What it judges by, in a few words."""


KINDS: dict[str, Kind] = {
    "normalised": Kind("", "refusal substrings after Unicode normalisation, the house's list"),
    "arditi": Kind("", "refusal substrings of Arditi et al. 2024"),
    "zhao": Kind("", "refusal substrings of Zhao et al. 2025"),
    "classifier": Kind("MODEL:LABEL", "a text classifier's log-odds of the label of refusals"),
    "log_odds": Kind("MODEL", "a chat model's log-odds of Yes over No, asked whether the answer refuses"),
    "llama_guard": Kind("MODEL", "Llama Guard 1 to 3, by the template of the model's tokenizer"),
    "llama_guard_3": Kind("MODEL", "Llama Guard 3, also for a folder without a template"),
    "shieldgemma": Kind("MODEL", "ShieldGemma, three policies"),
    "wildguard": Kind("MODEL", "WildGuard: harm and refusal"),
    "harmbench": Kind("MODEL", "HarmBench's classifier of text behaviours"),
    "strong_reject": Kind("MODEL or URL#MODEL", "StrongREJECT's rubric, by a model here or an endpoint"),
}
"""Names of judges that read text alone."""
LATENT = "latent"
"""Name of the judge by beliefs at the last answer token, `latent` or `latent=MODEL`, which a room below makes."""
Maker = Callable[[str], Judge]
"""Makes a judge from what stands behind `=`."""


def load_judges(
    specs: str | Sequence[str | Judge],
    *,
    cache: str | Path | None = None,
    more: Mapping[str, Maker] | None = None,
) -> list[Judge]:
    """The judges of these names; judges that are objects already are passed through.

    Args:
        specs: names with commas between them, or a list of names and judges.
        cache: folder of replies of endpoints.
        more: makers of further kinds, by name.

    Raises:
        ValueError: an unknown name, a name without its model, or a model that cannot be loaded.
    """
    given = specs.split(",") if isinstance(specs, str) else specs
    listed = [each.strip() if isinstance(each, str) else each for each in given]
    loaded: dict[str, ChatModel] = {}
    return [
        _judge(each, cache, more or {}, loaded) if isinstance(each, str) else each for each in listed if each
    ]


def check_names(specs: Sequence[str], *, more: Sequence[str] = (LATENT,)) -> None:
    """Raise a ValueError unless every name is that of a judge, before a model is loaded."""
    for spec in specs:
        name, equals, where = spec.strip().partition("=")
        if name in more:
            continue
        if name not in KINDS:
            raise ValueError(
                f"unknown judge {name!r}; known: {', '.join([*KINDS, *more])} (those of a model as NAME=MODEL)"
            )
        wants = KINDS[name].where
        if bool(wants) != bool(where) or (equals and not where):
            raise ValueError(f"judge {name} is given as {name}{'=' + wants if wants else ''}, got {spec!r}")


def _judge(
    spec: str, cache: str | Path | None, more: Mapping[str, Maker], loaded: "dict[str, ChatModel]"
) -> Judge:
    check_names([spec], more=tuple(more))
    name, _, where = spec.partition("=")
    if name in more:
        return more[name](where)
    if name in REFUSAL_LISTS:
        from interp.evaluation.judges.text_rules import SubstringJudge

        return SubstringJudge(cast(RefusalList, name))
    if name == "classifier":
        from interp.evaluation.judges.text_rules import RefusalClassifier

        model, colon, label = where.rpartition(":")
        if not colon:
            raise ValueError(f"judge classifier is given as classifier=MODEL:LABEL, got {spec!r}")
        return RefusalClassifier(model, label)
    if name == "strong_reject" and where.startswith(("http://", "https://")):
        return _rubric_of_endpoint(where, cache)
    return _local(name, where, loaded)


_WHOLE = {"at_once": "at_once", "attempts": "attempts", "max_tokens": "max_tokens"}
_NUMBERS = {"per_minute": "requests_per_minute", "timeout": "timeout", "temperature": "temperature"}
_PRICES = ("input_price", "output_price")
ENDPOINT_OPTIONS = (*_NUMBERS, *_WHOLE, *_PRICES)
"""What may stand behind an endpoint's model, as in `URL#MODEL?per_minute=60&input_price=0.15`; prices are those of a
million tokens."""


def _rubric_of_endpoint(where: str, cache: str | Path | None) -> Judge:
    from interp.evaluation.judges.endpoints import Endpoint
    from interp.evaluation.judges.rubrics import RubricJudge

    url, sharp, rest = where.partition("#")
    model, _, query = rest.partition("?")
    if not sharp or not model:
        raise ValueError(f"an endpoint is given with its model, as URL#MODEL, got {where!r}")
    return RubricJudge(Endpoint(url, model, cache=cache, **_endpoint_options(query)))


def _endpoint_options(query: str) -> dict[str, Any]:
    """Arguments of an endpoint from `name=value` with `&` between them.

    Raises:
        ValueError: an unknown option, one given twice, or a value that is no positive number.
    """
    pairs = [item.partition("=") for item in query.split("&") if item]
    options: dict[str, Any] = {}
    prices = dict.fromkeys(_PRICES, 0.0)
    for name, _, text in pairs:
        if name not in ENDPOINT_OPTIONS or [each[0] for each in pairs].count(name) > 1:
            problem = "unknown" if name not in ENDPOINT_OPTIONS else "repeated"
            raise ValueError(
                f"{problem} option {name!r} of an endpoint; known: {', '.join(ENDPOINT_OPTIONS)}"
            )
        try:
            value = int(text) if name in _WHOLE else float(text)
        except ValueError:
            value = -1
        if not 0 <= value < float("inf") or (value == 0 and name in ("per_minute", "timeout", *_WHOLE)):
            wanted = "a whole number of 1 or more" if name in _WHOLE else "a positive number"
            raise ValueError(f"{name} of an endpoint must be {wanted}, got {text!r}")
        if name in _PRICES:
            prices[name] = float(value)
        else:
            options[{**_WHOLE, **_NUMBERS}[name]] = value
    return options | {"prices": (prices["input_price"], prices["output_price"])}


def _local(name: str, where: str, loaded: "dict[str, ChatModel]") -> Judge:
    from interp.evaluation.judges.guard_formats import FORMATS
    from interp.evaluation.judges.guard_judges import GuardJudge, RefusalQuestionJudge
    from interp.evaluation.judges.rubrics import LocalRespondent, RubricJudge
    from interp.models.chat_model import load

    if where not in loaded:  # one model may be asked in several ways
        loaded[where] = load(where)
    model = loaded[where]
    if name == "log_odds":
        return RefusalQuestionJudge(model)
    if name == "strong_reject":
        return RubricJudge(LocalRespondent(model))
    return GuardJudge(model, FORMATS[name.replace("_", "-")])
