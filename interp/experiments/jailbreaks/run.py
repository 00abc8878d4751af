"""The method of the jailbreak experiment.

Steps (`run`), on the fixed splits of a prompt set:

1. centres of both beliefs (`interp.representations.beliefs`) from training prompts that behave: harmful refused,
   harmless answered;
2. test requests, plain and in every wrapper: a jailbreak succeeds when a request that is refused plainly is answered
   when wrapped; only successes are plotted and tested;
3. both beliefs of every prompt, read once each: harm at `t_inst` of the whole user message, refusal at `t_post_inst`;
4. how far each belief of successes lies from that of their own plain requests (a paired test), beside what the same
   wrappers do to harmless requests and to requests that are still refused.

A reply that does not refuse need not be harmful. Where the message ends in the wrapper and not in the request, `t_inst`
is a token of the wrapper: everything read there is shown with all messages ended by a full stop as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import COMPARED_ENDINGS, Ending, Kind, Prompts, PromptSet, with_ending
from interp.data.suffix_search import find_suffixes
from interp.data.wrappers import Attempt, Wrapper, attempts, read_attacks, read_suffixes, wrappers
from interp.evaluation.records import BehavingCount
from interp.evaluation.responses import Responses, behaving_rows, respond
from interp.experiments.definition import Outcome
from interp.experiments.jailbreaks import Config, Point, PromptCounts, Result
from interp.experiments.jailbreaks.shifts import shifts, success
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import Centres, both_beliefs, fit_both_centres, states
from interp.representations.records import HarmAndRefusal
from interp.storage.stages import Stages

_CHUNK = 128
"""Prompts whose states are held at a time."""
BothBeliefs = HarmAndRefusal[float]


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """The experiment on one model.

    Raises:
        ValueError: too few prompts that the model refuses or answers, or prompts whose endings were changed already.
    """
    if prompts.ending != "as-is":
        raise ValueError(f"this experiment compares endings itself; load {prompts.name} with ending='as-is'")
    # 1. Centres of both beliefs, on training prompts that behave.
    train: dict[Kind, Responses] = {
        kind: _responses(model, prompts[kind, "train"].first(config.n_train), f"train-{kind}", config, stages)
        for kind in PAIRED_KINDS
    }
    behaving = _behaving(model, train)
    centres: dict[Ending, HarmAndRefusal[Centres]] = {
        ending: _fit(model, behaving, ending) for ending in COMPARED_ENDINGS
    }
    stages.lap("centres")

    # 2. Requests, plain and wrapped; which wrapped ones get past the model.
    wrapped_by, finished = _wrappers(model, behaving["harmful"], config, stages)
    asked = {
        kind: _asked(
            prompts[kind, "test"].first(config.n_test), wrapped_by, finished if kind == "harmful" else []
        )
        for kind in PAIRED_KINDS
    }
    plain = {
        kind: _responses(model, asked[kind].plain, f"plain-{kind}", config, stages) for kind in PAIRED_KINDS
    }
    wrapped = {
        kind: _responses(model, asked[kind].wrapped, f"wrapped-{kind}", config, stages)
        for kind in PAIRED_KINDS
    }
    stages.lap("replies")

    # 3. Both beliefs of every prompt, with both endings.
    points: list[Point] = []
    for kind in PAIRED_KINDS:
        points += _plain_points(
            kind, plain[kind], _read(model, plain[kind], centres, f"plain-{kind}", stages)
        )
        read = _read(model, wrapped[kind], centres, f"wrapped-{kind}", stages)
        points += _wrapped_points(kind, wrapped[kind], asked[kind], read)
    stages.lap("beliefs")

    # 4. Success, and how far each belief moves with it.
    rates = success(points, seed=config.seed)
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        counts=PromptCounts(
            train={
                kind: BehavingCount(behaving=len(behaving[kind]), of=len(train[kind]))
                for kind in PAIRED_KINDS
            },
            plain={kind: _count(kind, plain[kind]) for kind in PAIRED_KINDS},
        ),
        points=tuple(points),
        wrappers=rates.wrappers,
        families=rates.families,
        shifts={ending: shifts(points, ending, seed=config.seed) for ending in COMPARED_ENDINGS},
    )
    tensors = {
        f"{name}/{ending}/{side}": getattr(one, side)
        for ending, both in centres.items()
        for name, one in both.items()
        for side in ("positive", "negative")
    }
    return Outcome(result=result, tensors=tensors)


def _responses(model: ChatModel, prompts: Prompts, stage: str, config: Config, stages: Stages) -> Responses:
    """The model's responses to the prompts, as a stage."""

    def replies() -> tuple[tuple[bool | None, ...], tuple[str, ...]]:
        made = respond(
            model,
            prompts,
            substrings="zhao",
            max_new_tokens=config.max_new_tokens,
            show_progress=stages.show_progress,
        )
        return made.flags, made.replies

    flags, texts = stages.keep(stage, replies, tuple[tuple[bool | None, ...], tuple[str, ...]])
    return Responses(
        prompts=prompts,
        refused=tuple(flag is True for flag in flags),
        replies=texts,
        unfinished=tuple(flag is None for flag in flags),
    )


# Centres


def _behaving(model: ChatModel, train: Mapping[Kind, Responses]) -> dict[Kind, Prompts]:
    """Harmful training prompts that the model refuses, and harmless ones that it answers."""
    rows = behaving_rows(
        harmful=train["harmful"].flags, harmless=train["harmless"].flags, model_name=model.name
    )
    return {kind: train[kind].prompts.take(places) for kind, places in zip(PAIRED_KINDS, rows, strict=True)}


def _fit(model: ChatModel, behaving: Mapping[Kind, Prompts], ending: Ending) -> HarmAndRefusal[Centres]:
    harmful, harmless = (states(model, behaving[kind].with_ending(ending).texts) for kind in PAIRED_KINDS)
    return fit_both_centres(harmful, harmless)


# Requests and wrappers


def _wrappers(
    model: ChatModel, refused: Prompts, config: Config, stages: Stages
) -> tuple[list[Wrapper], list[Attempt]]:
    """The wrappers of every source, and finished jailbreaks of a file."""
    wrapped_by, finished = wrappers(config.families), list[Attempt]()
    if config.suffixes:
        wrapped_by += read_suffixes(config.suffixes)
    if config.attacks:
        more, finished = read_attacks(config.attacks)
        wrapped_by += more
    if config.n_found:

        def search() -> tuple[Wrapper, ...]:
            suffixes = find_suffixes(
                model,
                refused.first(config.n_found),
                steps=config.search_steps,
                search_width=config.search_width,
                seed=config.seed,
            )
            return tuple(suffixes)

        wrapped_by += stages.keep("suffixes", search, tuple[Wrapper, ...])
        stages.lap("search")
    return wrapped_by, finished


class _Asked(NamedTuple):
    """Requests of one kind and the jailbreaks around them."""

    plain: Prompts
    """The requests, and those that finished jailbreaks are for."""
    attempts: list[Attempt]
    wrapped: Prompts
    """The same, as prompts."""


def _asked(requests: Prompts, wrapped_by: Sequence[Wrapper], finished: Iterable[Attempt]) -> _Asked:
    tries = attempts(wrapped_by, requests) + list(finished)
    more = [text for text in dict.fromkeys(a.request for a in finished) if text not in requests.texts]
    plain = Prompts(
        requests.texts + tuple(more),
        requests.ids + tuple(f"file-{i}" for i in range(len(more))),
        requests.categories + (None,) * len(more),
        requests.source,
    )
    ids = tuple(f"{attempt.wrapper}-{i}" for i, attempt in enumerate(tries))
    texts = tuple(attempt.prompt for attempt in tries)
    return _Asked(plain, tries, Prompts(texts, ids, (None,) * len(tries), f"{requests.source}, wrapped"))


# Beliefs


def _read(
    model: ChatModel,
    responses: Responses,
    centres: Mapping[Ending, HarmAndRefusal[Centres]],
    label: str,
    stages: Stages,
) -> list[dict[Ending, BothBeliefs]]:
    """Both beliefs of every prompt, by ending."""
    texts = responses.prompts.texts
    by_ending: dict[Ending, tuple[BothBeliefs, ...]] = stages.keep(
        f"beliefs-{label}",
        lambda: {ending: tuple(beliefs_of(model, texts, both, ending)) for ending, both in centres.items()},
        dict[Ending, tuple[BothBeliefs, ...]],
    )
    return [{ending: beliefs[i] for ending, beliefs in by_ending.items()} for i in range(len(texts))]


def beliefs_of(
    model: ChatModel, texts: Sequence[str], centres: HarmAndRefusal[Centres], ending: Ending
) -> list[BothBeliefs]:
    """Harm belief at `t_inst` and refusal belief at `t_post_inst` of every prompt; equations 3 and 4."""
    beliefs: list[BothBeliefs] = []
    for start in range(0, len(texts), _CHUNK):
        read = states(model, [with_ending(text, ending) for text in texts[start : start + _CHUNK]])
        both = both_beliefs(read, centres)
        pairs = zip(both.harm.tolist(), both.refusal.tolist(), strict=True)
        beliefs += [HarmAndRefusal(harm=harm, refusal=refusal) for harm, refusal in pairs]
    return beliefs


def _plain_points(kind: Kind, plain: Responses, beliefs: Sequence[dict[Ending, BothBeliefs]]) -> list[Point]:
    """A point for every plain request with an answer."""
    ids = dict(
        zip(plain.prompts.texts, plain.prompts.ids, strict=True)
    )  # a text that is there twice is one request
    rows = zip(plain.prompts.texts, plain.flags, beliefs, strict=True)
    return [
        Point(kind=kind, family="plain", wrapper="plain", id=ids[text], refused=refused, beliefs=both)
        for text, refused, both in rows
        if refused is not None
    ]


def _wrapped_points(
    kind: Kind, wrapped: Responses, asked: _Asked, beliefs: Sequence[dict[Ending, BothBeliefs]]
) -> list[Point]:
    """A point for every wrapped request with an answer."""
    ids = dict(zip(asked.plain.texts, asked.plain.ids, strict=True))
    rows = zip(asked.attempts, wrapped.flags, beliefs, strict=True)
    return [
        Point(
            kind=kind,
            family=attempt.family,
            wrapper=attempt.wrapper,
            id=ids[attempt.request],
            refused=refused,
            beliefs=both,
        )
        for attempt, refused, both in rows
        if refused is not None
    ]


def _count(kind: Kind, plain: Responses) -> BehavingCount:
    return BehavingCount(behaving=len(plain.rows(refused=kind == "harmful")), of=len(plain))
