"""What the resistance experiment costs, by stage (`interp.experiments.plans`)."""

from itertools import combinations

from interp.data.examples import Example
from interp.data.tasks import load_task
from interp.engine.costs import Work
from interp.experiments.resistance import Config
from interp.experiments.sizes import Sizes, as_part

BOUNDS = "answers at full length"


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage, of all seeds.

    Raises:
        ValueError: a task that cannot be read.
    """
    task = load_task(config.task, sizes.prompts, n_eval=config.n_targets)
    n, seeds = config.slices, config.seeds
    slices = sizes.supervised(
        task.positive[: n * config.slice_size],
        batch_size=config.batch_size,
        completion_tokens=config.max_new_tokens,
    )
    asked = as_part(task.prompts)
    loss = sizes.scored(asked, len(asked) * config.max_new_tokens)
    answers = [Example(text, " word" * config.max_new_tokens) for text in task.prompts]
    arm = sizes.supervised(answers, batch_size=config.batch_size, completion_tokens=config.max_new_tokens)
    # An arm's loss, and KL of both checkpoints on the answers of both.
    arms = (arm + loss * 5) * (2 * len(list(combinations(range(n), 2))))
    return {
        "slices": slices * seeds,
        "targets": sizes.replies(asked, config.max_new_tokens) * (n * seeds),
        "losses before training": loss * (n * n * seeds),
        "arms": arms * seeds,
    }
