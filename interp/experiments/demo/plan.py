"""What the demo costs, by stage (`interp.experiments.plans`)."""

from interp.data.prompt_sets import KINDS, PAIRED_KINDS
from interp.data.prompts import Split
from interp.engine.costs import Work
from interp.experiments.demo import Config
from interp.experiments.sizes import Sizes, as_part

_ARMS = 5
"""Arms that every kind of prompts is completed under; harmless ones also with harmfulness added."""


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage."""
    splits: tuple[tuple[Split, int], ...] = (
        ("train", config.n_train),
        ("val", config.n_val),
        ("test", config.n_test),
    )
    train, val, test = ([sizes.part(kind, split, n) for kind in PAIRED_KINDS] for split, n in splits)
    ended = [part.with_ending("period") for part in (*train, *test)]
    # A candidate is ablated on the prompts of both kinds; added, harmless ones run from its layer on.
    scored = sizes.first_tokens(*val) + sizes.first_tokens(val[1])
    completed = {kind: sizes.part(kind, "test", config.n_test) for kind in KINDS}
    every = as_part([text for part in completed.values() for text in part.texts])
    roles, width = 1 + sizes.n_post, sizes.model.n_layers * sizes.model.d_model
    directions = Work(stored_bytes=2 * roles * width * 4)
    return {
        "refusal tokens": sizes.first_tokens(*train),
        "collect": sizes.read(*train, *val, *test, *ended, roles=roles) + directions,
        "select": scored * config.n_candidates,
        "generate": sizes.replies(every, config.max_new_tokens, arms=_ARMS)
        + sizes.replies(completed["harmless"], config.max_new_tokens),
    }
