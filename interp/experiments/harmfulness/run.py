"""LLMs Encode Harmfulness and Refusal Separately (Zhao et al. 2025, arXiv:2507.11878).

| claim | where | theirs | ours counts as the same when |
|---|---|---|---|
| without the template's tokens after the instruction refusal drops | table 1 | 96-100% -> 59-85% | intervals apart |
| at `t_inst` states group by harm | figure 2, top | accepted harmful > 0 > refused harmless | means apart from 0 |
| at `t_post_inst` they group by refusal | figure 2, bottom | the signs flip | means apart from 0 |
| the two directions are nearly orthogonal | section 3.2 | cosine about 0.1 | mean over layers below 0.2 |
| beliefs separate the four groups | figure 3 | Llama-2 | each tells its own label better than the other's |
| adding either direction induces refusal | figure 4 | 94%, 100% at their best layers | apart from random |
| in the inverted question harmfulness moves the verdict with its sign | figure 5 | 94% -> 0% "No" | apart from random |
| refusal pushes towards refusing tokens instead | figure 5 | stays 72-98% | apart from harmfulness |
| only `t_inst` carries harm | figure 14 | position 0 alone has both signs | as there |

Every panel that reads or steers at `t_inst` is shown with prompts as they are, stripped, and ended by a full stop: that
token is how a prompt ends before it is anything else, and public sets end differently
(`interp.representations.confounds`).

Jailbreaks, categories, fine-tuning and the guard of the same paper are experiments of their own.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Ending, Kind, Prompts, PromptSet, Split, load_prompts
from interp.display.progress import progress
from interp.engine.activations import collect
from interp.evaluation.records import GROUPS
from interp.evaluation.responses import respond
from interp.experiments.harmfulness.analysis import (
    LEAST,
    Anchors,
    Groups,
    beliefs,
    clusters,
    geometry,
    positions_margin,
    yardstick,
)
from interp.experiments.harmfulness.report import figures, rate_table, report, verdicts
from interp.experiments.harmfulness.steering import (
    Directions,
    choose_question,
    inversion_sweep,
    position_sweep,
    refusal_sweep,
)
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.representations.beliefs import belief, fit_centres, states
from interp.representations.confounds import leak_check
from interp.stats import auroc, rate
from interp.storage.provenance import provenance
from interp.storage.untyped import ExperimentResult, Parts, Stopwatch

logger = logging.getLogger(__name__)

__all__ = ["NAME", "SUMMARY", "Config", "Result", "figures", "rate_table", "report", "run", "verdicts"]

NAME = "harmfulness"
SUMMARY = "harmfulness and refusal apart: clusters, beliefs, geometry, steering, inversion (Zhao et al. 2025)"
ENDINGS: tuple[Ending, ...] = ("as-is", "strip", "period")
_HARMLESS: tuple[tuple[Kind, Split], ...] = (("harmless", "test"), ("borderline", "test"))
_LEAST_ANCHORS = 8


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the paper's unless a reason is given."""

    n_train: int = 100
    """Prompts of each kind whose refused or accepted ones centres and directions are fitted on (section 5)."""
    n_test: int = 100
    """Held-out prompts of each kind."""
    anchors: str = ""
    """Prompt set whose accepted harmless/train prompts are harmless anchors from another source, a confound check;
    when empty, the set's own borderline/train prompts."""
    n_steer: int = 24
    """Harmless prompts that are steered towards refusal (figure 4)."""
    steer_every: int = 2
    """Layers between those that are steered; the paper steers each."""
    coefficient: float = 1.0
    """Multiples of the raw difference in means (section 3.3)."""
    n_invert: int = 24
    """Prompts of each kind that the inverted question is asked of (figure 5; the demo of the source has 50)."""
    invert_every: int = 3
    """Layers between those steered there."""
    invert_coefficient: float = 2.0
    """Multiples of the raw difference in means there (the released command for Qwen2)."""
    least_gap: float = 0.5
    """How much more often the unsteered model must answer right than wrong before the inversion is steered."""
    max_new_tokens: int = 24
    """Length of a reply; a refusal shows in its first words (the paper: 128)."""
    verdict_tokens: int = 12
    """Length of a reply to the inverted question (the demo of the source: 100)."""
    draws: int = 200
    """Bootstrap draws and shuffled labellings."""
    seed: int = 0
    """Of the controls and the bootstrap."""

    def __post_init__(self) -> None:
        for name in ("n_train", "n_test", "n_steer", "steer_every", "n_invert", "invert_every", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(ExperimentResult):
    """What a run found."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """`directions/{ending}` [role, layer, d_model], layers 0..L: harmfulness at `t_inst`, refusal at `t_post_inst`."""


class _Context(NamedTuple):
    """What every step needs."""

    model: ChatModel
    config: Config
    keep: Callable[[str, Callable[[], Any]], Any]
    show: bool

    def watch(self, items: Iterable[Any], label: str) -> Iterable[Any]:
        listed = list(items)
        return progress(listed, total=len(listed), label=label, show=self.show)

    def under(self, ending: str) -> Callable[[str, Callable[[], Any]], Any]:
        """`keep` with names of this ending."""
        return lambda name, compute: self.keep(f"{ending}-{name}", compute)


class _Part(NamedTuple):
    """Prompts of one kind and split under one ending, and what the model does with them."""

    prompts: Prompts
    full: list[bool]
    """Refused, from the whole prompt."""
    cut: list[bool]
    """Refused, from the prompt cut after the instruction."""
    silent: list[bool]
    """No word, from the prompt cut after the instruction; the source counts that as refused."""
    states: Float[Tensor, "prompt layer role d_model"]


Measured = Mapping[tuple[Kind, Split], _Part]


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
        ValueError: a set whose endings were changed already, or too few prompts that the model refuses or accepts.
    """
    config = config or Config()
    if prompts.ending != "as-is":
        raise ValueError("the experiment compares endings itself; load its prompts with ending='as-is'")
    watch, parts = Stopwatch(), None
    if out is not None:
        settings = {"config": asdict(config), "model": model.provenance, "prompts": prompts.provenance}
        parts = Parts(out, settings)
    context = _Context(model, config, parts.numbers if parts else lambda _, compute: compute(), show_progress)
    chosen = _chosen(prompts, config)

    numbers: dict[str, Any] = {"experiment": NAME, "endings": list(ENDINGS)}
    per_ending = ("table1", "counts", "leak", "clusters", "beliefs", "geometry", "yardstick", "anchors")
    numbers |= {key: {} for key in (*per_ending, "steering", "inversion")}
    tensors: dict[str, Tensor] = {}
    inverted = context.keep("inversion-question", lambda: _question(context, prompts))
    watch.lap("inversion question")
    for ending in ENDINGS:
        measured = _measure(context, chosen, ending)
        watch.lap("replies and states")
        anchors = _anchors(model, measured)
        found = _read(context, measured, anchors, ending)
        for key in per_ending:
            numbers[key][ending] = found[key]
        watch.lap("reading")
        both = anchors.directions()
        tensors[f"directions/{ending}"] = both
        directions = Directions(harmfulness=both[0, :-1], refusal=both[1, :-1])
        numbers["steering"][ending] = _steer(context, measured, directions, ending)
        watch.lap("steering")
        if inverted["gap"] >= config.least_gap:
            numbers["inversion"][ending] = _invert(
                context, measured, directions, ending, inverted["question"]
            )
        watch.lap("inversion")
        if ending == "as-is":
            numbers["positions"] = _positions(context, measured, inverted)
            watch.lap("positions")
    numbers["inversion_question"] = inverted
    numbers["seconds"] = watch.with_total
    numbers["provenance"] = provenance(model.provenance, prompts.provenance, config)
    result = Result(numbers=numbers, tensors=tensors)
    if out is not None:
        result.save(out)
        assert parts is not None
        parts.discard()
    return result


# Section 3.1 and appendix B: prompts, replies, the four groups


def _chosen(prompts: PromptSet, config: Config) -> dict[tuple[Kind, Split], Prompts]:
    """The prompts used; borderline ones are builtin's where the set has none, other anchors where they are named."""
    builtin = load_prompts("builtin") if ("borderline", "test") not in prompts else prompts
    found: dict[tuple[Kind, Split], Prompts] = {
        ("harmful", "train"): prompts["harmful", "train"].first(config.n_train),
        ("harmless", "train"): prompts["harmless", "train"].first(config.n_train),
        ("harmful", "test"): prompts["harmful", "test"].first(config.n_test),
        ("harmless", "test"): prompts["harmless", "test"].first(config.n_test),
        ("borderline", "test"): builtin["borderline", "test"].first(config.n_test),
    }
    if config.anchors:
        found["borderline", "train"] = load_prompts(config.anchors)["harmless", "train"].first(config.n_train)
    elif ("borderline", "train") in builtin:
        found["borderline", "train"] = builtin["borderline", "train"].first(config.n_train)
    return found


def _measure(
    context: _Context, chosen: Mapping[tuple[Kind, Split], Prompts], ending: Ending
) -> dict[tuple[Kind, Split], _Part]:
    """Replies to whole and truncated prompts, and states, of every part under one ending."""
    model, config = context.model, context.config
    measured = {}
    for (kind, split), part in context.watch(chosen.items(), f"replies, {ending}"):
        ended = part.with_ending(ending)
        tokens = tokenize(model.tokenizer, ended.texts)

        def replies(ended: Prompts = ended, tokens: Any = tokens) -> dict[str, list[bool]]:
            most = config.max_new_tokens
            full = respond(model, ended, tokens=tokens, substrings="zhao", max_new_tokens=most)
            cut = respond(model, ended, tokens=tokens.truncated(), substrings="zhao", max_new_tokens=most)
            return {
                "full": list(full.refused),
                "cut": list(cut.refused),
                "silent": [not reply.strip() for reply in cut.replies],
            }

        refused = context.keep(f"{ending}-replies-{kind}-{split}", replies)
        read = states(model, tokens)
        measured[kind, split] = _Part(ended, refused["full"], refused["cut"], refused["silent"], read)
    return measured


def _anchors(model: ChatModel, measured: Measured) -> Anchors:
    """Refused harmful and accepted harmless training prompts."""
    bad, good = measured["harmful", "train"], measured["harmless", "train"]
    refused, accepted = torch.tensor(bad.full), ~torch.tensor(good.full)
    for does, count, of in (
        ("refuses", int(refused.sum()), "harmful"),
        ("accepts", int(accepted.sum()), "harmless"),
    ):
        if count < _LEAST_ANCHORS:
            raise ValueError(
                f"{model.name} {does} only {count} of {len(refused)} {of} train prompts, at least {_LEAST_ANCHORS} are "
                "needed for centres: use an aligned model, other prompts, or more of them (n_train)"
            )
    return Anchors(harmful=bad.states[refused], harmless=good.states[accepted])


def _groups(measured: Measured, label: str) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """States and ids of the four behaviour groups among held-out prompts, by the `full` or `cut` reply.

    A truncated prompt that got no word at all is in no group: a model that ends the turn there says nothing of harm.
    """
    pools: dict[str, tuple[tuple[Kind, Split], ...]] = {
        "harmful": (("harmful", "test"),),
        "harmless": _HARMLESS,
    }
    found: dict[str, Tensor] = {}
    ids: dict[str, list[str]] = {}
    for kind, keys in pools.items():
        every = torch.cat([measured[key].states for key in keys])
        names = [i for key in keys for i in measured[key].prompts.ids]
        flags = [flag for key in keys for flag in _flags(measured[key], label)]
        for does, wanted in (("refused", True), ("accepted", False)):
            rows = [row for row, flag in enumerate(flags) if flag == wanted]
            found[f"{does} {kind}"] = every[rows]
            ids[f"{does} {kind}"] = [names[row] for row in rows]
    return {name: found[name] for name in GROUPS}, ids


def _flags(part: _Part, label: str) -> list[bool | None]:
    """Refused or not, by the reply to the whole or to the truncated prompt; None where that has no word."""
    if label == "full":
        return list(part.full)
    return [None if silent else flag for flag, silent in zip(part.cut, part.silent, strict=True)]


# Sections 3.2, 3.3 and 4: reading


def _read(context: _Context, measured: Measured, anchors: Anchors, ending: Ending) -> dict[str, Any]:
    config = context.config
    full, ids = _groups(measured, "full")
    cut, _ = _groups(measured, "cut")
    at_inst = _at_inst(measured, anchors, full, cut)
    bad, good = measured["harmful", "test"], measured["harmless", "test"]
    leak = leak_check(
        context.model,
        train=(measured["harmful", "train"].prompts, measured["harmless", "train"].prompts),
        held_out=(bad.prompts, good.prompts),
        label=f"{bad.prompts.source}, {ending}",
    )
    control = {"draws": config.draws, "seed": config.seed}
    return {
        "table1": {
            f"{kind} {split}": {
                "full": rate(p.full).as_dict(),
                "truncated": rate(p.cut).as_dict(),
                "silent": rate(p.silent).as_dict(),
            }
            for (kind, split), p in measured.items()
            if split == "test"
        },
        "counts": {name: {"full": len(full[name]), "truncated": len(cut[name])} for name in GROUPS},
        "leak": leak.as_dict(),
        "clusters": {
            "t_inst": {**clusters(at_inst.groups, at_inst.anchors, 0, **control), "labels": at_inst.labels},
            "t_post_inst": {**clusters(full, anchors, 1, **control), "labels": "full"},
        },
        "beliefs": beliefs(full, ids, anchors, seed=config.seed),
        "geometry": geometry(anchors, resamples=config.draws, seed=config.seed),
        "yardstick": yardstick(full, anchors),
        "anchors": _other_anchors(measured, anchors, full, config.seed),
    }


class _AtInst(NamedTuple):
    """Groups and anchors of the clusters at `t_inst`, and whose reply they are by."""

    groups: Groups
    anchors: Anchors
    labels: str


def _at_inst(measured: Measured, anchors: Anchors, full: Groups, cut: Groups) -> _AtInst:
    """By the truncated prompt's reply, as the source wants it, where that fills the groups; else by the whole one's."""
    bad, good = measured["harmful", "train"], measured["harmless", "train"]
    refused = torch.tensor([flag is True for flag in _flags(bad, "cut")])
    accepted = torch.tensor([flag is False for flag in _flags(good, "cut")])
    filled = min(int(refused.sum()), int(accepted.sum())) >= _LEAST_ANCHORS
    if not filled or min(len(cut["accepted harmful"]), len(cut["refused harmless"])) < LEAST:
        return _AtInst(full, anchors, "full")
    truncated = Anchors(harmful=bad.states[refused], harmless=good.states[accepted])
    return _AtInst(cut, truncated, "truncated")


def _other_anchors(measured: Measured, anchors: Anchors, groups: Groups, seed: int) -> dict[str, Any] | None:
    """Harm belief with harmless anchors from another source than the harmless test prompts: a confound check."""
    if ("borderline", "train") not in measured:
        return None
    other = measured["borderline", "train"]
    accepted = ~torch.tensor(other.full)
    if int(accepted.sum()) < _LEAST_ANCHORS:
        return None
    positive = anchors.harmful[:, :, 0]
    found: dict[str, Any] = {"source": other.prompts.source, "n": int(accepted.sum())}
    negatives = {"same source": anchors.harmless[:, :, 0], "other source": other.states[accepted][:, :, 0]}
    keys: tuple[tuple[Kind, Split], ...] = (("harmful", "test"), *_HARMLESS)
    test = [measured[key].states[:, :, 0] for key in keys]
    for name, negative in negatives.items():
        centres = fit_centres(positive, negative)
        bad, good, borderline = (belief(centres.margin(part)).float() for part in test)
        found[name] = {
            "harmful against harmless": auroc(bad, good, seed=seed).as_dict(),
            "harmful against borderline": auroc(bad, borderline, seed=seed).as_dict(),
            "called harmful": {
                group: rate((belief(centres.margin(part[:, :, 0])) > 0).tolist()).as_dict()
                for group, part in groups.items()
            },
        }
    return found


# Section 3.3: steering towards refusal


def _steer(
    context: _Context, measured: Measured, directions: Directions, ending: Ending
) -> dict[str, Any] | None:
    config, model = context.config, context.model
    part = measured["harmless", "test"]
    answered = [row for row, refused in enumerate(part.full) if not refused][: config.n_steer]
    if len(answered) < LEAST:
        return None
    return refusal_sweep(
        model,
        directions,
        part.prompts.take(answered),
        layers=range(0, model.n_layers, config.steer_every),
        coefficient=config.coefficient,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        keep=context.under(ending),
        watch=context.watch,
    )


# Section 3.4: reply inversion


def _question(context: _Context, prompts: PromptSet) -> dict[str, Any]:
    config = context.config
    texts = [prompts[kind, "val"].first(config.n_invert).texts for kind in ("harmful", "harmless")]
    return choose_question(context.model, texts[0], texts[1], max_new_tokens=config.verdict_tokens)


def _invert(
    context: _Context, measured: Measured, directions: Directions, ending: Ending, question: int
) -> dict[str, Any]:
    config, model = context.config, context.model
    return inversion_sweep(
        model,
        directions,
        {
            kind: measured[kind, "test"].prompts.first(config.n_invert).texts
            for kind in ("harmless", "harmful")
        },
        question=question,
        layers=range(0, model.n_layers, config.invert_every),
        coefficient=config.invert_coefficient,
        max_new_tokens=config.verdict_tokens,
        seed=config.seed,
        keep=context.under(ending),
        watch=context.watch,
    )


# Appendix F: other token positions


def _positions(context: _Context, measured: Measured, inverted: Mapping[str, Any]) -> dict[str, Any]:
    """Margins, and where the inversion works steering, from two tokens before `t_inst` to the last one."""
    config, model = context.config, context.model
    n_post = min(tokenize(model.tokenizer, part.prompts.texts).n_post for part in measured.values())
    wanted = list(range(-(n_post + 3), 0))
    names = [str(k) for k in range(-2, n_post + 1)]

    def widened(key: tuple[Kind, Split]) -> _Part:
        part = measured[key]
        found = collect(model, part.prompts.texts, sites=("resid_pre", "resid_post"), positions=wanted)
        every = torch.cat([found["resid_pre"], found["resid_post"][:, -1:]], dim=1)
        return part._replace(states=every)

    wide = {key: widened(key) for key in measured if key != ("borderline", "train")}
    anchors, (groups, _) = _anchors(model, wide), _groups(wide, "full")
    found: dict[str, Any] = {"names": names, "margins": positions_margin(groups, anchors, names)}
    if inverted["gap"] >= config.least_gap:
        layers = list(range(0, model.n_layers, 2 * config.invert_every))
        found["layers"] = layers
        found["inversion"] = position_sweep(
            model,
            anchors.directions()[:, :-1],
            measured["harmless", "test"].prompts.first(config.n_invert).texts,
            question=inverted["question"],
            layers=layers,
            coefficient=config.invert_coefficient,
            max_new_tokens=config.verdict_tokens,
            keep=context.keep,
            watch=context.watch,
        )
    return found
