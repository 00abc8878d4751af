"""What a path of fine-tuning costs, by stage (`interp.experiments.plans`): the training, then the tracking."""

from interp.data.examples import Example
from interp.data.prompt_sets import Prompts
from interp.data.replies import REFUSALS
from interp.engine.costs import Work
from interp.experiments.sizes import Sizes, as_part, stubs
from interp.experiments.tracked import checkpoint, reference, samples_scored, with_borderline
from interp.experiments.trajectory import Config
from interp.tracking.records import TrackingSettings

BOUNDS = "replies at full length"


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage."""
    sizes = with_borderline(sizes)
    settings = TrackingSettings(
        n=config.n, n_fit=config.n_fit, n_documents=config.n_documents, max_new_tokens=config.max_new_tokens
    )
    checkpoints = 1 + len(config.counts) * len(config.stages)
    one = checkpoint(settings, sizes) + samples_scored(settings, sizes)
    return {
        "train": Work.total(_trained(config, sizes, stage) for stage in config.stages),
        "track": reference(settings, sizes) + one * checkpoints,
    }


def _trained(config: Config, sizes: Sizes, stage: str) -> Work:
    """One stage: answers of the model's own where it teaches them, then the training."""
    wanted = config.counts[-1]
    if stage == "stubs":
        examples = stubs(sizes.part("harmful", "train", wanted).texts, wanted)
        return sizes.supervised(examples, batch_size=config.batch_size)
    third = wanted // 3
    harmful = sizes.part("harmful", "train", wanted - 2 * third).texts
    answered = _answered(sizes, third + wanted // 8)
    reply = " word" * config.answer_tokens
    examples = [Example(text, REFUSALS[i % len(REFUSALS)]) for i, text in enumerate(harmful)]
    examples += [Example(text, reply) for text in answered.texts[: 2 * third]]
    own = sizes.replies(answered, config.answer_tokens)
    return own + sizes.supervised(examples, batch_size=config.batch_size)


def _answered(sizes: Sizes, n: int) -> Prompts:
    """Prompts that the model answers itself."""
    borderline = sizes.part("borderline", "train", n) or sizes.part("borderline", "test", n)
    return as_part([*sizes.part("harmless", "train", n).texts, *borderline.texts])
