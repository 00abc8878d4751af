"""What the comparison of jailbreaks costs, by stage (`interp.experiments.plans`)."""

from interp.data.prompt_sets import COMPARED_ENDINGS, PAIRED_KINDS
from interp.data.wrappers import attempts, read_attacks, read_suffixes, wrappers
from interp.engine.costs import Work
from interp.experiments.jailbreaks import Config
from interp.experiments.sizes import Sizes, as_part

BOUNDS = "replies at full length, and every training prompt counted as behaving"


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage.

    Raises:
        ValueError: a search for suffixes, or files that cannot be read.
    """
    if config.n_found:
        raise ValueError(
            "no plan for a search for suffixes (n_found): how long it takes depends on what it finds; set n_found to 0"
        )
    wrapped_by, finished = wrappers(config.families), []
    if config.suffixes:
        wrapped_by += read_suffixes(config.suffixes)
    if config.attacks:
        more, finished = read_attacks(config.attacks)
        wrapped_by += more
    train = [sizes.part(kind, "train", config.n_train) for kind in PAIRED_KINDS]
    asked = []
    for kind in PAIRED_KINDS:
        plain = sizes.part(kind, "test", config.n_test)
        tries = attempts(wrapped_by, plain) + (list(finished) if kind == "harmful" else [])
        asked += [plain, as_part([each.prompt for each in tries])]
    asked = [part for part in asked if len(part)]
    centres = Work.total(sizes.replies(part, config.max_new_tokens) for part in train)
    for ending in COMPARED_ENDINGS:
        centres += Work.total(sizes.read(part.with_ending(ending)) for part in train)
    return {
        "centres": centres,
        "replies": Work.total(sizes.replies(part, config.max_new_tokens) for part in asked),
        "beliefs": Work.total(
            sizes.read(part.with_ending(ending)) for part in asked for ending in COMPARED_ENDINGS
        ),
    }
