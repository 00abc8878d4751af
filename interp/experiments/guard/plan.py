"""What the comparison of guards costs, by stage (`interp.experiments.plans`); guard models of the Hub not counted."""

from interp.data.prompt_sets import ENDINGS, KINDS, PAIRED_KINDS, Prompts
from interp.data.wrappers import attempts, wrappers
from interp.engine.costs import Work
from interp.experiments.guard import Config
from interp.experiments.sizes import Sizes

BOUNDS = "replies at full length; guard models of the Hub are not counted"


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage: replies that say what is refused, then states of every group under each ending."""
    train = [sizes.part(kind, "train", config.n_train) for kind in PAIRED_KINDS]
    val = [sizes.prompts[kind, "val"] for kind in PAIRED_KINDS]
    test = [part for kind in KINDS if len(part := sizes.part(kind, "test", config.n_test))]
    wrapped = [_wrapped(test[row], family, config.n_wrapped) for family in config.families for row in (0, 1)]
    asked = [*train, *test, *wrapped]
    read = [part for part in (*train, *val, *test, *wrapped) if len(part)]
    return {
        "replies": Work.total(sizes.replies(part, config.max_new_tokens) for part in asked),
        **{
            f"detectors, {ending}": Work.total(sizes.read(part.with_ending(ending)) for part in read)
            for ending in ENDINGS
        },
    }


def _wrapped(part: Prompts, family: str, n: int) -> Prompts:
    texts = tuple(one.prompt for one in attempts(wrappers((family,)), part.first(n))) if n else ()
    return Prompts(texts, tuple(map(str, range(len(texts)))), (None,) * len(texts), "wrapped")
