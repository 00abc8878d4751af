"""What the rebound grid costs, by stage (`interp.experiments.plans`); models count as ones of the size of --model."""

from interp.data.corpora import Corpus
from interp.data.prompts import HELD_OUT_TEXT
from interp.data.tasks import load_task
from interp.engine.costs import Work
from interp.experiments.rebound import Config
from interp.experiments.sizes import Sizes, as_part
from interp.experiments.tracked import checkpoint, reference, with_borderline
from interp.experiments.training_work import preferences
from interp.tracking.records import TrackingSettings

BOUNDS = "replies and samples at full length"


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by model, of all seeds.

    Raises:
        ValueError: a task that cannot be read.
    """
    sizes = with_borderline(sizes)
    task = load_task(config.task, sizes.prompts, n_eval=config.n_eval)
    corpora = {**task.corpora, "prose": Corpus("prose", (HELD_OUT_TEXT.read_text(),))}
    asked, sampled = as_part(task.prompts), as_part(task.prompts[: config.n_kl])
    states = TrackingSettings(measures=("shift",), n=max(config.n_states, 1), n_fit=config.n_fit)
    codes = TrackingSettings(measures=("compression",), n_documents=config.n_documents)
    behaviour = sizes.replies(asked, config.max_new_tokens) + checkpoint(codes, sizes, corpora=corpora)
    kl = sizes.scored(sampled, len(sampled) * config.max_new_tokens)
    point = behaviour + sizes.replies(sampled, config.max_new_tokens) + kl * 2
    tests = [part for key, part in sizes.prompts.parts.items() if key[1] == "test"]
    projected = sizes.read(*(part.first(config.n_states) for part in tests)) if config.n_states else Work()
    aligned = reference(states, sizes) + projected if config.n_states else Work()
    most = max(config.negatives)
    if config.reverse == "dpo":
        pairs = [(pair.prompt, pair.chosen, pair.rejected) for pair in task.preferences(config.seed)[:most]]
        reverse = preferences(sizes, pairs, "dpo", batch_size=config.batch_size)
    else:
        reverse = sizes.supervised(task.negative[:most], batch_size=config.batch_size) if most else Work()
    positives = task.positive[: max(config.positives)]
    align = sizes.supervised(positives, batch_size=config.batch_size) if positives else Work()
    of_start = reverse + aligned + (point + projected) * len(config.negatives)
    seed = align + behaviour + of_start * len(config.positives)
    return {
        ("grid" if not config.models else f"grid, {name}"): seed * config.seeds
        for name in config.models or ("",)
    }
