"""What the readings of answers cost, by stage (`interp.experiments.plans`); fits on states take seconds."""

import random

from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.safe_rlhf import read_pairs
from interp.data.safe_rlhf_miniature import miniature
from interp.engine.costs import Work
from interp.experiments.safe_rlhf import Config
from interp.experiments.sizes import Sizes, as_part


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage.

    Raises:
        ValueError: data that cannot be read.
    """
    every = read_pairs(config.data) if config.data else miniature()
    pairs = random.Random(config.seed).sample(every, min(config.n_pairs, len(every)))
    answers = [answer for pair in pairs for answer in pair.answers if answer.text.strip()]
    # A prompt runs once for both of its answers.
    prompts = sizes.read(as_part(list(dict.fromkeys(answer.prompt for answer in answers))), roles=0)
    tokens = sum(sizes.counter.lengths([answer.text for answer in answers]))
    held = len(answers) * (sizes.model.n_layers + 1) * sizes.model.d_model
    read = prompts + Work(read_tokens=tokens, held_numbers=held)
    fit = [sizes.part(kind, "train", config.n_directions) for kind in PAIRED_KINDS]
    directions = Work(stored_bytes=2 * (sizes.model.n_layers + 1) * sizes.model.d_model * 4)
    return {"states": read, "harm direction": sizes.read(*fit, roles=1) + directions}
