"""What the experiment on endings costs, by stage (`interp.experiments.plans`)."""

from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import Split, load_prompts
from interp.engine.costs import Work
from interp.experiments.endings import TREATMENTS, Config
from interp.experiments.sizes import Sizes

BOUNDS = "nothing but --models, each of which counts as one of the size of --model"


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by treatment of the endings; further models count as one of the size of --model each."""
    sets = [sizes.prompts, *(load_prompts(source, seed=config.seed) for source in config.sets)]
    splits: tuple[tuple[Split, int], ...] = (("train", config.n_train), ("test", config.n_test))
    train, test = (
        Work.total(
            sizes.read(found[kind, split].first(n))
            for found in (*sets, sets[0])  # the first again, with planted endings
            for kind in PAIRED_KINDS
        )
        * (1 + len(config.models))
        for split, n in splits
    )
    # With endings exchanged, the training prompts are also read as they are.
    return {
        treatment: train + test + (train if treatment == "swapped" else Work()) for treatment in TREATMENTS
    }
