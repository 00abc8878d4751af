"""Jailbreaks: which of the two beliefs moves when a wrapped request gets past the model?

Zhao et al. 2025, *LLMs Encode Harmfulness and Refusal Separately* (arXiv:2507.11878), section 4.

| claim (figure 6) | theirs, ranges read off it | seen here when |
|---|---|---|
| every family lowers the refusal belief | -0.19..0.00, refused harmful 0.21..0.33 | lower, beyond wrapped harmless |
| template, suffix keep the harm belief | 0.00..0.15, refused harmful 0.04..0.15 | most successes on the harmful side |
| part of persuasion flips it | -0.07..-0.02 and 0.07..0.13 | more on the harmless side than plain requests |

Both beliefs (`interp.representations.beliefs`) are read once per prompt: harm at `t_inst` of the whole user message,
refusal at `t_post_inst`. Centres come from training prompts that behave: harmful refused, harmless answered. A
jailbreak succeeds when a request that is refused plainly is answered when wrapped; only successes are plotted and
tested. Each request is its own control (paired test against the plain request); the same wrappers around harmless
requests show what wrapping does by itself, and wrapped requests that are still refused what success adds.

A reply that does not refuse need not be harmful. Where the message ends in the wrapper and not in the request, `t_inst`
is a token of the wrapper: everything read there is shown with all messages ended by a full stop as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Ending, Kind, Prompts, PromptSet, with_ending
from interp.data.wrappers import (
    Attempt,
    Wrapper,
    attempts,
    find_suffixes,
    read_attacks,
    read_suffixes,
    wrappers,
)
from interp.evaluation.responses import Responses, respond
from interp.experiments.jailbreaks.report import ENDINGS, figures, rate_table, report, verdicts
from interp.experiments.jailbreaks.shifts import BELIEFS, shifts, success
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import Centres, belief, fit_centres, states
from interp.storage.provenance import provenance
from interp.storage.untyped import ExperimentResult, Parts, Stopwatch

__all__ = ["NAME", "SUMMARY", "Config", "Result", "figures", "rate_table", "report", "run", "verdicts"]

NAME = "jailbreaks"
SUMMARY = (
    "what jailbreaks move: the belief that a request is harmful, or that it is refused (Zhao et al. 2025)"
)
_LEAST = 8
_CHUNK = 128
"""Prompts whose states are held at a time."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    families: tuple[str, ...] = ("template", "persuasion")
    """Families of wrappers of `interp.data.wrappers`."""
    suffixes: str = ""
    """File of adversarial suffixes, one a line."""
    attacks: str = ""
    """File of further jailbreaks: wrappers, or finished prompts with the request each is for."""
    n_found: int = 0
    """Refused training requests for each of which a suffix is searched (needs nanogcg); 0 is none."""
    search_steps: int = 100
    """Steps of a search (the package's default is 250)."""
    search_width: int = 512
    """Candidates a step (the package's default)."""
    n_train: int = 100
    """Prompts of each kind that the centres are fitted on, before filtering (the paper's guard has 100)."""
    n_test: int = 50
    """Requests of each kind that are wrapped."""
    max_new_tokens: int = 24
    """Length of the replies that say what is refused."""
    seed: int = 0
    """Of the bootstrap and of the search for suffixes."""

    def __post_init__(self) -> None:
        for name in ("n_train", "n_test", "max_new_tokens", "search_steps", "search_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        wrappers(self.families)  # an unknown family is refused here


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(ExperimentResult):
    """What a run found."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Centres [layer, d_model]: `{harm, refusal}/{ending}/{positive, negative}`."""


def run(
    model: ChatModel,
    prompts: PromptSet,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> Result:
    """Run the experiment.

    Args:
        out: run folder; finished parts are kept beside it until the run is whole, and a run started again continues.

    Raises:
        ValueError: too few prompts that the model refuses or answers, or prompts whose endings were changed already.
    """
    config = config or Config()
    if prompts.ending != "as-is":
        raise ValueError(f"this experiment compares endings itself; load {prompts.name} with ending='as-is'")
    watch, parts = Stopwatch(), None
    if out is not None:
        settings = {"config": asdict(config), "model": model.provenance, "prompts": prompts.provenance}
        parts = Parts(out, settings)

    def see(name: str, asked: Prompts) -> Responses:
        def replies() -> dict[str, Any]:
            seen = respond(
                model,
                asked,
                substrings="zhao",
                max_new_tokens=config.max_new_tokens,
                show_progress=show_progress,
            )
            return {"refused": list(seen.refused), "replies": list(seen.replies)}

        stored = parts.numbers(name, replies) if parts else replies()
        return Responses(prompts=asked, refused=tuple(stored["refused"]), replies=tuple(stored["replies"]))

    # 1. Centres of both beliefs, on training prompts that behave.
    kinds: tuple[Kind, ...] = ("harmful", "harmless")
    train = {kind: see(f"train-{kind}", prompts[kind, "train"].first(config.n_train)) for kind in kinds}
    behaving: dict[Kind, Prompts] = {
        kind: train[kind].prompts.take(train[kind].rows(refused=kind == "harmful")) for kind in kinds
    }
    wanted: dict[Kind, str] = {"harmful": "refuses", "harmless": "answers"}
    for kind, does in wanted.items():
        if len(behaving[kind]) < _LEAST:
            raise ValueError(
                f"{model.name} {does} only {len(behaving[kind])} of {len(train[kind])} {kind} training prompts; at "
                f"least {_LEAST} are needed: use an aligned model, or other prompts"
            )
    fitted = {ending: _fit(model, behaving, ending) for ending in ENDINGS}
    watch.lap("centres")

    # 2. Requests, plain and wrapped; which wrapped ones get past the model.
    around = wrappers(config.families)
    finished: list[Attempt] = []
    if config.suffixes:
        around += read_suffixes(config.suffixes)
    if config.attacks:
        more, finished = read_attacks(config.attacks)
        around += more
    if config.n_found:

        def search() -> list[dict[str, str]]:
            return [
                asdict(w)
                for w in find_suffixes(
                    model,
                    behaving["harmful"].first(config.n_found),
                    steps=config.search_steps,
                    search_width=config.search_width,
                    seed=config.seed,
                )
            ]

        around += [Wrapper(**w) for w in (parts.numbers("suffixes", search) if parts else search())]
        watch.lap("search")
    tries: dict[str, list[Attempt]] = {}
    asked: dict[str, Prompts] = {}
    plain: dict[str, Responses] = {}
    for kind in kinds:
        requests = prompts[kind, "test"].first(config.n_test)
        tries[kind] = attempts(around, requests) + (finished if kind == "harmful" else [])
        asked[kind] = _with_requests(requests, finished if kind == "harmful" else [])
        plain[kind] = see(f"plain-{kind}", asked[kind])
    wrapped = {kind: see(f"wrapped-{kind}", _as_prompts(tries[kind], f"wrapped {kind}")) for kind in kinds}
    watch.lap("replies")

    # 3. Both beliefs of every prompt, with both endings.
    points: list[dict[str, Any]] = []
    for kind in kinds:
        for label, seen in (("plain", plain[kind]), ("wrapped", wrapped[kind])):

            def read(seen: Responses = seen) -> dict[str, list[list[float]]]:
                return {e: beliefs_of(model, seen.prompts.texts, fitted[e], e) for e in ENDINGS}  # pyright: ignore[reportArgumentType]

            found = parts.numbers(f"beliefs-{label}-{kind}", read) if parts else read()
            points += _points(kind, label, seen, asked[kind], tries[kind], found)
    watch.lap("beliefs")

    numbers = {
        "experiment": NAME,
        "counts": {
            "train": {kind: {"kept": len(behaving[kind]), "of": len(train[kind])} for kind in kinds},
            "plain": {
                kind: {"refused": len(plain[kind].rows(refused=True)), "of": len(plain[kind])}
                for kind in kinds
            },
        },
        "points": points,
        "success": success(points, seed=config.seed),
        "shifts": {ending: shifts(points, ending, seed=config.seed) for ending in ENDINGS},
        "seconds": watch.with_total,
        "provenance": provenance(model.provenance, prompts.provenance, config),
    }
    tensors = {
        f"{name}/{ending}/{side}": getattr(centres, side)
        for ending, pair in fitted.items()
        for name, centres in zip(BELIEFS, pair, strict=True)
        for side in ("positive", "negative")
    }
    result = Result(numbers=numbers, tensors=tensors)
    if out is not None:
        result.save(out)
        assert parts is not None
        parts.discard()
    return result


def _fit(model: ChatModel, behaving: Mapping[Kind, Prompts], ending: Ending) -> tuple[Centres, Centres]:
    """Centres of harmful and harmless at `t_inst`, and of refused and answered at `t_post_inst`."""
    bad, good = (states(model, behaving[kind].with_ending(ending).texts) for kind in ("harmful", "harmless"))
    return fit_centres(bad[:, :, 0], good[:, :, 0]), fit_centres(bad[:, :, 1], good[:, :, 1])


def beliefs_of(
    model: ChatModel, texts: Sequence[str], centres: tuple[Centres, Centres], ending: Ending
) -> list[list[float]]:
    """Harm belief at `t_inst` and refusal belief at `t_post_inst` of every prompt; equations 3 and 4."""
    found: list[list[float]] = []
    for start in range(0, len(texts), _CHUNK):
        read = states(model, [with_ending(text, ending) for text in texts[start : start + _CHUNK]])
        both: Float[Tensor, "prompt belief"] = torch.stack(
            [belief(one.margin(read[:, :, role])) for role, one in enumerate(centres)], dim=1
        )
        found += both.tolist()
    return found


def _with_requests(requests: Prompts, finished: Iterable[Attempt]) -> Prompts:
    """The requests, and those that finished jailbreaks of a file are for."""
    more = [text for text in dict.fromkeys(a.request for a in finished) if text not in requests.texts]
    return Prompts(
        requests.texts + tuple(more),
        requests.ids + tuple(f"file-{i}" for i in range(len(more))),
        requests.categories + (None,) * len(more),
        requests.source,
    )


def _as_prompts(tried: Sequence[Attempt], source: str) -> Prompts:
    ids = tuple(f"{attempt.wrapper}-{i}" for i, attempt in enumerate(tried))
    return Prompts(tuple(attempt.prompt for attempt in tried), ids, (None,) * len(tried), source)


def _points(
    kind: str,
    label: str,
    seen: Responses,
    asked: Prompts,
    tried: Sequence[Attempt],
    found: Mapping[str, list[list[float]]],
) -> list[dict[str, Any]]:
    """A row for every prompt: what it is, what the model did, its two beliefs by ending."""
    ids = dict(zip(asked.texts, asked.ids, strict=True))
    return [
        {
            "kind": kind,
            "family": tried[i].family if label == "wrapped" else "plain",
            "wrapper": tried[i].wrapper if label == "wrapped" else "plain",
            "id": ids[tried[i].request if label == "wrapped" else seen.prompts.texts[i]],
            "refused": refused,
            **{ending: found[ending][i] for ending in ENDINGS},
        }
        for i, refused in enumerate(seen.refused)
    ]
