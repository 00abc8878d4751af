"""Sections 3 and 4: completions under ablation, addition, subtraction and the weight edit, and how many refuse.

Source: Arditi et al. 2024, arXiv:2406.11717. Addition and subtraction act at the direction's own layer and all
positions; ablation acts at every layer and position; the weight edit makes every matrix that writes to the stream
orthogonal to the direction.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from interp.data.prompts import Kind, Prompts, PromptSet
from interp.directions import Direction, random_direction
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add, Intervention
from interp.engine.weight_edits import edited_weights
from interp.evaluation.records import Flag, RefusalRates, Reply
from interp.evaluation.refusals import is_refusal
from interp.experiments.refusal_direction import ARMS, Config
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.stats import rate
from interp.storage.stages import Stages


@dataclass(frozen=True, eq=False, kw_only=True)
class Completed:
    """Replies to the test prompts."""

    prompts: dict[Kind, Prompts]
    tokens: dict[Kind, ChatTokens]
    """The prompts as tokens."""
    replies: dict[Kind, dict[str, tuple[Reply, ...]]]
    """Replies by kind, then intervention."""
    skipped: dict[str, str]
    """Interventions that the model does not allow, and why."""

    @property
    def refusal_rate(self) -> dict[str, dict[str, RefusalRates]]:
        """Refusal rates by kind, then intervention."""
        return {
            kind: {
                arm: RefusalRates(
                    arditi=rate([is_refusal(reply.text, "arditi") for reply in replies]),
                    zhao=rate([is_refusal(reply.text, "zhao") for reply in replies]),
                )
                for arm, replies in by.items()
            }
            for kind, by in self.replies.items()
        }

    @property
    def flags(self) -> dict[str, dict[str, tuple[Flag, ...]]]:
        """Whether each prompt was refused, by kind, then intervention."""
        return {
            kind: {
                arm: tuple(
                    Flag(id=i, refused=is_refusal(reply.text, "arditi"))
                    for i, reply in zip(self.prompts[kind].ids, replies, strict=True)
                )
                for arm, replies in by.items()
            }
            for kind, by in self.replies.items()
        }


def interventions(direction: Direction, *, seed: int) -> dict[str, list[Intervention]]:
    """Interventions of each arm; `orthogonalized` has none, since it edits the weights."""
    r, layers = direction.vector, (direction.layer,)
    control = random_direction(r, seed=seed)
    return {
        "baseline": [],
        "ablation": [Ablate(direction=r)],
        "addition_minus": [Add(direction=r, layers=layers, coefficient=-1.0)],
        "orthogonalized": [],
        "random_ablation": [Ablate(direction=control)],
        "addition_plus": [Add(direction=r, layers=layers)],
        "random_addition": [Add(direction=control, layers=layers)],
    }


def complete(
    model: ChatModel, prompts: PromptSet, direction: Direction, config: Config, stages: Stages
) -> Completed:
    """Greedy completions of the test prompts in every arm.

    Raises:
        ValueError: as `generate`, but for a weight edit that the model's architecture does not allow.
    """
    test: dict[Kind, Prompts] = {kind: prompts[kind, "test"].first(config.n_test) for kind in ARMS}
    tokens: dict[Kind, ChatTokens] = {
        kind: tokenize(model.tokenizer, part.texts) for kind, part in test.items()
    }
    picked = f"{direction.position}-{direction.layer}"
    replies: dict[Kind, dict[str, tuple[Reply, ...]]] = {kind: {} for kind in ARMS}
    skipped: dict[str, str] = {}
    jobs: list[tuple[Kind, str]] = [(kind, arm) for kind, arms in ARMS.items() for arm in arms]
    for kind, arm in stages.progress(jobs, "completions"):
        try:
            replies[kind][arm] = stages.keep(
                f"completions-{kind}-{arm}{picked}",
                lambda kind=kind, arm=arm: _replies(model, tokens, kind, arm, direction, config),
                tuple[Reply, ...],
            )
        except ValueError as error:
            if arm != "orthogonalized":
                raise
            skipped[arm] = str(error)  # a model whose weights cannot express the ablation
    return Completed(prompts=test, tokens=tokens, replies=replies, skipped=skipped)


def _replies(
    model: ChatModel,
    tokens: Mapping[Kind, ChatTokens],
    kind: Kind,
    arm: str,
    direction: Direction,
    config: Config,
) -> tuple[Reply, ...]:
    """Completions of one kind of prompts in one arm."""
    edit = (
        edited_weights(model, Ablate(direction=direction.vector))
        if arm == "orthogonalized"
        else nullcontext()
    )
    with edit:
        done = generate(
            model,
            tokens[kind],
            interventions=interventions(direction, seed=config.seed)[arm],
            max_new_tokens=config.max_new_tokens,
        )
    return tuple(
        Reply(text=text, ids=tuple(ids), finished=finished)
        for text, ids, finished in zip(done.texts, done.ids, done.finished, strict=True)
    )
