"""Methods of the house on an organism with planted truth.

1. The organism's replies to test prompts: how far it obeys its rule, by harm and rule.
2. States at `t_inst` and `t_post_inst` of training and test prompts, both labels known by construction.
3. Each method is fitted on each label: difference in means, first principal component, logistic probe, beliefs, and a
   random direction as control. A layer is picked on half of the training prompts, at which that label is told best.
4. Methods that need replies, questions or interventions: guard, jailbreak shifts, reply inversion, selection
   (`acting`).
5. On test prompts: AUROC for its own label and for the other, the same when fitted on shuffled labels, and the cosine
   of its direction with the contrasts of both labels on test prompts.
6. Cosine of both contrasts by layer, and the papers' dissociation: harm at `t_inst` against refusal at `t_post_inst`.

Beliefs after Zhao et al. 2025, arXiv:2507.11878; difference in means after Arditi et al. 2024, arXiv:2406.11717.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.data.planted import PlantedRow, obeys, planted_rows
from interp.data.prompts import PromptSet
from interp.directions import cosine
from interp.engine.generation import generate
from interp.evaluation.refusals import is_refusal
from interp.experiments.definition import Outcome
from interp.experiments.planted import Config, Found, Label, Result
from interp.experiments.planted.acting import (
    Organism,
    guard_findings,
    inversion_findings,
    selection_findings,
    shift_findings,
)
from interp.experiments.planted.methods import LABELS, METHODS, ROLES, Part, contrast, found_by_states
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import states
from interp.stats import Estimate, rate
from interp.storage.stages import Stages


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run every method on the organism.

    Raises:
        ValueError: a set without harmful and harmless prompts.
    """
    rows = {
        "train": planted_rows(prompts, config.plant, "train")[: config.n_train],
        "test": planted_rows(prompts, config.plant, "test")[: config.n_test],
    }
    validation = planted_rows(prompts, config.plant, "val")[: config.n_val]

    # 1. Replies.
    asked = rows["test"][: config.n_replies]
    replies, train_replies = (
        stages.keep(
            name,
            lambda part=part: (
                generate(model, [row.text for row in part], max_new_tokens=config.max_new_tokens).texts
            ),
            tuple[str, ...],
        )
        for name, part in (("replies", asked), ("replies-train", rows["train"]))
    )
    stages.lap("replies")

    # 2. States.
    train, test = (
        Part(
            states=stages.keep(
                f"states-{name}",
                lambda r=part: {
                    "states": states(model, [row.text for row in r], positions=ROLES).contiguous()
                },
            )["states"],
            labels=_labels(part),
        )
        for name, part in rows.items()
    )
    stages.lap("states")

    # 3 to 5. Methods.
    same = config.plant == "word"  # harm is what is said: there is one label
    found = [
        found_by_states(name, fit, label, role, train, test, config)
        for name, fit in METHODS.items()
        for label in LABELS[: 1 if same else 2]
        for role in range(len(ROLES))
    ]
    stages.lap("methods")
    organism = Organism(
        model=model,
        config=config,
        train=train,
        test=test,
        refused=torch.tensor([is_refusal(said) for said in train_replies]),
        test_refused=torch.tensor([is_refusal(said) for said in replies]),
        rows=rows["test"],
        validation=validation,
    )
    found += _found_by_acting(organism, stages)

    # 6. Contrasts.
    contrasts = {(label, role): contrast(test, label, role) for label in LABELS for role in (0, 1)}
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        obeyed=rate([obeys(row, said, config.plant) for row, said in zip(asked, replies, strict=True)]),
        refused=_refused(asked, replies),
        found=tuple(found),
        contrast_cosine={
            name: tuple(cosine(contrasts["harm", role], contrasts["planted", role]).tolist())
            for role, name in enumerate(ROLES)
        },
        dissociation=tuple(cosine(contrasts["harm", 0], contrasts["planted", 1]).tolist()),
    )
    return Outcome(result=result)


def _found_by_acting(organism: Organism, stages: Stages) -> list[Found]:
    """Findings of the methods that need replies, questions or interventions; with one label only those for harm."""
    kept = stages.keep("guard", lambda: tuple(guard_findings(organism)), tuple[Found, ...])
    stages.lap("guard")
    kept += stages.keep("inversion", lambda: tuple(inversion_findings(organism)), tuple[Found, ...])
    stages.lap("reply inversion")
    if organism.config.plant != "word":
        kept += (shift_findings(organism, stages.keep),)
        stages.lap("jailbreak shifts")
        kept += stages.keep("selection", lambda: (selection_findings(organism),), tuple[Found, ...])
        stages.lap("selection")
    return list(kept)


def _labels(rows: Sequence[PlantedRow]) -> dict[Label, Bool[Tensor, " prompt"]]:
    return {
        "harm": torch.tensor([row.harmful for row in rows]),
        "planted": torch.tensor([row.planted for row in rows]),
    }


def _refused(rows: Sequence[PlantedRow], replies: Sequence[str]) -> dict[str, Estimate]:
    flags: dict[str, list[bool]] = {}
    for row, said in zip(rows, replies, strict=True):
        kind, does = (
            "harmful" if row.harmful else "harmless",
            "rule applies" if row.planted else "rule does not",
        )
        flags.setdefault(f"{kind}, {does}", []).append(is_refusal(said))
    return {name: rate(each) for name, each in flags.items()}
