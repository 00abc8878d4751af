"""The demo's method.

Steps (`run`), on the fixed splits of a prompt set:

1. read resid_pre of every layer at `t_inst` and at each template token, prompts as they are and all ended by a full
   stop;
2. harmfulness direction = difference in means at `t_inst` (Zhao et al. 2025, arXiv:2507.11878, section 3.3), refusal
   direction = difference in means at the template tokens over refused harmful and answered harmless prompts (Arditi et
   al. 2024, arXiv:2406.11717, section 2.3), both from the train split;
3. choose the refusal layer and position on the validation split by the published rule
   (`interp.representations.selection`) over a shortlist: the layers that separate the validation prompts best, each
   at its best position;
4. on the test split: refusal rates for baseline, ablation, addition and random directions of equal norm; AUROC of
   harmful against harmless at each layer and role, beside the leak check; cosine of the two directions.

What it is not: the full sweep over all candidates with its controls, which is the refusal-direction experiment.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import islice

import torch
from torch import Tensor

from interp.data.prompt_sets import KINDS
from interp.data.prompts import COMPARED_ENDINGS, Prompts, PromptSet, load_prompts
from interp.directions import Direction, cosine, difference_in_means, mean_norm, project, random_direction
from interp.engine.activation_values import Activations
from interp.engine.activations import collect
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add, Intervention
from interp.engine.log_probs import next_token_log_probs
from interp.evaluation.records import Flag, RefusalRates, RefusalTokens
from interp.evaluation.refusals import find_refusal_tokens, is_refusal, refusal_metric
from interp.experiments.definition import Outcome
from interp.experiments.demo import Config, Example, FilteredCounts, Result
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.confounds import leak_check
from interp.representations.picks import choose, scored_candidates
from interp.representations.records import LeakCheck
from interp.representations.selection import Candidate, Rule, RuleUsed, ScoredCandidate
from interp.representations.sweeps import Sweep
from interp.stats import Estimate, auroc, rate
from interp.storage.direction_files import direction_bytes
from interp.storage.provenance import provenance
from interp.storage.stages import Stages

Key = tuple[str, str, str]
"""(ending, kind, split)."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The pick on the validation split, as its stage keeps it."""

    selected: Candidate
    candidates: tuple[ScoredCandidate, ...]
    rule: RuleUsed


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the demo.

    Raises:
        ValueError: a prompt set without enough prompts, or a model that cannot be read.
    """
    sets = _prompt_sets(prompts, config)
    tokens = {
        (ending, *key): tokenize(model.tokenizer, part.texts)
        for ending, by in sets.items()
        for key, part in by.items()
    }

    # 1. Refusal tokens, and activations of every part that is read.
    refusal_tokens, behaving, counts = _refusal_tokens(model, tokens)
    stages.lap("refusal tokens")
    acts = _collect_once(model, tokens, stages.show_progress)
    stages.lap("collect")

    # 2. Directions per layer and role.
    directions = _directions(acts, *behaving)
    roles = acts["as-is", "harmful", "train"].roles

    # 3. The refusal layer and position, on the validation split.
    selection = stages.keep(
        "selection",
        lambda: _select(model, tokens, acts, directions["refusal/as-is"], refusal_tokens, config, stages),
        Selection,
    )
    picked = selection.selected
    refusal, harmfulness = _picked_directions(model, prompts, acts, directions, picked, config)
    stages.lap("select")

    # 4. Behaviour, separation and confounds on the test split.
    replies = _replies(model, tokens, _arms(refusal, harmfulness, config.seed), config, stages)
    stages.lap("generate")
    separation = _separation(acts, directions, roles)
    checks = {ending: _leak_check(model, by, f"{prompts.name}, {ending}") for ending, by in sets.items()}
    stages.lap("separability")
    test = {kind: sets["as-is"][kind, "test"] for kind in KINDS}
    place = picked.position + len(roles) - 1
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        refusal_tokens=refusal_tokens,
        post_inst_tokens=tuple(tokens["as-is", "harmful", "train"].post_inst_text()),
        filtered_counts=counts,
        selected=picked,
        candidates=selection.candidates,
        rule=selection.rule,
        refusal_rate=_rates(replies),
        cosine={
            ending: tuple(
                cosine(
                    directions[f"harmfulness/{ending}"][layer], directions[f"refusal/{ending}"][layer, place]
                ).item()
                for layer in range(model.n_layers)
            )
            for ending in COMPARED_ENDINGS
        },
        auroc=separation,
        leak_check=checks,
        random_cosine_sd=model.d_model**-0.5,
        examples=_examples(test["harmless"], replies, n=5),
        completions={
            f"{arm}/{kind}": tuple(
                Flag(id=i, refused=is_refusal(text, "arditi"))
                for i, text in zip(test[kind].ids, texts, strict=True)
            )
            for (arm, kind), texts in replies.items()
        },
    )
    files = {
        "harmfulness.safetensors": direction_bytes(harmfulness),
        "refusal.safetensors": direction_bytes(refusal),
    }
    return Outcome(result=result, tensors=directions, files=files)


def _refusal_tokens(
    model: ChatModel, tokens: Mapping[Key, ChatTokens]
) -> tuple[RefusalTokens, tuple[Tensor, Tensor], FilteredCounts]:
    """The model's refusal tokens, and the rows of training prompts that behave as their kind asks for."""
    harmful, harmless = (
        next_token_log_probs(model, tokens["as-is", kind, "train"]) for kind in ("harmful", "harmless")
    )
    refusal_tokens = find_refusal_tokens(harmful, harmless, model.tokenizer)
    refused, answered, counts = _behaving(
        refusal_metric(harmful, refusal_tokens.ids), refusal_metric(harmless, refusal_tokens.ids)
    )
    return refusal_tokens, (refused, answered), counts


def _directions(acts: Mapping[Key, Activations], refused: Tensor, answered: Tensor) -> dict[str, Tensor]:
    """`harmfulness/{ending}` [layer, d_model] at `t_inst`, `refusal/{ending}` [layer, role, d_model] after it."""
    directions = {}
    for ending in COMPARED_ENDINGS:
        bad, good = (acts[ending, kind, "train"]["resid_pre"].float() for kind in ("harmful", "harmless"))
        directions[f"harmfulness/{ending}"] = difference_in_means(bad[:, :, 0], good[:, :, 0])
        directions[f"refusal/{ending}"] = difference_in_means(
            bad[refused][:, :, 1:], good[answered][:, :, 1:]
        )
    return directions


def _select(
    model: ChatModel,
    tokens: Mapping[Key, ChatTokens],
    acts: Mapping[Key, Activations],
    refusal: Tensor,
    refusal_tokens: RefusalTokens,
    config: Config,
    stages: Stages,
) -> Selection:
    """The shortlist scored on the validation split, and the pick by the first rule that a candidate meets."""
    n_post = refusal.shape[1]
    shortlist = _shortlist(model, acts, refusal, config.n_candidates)
    sweep = Sweep(
        model,
        {(position, layer): refusal[layer, position + n_post] for position, layer in shortlist},
        harmful=tokens["as-is", "harmful", "val"],
        harmless=tokens["as-is", "harmless", "val"],
        refusal_ids=refusal_tokens.ids,
    )
    rules = [
        Rule(
            kl_threshold=math.inf if kl is None else kl,
            induce_threshold=-math.inf if induce is None else induce,
        )
        for kl, induce in config.rules
    ]
    selected, rule = choose(sweep, rules, exhaustive=True, progress=stages.progress)
    return Selection(
        selected=selected,
        candidates=scored_candidates(sweep, rule),
        rule=rule.used(model.n_layers),
    )


def _replies(
    model: ChatModel,
    tokens: Mapping[Key, ChatTokens],
    arms: Mapping[str, list[Intervention]],
    config: Config,
    stages: Stages,
) -> dict[tuple[str, str], list[str]]:
    """Greedy completions of the test prompts, by intervention and kind; those of an intervention decode together."""
    found = {}
    for arm in stages.progress(list(arms), "steering"):
        kinds = ("harmless",) if arm == "harmfulness addition" else KINDS
        parts = {(arm, kind): tokens["as-is", kind, "test"] for kind in kinds}
        every = reduce(ChatTokens.joined, parts.values())
        texts = stages.keep(
            f"completions-{arm.replace(' ', '_')}",
            lambda arm=arm, every=every: list(
                generate(model, every, interventions=arms[arm], max_new_tokens=config.max_new_tokens).texts
            ),
        )
        rest = iter(texts)
        found |= {key: list(islice(rest, len(part))) for key, part in parts.items()}
    return found


def _rates(replies: Mapping[tuple[str, str], list[str]]) -> dict[str, dict[str, RefusalRates]]:
    rates: dict[str, dict[str, RefusalRates]] = {}
    for (arm, kind), texts in replies.items():
        rates.setdefault(arm, {})[kind] = RefusalRates(
            arditi=rate([is_refusal(text, "arditi") for text in texts]),
            zhao=rate([is_refusal(text, "zhao") for text in texts]),
        )
    return rates


def _examples(
    prompts: Prompts, replies: Mapping[tuple[str, str], list[str]], *, n: int
) -> tuple[Example, ...]:
    pairs = zip(replies["baseline", "harmless"], replies["addition", "harmless"], strict=True)
    return tuple(
        Example(id=prompts.ids[i], prompt=prompts.texts[i], before=before, after=after)
        for i, (before, after) in enumerate(pairs)
        if i < n
    )


def _leak_check(model: ChatModel, by: Mapping[tuple[str, str], Prompts], label: str) -> LeakCheck:
    train, test = ((by["harmful", split], by["harmless", split]) for split in ("train", "test"))
    return leak_check(model, train=train, held_out=test, label=label)


def _prompt_sets(prompts: PromptSet, config: Config) -> dict[str, dict[tuple[str, str], Prompts]]:
    """The prompts used by ending, then (kind, split); borderline ones are builtin's where the set has none."""
    if prompts.ending != "as-is":
        raise ValueError("the demo compares endings itself; load its prompts with ending='as-is'")
    sizes = {"train": config.n_train, "val": config.n_val, "test": config.n_test}
    if ("borderline", "test") not in prompts:
        parts = {**prompts.parts, ("borderline", "test"): load_prompts("builtin")["borderline", "test"]}
        prompts = PromptSet(prompts.name, parts, prompts.ending, prompts.notes)
    chosen = {key: part.first(sizes[key[1]]) for key, part in prompts.parts.items()}
    return {
        ending: {key: part.with_ending(ending) for key, part in chosen.items()} for ending in COMPARED_ENDINGS
    }


def _collect_once(
    model: ChatModel, tokens: Mapping[Key, ChatTokens], show_progress: bool
) -> dict[Key, Activations]:
    """Activations of every part that is read; a prompt that stands in several parts is run once."""
    wanted = [key for key in tokens if key[1] != "borderline" and (key[0], key[2]) != ("period", "val")]
    joined = reduce(ChatTokens.joined, (tokens[key] for key in wanted))
    rows = {ids: row for row, ids in enumerate(joined.ids)}
    slot = {ids: i for i, ids in enumerate(rows)}
    once = collect(
        model,
        joined.take(list(rows.values())),
        positions=("t_inst", "post_inst"),
        show_progress=show_progress,
    )
    values = once["resid_pre"]
    return {
        key: Activations(
            values={"resid_pre": values[[slot[ids] for ids in tokens[key].ids]]},
            layers=once.layers,
            roles=once.roles,
        )
        for key in wanted
    }


def _behaving(
    harmful: Tensor, harmless: Tensor, *, minimum: int = 16
) -> tuple[Tensor, Tensor, FilteredCounts]:
    """Rows of refused harmful and answered harmless prompts, or all where too few behave.

    Source: Arditi et al. 2024, appendix A: keep harmful prompts with metric > 0 and harmless ones with metric < 0.
    """
    refused, answered = (harmful > 0).nonzero()[:, 0], (harmless < 0).nonzero()[:, 0]
    counts = (len(refused), len(harmful), len(answered), len(harmless))
    applied = len(refused) >= minimum and len(answered) >= minimum
    if not applied:
        refused, answered = torch.arange(len(harmful)), torch.arange(len(harmless))
    return (
        refused,
        answered,
        FilteredCounts(
            harmful_refused=counts[0],
            harmful=counts[1],
            harmless_answered=counts[2],
            harmless=counts[3],
            applied=applied,
        ),
    )


def _shortlist(
    model: ChatModel, acts: Mapping[Key, Activations], refusal: Tensor, count: int
) -> list[tuple[int, int]]:
    """(position, layer) of the best template token of the `count` best layers before the last fifth."""
    bad, good = (
        acts["as-is", kind, "val"]["resid_pre"].float()[:, :, 1:] for kind in ("harmful", "harmless")
    )
    a, b = project(bad, refusal.expand_as(bad)), project(good, refusal.expand_as(good))
    pooled = ((a.var(0) + b.var(0)) / 2).sqrt()
    effect = torch.where(pooled > 0, (a.mean(0) - b.mean(0)) / pooled.clamp(min=1e-12), 0.0)
    n_post = refusal.shape[1]
    best = effect.max(1)
    layers = sorted(range(1, int(model.n_layers * 0.8)), key=lambda layer: -float(best.values[layer]))[:count]
    return [(int(best.indices[layer]) - n_post, layer) for layer in sorted(layers)]


def _picked_directions(
    model: ChatModel,
    prompts: PromptSet,
    acts: Mapping[Key, Activations],
    directions: Mapping[str, Tensor],
    picked: Candidate,
    config: Config,
) -> tuple[Direction, Direction]:
    """The refusal direction that was picked and the harmfulness direction of the same layer."""
    layer = picked.layer
    train = [acts["as-is", kind, "train"]["resid_pre"] for kind in ("harmful", "harmless")]
    norms = mean_norm(torch.cat(train).float())
    origin = provenance(model.provenance, prompts.provenance, config)
    n_post = norms.shape[1] - 1
    refusal = Direction(
        vector=directions["refusal/as-is"][layer, picked.position + n_post].clone(),
        layer=layer,
        position=str(picked.position),
        sign="refused harmful - answered harmless",
        mean_activation_norm=norms[layer, 1 + picked.position + n_post].item(),
        provenance=origin,
    )
    harmfulness = Direction(
        vector=directions["harmfulness/as-is"][layer].clone(),
        layer=layer,
        position="t_inst",
        mean_activation_norm=norms[layer, 0].item(),
        provenance=origin,
    )
    return refusal, harmfulness


def _arms(refusal: Direction, harmfulness: Direction, seed: int) -> dict[str, list[Intervention]]:
    """Interventions of the compared arms, with a control per kind of intervention."""
    r = refusal.vector
    layers = (refusal.layer,)
    control = random_direction(r, seed=seed)
    return {
        "baseline": [],
        "ablation": [Ablate(direction=r)],
        "addition": [Add(direction=r, layers=layers)],
        "random ablation": [Ablate(direction=control)],
        "random addition": [Add(direction=control, layers=layers)],
        "harmfulness addition": [Add(direction=harmfulness.vector, layers=layers)],
    }


def _separation(
    acts: Mapping[Key, Activations], directions: Mapping[str, Tensor], roles: tuple[str, ...]
) -> dict[str, dict[str, tuple[Estimate, ...]]]:
    """AUROC of test prompts projected on each layer and role's train direction, by ending and role."""
    table: dict[str, dict[str, tuple[Estimate, ...]]] = {}
    for ending in COMPARED_ENDINGS:
        bad, good = (acts[ending, kind, "test"]["resid_pre"].float() for kind in ("harmful", "harmless"))
        fitted = torch.cat(
            [directions[f"harmfulness/{ending}"][:, None], directions[f"refusal/{ending}"]], dim=1
        )
        a, b = project(bad, fitted.expand_as(bad)), project(good, fitted.expand_as(good))
        table[ending] = {
            role: tuple(auroc(a[:, layer, i], b[:, layer, i], resamples=200) for layer in range(a.shape[1]))
            for i, role in enumerate(roles)
        }
    return table
