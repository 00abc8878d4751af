"""What tracking a series costs, by stage (`interp.experiments.plans`); the number of checkpoints is a setting.

Opening a checkpoint and hashing its weights are not counted, as loading is in no plan. The reference is fitted with one
more checkpoint's worth of states and replies, and keeps the distributions of its own samples.
"""

from dataclasses import dataclass, replace

from interp.data.corpora import default_corpora
from interp.data.prompt_sets import KINDS, PAIRED_KINDS
from interp.data.prompts import load_prompts
from interp.engine.costs import Work
from interp.experiments.plans import Sizes
from interp.storage.settings import Count
from interp.tracking.records import DEFAULT_GROUPS, TrackingSettings

_WINDOW = 64
"""Tokens a document of plain text (`interp.evaluation.compression`)."""
_STATES = {"beliefs", "directions", "shift", "guard"}
"""Groups of measures that are made of the same states."""


@dataclass(frozen=True, kw_only=True)
class Settings(TrackingSettings):
    """Settings of tracking, and the length of the series."""

    checkpoints: Count = 12
    """Number of checkpoints."""


def plan(config: Settings, sizes: Sizes) -> dict[str, Work]:
    """Work by stage.

    Raises:
        ValueError: groups of measures that are not planned.
    """
    if unplanned := set(config.measures) - set(DEFAULT_GROUPS):
        raise ValueError(f"no plan for the measures {', '.join(sorted(unplanned))}; leave them out")
    if ("borderline", "test") not in sizes.prompts:
        borderline = load_prompts("builtin")["borderline", "test"]
        parts = {**sizes.prompts.parts, ("borderline", "test"): borderline}
        sizes = replace(sizes, prompts=replace(sizes.prompts, parts=parts))
    train = [sizes.part(kind, "train", config.n_fit) for kind in PAIRED_KINDS]
    test = [sizes.part(kind, "test", config.n) for kind in KINDS]
    sampled = [sizes.part(kind, "test", config.n_samples) for kind in PAIRED_KINDS]
    samples = Work.total(sizes.replies(part, config.max_new_tokens) for part in sampled)
    scored = _scored(config, sizes)
    one = Work()
    if "refusal" in config.measures:
        one += Work.total(sizes.replies(part, config.max_new_tokens) for part in test)
        one += sizes.first_tokens(*test)
    if _STATES & set(config.measures):
        one += sizes.read(*train, *test)
    if "compression" in config.measures:
        one += _compression(config, sizes)
    if "kl" in config.measures:  # its own samples, scored by both, and the reference's
        one += samples + scored + scored
    fitting = Work.total(sizes.replies(part, config.max_new_tokens) for part in train) + sizes.read(*train)
    fitting += sizes.read(*test)
    if "kl" in config.measures:
        fitting += samples + scored
    stages = {"reference": fitting, "checkpoints": one * config.checkpoints}
    if "kl" in config.measures:
        stages["reference on samples"] = scored * config.checkpoints
    return stages


def _scored(config: Settings, sizes: Sizes) -> Work:
    """One model's distributions at every token of sampled replies; the reference's are stored, 2 bytes a number."""
    parts = [sizes.part(kind, "test", config.n_samples) for kind in PAIRED_KINDS]
    tokens = sum(map(len, parts)) * config.max_new_tokens
    return Work(read_tokens=sizes.read(*parts, roles=0).read_tokens + tokens, unembedded=tokens)


def _compression(config: Settings, sizes: Sizes) -> Work:
    """Code lengths of the default corpora."""
    total = Work()
    for corpus in default_corpora(sizes.prompts).values():
        if corpus.prompts is None:
            tokens = config.n_documents * _WINDOW
            total += Work(read_tokens=tokens, unembedded=tokens)
        else:
            chosen = corpus.prompts[: config.n_documents]
            part = sizes.part("harmful", "test", len(chosen))
            # Responses as instructions, less what the template puts around every one.
            frame = len(sizes.counter.ids([""])[0])
            responses = sizes.counter.ids(corpus.texts[: len(chosen)])
            tokens = sum(len(ids) - frame for ids in responses)
            total += Work(read_tokens=sizes.read(part, roles=0).read_tokens + tokens, unembedded=tokens)
    return total
