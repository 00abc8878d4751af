"""What measuring a checkpoint of a series costs, for the plans of all that track (`interp.tracking.measures`).

The reference is fitted with one more checkpoint's worth of states, and keeps the distributions of its own samples.
"""

from collections.abc import Mapping
from dataclasses import replace

from interp.data.corpora import Corpus, default_corpora
from interp.data.prompt_sets import KINDS, PAIRED_KINDS, Prompts
from interp.data.prompts import load_prompts
from interp.engine.costs import Work
from interp.experiments.sizes import Sizes
from interp.tracking.records import DEFAULT_GROUPS, TrackingSettings

_WINDOW = 64
"""Tokens a document of plain text (`interp.evaluation.compression`)."""
_STATES = {"beliefs", "directions", "shift", "guard"}
"""Groups of measures that are made of the same states."""


def with_borderline(sizes: Sizes) -> Sizes:
    """The sizes, with the project's borderline prompts where the set has none."""
    if ("borderline", "test") in sizes.prompts:
        return sizes
    borderline = load_prompts("builtin")["borderline", "test"]
    parts = {**sizes.prompts.parts, ("borderline", "test"): borderline}
    return replace(sizes, prompts=replace(sizes.prompts, parts=parts))


def checkpoint(
    settings: TrackingSettings,
    sizes: Sizes,
    *,
    corpora: Mapping[str, Corpus] | None = None,
    own_samples: bool = True,
) -> Work:
    """The measures of one checkpoint.

    Args:
        corpora: texts of the group `compression`; the default ones when None.
        own_samples: whether KL is also taken on the checkpoint's samples, whose distributions it gives.

    Raises:
        ValueError: groups of measures that are not planned.
    """
    if unplanned := set(settings.measures) - set(DEFAULT_GROUPS):
        raise ValueError(f"no plan for the measures {', '.join(sorted(unplanned))}; leave them out")
    train = [sizes.part(kind, "train", settings.n_fit) for kind in PAIRED_KINDS]
    test = [sizes.part(kind, "test", settings.n) for kind in KINDS]
    work = Work()
    if "refusal" in settings.measures:
        work += Work.total(sizes.replies(part, settings.max_new_tokens) for part in test)
        work += Work.total(sizes.first_tokens(part) for part in test)
    if _STATES & set(settings.measures):
        work += sizes.read(*train, *test)
    if "compression" in settings.measures:
        work += _compression(settings, sizes, corpora)
    if "kl" in settings.measures:
        work += samples_scored(settings, sizes)
        if own_samples:
            work += _samples(settings, sizes) + samples_scored(settings, sizes)
    return work


def reference(
    settings: TrackingSettings, sizes: Sizes, *, corpora: Mapping[str, Corpus] | None = None
) -> Work:
    """The reference of a series: what it refuses, its states, its samples and code lengths."""
    train = [sizes.part(kind, "train", settings.n_fit) for kind in PAIRED_KINDS]
    validation = [sizes.part(kind, "val", settings.n_fit) for kind in PAIRED_KINDS]
    test = [sizes.part(kind, "test", settings.n) for kind in KINDS]
    work = sizes.read(*train, *validation, *test) + sizes.first_tokens(*train)
    if "compression" in settings.measures:
        work += _compression(settings, sizes, corpora)
    if "kl" in settings.measures:
        work += _samples(settings, sizes) + samples_scored(settings, sizes)
    return work


def samples_scored(settings: TrackingSettings, sizes: Sizes) -> Work:
    """One model's distributions at every token of sampled replies."""
    parts = _sampled(settings, sizes)
    return Work.total(sizes.scored(part, len(part) * settings.max_new_tokens) for part in parts)


def _samples(settings: TrackingSettings, sizes: Sizes) -> Work:
    return Work.total(sizes.replies(part, settings.max_new_tokens) for part in _sampled(settings, sizes))


def _sampled(settings: TrackingSettings, sizes: Sizes) -> list[Prompts]:
    return [sizes.part(kind, "test", settings.n_samples) for kind in PAIRED_KINDS]


def _compression(settings: TrackingSettings, sizes: Sizes, corpora: Mapping[str, Corpus] | None) -> Work:
    """Code lengths of the corpora."""
    total = Work()
    given = default_corpora(sizes.prompts) if corpora is None else corpora
    for corpus in given.values():
        if corpus.prompts is None:
            tokens = settings.n_documents * _WINDOW
            total += Work(read_tokens=tokens, unembedded=tokens)
            continue
        n = settings.n_documents
        asked = Prompts(tuple(corpus.prompts[:n]), tuple(map(str, range(n))), (None,) * n, corpus.name)
        total += sizes.scored(asked, sizes.counter.lengths(corpus.texts[:n]))
    return total
