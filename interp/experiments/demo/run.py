"""The main job: where refusal and harmfulness live in a model, and what happens when they are steered.

Steps (`run`), on the fixed splits of a prompt set:

1. read resid_pre of every layer at `t_inst` and at each template token, prompts as they are and all
   ended by a full stop;
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

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.data.prompts import Prompts, PromptSet, load_prompts
from interp.directions import Direction, cosine, difference_in_means, mean_norm, project, random_direction
from interp.display.progress import progress
from interp.engine.activations import Activations, collect
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add, Intervention
from interp.engine.log_probs import next_token_log_probs
from interp.evaluation.refusals import find_refusal_tokens, is_refusal, refusal_metric, refusal_rate
from interp.experiments.demo.report import ENDINGS, figures, rate_table, report, verdicts
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.confounds import leak_check
from interp.representations.selection import Candidate, Rule
from interp.representations.sweeps import Sweep, choose
from interp.stats import auroc
from interp.storage.direction_files import direction_bytes
from interp.storage.provenance import provenance
from interp.storage.run_folders import ExperimentResult
from interp.storage.stages import Parts, Stopwatch

logger = logging.getLogger(__name__)

__all__ = ["NAME", "SUMMARY", "Config", "Result", "figures", "rate_table", "report", "run", "verdicts"]

NAME = "demo"
SUMMARY = "where refusal and harmfulness live in a model, and what happens when they are steered"

KINDS = ("harmful", "harmless", "borderline")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the demo."""

    n_train: int = 128
    """Prompts of each kind that directions are fitted on."""
    n_val: int = 32
    """Prompts of each kind that the layer and position are chosen on."""
    n_test: int = 60
    """Prompts of each kind that everything reported is measured on."""
    n_candidates: int = 12
    """Layers on the shortlist that the refusal direction is chosen from."""
    max_new_tokens: int = 20
    """Length of a completion."""
    rules: tuple[tuple[float, float], ...] = ((0.1, 0.0), (1.0, 0.0), (math.inf, -math.inf))
    """(largest KL, least induce) of a candidate: the published rule, then what is used, and said to be used, when no
    candidate meets it. Fixed beforehand for all models."""
    seed: int = 0
    """Of the random directions and of splits cut by us."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(ExperimentResult):
    """What a run found."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Directions per layer: `harmfulness/{ending}` [layer, d_model], `refusal/{ending}` [layer, role, d_model]."""
    harmfulness: Direction
    refusal: Direction

    def _files(self) -> dict[str, bytes]:
        return {
            "harmfulness.safetensors": direction_bytes(self.harmfulness),
            "refusal.safetensors": direction_bytes(self.refusal),
        }


def run(
    model: ChatModel,
    prompts: PromptSet,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> Result:
    """Run the demo.

    Args:
        out: run folder; finished parts are kept beside it until the run is whole, and a run started again continues.

    Raises:
        ValueError: a prompt set without enough prompts, or a model that cannot be read.
    """
    config = config or Config()
    watch = Stopwatch()
    parts = None
    if out is not None:
        settings = {"config": asdict(config), "model": model.provenance, "prompts": prompts.provenance}
        parts = Parts(out, settings)
    sets = _prompt_sets(prompts, config)

    # 1. Activations and refusal tokens.
    tokens = {
        (ending, *key): tokenize(model.tokenizer, part.texts)
        for ending, by in sets.items()
        for key, part in by.items()
    }
    log_probs = [
        next_token_log_probs(model, tokens["as-is", kind, "train"]) for kind in ("harmful", "harmless")
    ]
    refusal_tokens = find_refusal_tokens(log_probs[0], log_probs[1], model.tokenizer)
    scores = [refusal_metric(part, refusal_tokens.ids) for part in log_probs]
    refused, answered, filtered = _behaving(scores[0], scores[1])
    watch.lap("refusal tokens")
    acts = _collect_once(model, tokens, show_progress)
    watch.lap("collect")

    # 2. Directions per layer and role.
    roles = acts["as-is", "harmful", "train"].roles
    directions = {}
    for ending in ENDINGS:
        bad, good = (acts[ending, kind, "train"]["resid_pre"].float() for kind in ("harmful", "harmless"))
        directions[f"harmfulness/{ending}"] = difference_in_means(bad[:, :, 0], good[:, :, 0])
        directions[f"refusal/{ending}"] = difference_in_means(
            bad[refused][:, :, 1:], good[answered][:, :, 1:]
        )

    # 3. The refusal layer and position, on the validation split.
    shortlist = _shortlist(model, acts, directions["refusal/as-is"], config.n_candidates)
    n_post = len(roles) - 1
    vectors = {(p, layer): directions["refusal/as-is"][layer, p + n_post] for p, layer in shortlist}

    def select() -> dict[str, Any]:
        sweep = Sweep(
            model,
            vectors,
            harmful=tokens["as-is", "harmful", "val"],
            harmless=tokens["as-is", "harmless", "val"],
            refusal_ids=refusal_tokens.ids,
        )
        chosen, rule = choose(
            sweep,
            [Rule(kl_threshold=kl, induce_threshold=induce) for kl, induce in config.rules],
            exhaustive=True,
            watch=lambda places, label: progress(
                places, total=len(shortlist), label=label, show=show_progress
            ),
        )
        said = {**asdict(rule), "published": rule.published, "text": rule.text(model.n_layers)}
        return {"selected": chosen.as_dict(), "candidates": sweep.table(rule), "rule": said}

    selection = parts.numbers("selection", select) if parts else select()
    picked = Candidate(**selection["selected"])
    refusal, harmfulness = _picked_directions(model, prompts, acts, directions, picked, config)
    watch.lap("select")

    # 4. Behaviour on the test split.
    behaviour: dict[str, Any] = {}
    arms = _arms(refusal, harmfulness, config.seed)
    jobs = [
        (arm, kind) for arm in arms for kind in KINDS if arm != "harmfulness addition" or kind == "harmless"
    ]
    for arm, kind in progress(jobs, total=len(jobs), label="steering", show=show_progress):

        def complete(arm: str = arm, kind: str = kind) -> dict[str, Any]:
            done = generate(
                model,
                tokens["as-is", kind, "test"],
                interventions=arms[arm],
                max_new_tokens=config.max_new_tokens,
            )
            return {
                "texts": list(done.texts),
                "12": refusal_rate(done, "12").as_dict(),
                "24": refusal_rate(done, "24").as_dict(),
            }

        name = f"completions-{arm.replace(' ', '_')}-{kind}"
        behaviour[f"{arm}/{kind}"] = parts.numbers(name, complete) if parts else complete()
    watch.lap("generate")

    separation = _separation(acts, directions, roles)
    leaks = {}
    for ending, by in sets.items():
        train, test = ((by["harmful", s], by["harmless", s]) for s in ("train", "test"))
        leaks[ending] = leak_check(
            model, train=train, held_out=test, label=f"{prompts.name}, {ending}"
        ).as_dict()
    watch.lap("separability")
    test = sets["as-is"]["harmless", "test"]
    numbers = {
        "experiment": NAME,
        "refusal_tokens": asdict(refusal_tokens),
        "post_inst_tokens": tokens["as-is", "harmful", "train"].post_inst_text(),
        "filtered_counts": filtered,
        **selection,
        "refusal_rate": {
            arm: {
                kind: {k: behaviour[f"{arm}/{kind}"][k] for k in ("12", "24")} for a, kind in jobs if a == arm
            }
            for arm in arms
        },
        "cosine": {
            ending: [
                cosine(
                    directions[f"harmfulness/{ending}"][layer],
                    directions[f"refusal/{ending}"][layer, picked.position + n_post],
                ).item()
                for layer in range(model.n_layers)
            ]
            for ending in ENDINGS
        },
        "auroc": separation,
        "leak_check": leaks,
        "random_cosine_sd": model.d_model**-0.5,
        "examples": [
            {"id": test.ids[i], "prompt": test.texts[i], "before": before, "after": after}
            for i, (before, after) in enumerate(
                zip(
                    behaviour["baseline/harmless"]["texts"][:5],
                    behaviour["addition/harmless"]["texts"][:5],
                    strict=True,
                )
            )
        ],
        "completions": {
            job: [
                {"id": i, "refused": is_refusal(t)}
                for i, t in zip(sets["as-is"][job.split("/")[1], "test"].ids, b["texts"], strict=True)
            ]
            for job, b in behaviour.items()
        },
        "seconds": watch.with_total,
        "provenance": provenance(model.provenance, prompts.provenance, config),
    }
    result = Result(numbers=numbers, tensors=directions, harmfulness=harmfulness, refusal=refusal)
    if out is not None:
        result.save(out)
        assert parts is not None
        parts.discard()
    return result


def _prompt_sets(prompts: PromptSet, config: Config) -> dict[str, dict[tuple[str, str], Prompts]]:
    """By ending, then (kind, split): the prompts used; borderline ones are builtin's where the set has none."""
    if prompts.ending != "as-is":
        raise ValueError("the demo compares endings itself; load its prompts with ending='as-is'")
    sizes = {"train": config.n_train, "val": config.n_val, "test": config.n_test}
    if ("borderline", "test") not in prompts:
        parts = {**prompts.parts, ("borderline", "test"): load_prompts("builtin")["borderline", "test"]}
        prompts = PromptSet(prompts.name, parts, prompts.ending, prompts.notes)
    chosen = {key: part.first(sizes[key[1]]) for key, part in prompts.parts.items()}
    return {ending: {key: part.with_ending(ending) for key, part in chosen.items()} for ending in ENDINGS}


def _collect_once(
    model: ChatModel, tokens: Mapping[tuple[str, str, str], ChatTokens], show_progress: bool
) -> dict[tuple[str, str, str], Activations]:
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


def _behaving(harmful: Tensor, harmless: Tensor, *, least: int = 16) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Rows of refused harmful and answered harmless prompts, or all where too few behave.

    Source: Arditi et al. 2024, appendix A: keep harmful prompts with metric > 0 and harmless ones with metric < 0.
    """
    refused, answered = (harmful > 0).nonzero()[:, 0], (harmless < 0).nonzero()[:, 0]
    counts = {
        "harmful_refused": len(refused),
        "harmful": len(harmful),
        "harmless_answered": len(answered),
        "harmless": len(harmless),
    }
    applied = len(refused) >= least and len(answered) >= least
    if not applied:
        refused, answered = torch.arange(len(harmful)), torch.arange(len(harmless))
    return refused, answered, {**counts, "applied": applied}


def _shortlist(
    model: ChatModel, acts: Mapping[tuple[str, str, str], Activations], refusal: Tensor, most: int
) -> list[tuple[int, int]]:
    """(position, layer) of the best template token of the `most` best layers before the last fifth."""
    bad, good = (
        acts["as-is", kind, "val"]["resid_pre"].float()[:, :, 1:] for kind in ("harmful", "harmless")
    )
    a, b = project(bad, refusal.expand_as(bad)), project(good, refusal.expand_as(good))
    pooled = ((a.var(0) + b.var(0)) / 2).sqrt()
    effect = torch.where(pooled > 0, (a.mean(0) - b.mean(0)) / pooled.clamp(min=1e-12), 0.0)
    n_post = refusal.shape[1]
    best = effect.max(1)
    layers = sorted(range(1, int(model.n_layers * 0.8)), key=lambda layer: -float(best.values[layer]))[:most]
    return [(int(best.indices[layer]) - n_post, layer) for layer in sorted(layers)]


def _picked_directions(
    model: ChatModel,
    prompts: PromptSet,
    acts: Mapping[tuple[str, str, str], Activations],
    directions: Mapping[str, Tensor],
    picked: Candidate,
    config: Config,
) -> tuple[Direction, Direction]:
    """The refusal direction that was picked and the harmfulness direction of the same layer."""
    layer, train = (
        picked.layer,
        [acts["as-is", kind, "train"]["resid_pre"] for kind in ("harmful", "harmless")],
    )
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
    """What is compared; a control per kind of intervention."""
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
    acts: Mapping[tuple[str, str, str], Activations], directions: Mapping[str, Tensor], roles: tuple[str, ...]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """AUROC of test prompts projected on each layer and role's train direction, by ending and role."""
    table: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for ending in ENDINGS:
        bad, good = (acts[ending, kind, "test"]["resid_pre"].float() for kind in ("harmful", "harmless"))
        fitted = torch.cat(
            [directions[f"harmfulness/{ending}"][:, None], directions[f"refusal/{ending}"]], dim=1
        )
        a, b = project(bad, fitted.expand_as(bad)), project(good, fitted.expand_as(good))
        table[ending] = {
            role: [
                auroc(a[:, layer, i], b[:, layer, i], resamples=200).as_dict() for layer in range(a.shape[1])
            ]
            for i, role in enumerate(roles)
        }
    return table
