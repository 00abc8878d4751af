"""Selecting the refusal direction: the sweep engine against the plain procedure.

    python -m benchmarks.selection --prompts SET [--model NAME] [--kl 0.25] [--sample 6] [--full]

Task: bypass, induce and KL of every candidate (template token, layer) on filtered validation prompts of each kind. The
plain procedure is three sweeps, one candidate at a time: left-padded batches of 32 through the whole model, logits of
every position, hooks at every site. It is timed on a sample of candidates spread over the layers, in turn with the
engine, and scaled; `--full` runs all of it and compares every score.
"""

import argparse
import cProfile
import logging
import math
import pstats
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import write_section
from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import PromptSet, load_prompts
from interp.display.progress import progress
from interp.engine.activations import collect_means
from interp.engine.applying import apply
from interp.engine.batching import pad_left
from interp.engine.interventions import Ablate, Add
from interp.engine.log_probs import next_token_log_probs
from interp.evaluation.losses import kl_divergence
from interp.evaluation.refusals import find_refusal_tokens, refusal_metric
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.picks import choose, scored_candidates
from interp.representations.selection import NothingSurvives, Rule, pick
from interp.representations.sweeps import Place, Sweep


@torch.no_grad()
def plain_log_probs(model: ChatModel, tokens: ChatTokens, interventions: list[Any]) -> Tensor:
    """Next-token log-probabilities as one would write it: batch 32, left-padded, all logits."""
    rows = []
    with apply(model, interventions):
        for start in range(0, len(tokens), 32):
            batch = pad_left(tokens.ids[start : start + 32], pad_id=0)
            logits = model.hf(
                input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids
            ).logits
            rows.append(logits[:, -1].float().log_softmax(-1))
    return torch.cat(rows)


def plain_scores(
    model: ChatModel,
    place: Place,
    vector: Tensor,
    harmful: ChatTokens,
    harmless: ChatTokens,
    base: Tensor,
    ids: list[int],
) -> dict[str, Any]:
    """The three scores of one candidate, a pass each."""
    ablate, add = [Ablate(direction=vector)], [Add(direction=vector, layers=[place[1]])]
    return {
        "position": place[0],
        "layer": place[1],
        "bypass": refusal_metric(plain_log_probs(model, harmful, ablate), ids).mean().item(),
        "induce": refusal_metric(plain_log_probs(model, harmless, add), ids).mean().item(),
        "kl": kl_divergence(base, plain_log_probs(model, harmless, ablate)).mean().item(),
    }


def filtered_tokens(
    model: ChatModel, prompts: PromptSet, sizes: Sequence[int]
) -> tuple[dict[tuple[str, str], ChatTokens], list[int]]:
    """Training and validation prompts that are refused or answered as their kind asks for, and the refusal tokens."""
    tokens, log_probs = {}, {}
    for kind in PAIRED_KINDS:
        for split, n in zip(("train", "val"), sizes, strict=True):
            tokens[kind, split] = tokenize(model.tokenizer, prompts[kind, split].first(n).texts)
            log_probs[kind, split] = next_token_log_probs(model, tokens[kind, split])
    ids = list(
        find_refusal_tokens(
            log_probs["harmful", "train"], log_probs["harmless", "train"], model.tokenizer
        ).ids
    )
    for (kind, split), values in log_probs.items():
        metric = refusal_metric(values, ids)
        keep = (metric > 0 if kind == "harmful" else metric < 0).nonzero()[:, 0].tolist()
        tokens[kind, split] = tokens[kind, split].take(keep)
    return tokens, ids


def candidate_vectors(model: ChatModel, tokens: Mapping[tuple[str, str], ChatTokens]) -> dict[Place, Tensor]:
    """Differences in means by template token, from the end, and layer."""
    means = [
        collect_means(model, tokens[kind, "train"], positions="post_inst")["resid_pre"]
        for kind in PAIRED_KINDS
    ]
    difference = (means[0] - means[1]).float()
    difference[difference.norm(dim=-1) < 1e-6] = 0
    n_post = difference.shape[1]
    places = [(p - n_post, layer) for p in range(n_post) for layer in range(model.n_layers)]
    return {place: difference[place[1], place[0]].clone() for place in places}


def time_by_function(swept: Sweep, places: Sequence[Place]) -> str:
    """Rows of a table: share of a sweep's own time by function, of twelve candidates."""
    profile = cProfile.Profile()
    with profile:
        for place in places[:: len(places) // 12]:
            swept.complete(place)
    stats = pstats.Stats(profile).stats  # pyright: ignore[reportAttributeAccessIssue]
    total = sum(value[2] for value in stats.values())
    top = sorted(stats.items(), key=lambda item: -item[1][2])[:8]
    return "\n".join(f"| {key[2].strip('<>')} | {value[2] / total:.0%} |" for key, value in top)


def plain_pick(scores: list[dict[str, Any]], n_layers: int, kl_threshold: float) -> str:
    """What the plain procedure picks, in words."""
    try:
        chosen = pick(scores, n_layers=n_layers, kl_threshold=kl_threshold)
    except NothingSurvives:
        return " Plain pick: none."
    return f" Plain pick: position {chosen.position}, layer {chosen.layer}."


def arguments() -> argparse.Namespace:
    """What the benchmark is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", default="builtin")
    parser.add_argument("--model", default="smollm2-safe")
    parser.add_argument("--n", type=int, nargs=2, default=(128, 32), help="training and validation prompts")
    parser.add_argument("--kl", type=float, default=0.1, help="KL limit of the rule")
    parser.add_argument("--sample", type=int, default=6)
    parser.add_argument("--full", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    args = arguments()
    torch.set_num_threads(2)
    model, prompts = load(args.model), load_prompts(args.prompts)
    tokens, ids = filtered_tokens(model, prompts, args.n)
    vectors = candidate_vectors(model, tokens)
    places = list(vectors)
    harmful, harmless = tokens["harmful", "val"], tokens["harmless", "val"]

    def sweep() -> Sweep:
        return Sweep(model, vectors, harmful=harmful, harmless=harmless, refusal_ids=ids)

    base = plain_log_probs(model, harmless, [])
    step = max(1, len(places) // args.sample)
    few = places[step // 2 :: step]
    plain: dict[Place, dict[str, Any]] = {}
    seconds, plain_seconds, picks, scores = {}, {}, {}, {}
    for mode in ("exhaustive", "default"):
        waiting = list(places if args.full and mode == "exhaustive" else few)
        every, taken = len(places) // len(waiting), []

        # The machine's speed drifts: plainly scored candidates stand between the others, and their time is taken out.
        def between(candidates: Iterable[Place], label: str) -> Iterator[Place]:
            watched = progress(candidates, total=len(places), label=label, show=True)
            for n, candidate in enumerate(watched):
                if waiting and n % every == 0:  # noqa: B023 (used up before the next mode)
                    place = waiting.pop()  # noqa: B023
                    started = time.perf_counter()
                    plain[place] = plain_scores(model, place, vectors[place], harmful, harmless, base, ids)
                    taken.append(time.perf_counter() - started)  # noqa: B023
                yield candidate

        begun = time.perf_counter()
        swept = sweep()
        try:
            found, _ = choose(
                swept, [Rule(kl_threshold=args.kl)], exhaustive=mode == "exhaustive", progress=between
            )
            picks[mode] = f"position {found.position}, layer {found.layer}"
        except NothingSurvives as error:
            picks[mode] = f"none; {str(error).split('; nearest: ')[1].split(' (')[0]} is nearest"
        seconds[mode] = time.perf_counter() - begun - sum(taken)
        plain_seconds[mode] = sum(taken) * len(places) / len(taken)
        scores[mode] = {
            (c.position, c.layer): c for c in scored_candidates(swept, Rule(kl_threshold=args.kl))
        }
    gap = max(
        abs(plain[place][score] - getattr(scores["exhaustive"][place], score))
        for place in plain
        for score in ("bypass", "induce", "kl")
    )
    agreement = f"Largest difference of any score over {len(plain)} plainly scored candidates: {gap:.1e}."
    if args.full:
        agreement += plain_pick(list(plain.values()), model.n_layers, args.kl)
    shares = time_by_function(sweep(), places)
    measured = sum(not math.isnan(c.induce + c.bypass + c.kl) for c in scores["default"].values())
    how = {"exhaustive": len(places) if args.full else len(few), "default": len(few)}
    labels = {"exhaustive": "exhaustive", "default": f"default ({measured} candidates scored in full)"}
    table = "\n".join(
        f"| {label} | {seconds[mode]:.0f} | {plain_seconds[mode]:.0f} (of {how[mode]} candidates) "
        f"| {plain_seconds[mode] / seconds[mode]:.1f}x | {picks[mode]} |"
        for mode, label in labels.items()
    )
    write_section(
        "Selection",
        f"""{len(places)} candidates, {len(harmful)} harmful and {len(harmless)} harmless validation prompts of
`{Path(prompts.name).name}` (after filtering), {model.name}, float32, KL limit {args.kl:g}.

| | seconds | plain procedure, in turn | faster by | pick |
|---|---|---|---|---|
{table}

{agreement}

What remains of an exhaustive sweep (share of its own time, by function):

| function | share |
|---|---|
{shares}""",
    )


if __name__ == "__main__":
    main()
