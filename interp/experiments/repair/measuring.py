"""What is measured of a repaired model: refusals, incoherent replies, task, plain text, and what stands inside."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor

from interp.data.examples import Example
from interp.data.prompts import Kind, Prompts
from interp.data.replies import REFUSALS
from interp.detectors.latent_guard import LatentGuard
from interp.engine.generation import generate
from interp.engine.interventions import Intervention
from interp.engine.log_probs import completion_log_probs
from interp.engine.safety_prompts import SafetyPrompt
from interp.engine.stored_activations import using_store
from interp.evaluation.downstream_tasks import DownstreamTask
from interp.evaluation.losses import text_windows
from interp.evaluation.refusals import refuses
from interp.evaluation.responses import is_incoherent
from interp.evaluation.task_scores import RowParts
from interp.experiments.repair import Inside
from interp.models.chat_model import ChatModel
from interp.models.tokens import PromptInput
from interp.tracking.measures import measure
from interp.tracking.spec import Reference, TrackingSpec

REFUSAL = REFUSALS[0]
"""What the guard answers in place of the model."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Repaired:
    """A repair, ready to be measured: new weights, or what is done while the model answers."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """New values of the parameters that it changes."""
    interventions: tuple[Intervention, ...] = ()
    """Steering; of flagged prompts alone where there is a guard."""
    guard: LatentGuard | None = None
    """Flags prompts: these are steered, or answered with a refusal where there is no steering."""
    system: str | None = None
    """System prompt."""
    soft_prompt: SafetyPrompt | None = None
    """Optimised or random prompt in the system slot."""
    chosen: str = ""
    """What was chosen on the validation split."""


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOut:
    """What every repair is measured on; nothing of it was seen by any repair."""

    prompts: Mapping[Kind, Prompts]
    """Held-out prompts by kind."""
    task: DownstreamTask
    """The downstream task, of which the test split is used."""
    n_task: int
    """Number of its examples."""
    text: str
    """Plain text for the cross-entropy."""
    n_windows: int
    """Number of its windows."""
    max_new_tokens: int
    """Length of replies."""


@dataclass(frozen=True, kw_only=True)
class Replies:
    """A model's replies, and how long they took."""

    texts: tuple[str, ...]
    """What a reader sees: the model's answer, or the guard's refusal."""
    seconds: float
    """Seconds for all of them."""
    tokens: int
    """Tokens that were generated."""


def reply(model: ChatModel, repaired: Repaired, prompts: Sequence[str], *, max_new_tokens: int) -> Replies:
    """Greedy replies of a model whose weights are those of the repair already."""
    begun = time.perf_counter()
    flagged = [False] * len(prompts)
    if repaired.guard is not None:
        flagged = [score.verdict == "harmful" for score in repaired.guard.score(model, list(prompts))]
    texts, tokens = [REFUSAL] * len(prompts), 0
    plain = [row for row, flag in enumerate(flagged) if not flag]
    groups: list[tuple[list[int], tuple[Intervention, ...]]] = [
        (plain, () if repaired.guard is not None else repaired.interventions)
    ]
    if repaired.interventions and repaired.guard is not None:
        groups.append(([row for row, flag in enumerate(flagged) if flag], repaired.interventions))
    for rows, interventions in groups:
        if not rows:
            continue
        asked = _asked([prompts[row] for row in rows], repaired.system)
        done = generate(
            model,
            asked,
            interventions=interventions,
            safety_prompt=repaired.soft_prompt,
            max_new_tokens=max_new_tokens,
        )
        for row, answer in zip(rows, done.answers, strict=True):
            texts[row] = answer or ""
        tokens += sum(map(len, done.ids))
    return Replies(texts=tuple(texts), seconds=time.perf_counter() - begun, tokens=tokens)


def _asked(texts: list[str], system: str | None) -> PromptInput:
    """The prompts, after a system prompt where there is one."""
    if system is None:
        return texts
    return [[{"role": "system", "content": system}, {"role": "user", "content": text}] for text in texts]


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A repair on the held-out prompts, task and text."""

    refused: dict[str, tuple[bool, ...]]
    incoherent: dict[str, tuple[bool, ...]]
    task: RowParts
    cross_entropy: tuple[float, ...]
    milliseconds: float
    """Milliseconds per generated token, over all replies."""


def behaviour(model: ChatModel, repaired: Repaired, held: HeldOut) -> Behaviour:
    """Measure a model whose weights are those of the repair already."""
    with using_store(None):  # timed
        texts = [text for part in held.prompts.values() for text in part.texts]
        said = reply(model, repaired, texts, max_new_tokens=held.max_new_tokens)
        scores, answers = answered(model, repaired, held.task, held.task.test[: held.n_task])
    ends = list(accumulate(map(len, held.prompts.values())))
    replies = {
        kind: said.texts[end - len(part) : end]
        for (kind, part), end in zip(held.prompts.items(), ends, strict=True)
    }
    return Behaviour(
        refused={kind: tuple(map(refuses, texts)) for kind, texts in replies.items()},
        incoherent={kind: tuple(map(is_incoherent, texts)) for kind, texts in replies.items()},
        task=scores,
        cross_entropy=plain_text(model, repaired, held),
        milliseconds=1000 * (said.seconds + answers.seconds) / max(1, said.tokens + answers.tokens),
    )


def answered(
    model: ChatModel, repaired: Repaired, task: DownstreamTask, examples: Sequence[Example]
) -> tuple[RowParts, Replies]:
    """What every example adds to the task's score, and the replies."""
    answers = reply(model, repaired, [e.prompt for e in examples], max_new_tokens=task.max_new_tokens)
    return task.row_parts(answers.texts, [e.completion for e in examples]), answers


def plain_text(model: ChatModel, repaired: Repaired, held: HeldOut) -> tuple[float, ...]:
    """Nats per token of each window of plain text; a guard and a prompt have no part in it."""
    starts, windows = text_windows(model, held.text, window=128)
    starts, windows = starts.take(range(min(held.n_windows, len(windows)))), windows[: held.n_windows]
    interventions = () if repaired.guard is not None else repaired.interventions
    scores = completion_log_probs(model, starts, windows, interventions=interventions)
    return tuple(-float(s.double().mean()) for s in scores)


def harmful_refused(model: ChatModel, prompts: Prompts, *, max_new_tokens: int) -> tuple[bool, ...]:
    """Whether the model, as it is, refuses each of these prompts."""
    said = reply(model, Repaired(), prompts.texts, max_new_tokens=max_new_tokens)
    return tuple(refuses(text) for text in said.texts)


def inside(model: ChatModel, spec: TrackingSpec, reference: Reference) -> Inside:
    """Directions, beliefs and distribution of a model beside the aligned one."""
    rows = {(m.measure, m.prompts): m.estimate.value for m in measure(model, spec, reference)}
    return Inside(
        harmfulness_cosine=rows["cosine_harmfulness", "train"],
        refusal_cosine=rows["cosine_refusal", "train"],
        harm_belief=rows["harmfulness_belief_reference", "harmful"],
        refusal_belief=rows["refusal_belief_reference", "harmful"],
        guard_auroc=rows["guard_auroc", "harmful against harmless"],
        kl=rows["kl_from_reference", "harmful"],
    )
