"""Steps 1 and 2 of the study: pairs, and how well each detector tells them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from interp.data.prompts import Prompts
from interp.detectors.machine_text.perturbation import dna_gpt, perturbation_scores
from interp.detectors.machine_text.perturbers import WordPerturber
from interp.experiments.machine_text import FAST, ORDER, SLOW, Config
from interp.experiments.machine_text.estimates import (
    area_difference,
    separation,
    share_above,
    thresholds,
)
from interp.experiments.machine_text.results import Difference, Separation
from interp.experiments.machine_text.texts import (
    Lookup,
    Readings,
    Twins,
    Written,
    by_id,
    cut_texts,
    dimension_twins,
    read,
    text_lengths,
    twins,
    written,
)
from interp.models.chat_model import ChatModel
from interp.stats import Estimate
from interp.storage.stages import Stages

_HARDLY_WRITTEN = 32
"""Tokens below which a changed text is left out."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """Human texts, the model's own, and what the model makes of them."""

    model: ChatModel
    """The model that writes and scores."""
    reference: ChatModel | None
    """A second model with its tokenizer."""
    config: Config
    human: Prompts
    """Human texts that have a pair, whole."""
    cut: tuple[str, ...]
    """The same, as long as their twins."""
    own: Written
    """The model's texts."""
    humans: Lookup
    """Readings of the human texts."""
    machines: Lookup
    """Readings of the model's texts."""
    pairs: Twins
    """Both, scored."""
    dropped: int
    """Human texts without a pair."""
    show_progress: bool

    @property
    def thresholds(self) -> dict[str, float | None]:
        """By detector the threshold of the false-positive rate on all human texts; None where they are too few."""
        human = {title: self.pairs.column(title)[1] for title in self.pairs.detectors}
        return thresholds(human, false_positive_rate=self.config.false_positive_rate)

    def first(self, n: int) -> Prompts:
        """The human texts of the first n pairs."""
        return self.human.first(n)

    def changed(self, ids: Sequence[str], texts: Sequence[str]) -> Twins:
        """Other machine-written texts beside their human twins; those of a few tokens are left out.

        Raises:
            ValueError: none is left.
        """
        shortest = min(_HARDLY_WRITTEN, self.config.length)
        counts = text_lengths(self.model, texts)
        rows = [row for row, n in enumerate(counts) if n >= shortest]
        if not rows:
            raise ValueError(
                f"{self.model.name}: none of {len(texts)} changed texts has {shortest} tokens; give another model"
            )
        readings = read(
            self.model,
            [texts[row] for row in rows],
            reference=self.reference,
            show_progress=self.show_progress,
        )
        lookup = by_id(readings, [ids[row] for row in rows])
        return twins(self.humans, lookup, limits=self.config.length)


def prepare(
    model: ChatModel, reference: ChatModel | None, human: Prompts, config: Config, stages: Stages
) -> Study:
    """1. Pairs: the model's texts, and what it makes of every token of them and of the human ones."""
    own = stages.keep(
        "own-texts", partial(written, model, human, config, show_progress=stages.show_progress), Written
    )
    place = {name: row for row, name in enumerate(human.ids)}
    kept = human.take([place[name] for name in own.ids])
    whole = cut_texts(model, kept.texts, config.length)
    stages.lap("write")
    reading = partial(read, model, reference=reference, show_progress=stages.show_progress)
    humans = Readings.of(stages.keep("read-human", lambda: reading(whole).tensors))
    machines = Readings.of(stages.keep("read-own", lambda: reading(own.machine).tensors))
    stages.lap("read")
    lookups = by_id(humans, own.ids), by_id(machines, own.ids)
    return Study(
        model=model,
        reference=reference,
        config=config,
        human=kept,
        cut=tuple(cut_texts(model, kept.texts, own.lengths)),
        own=own,
        humans=lookups[0],
        machines=lookups[1],
        pairs=twins(*lookups, limits=dict(zip(own.ids, own.lengths, strict=True))),
        dropped=len(human) - len(kept),
        show_progress=stages.show_progress,
    )


def detect(study: Study, stages: Stages) -> dict[str, Separation]:
    """2. Every detector on the pairs; those of many versions on the first few."""
    config, both = study.config, [study.pairs]
    if (dimensions := dimension_twins(study.humans, study.machines)) is not None:
        both.append(dimensions)
    sides = []
    for name, texts in (("human", study.cut), ("own", study.own.machine)):
        make = partial(_slow_scores, study, texts[: config.n_slow])
        sides.append(stages.keep(f"versions-{name}", make, list[dict[str, float]]))
    n = len(sides[0])
    both.append(
        Twins(
            ids=study.pairs.ids[:n],
            lengths=study.pairs.lengths[:n],
            human=tuple(sides[0]),
            machine=tuple(sides[1]),
        )
    )
    return {
        title: separation(part, title, false_positive_rate=config.false_positive_rate, seed=config.seed)
        for part in both
        for title in part.detectors
    }


def _slow_scores(study: Study, texts: Sequence[str]) -> list[dict[str, float]]:
    """Scores of the detectors that read many versions of each text."""
    config = study.config
    perturbed = perturbation_scores(
        study.model,
        texts,
        WordPerturber(),
        n_perturbations=config.n_perturbations,
        seed=config.seed,
        show_progress=study.show_progress,
    )
    regenerated = dna_gpt(
        study.model,
        texts,
        n_regenerated=config.n_regenerated,
        seed=config.seed,
        show_progress=study.show_progress,
    )
    return [
        dict(zip(SLOW, (p.detect_gpt, p.npr, r.likelihood_gap, r.overlap), strict=True))
        for p, r in zip(perturbed, regenerated, strict=True)
    ]


def published_order(pairs: Twins, *, seed: int) -> tuple[Difference, ...]:
    """Each detector of the published order against the next."""
    return tuple(
        Difference(
            first=first,
            second=second,
            estimate=area_difference(pairs.column(first), pairs.column(second), seed=seed),
        )
        for first, second in pairwise(ORDER)
    )


class ByLength(NamedTuple):
    """Detectors at each length of `Config.lengths`."""

    areas: dict[str, tuple[Estimate, ...]]
    """AUROC by detector."""
    found: dict[str, tuple[Estimate, ...]]
    """Share found at the false-positive rate, by detector."""
    longer: Estimate
    """AUROC of Fast-DetectGPT at the longest length less that at the shortest beyond the prefix."""


def by_length(study: Study) -> ByLength:
    """Every detector at each length, and how much the longest gives Fast-DetectGPT over the shortest."""
    config = study.config
    cut = {n: twins(study.humans, study.machines, limits=_capped(study, n)) for n in config.lengths}
    at_lengths = {
        title: [
            separation(cut[n], title, false_positive_rate=config.false_positive_rate, seed=config.seed)
            for n in config.lengths
        ]
        for title in study.pairs.detectors
    }
    areas = {title: tuple(one.auroc for one in parts) for title, parts in at_lengths.items()}
    found = {title: tuple(one.found for one in parts) for title, parts in at_lengths.items()}
    written_at = sorted(n for n in config.lengths if n > config.prefix_tokens)
    if len(written_at) < 2:
        return ByLength(areas, found, Estimate.unmeasured(unit="AUROC difference"))
    first, last = (cut[written_at[place]].column(FAST) for place in (0, -1))
    return ByLength(areas, found, area_difference(last, first, seed=config.seed))


def _capped(study: Study, n: int) -> Mapping[str, int]:
    return {name: min(n, length) for name, length in study.pairs.limits.items()}


def false_positives_by_source(study: Study) -> dict[str, dict[str, Estimate]]:
    """Share of each source's human texts above a threshold that was set on the other sources."""
    rate, pairs = study.config.false_positive_rate, study.pairs
    kinds = dict(zip(study.human.ids, study.human.categories, strict=True))
    sources = [kind for kind in dict.fromkeys(kinds[name] for name in pairs.ids) if kind is not None]
    found: dict[str, dict[str, Estimate]] = {}
    for source in sources if len(sources) > 1 else []:
        found[source] = {}
        for title in ORDER:
            scores = dict(zip(pairs.ids, pairs.column(title)[1], strict=True))
            others = [value for name, value in scores.items() if kinds[name] != source]
            limit = thresholds({title: others}, false_positive_rate=rate)[title]
            inside = [value for name, value in scores.items() if kinds[name] == source]
            found[source][title] = share_above(inside, limit)
    return found
