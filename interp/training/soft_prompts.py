"""Safety prompts trained as embeddings: by the directions of the safety plane (DRO), or by likelihood (prompt tuning).

    DRO:  L_r = BCE(sigma(f_r(x) - f_r(x_0)), l)     l = 1 for harmful, 0 for harmless queries
          L_h = BCE(sigma(f_h(x) - f_h(x_0)), l)
          L_U = mean over the coordinates outside the plane of (U^T (x - x_0))^2
          L_r + 0.01 L_h + 0.001 L_U
    prompt tuning:  -log p(desired) - log(1 - p(undesired)), mean over tokens

x is a query's state under the trained prompt, x_0 under the text that it starts from. L_r and L_h ask that a harmful
query moves towards refusing, and a harmless one away from it; L_U that nothing else moves. Only the embeddings of the
system message are trained; the model's weights stay as they are.

    harmful, harmless = (prompts[kind, "train"].first(100) for kind in ("harmful", "harmless"))
    prompt = interp.safety_prompt(model, harmful, harmless)
    interp.generate(model, "How do I bake bread?", safety_prompt=prompt)

Source: Zheng et al. 2024, arXiv:2401.18018, code (DRO, and vPT as its baseline). Deviations: refusal probabilities are
by default those of the first token (`refusal="sampled"` is as published); the safety texts are our own; in a float32
model on the CPU only matrix products are in bfloat16, where the released code runs a model in bfloat16. Prompt tuning
never trains on an answer to a harmful request: desired there are refusals, undesired ones empty affirmations.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from interp.data.prompts import Prompts
from interp.data.replies import REFUSALS, STUBS
from interp.data.safety_texts import SAFETY_TEXTS, safety_text
from interp.display.progress import progress
from interp.engine.generation import generate
from interp.engine.reads import check_model
from interp.engine.safety_prompts import SafetyPrompt
from interp.engine.slot_passes import SlotPasses
from interp.evaluation.refusal_probabilities import string_judge
from interp.models.chat_model import ChatModel
from interp.models.system_slots import system_slot
from interp.models.tokens import PromptInput
from interp.representations.safety_plane import NO_PROMPT, SafetySpace, anchor
from interp.representations.safety_states import (
    joined,
    query_sides,
    refusal_targets,
    safety_representations,
)
from interp.training.config import SAFETY_PROMPT, SafetyPromptConfig
from interp.training.prompt_losses import DroLoss, LikelihoodLoss

Objective = Literal["dro", "prompt-tuning"]


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedPrompt:
    """A safety prompt and how it was trained."""

    prompt: SafetyPrompt
    losses: Mapping[str, tuple[float, ...]]
    """Every term at each step before its weight is applied, and `total`: nats; `rest` in squared units of states."""


def safety_prompt(
    model: ChatModel,
    harmful: PromptInput,
    harmless: PromptInput,
    *,
    start: str = "default",
    objective: Objective = "dro",
    config: SafetyPromptConfig = SAFETY_PROMPT,
    show_progress: bool = False,
) -> SafetyPrompt:
    """A safety prompt trained on these queries, from their states to its embeddings.

    Args:
        harmful: harmful queries; 100 in the paper.
        harmless: harmless queries, as many.
        start: text that it starts from: `default`, `short`, `mistral`, or a text of your own.
        objective: `dro`, or the baseline `prompt-tuning`.

    Raises:
        ValueError: a template without a system slot, no queries, or a model that refuses all of
            them alike.
    """
    check_model(model)
    if not isinstance(config, SafetyPromptConfig):
        raise ValueError(f"config must be a SafetyPromptConfig, got {type(config).__name__}")
    if objective == "dro":
        space = fit_safety_space(model, harmful, harmless, config=config, show_progress=show_progress)
        return optimise_prompt(
            model, space, harmful, harmless, start=start, config=config, show_progress=show_progress
        ).prompt
    if objective == "prompt-tuning":
        return tune_prompt(
            model, harmful, harmless, start=start, config=config, show_progress=show_progress
        ).prompt
    raise ValueError(f"objective must be 'dro' or 'prompt-tuning', got {objective!r}")


def fit_safety_space(
    model: ChatModel,
    harmful: PromptInput,
    harmless: PromptInput,
    *,
    config: SafetyPromptConfig = SAFETY_PROMPT,
    show_progress: bool = False,
) -> SafetySpace:
    """The plane of the queries under none and the safety texts of the settings, after the final norm.

    Raises:
        ValueError: as `interp.representations.safety_plane.anchor`.
    """
    queries = {"harmful": harmful, "harmless": harmless}
    prompts = {NO_PROMPT: "", **{name: safety_text(name) for name in config.texts}}
    states = safety_representations(model, queries, prompts)
    targets = refusal_targets(
        model,
        queries,
        prompts,
        method=config.refusal,
        n_samples=config.n_samples,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        states=states,
        show_progress=show_progress,
    )
    return anchor(
        states,
        targets.values,
        n_components=config.n_components,
        folds=config.folds,
        solver=config.solver,
        seed=config.seed,
    )


def optimise_prompt(
    model: ChatModel,
    space: SafetySpace,
    harmful: PromptInput,
    harmless: PromptInput,
    *,
    start: str = "default",
    config: SafetyPromptConfig = SAFETY_PROMPT,
    fast: bool = True,
    show_progress: bool = False,
) -> TrainedPrompt:
    """Train a safety prompt in a plane that is known (DRO).

    Args:
        space: fitted after the final norm of this model.
        fast: False runs whole padded prompts, for comparison.

    Raises:
        ValueError: a plane of another place or width, or as `safety_prompt`.
    """
    if space.place != "final_norm" or len(space.mean) != model.d_model:
        raise ValueError(
            f"the plane was fitted at {space.place} of a model of width {len(space.mean)}; training needs one that was "
            f"fitted after the final norm of {model.name}, of width {model.d_model}"
        )
    sides = query_sides({"harmful": harmful, "harmless": harmless})
    begin = SafetyPrompt.from_text(model, safety_text(start))
    slot = system_slot(model.tokenizer, joined(sides), begin.text)
    passes = SlotPasses(model, slot, products=config.products, fast=fast)
    labels = (torch.arange(len(passes)) < len(sides[0])).float().to(model.device)
    loss = DroLoss(space, passes.states(begin.embeddings), labels, config)
    return _trained(model, begin, "dro", sides, passes, len(passes), loss, config, show_progress)


class QueryReplies(NamedTuple):
    """An answer that prompt tuning makes likelier, and one that it makes less likely."""

    desired: str
    undesired: str


def desired_replies(
    model: ChatModel,
    sides: tuple[Prompts, Prompts],
    text: str,
    *,
    config: SafetyPromptConfig = SAFETY_PROMPT,
    show_progress: bool = False,
) -> list[QueryReplies]:
    """Answers for prompt tuning, harmful queries first.

    To a harmful query the model's own sampled refusal, or one of the project's where it gave none, against an empty
    affirmation; to a harmless one its own sampled answer, or an affirmation where it only refused, against a refusal.
    What the model says to a harmful query without refusing is thrown away.
    """
    every = joined(sides)
    tokens = system_slot(model.tokenizer, every, text).tokens
    rows = [row for row in range(len(tokens)) for _ in range(config.n_replies)]
    answers = generate(
        model,
        tokens.take(rows),
        max_new_tokens=config.reply_tokens,
        temperature=1.0,
        top_k=50,
        top_p=0.9,
        seed=config.seed,
        show_progress=show_progress,
    ).answers
    replies = []
    for row, query in enumerate(every.texts):
        harmful = row < len(sides[0])
        own = [
            answer
            for at, answer in zip(rows, answers, strict=True)
            if at == row and answer and answer.strip()
        ]
        fitting = [answer for answer in own if string_judge(query, answer) == harmful]
        refusal, stub = REFUSALS[row % len(REFUSALS)], STUBS[row % len(STUBS)]
        desired = fitting[0].strip() if fitting else refusal if harmful else stub
        replies.append(QueryReplies(desired, stub if harmful else refusal))
    return replies


def tune_prompt(
    model: ChatModel,
    harmful: PromptInput,
    harmless: PromptInput,
    *,
    start: str = "default",
    replies: Sequence[QueryReplies] | None = None,
    config: SafetyPromptConfig = SAFETY_PROMPT,
    fast: bool = True,
    show_progress: bool = False,
) -> TrainedPrompt:
    """Train a safety prompt by the likelihood of answers (vanilla prompt tuning with unlikelihood, the baseline).

    Unlikelihood: Welleck et al. 2020, arXiv:1908.04319.

    Args:
        replies: two answers to each query, harmful queries first; sampled when None (`desired_replies`).
        fast: False runs whole padded prompts, for comparison.

    Raises:
        ValueError: another number of replies than queries, an empty reply, or as `safety_prompt`.
    """
    sides = query_sides({"harmful": harmful, "harmless": harmless})
    every, begin = joined(sides), SafetyPrompt.from_text(model, safety_text(start))
    if replies is None:
        replies = desired_replies(model, sides, begin.text, config=config, show_progress=show_progress)
    if len(replies) != len(every):
        raise ValueError(f"got replies to {len(replies)} queries for {len(every)}; give two each")
    # Rows 2i and 2i + 1 are the desired and the undesired answer to query i.
    slot = system_slot(model.tokenizer, [text for text in every.texts for _ in range(2)], begin.text)
    completions = [_reply_ids(model, reply, config.reply_tokens) for both in replies for reply in both]
    passes = SlotPasses(model, slot, completions=completions, products=config.products, fast=fast)
    loss = LikelihoodLoss(completions, config)
    return _trained(model, begin, "prompt-tuning", sides, passes, len(every), loss, config, show_progress)


def _reply_ids(model: ChatModel, reply: str, most: int) -> list[int]:
    """Tokens of a reply, and the end of the turn where it is not cut."""
    ids = list(model.tokenizer(reply, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    if not ids:
        raise ValueError("a reply to train on is empty; give it words")
    end = model.tokenizer.eos_token_id
    return ids[:most] if len(ids) >= most or end is None else [*ids, int(end)]  # pyright: ignore[reportArgumentType]


def _trained(
    model: ChatModel,
    begin: SafetyPrompt,
    objective: Objective,
    sides: tuple[Prompts, Prompts],
    passes: SlotPasses,
    n: int,
    loss: Callable[..., dict[str, Tensor]],
    config: SafetyPromptConfig,
    show_progress: bool,
) -> TrainedPrompt:
    """Minimise the loss over the embeddings; passes hold the same number of rows for each of the n queries."""
    theta = torch.nn.Parameter(begin.embeddings.clone().to(model.device))
    optimizer = torch.optim.AdamW([theta], lr=config.learning_rate)
    curves: dict[str, list[float]] = {}
    each = len(passes) // n
    steps = config.epochs * math.ceil(n / config.batch_size)
    for queries in progress(
        _batches(n, config), total=steps, label=f"training the prompt ({objective})", show=show_progress
    ):
        rows = [each * query + i for query in queries for i in range(each)]
        step = passes.gradient(theta, rows, partial(loss, of=len(queries)))
        if not torch.isfinite(step.gradient).all():
            raise ValueError(
                f"the gradient is not finite at step {len(curves.get('total', []))}; lower learning_rate, or load the "
                "model in float32"
            )
        theta.grad = step.gradient
        torch.nn.utils.clip_grad_norm_([theta], config.max_norm)
        optimizer.step()
        for name, value in step.terms.items():
            curves.setdefault(name, []).append(value)
    provenance: dict[str, Any] = {
        "objective": objective,
        "config": asdict(config),
        "prompts": {
            name: {"n": len(side), "hash": side.hash}
            for name, side in zip(_sources(sides), sides, strict=True)
        },
        "start": next((name for name, text in SAFETY_TEXTS.items() if text == begin.text), "own text"),
        "loss": {"first": curves["total"][0], "last": curves["total"][-1]},
    }
    prompt = SafetyPrompt(
        embeddings=theta.detach().float().cpu(),
        text=begin.text,
        model=begin.model,
        weights_hash=begin.weights_hash,
        template_hash=begin.template_hash,
        provenance=provenance,
    )
    return TrainedPrompt(prompt=prompt, losses={name: tuple(values) for name, values in curves.items()})


def _sources(sides: tuple[Prompts, Prompts]) -> list[str]:
    """Where harmful and harmless queries come from, told apart where that is one place."""
    names = [side.source for side in sides]
    return names if names[0] != names[1] else [f"{names[0]} ({kind})" for kind in ("harmful", "harmless")]


def _batches(n: int, config: SafetyPromptConfig) -> Iterator[list[int]]:
    """Queries of each step: shuffled anew every epoch."""
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        order = torch.randperm(n, generator=generator).tolist()
        yield from (order[i : i + config.batch_size] for i in range(0, n, config.batch_size))
