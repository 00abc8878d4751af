"""The legs of one seed: its start, and from it each arm's alignment, unlearning and second alignment.

Each leg's adapter is merged into the weights before the next leg, so that no leg continues another's optimiser or
adapter. A finished leg is kept under the name that `alignment_name`, `unlearning_name` and `second_name` give it.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from interp.data.prompt_sets import PromptSet
from interp.experiments.method_elasticity import Config
from interp.experiments.method_elasticity.matching import matched, shared_kl
from interp.experiments.method_elasticity.methods import (
    ROLLOUT_METHODS,
    Material,
    Rewards,
    align,
    frozen_copy,
    supervised,
)
from interp.experiments.method_elasticity.results import METHODS, Alignment, Arm, Leg, Match, Matching, Moment
from interp.experiments.method_elasticity.tracking import (
    CurveCallback,
    InsideCallback,
    LegSpecs,
    Milestones,
    adapter_at,
    base_distributions,
    base_samples,
    kept_leg_specs,
    moments,
    specs,
)
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.storage.stages import StageCache, Stages
from interp.tracking.spec import TrackingSpec
from interp.training.breaking import stub_examples
from interp.training.finetune import fine_tune


@dataclass(frozen=True, eq=False)
class Seed:
    """The legs of one seed."""

    base: ChatModel
    prompts: PromptSet
    material: Material
    config: Config
    stages: Stages
    seed: int

    @cached_property
    def folder(self) -> Path:
        """Folder of its adapters and trajectories."""
        return self.stages.workspace(f"legs-{self.seed}")

    @property
    def trained_arms(self) -> list[Arm]:
        """Arms that are aligned."""
        return [arm for arm in self.config.arms if arm != "none"]

    def adapters(self, arm: Arm) -> Path:
        """Folder of the adapters that the first alignment of an arm leaves, by step (`adapter_at`)."""
        return self.folder / f"align-{arm}-steps"

    def aligns_again(self, match: Match) -> bool:
        """Whether what is unlearned from a match is aligned again."""
        return match.matching == "refusal" and match.arm in METHODS and self.config.align_again

    @contextmanager
    def start(self) -> Iterator["Start"]:
        """The model that every arm starts from, in the base's place, with what its legs are measured by."""
        given = specs(self.prompts, self.config, self.material.fit)
        of_base = {}
        cache = StageCache(self.folder / "reference", {"seed": self.seed, "spec": given[1].key})
        for name, spec in (("matching", given[0]), ("curve", given[1])):
            samples = cache.keep(f"samples-{name}", lambda spec=spec: base_samples(self.base, spec))
            tensors = cache.keep(
                f"base-{name}",
                lambda spec=spec, samples=samples: base_distributions(self.base, spec, samples),
            )
            of_base[name] = samples, tensors
        with self._warm() as model:
            measured_by = kept_leg_specs(cache, model, given, of_base)
            # Copied here: inside the legs the weights of `model` are others.
            rewards = Rewards(frozen_copy(model), self.material, self.config, self.seed)
            yield Start(model, measured_by, rewards)

    def _warm(self) -> AbstractContextManager[ChatModel]:
        if not self.material.warm_up:
            return nullcontext(self.base)
        settings = supervised(self.config, self.seed)
        done = fine_tune(self.base, self.material.warm_up, out=self.folder / "warm-up", config=settings)
        return with_adapter(self.base, str(done.folder))

    def aligned(self, arm: Arm, start: "Start") -> Alignment:
        """The first alignment of an arm."""
        return self.stages.keep(
            alignment_name(self.seed, arm),
            lambda: self._align(arm, start.model, start, self.folder / f"align-{arm}"),
            Alignment,
        )

    def _align(self, arm: Arm, model: ChatModel, start: "Start", out: Path) -> Alignment:
        every, config = self.config.align_every, self.config
        measured = _callback(start.measured_by, "matching", out.with_name(f"{out.name}-track"), every)
        stop = Milestones(
            measured,
            model,
            out.with_name(f"{out.name}-steps"),
            supervised(config, self.seed),
            every=every,
            target=config.target,
        )
        try:
            stopped = align(
                arm,
                model,
                self.material,
                start.rewards,
                config,
                self.seed,
                out=out,
                callbacks=[measured, stop],
            )
        except ValueError as error:
            if arm != "tree" or "nothing to compare" not in str(error):
                raise
            return Alignment(arm=arm, seed=self.seed, moments=(), collapsed=str(error))
        examples = config.rollouts if arm in ROLLOUT_METHODS else config.batch_size
        assert measured.out is not None
        return Alignment(
            arm=arm, seed=self.seed, moments=moments([measured.out], examples=examples), collapsed=stopped
        )

    def matches(self, first: dict[Arm, Alignment]) -> list[Match]:
        """The checkpoints to unlearn, of each arm that has any."""
        usable: dict[Arm, Sequence[Moment]] = {
            arm: found.moments for arm, found in first.items() if len(found.moments) > 1
        }
        of_methods: dict[Arm, Sequence[Moment]] = {
            arm: found for arm, found in usable.items() if arm in METHODS
        }
        targets: dict[Matching, float] = {
            "refusal": float(self.config.target),
            "kl": shared_kl(of_methods or usable),
        }
        return [
            matched(arm, self.seed, found, matching, targets[matching])
            for matching in self.config.matchings
            for arm, found in usable.items()
            if matching == "refusal" or arm in METHODS
        ]

    def unlearned(self, match: Match, start: "Start") -> tuple[Leg, Alignment | None]:
        """Unlearning from a matched checkpoint, and for a method matched by refusal its second alignment."""
        arm = match.arm
        adapter = adapter_at(self.adapters(arm), match.step)
        with with_adapter(start.model, str(adapter)) as aligned:
            # Two matchings may take the same checkpoint; it is unlearned once.
            out = self.folder / f"unlearn-{arm}-{match.step}"
            leg = self.stages.keep(
                unlearning_name(self.seed, match),
                lambda: self._unlearn(arm, match.matching, aligned, start, out),
                Leg,
            )
            if not self.aligns_again(match):
                return leg, None
            with with_adapter(aligned, str(out)) as model:
                second = self.stages.keep(
                    second_name(self.seed, arm),
                    lambda: self._align(arm, model, start, self.folder / f"again-{arm}"),
                    Alignment,
                )
        return leg, second

    def unlearned_start(self, start: "Start") -> Leg:
        """The control that was not aligned."""
        out = self.folder / "unlearn-none"
        return self.stages.keep(
            unlearning_name(self.seed, None),
            lambda: self._unlearn("none", "refusal", start.model, start, out),
            Leg,
        )

    def _unlearn(self, arm: Arm, matching: Matching, model: ChatModel, start: "Start", out: Path) -> Leg:
        config, measured_by = self.config, start.measured_by
        curve = _callback(measured_by, "curve", out.with_name(f"{out.name}-track"), config.unlearn_every)
        inside = InsideCallback(
            measured_by.inside,
            every=config.inside_every,
            out=out.with_name(f"{out.name}-inside"),
            reference=measured_by.reference,
            drawn="never",
        )
        examples = stub_examples(self.material.stubs, config.n_stubs)
        fine_tune(model, examples, out=out, config=supervised(config, self.seed), callbacks=[curve, inside])
        assert curve.out is not None and inside.out is not None
        found = moments([curve.out, inside.out], examples=config.batch_size)
        return Leg(arm=arm, seed=self.seed, matching=matching, moments=found)


@dataclass(frozen=True, eq=False)
class Start:
    """The model that the arms of a seed start from, what their legs are measured by, and their rewards."""

    model: ChatModel
    measured_by: LegSpecs
    rewards: Rewards


class Grid(NamedTuple):
    """All legs of a seed."""

    alignments: list[Alignment]
    """First alignments, by arm."""
    matches: list[Match]
    """Their checkpoints that are unlearned."""
    unlearned: list[Leg]
    """Of every match, then of the control that was not aligned."""
    aligned_again: list[Alignment]
    """Second alignments."""


def alignment_name(seed: int, arm: Arm) -> str:
    """Name of the stage of a first alignment."""
    return f"align-{seed}-{arm}"


def unlearning_name(seed: int, match: Match | None) -> str:
    """Name of the stage of an unlearning; None is the control that was not aligned."""
    return f"unlearn-{seed}-" + ("none" if match is None else f"{match.arm}-{match.step}-{match.matching}")


def second_name(seed: int, arm: Arm) -> str:
    """Name of the stage of a second alignment."""
    return f"again-{seed}-{arm}"


def _callback(measured_by: LegSpecs, name: str, out: Path, every: int) -> CurveCallback:
    spec: TrackingSpec = measured_by.matching if name == "matching" else measured_by.curve
    return CurveCallback(spec, every=every, out=out, reference=measured_by.kls[name], drawn="never")
