"""What the refusal-direction experiment costs, by stage (`interp.experiments.plans`)."""

from dataclasses import replace

from interp.data.files import read_text
from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import HELD_OUT_TEXT, Split
from interp.engine.costs import Work
from interp.experiments.refusal_direction import ARMS, Config
from interp.experiments.sizes import Sizes

BOUNDS = (
    "replies at full length, every prompt counted as behaving, and the default sweep at the share of an exhaustive one "
    "that it was measured to take"
)
_SCREENED = 0.28
"""Share of an exhaustive sweep that the default one takes, which leaves out what provably cannot win (benchmarks)."""
_LOSS_ARMS = 4
"""Arms whose cross-entropy is measured."""
_MECHANISM_PASSES = 12
"""Passes of the mechanism's prompts: baseline, ablation, attributions by part, suffixes, the base model."""


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage."""
    splits: tuple[tuple[Split, int], ...] = (
        ("train", config.n_train),
        ("val", config.n_val),
        ("test", config.n_test),
    )
    train, val, test = ([sizes.part(kind, split, n) for kind in PAIRED_KINDS] for split, n in splits)
    layers = sizes.model.n_layers
    both, harmless = sizes.first_tokens(*val), sizes.first_tokens(val[1])
    # An addition runs from its layer on: half of the blocks on average.
    added = Work(read_tokens=harmless.read_tokens // 2, unembedded=harmless.unembedded)
    n = int(sizes.n_post * layers * (1 if config.sweep == "exhaustive" else _SCREENED))
    random = both + added * len(range(0, layers, config.random_every))
    own = sizes.replies(test[1], config.max_new_tokens)
    scored = own.read_tokens + own.decoded_tokens
    text = read_text(HELD_OUT_TEXT) if not config.text else ""
    words = len(sizes.counter.tokenizer.encode(text, add_special_tokens=False).ids)
    losses = Work(read_tokens=scored + words, unembedded=own.decoded_tokens + words)
    few = [part.first(config.n_mechanism) for part in val]
    arms = [
        sizes.replies(sizes.part(kind, "test", config.n_test), config.max_new_tokens, arms=len(names))
        for kind, names in ARMS.items()
    ]
    return {
        "filter": sizes.first_tokens(*train, *val),
        "collect": sizes.read(*train, roles=0),
        "select": _swept((both + added) * n)
        + Work(stored_bytes=sizes.n_post * layers * sizes.model.d_model * 4),
        "random directions": _swept(random * config.n_random),
        "generate": Work.total(arms),
        "cross-entropy": losses * _LOSS_ARMS,
        "mechanism": sizes.first_tokens(*few) * _MECHANISM_PASSES + sizes.read(*train, roles=0),
    }


def _swept(work: Work) -> Work:
    return replace(work, read_tokens=0, swept_tokens=work.read_tokens)
