"""The method: which prompts the model refuses, directions of every category, their comparisons, and confounds.

Source: Zhao et al. 2025, arXiv:2507.11878, category analysis.
"""

from collections.abc import Mapping

from torch import Tensor

from interp.data.prompts import COMPARED_ENDINGS, Ending, Prompts, PromptSet
from interp.evaluation.early_verdicts import refusal_verdicts
from interp.evaluation.records import BehavingCount
from interp.experiments.categories import Config, Result
from interp.experiments.categories.comparisons import compare
from interp.experiments.categories.groups import Group, groups_of, labelled, pooled
from interp.experiments.categories.summaries import comparison
from interp.experiments.definition import Outcome
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import states
from interp.representations.confounds import leak_check
from interp.representations.records import BELIEFS, HarmAndRefusal, LeakCheck
from interp.storage.stages import Stages

_NAMES = HarmAndRefusal(harm="harmfulness", refusal="refusal")
"""Names of the directions in a run's tensors."""


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the experiment on all splits of the harmful prompts that carry a category.

    Raises:
        ValueError: fewer than three categories with enough prompts, or prompts whose endings were changed already.
    """
    if prompts.ending != "as-is":
        raise ValueError(f"this experiment compares endings itself; load {prompts.name} with ending='as-is'")
    harmful, labels, names = labelled(prompts, config)
    harmless = pooled(prompts, "harmless").first(config.n_harmless)

    # 1. What the model refuses, and with it the prompts of each kind of direction.
    refused = stages.keep(
        "replies",
        lambda: {
            kind: _refused(model, part, config, stages)
            for kind, part in (("harmful", harmful), ("harmless", harmless))
        },
        dict[str, tuple[bool | None, ...]],
    )
    groups = groups_of(refused, labels, names, config)
    stages.lap("replies")

    # 2. Directions, and what they are compared with.
    tensors, by_ending = dict[str, Tensor](), {}
    for ending in COMPARED_ENDINGS:
        kept = stages.keep(
            f"directions-{ending}",
            lambda ending=ending: _compared(model, harmful, harmless, groups, ending, config, stages),
        )
        compared = HarmAndRefusal(harm=_part(kept, _NAMES.harm), refusal=_part(kept, _NAMES.refusal))
        tensors |= {f"{name}/{ending}": kept[f"{name}/directions"] for _, name in _NAMES.items()}
        by_ending[ending] = comparison(compared, groups, names, config)
        stages.lap(f"directions, {ending}")

    # 3. How well the way prompts end tells harmful from harmless.
    leak_checks: dict[Ending, LeakCheck] = {
        ending: _leak_check(model, harmful, harmless, ending, prompts.name) for ending in COMPARED_ENDINGS
    }
    stages.lap("leak check")

    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        categories=tuple(names),
        counts={
            name: BehavingCount(
                behaving=sum(
                    flag is True
                    for flag, label in zip(refused["harmful"], labels.tolist(), strict=True)
                    if label == i
                ),
                of=int((labels == i).sum()),
            )
            for i, name in enumerate(names)
        },
        harmless=BehavingCount(behaving=refused["harmless"].count(False), of=len(harmless)),
        filtered=groups.refusal.filtered,
        by_ending=by_ending,
        leak_check=leak_checks,
    )
    return Outcome(result=result, tensors=tensors)


def _refused(model: ChatModel, part: Prompts, config: Config, stages: Stages) -> tuple[bool | None, ...]:
    """Whether the model's reply to each prompt refuses, by the source's own list; None for one without an answer."""
    return refusal_verdicts(
        model,
        part,
        substrings="zhao",
        max_new_tokens=config.max_new_tokens,
        show_progress=stages.show_progress,
    ).flags


def _compared(
    model: ChatModel,
    harmful: Prompts,
    harmless: Prompts,
    groups: HarmAndRefusal[Group],
    ending: Ending,
    config: Config,
    stages: Stages,
) -> dict[str, Tensor]:
    """`compare` of both kinds of directions, as `harmfulness/...` and `refusal/...`."""
    bad, good = (
        states(model, part.with_ending(ending).texts, show_progress=stages.show_progress)
        for part in (harmful, harmless)
    )
    found = {}
    for role, belief in enumerate(BELIEFS):
        group = groups.of(belief)
        compared = compare(bad[group.rows, :, role], group.labels, good[group.harmless, :, role], config)
        found |= {f"{_NAMES.of(belief)}/{name}": value for name, value in compared.items()}
    return found


def _part(kept: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """One kind of direction out of what `_compared` gives."""
    return {key.removeprefix(f"{name}/"): value for key, value in kept.items() if key.startswith(f"{name}/")}


def _leak_check(
    model: ChatModel, harmful: Prompts, harmless: Prompts, ending: Ending, name: str
) -> LeakCheck:
    """Fitted on every other harmful prompt and the first half of the harmless ones, scored on the rest."""
    rows, half = list(range(len(harmful))), len(harmless) // 2
    return leak_check(
        model,
        train=(
            harmful.take(rows[::2]).with_ending(ending),
            harmless.take(list(range(half))).with_ending(ending),
        ),
        held_out=(
            harmful.take(rows[1::2]).with_ending(ending),
            harmless.take(list(range(half, len(harmless)))).with_ending(ending),
        ),
        label=f"{name}, {ending}",
    )
