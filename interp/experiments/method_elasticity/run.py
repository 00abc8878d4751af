"""The method of the method-elasticity experiment.

Steps (`run`), for every seed:

1. Start: a few supervised refusals, merged into the base. Every arm starts from this model; KL is to the base.
2. Align: each method trains a fresh adapter, measured on the prompts of matching every few steps, and stops where its
   refusal rate reaches the target.
3. Match: of each method the checkpoint nearest to the target is taken; for the second comparison the one nearest to the
   largest KL that all methods reach.
4. Unlearn: each of these learns the same stubs in the same order by supervised steps, tracked on the test prompts.
5. Align again: the end of 4 is aligned by the same method on the same pairs, from a fresh optimiser.

A finished leg is kept; a killed run continues at the leg that it was in. With workers (`interp.engine.ray`) each takes
one arm of one seed at a time (`shared_legs.py`).
"""

from interp.data.prompt_sets import PromptSet
from interp.experiments.definition import Outcome
from interp.experiments.method_elasticity import Config, Result
from interp.experiments.method_elasticity.legs import Grid, Seed
from interp.experiments.method_elasticity.methods import material
from interp.experiments.method_elasticity.results import Alignment, Arm, Leg
from interp.experiments.method_elasticity.shared_legs import shared_grid
from interp.models.chat_model import ChatModel
from interp.storage.stages import Stages


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run every seed and arm.

    Raises:
        ValueError: too few prompts for the settings, or as a method says.
    """
    numbers = range(config.seed, config.seed + config.seeds)
    dealt = {seed: material(prompts, config, seed) for seed in numbers}  # refused before anything is trained
    seeds = [Seed(model, prompts, dealt[number], config, stages, number) for number in numbers]
    grids = [_grid(seed) for seed in seeds] if stages.workers is None else shared_grid(seeds)
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        alignments=tuple(alignment for grid in grids for alignment in grid.alignments),
        matches=tuple(match for grid in grids for match in grid.matches),
        unlearned=tuple(leg for grid in grids for leg in grid.unlearned),
        aligned_again=tuple(alignment for grid in grids for alignment in grid.aligned_again),
    )
    return Outcome(result=result)


def _grid(seed: Seed) -> Grid:
    """The arms of a seed, one after the other."""
    stages, unlearned, again = seed.stages, list[Leg](), list[Alignment]()
    # 1. Start.
    with seed.start() as start:
        # 2. Align.
        first: dict[Arm, Alignment] = {
            arm: seed.aligned(arm, start)
            for arm in stages.progress(seed.trained_arms, f"seed {seed.seed}: align")
        }
        stages.lap("align")
        # 3. Match.
        matches = seed.matches(first)
        # 4. Unlearn, and 5. align again.
        for match in stages.progress(matches, f"seed {seed.seed}: unlearn and align again"):
            leg, second = seed.unlearned(match, start)
            unlearned.append(leg)
            again += [] if second is None else [second]
        if "none" in seed.config.controls:
            unlearned.append(seed.unlearned_start(start))
        stages.lap("unlearn and align again")
    return Grid(list(first.values()), matches, unlearned, again)
