"""The method of the harmfulness experiment.

Steps (`run`), on the fixed splits of a prompt set; all but the first and the last under each ending:

1. the inverted question that the unsteered model answers best, chosen on validation prompts (section 3.4);
2. replies to whole prompts and to prompts cut after the instruction, states at `t_inst` and `t_post_inst`, the four
   behaviour groups (section 3.1, appendix B);
3. centres and directions from training prompts that behave: refused harmful, accepted harmless (equation 5);
4. reading: clusters, beliefs, geometry, beside the leak check and anchors of another source (sections 3.1 and 3.2);
5. steering harmless prompts towards refusal (section 3.3);
6. steering the verdict on the inverted question, where the unsteered model answers it at all (section 3.4);
7. margins and inversion at other token positions (appendix F), with prompts as they are.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from interp.data.prompts import ENDINGS, Ending, Kind, PromptSet, Split
from interp.engine.activations import collect
from interp.evaluation.records import GROUPS, MIN_IN_GROUP
from interp.evaluation.responses import MIN_BEHAVING, rows_where
from interp.experiments.definition import Outcome
from interp.experiments.harmfulness import Config, Result
from interp.experiments.harmfulness.analysis import (
    Anchors,
    Groups,
    beliefs,
    clusters,
    geometry,
    positions_margin,
    yardstick,
)
from interp.experiments.harmfulness.groups import (
    HARMLESS,
    Measured,
    Part,
    behaviour_groups,
    fit_anchors,
    groups_at_inst,
    measure,
    used_prompts,
)
from interp.experiments.harmfulness.results import (
    AnchorCheck,
    AnchorReading,
    ClustersByRole,
    EndingResult,
    GroupSize,
    Positions,
    QuestionChoice,
    RefusalSweep,
    TruncationRates,
)
from interp.experiments.harmfulness.steering import (
    Directions,
    choose_question,
    inversion_sweep,
    position_sweep,
    refusal_sweep,
)
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.representations.beliefs import belief, fit_centres
from interp.representations.confounds import leak_check
from interp.stats import Estimate, auroc, rate
from interp.storage.stages import Stages


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """The experiment on one model.

    Raises:
        ValueError: a set whose endings were changed already, or too few prompts that the model refuses or accepts.
    """
    if prompts.ending != "as-is":
        raise ValueError("the experiment compares endings itself; load its prompts with ending='as-is'")
    parts = used_prompts(prompts, config)
    question = stages.keep("inversion-question", lambda: _question(model, prompts, config), QuestionChoice)
    stages.lap("inversion question")

    by_ending: dict[Ending, EndingResult] = {}
    tensors: dict[str, Tensor] = {}
    positions: Positions | None = None
    for ending in ENDINGS:
        measured = measure(model, parts, ending, config, stages)
        stages.lap("replies and states")
        anchors = fit_anchors(model, measured)
        tensors[f"directions/{ending}"] = anchors.directions()
        by_ending[ending] = _ending_result(model, measured, anchors, question, ending, config, stages)
        if ending == "as-is":
            positions = _positions(model, measured, question, config, stages)
            stages.lap("positions")
    assert positions is not None  # "as-is" is one of the endings
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        by_ending=by_ending,
        question=question,
        positions=positions,
    )
    return Outcome(result=result, tensors=tensors)


def _ending_result(
    model: ChatModel,
    measured: Measured,
    anchors: Anchors,
    question: QuestionChoice,
    ending: Ending,
    config: Config,
    stages: Stages,
) -> EndingResult:
    """Reading and steering under one ending."""
    full, cut = behaviour_groups(measured, "full"), behaviour_groups(measured, "truncated")
    at_inst = groups_at_inst(measured, anchors, full.states, cut.states)
    bad, good = measured["harmful", "test"].prompts, measured["harmless", "test"].prompts
    draws, seed = config.draws, config.seed
    reading = EndingResult(
        truncation={
            kind: TruncationRates(whole=_share(p.full), truncated=_share(p.cut), silent=_share(p.silent))
            for (kind, split), p in measured.items()
            if split == "test"
        },
        group_sizes={
            name: GroupSize(whole=len(full.ids[name]), truncated=len(cut.ids[name])) for name in GROUPS
        },
        leak=leak_check(
            model,
            train=(measured["harmful", "train"].prompts, measured["harmless", "train"].prompts),
            held_out=(bad, good),
            label=f"{bad.source}, {ending}",
        ),
        clusters=ClustersByRole(
            t_inst=clusters(at_inst.groups, at_inst.anchors, 0, labels=at_inst.label, draws=draws, seed=seed),
            t_post_inst=clusters(full.states, anchors, 1, draws=draws, seed=seed),
        ),
        beliefs=beliefs(full.states, full.ids, anchors, seed=seed),
        geometry=geometry(anchors, resamples=draws, seed=seed),
        yardstick=yardstick(full.states, anchors),
        anchors=_other_anchors(measured, anchors, full.states, seed),
        steering=None,
        inversion=None,
    )
    stages.lap("reading")
    harmfulness, refusal = anchors.directions()[:, :-1]
    directions = Directions(harmfulness=harmfulness, refusal=refusal)
    steering = _steer(model, measured, directions, ending, config, stages)
    stages.lap("steering")
    inversion = None
    if question.gap >= config.least_gap:
        texts = {
            kind: measured[kind, "test"].prompts.first(config.n_invert).texts
            for kind in ("harmless", "harmful")
        }
        inversion = inversion_sweep(
            model, directions, texts, question.question, config, stages, stage=f"{ending}-invert"
        )
    stages.lap("inversion")
    return replace(reading, steering=steering, inversion=inversion)


def _share(flags: Sequence[bool | None]) -> Estimate:
    """Share of the replies with an answer."""
    return rate([flag for flag in flags if flag is not None])


# Section 3.1: a confound check


def _other_anchors(measured: Measured, anchors: Anchors, groups: Groups, seed: int) -> AnchorCheck | None:
    """Harm belief with harmless anchors from another source than the harmless test prompts."""
    if ("borderline", "train") not in measured:
        return None
    other = measured["borderline", "train"]
    accepted = rows_where(other.full, refused=False)
    if len(accepted) < MIN_BEHAVING:
        return None
    keys: tuple[tuple[Kind, Split], ...] = (("harmful", "test"), *HARMLESS)

    def reading(negative: Tensor) -> AnchorReading:
        centres = fit_centres(anchors.harmful[:, :, 0], negative)
        bad, good, borderline = (
            belief(centres.margin(measured[key].states[:, :, 0])).float() for key in keys
        )
        return AnchorReading(
            harmless=auroc(bad, good, seed=seed),
            borderline=auroc(bad, borderline, seed=seed),
            called_harmful={
                group: rate((belief(centres.margin(hidden[:, :, 0])) > 0).tolist())
                for group, hidden in groups.items()
            },
        )

    return AnchorCheck(
        source=other.prompts.source,
        n=len(accepted),
        same_source=reading(anchors.harmless[:, :, 0]),
        other_source=reading(other.states[accepted][:, :, 0]),
    )


# Sections 3.3 and 3.4: steering


def _steer(
    model: ChatModel,
    measured: Measured,
    directions: Directions,
    ending: Ending,
    config: Config,
    stages: Stages,
) -> RefusalSweep | None:
    part = measured["harmless", "test"]
    answered = rows_where(part.full, refused=False)[: config.n_steer]
    if len(answered) < MIN_IN_GROUP:
        return None
    return refusal_sweep(
        model, directions, part.prompts.take(answered), config, stages, stage=f"{ending}-steer"
    )


def _question(model: ChatModel, prompts: PromptSet, config: Config) -> QuestionChoice:
    kinds: tuple[Kind, ...] = ("harmful", "harmless")
    harmful, harmless = (prompts[kind, "val"].first(config.n_invert).texts for kind in kinds)
    return choose_question(model, harmful, harmless, max_new_tokens=config.verdict_tokens)


# Appendix F: other token positions


def _positions(
    model: ChatModel, measured: Measured, question: QuestionChoice, config: Config, stages: Stages
) -> Positions:
    """Margins, and where the inversion works steering, from two tokens before `t_inst` to the last one."""
    n_post = min(tokenize(model.tokenizer, part.prompts.texts).n_post for part in measured.values())
    wanted = list(range(-(n_post + 3), 0))
    names = [str(k) for k in range(-2, n_post + 1)]

    def widened(part: Part) -> Part:
        acts = collect(model, part.prompts.texts, sites=("resid_pre", "resid_post"), positions=wanted)
        return part._replace(states=torch.cat([acts["resid_pre"], acts["resid_post"][:, -1:]], dim=1))

    wide = {key: widened(part) for key, part in measured.items() if key != ("borderline", "train")}
    anchors, groups = fit_anchors(model, wide), behaviour_groups(wide, "full").states
    inversion = None
    if question.gap >= config.least_gap:
        harmless = measured["harmless", "test"].prompts.first(config.n_invert).texts
        inversion = position_sweep(
            model, anchors.directions()[:, :-1], harmless, question.question, config, stages
        )
    return Positions(margins=positions_margin(groups, anchors, names), inversion=inversion)
