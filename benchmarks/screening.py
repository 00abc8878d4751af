"""Picking a refusal direction in `exact`, and in `fast` with proof, against the plain procedure: processor seconds.

    python -m benchmarks.screening [--prompts SET] [--n TRAIN VAL] [--sample 4]

Both sweeps score the same candidates, which a model in `exact` gave, and leave out what cannot win. Packing the weights
is part of both. The plain procedure (`benchmarks.selection`) scores a sample of the candidates, spread over layers,
half of them before each sweep, and is scaled. One round each: about four minutes on one core.
"""

import argparse
import logging
import time

import torch

from benchmarks.machine import write_section
from benchmarks.selection import candidate_vectors, filtered_tokens, plain_log_probs, plain_scores
from interp.data.prompts import load_prompts
from interp.models.adapted_models import with_precision
from interp.models.chat_model import load
from interp.representations.confirming import confirmation
from interp.representations.picks import choose
from interp.representations.selection import Candidate, Rule
from interp.representations.sweeps import Sweep


def words(picked: Candidate) -> str:
    """A pick with its scores."""
    return (
        f"position {picked.position}, layer {picked.layer} (bypass {picked.bypass:.3f}, induce {picked.induce:.3f}, "
        f"KL {picked.kl:.4f})"
    )


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", default="builtin")
    parser.add_argument("--model", default="smollm2-safe")
    parser.add_argument("--n", type=int, nargs=2, default=(64, 24), help="training and validation prompts")
    parser.add_argument("--sample", type=int, default=4, help="candidates that the plain procedure scores")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.model)
    tokens, ids = filtered_tokens(model, load_prompts(args.prompts), args.n)
    vectors = candidate_vectors(model, tokens)
    harmful, harmless = tokens["harmful", "val"], tokens["harmless", "val"]
    seconds, picks, full, rests_on = {}, {}, {}, None
    base, step = plain_log_probs(model, harmless, []), len(vectors) // args.sample
    plain = 0.0
    sampled = list(vectors)[step // 2 :: step]
    for precision, places in (("exact", sampled[::2]), ("fast", sampled[1::2])):
        begun = time.process_time()
        for place in places:
            plain_scores(model, place, vectors[place], harmful, harmless, base, ids)
        plain += (time.process_time() - begun) * len(vectors) / len(sampled)
        begun = time.process_time()
        sweep = Sweep(
            with_precision(model, precision), vectors, harmful=harmful, harmless=harmless, refusal_ids=ids
        )
        picks[precision], rule = choose(sweep, [Rule(), Rule(kl_threshold=1.0)])
        seconds[precision] = time.process_time() - begun
        scored = [sweep.candidate(place) for place in vectors]
        full[precision] = sum(c.bypass == c.bypass for c in scored)
        rests_on = confirmation(sweep)
        print(precision, seconds[precision], words(picks[precision]), rule, rests_on, flush=True)
    same = (picks["exact"].position, picks["exact"].layer) == (picks["fast"].position, picks["fast"].layer)
    if rests_on is None:
        write_section(
            "Screening", "`fast` does not pay on this machine: candidates are scored in `exact` alone."
        )
        return
    write_section(
        "Screening",
        f"""{len(vectors)} candidates, {len(harmful)} harmful and {len(harmless)} harmless validation prompts of
`{args.prompts}` (after filtering), {args.model}, float32, one thread. Processor seconds, one round each.

| | processor seconds | faster than the plain procedure by | bypass measured for | pick |
|---|---|---|---|---|
| plain procedure (of {len(sampled)} candidates) | {plain:.0f} | 1.0x | | |
| exact | {seconds["exact"]:.0f} | {plain / seconds["exact"]:.1f}x | {full["exact"]} | {words(picks["exact"])} |
| fast, proven in exact | {seconds["fast"]:.0f} | {plain / seconds["fast"]:.1f}x | {full["fast"]} | \
{words(picks["fast"])} |

Same pick: {"yes" if same else "NO"}. {rests_on.confirmed} candidates were scored in both; the largest differences were
{rests_on.bypass:.2g} (bypass), {rests_on.induce:.2g} (induce) and {rests_on.kl:.2g} (KL) nats a prompt, and
{rests_on.margin:g} times that would not let another candidate win.""",
    )


if __name__ == "__main__":
    main()
