"""What is measured along a leg, by `ElasticityCallback`, and where a leg stops.

One reference serves all arms of a seed, so that their directions are the same ones: it is fitted at the model from
which they start. KL is KL(base || checkpoint) on the base's own samples, nats a token. Methods are matched on held-out
harmful prompts of the validation split (refusal and KL alone), and followed on those of the test split, so that the
start of a curve is not the number that it was picked by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from interp.data.corpora import Corpus
from interp.data.prompt_sets import PAIRED_KINDS, Kind, Prompts, PromptSet
from interp.data.prompts import load_prompts
from interp.data.replies import REFUSALS, STUBS
from interp.experiments.method_elasticity import Config
from interp.experiments.method_elasticity.results import Moment
from interp.models.chat_model import ChatModel
from interp.stats import Estimate
from interp.storage.stages import StageCache
from interp.tracking.callback import ElasticityCallback
from interp.tracking.measures import distributions, sample
from interp.tracking.records import CheckpointRecord
from interp.tracking.references import fit_reference, keep_reference
from interp.tracking.spec import Reference, TrackingSpec
from interp.tracking.trajectory import Trajectory
from interp.training.config import TrainConfig
from interp.training.saving import write_checkpoint

NAMES: Mapping[tuple[str, str], str] = {
    ("refusal_rate", "harmful"): "refusal",
    ("refusal_rate", "harmless"): "over_refusal",
    ("kl_from_reference", "harmful"): "kl",
    ("kl_from_reference", "harmless"): "kl_harmless",
    ("bits_per_byte", "refusals"): "refusals",
    ("bits_per_byte", "stubs"): "stubs",
    ("cosine_harmfulness", "train"): "cosine_harmfulness",
    ("cosine_refusal", "train"): "cosine_refusal",
    ("shift_harmfulness", "harmful"): "shift_harmfulness",
    ("shift_refusal", "harmful"): "shift_refusal",
    ("shift_control_refusal", "harmful"): "shift_control",
    ("harmfulness_belief_reference", "harmful"): "belief_harmfulness",
    ("refusal_belief_reference", "harmful"): "belief_refusal",
}
"""Measure and prompts of `interp.tracking.measures` → name in `Moment.values`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LegSpecs:
    """What the legs of a seed are measured by."""

    matching: TrackingSpec
    """Refusal and KL on the prompts of matching."""
    curve: TrackingSpec
    """Refusal, KL and code lengths on the test prompts."""
    inside: TrackingSpec
    """Directions, shifts and beliefs on the test prompts."""
    reference: Reference
    """Directions and centres of the start."""
    kls: Mapping[str, Reference]
    """The reference with the base's samples on the prompts of `matching` and of `curve`."""


def held_out(prompts: PromptSet, config: Config, fit: Mapping[Kind, Prompts], split: str) -> PromptSet:
    """The prompts as a spec takes them, with the harmful prompts of a split as those that are measured."""
    borderline = (prompts if ("borderline", "test") in prompts else load_prompts("builtin"))[
        "borderline", "test"
    ]
    n = config.n_match if split == "val" else config.n_test
    harmful = prompts["harmful", "val" if split == "val" else "test"].first(n)
    return replace(
        prompts,
        parts={
            ("harmful", "train"): fit["harmful"],
            ("harmless", "train"): fit["harmless"],
            ("harmful", "val"): prompts["harmful", "val"].first(config.n_fit),
            ("harmless", "val"): prompts["harmless", "val"].first(config.n_fit),
            ("harmful", "test"): harmful,
            ("harmless", "test"): prompts["harmless", "test"].first(config.n_other),
            ("borderline", "test"): borderline.first(1),  # a spec has some; nothing here reads them
        },
    )


def specs(
    prompts: PromptSet, config: Config, fit: Mapping[Kind, Prompts]
) -> tuple[TrackingSpec, TrackingSpec, TrackingSpec]:
    """The specs of matching, of curves and of what is inside."""
    tested = held_out(prompts, config, fit, "test")
    harmful = tested["harmful", "test"].texts
    corpora = {
        name: Corpus(name, tuple(replies[i % len(replies)] for i in range(len(harmful))), harmful)
        for name, replies in (("refusals", REFUSALS), ("stubs", STUBS))
    }
    curve = TrackingSpec(
        prompts=tested,
        corpora=corpora,
        measures=("refusal", "compression", "kl"),
        n=max(config.n_test, config.n_match, config.n_other),
        n_fit=config.n_fit,
        n_documents=min(config.n_test, 8),
        n_samples=config.n_samples,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )
    matching = replace(
        curve, prompts=held_out(prompts, config, fit, "val"), measures=("refusal", "kl"), corpora={}
    )
    return matching, curve, replace(curve, measures=("beliefs", "directions", "shift"), corpora={})


def base_samples(base: ChatModel, spec: TrackingSpec) -> dict[Kind, list[list[int]]]:
    """The base's own replies, on which KL is measured."""
    return {kind: sample(base, spec, kind) for kind in PAIRED_KINDS}


def base_distributions(
    base: ChatModel, spec: TrackingSpec, samples: Mapping[Kind, Sequence[Sequence[int]]]
) -> dict[str, Any]:
    """The base's log-probabilities at each of their tokens, as `Reference.tensors` names them."""
    return {f"log_probs/{kind}": distributions(base, spec, kind, ids) for kind, ids in samples.items()}


def kept_leg_specs(
    cache: StageCache,
    start: ChatModel,
    given: tuple[TrackingSpec, TrackingSpec, TrackingSpec],
    of_base: Mapping[str, tuple[Mapping[Kind, list[list[int]]], Mapping[str, Any]]],
) -> LegSpecs:
    """What the legs of a seed are measured by, fitted where the cache does not hold it.

    Args:
        of_base: the base's samples and distributions on the prompts of `matching` and of `curve`.
    """
    matching, curve, inside = given
    fitted = replace(curve, measures=("compression", *inside.measures))
    reference = keep_reference(cache, "reference", lambda: fit_reference(start, fitted))
    kls = {
        name: replace(reference, tensors={**reference.tensors, **tensors}, samples=dict(samples))
        for name, (samples, tensors) in of_base.items()
    }
    return LegSpecs(matching=matching, curve=curve, inside=inside, reference=reference, kls=kls)


class CurveCallback(ElasticityCallback):
    """Measures the curve of a leg."""


class InsideCallback(ElasticityCallback):
    """Measures what is inside, less often; a class of its own, since trainers warn of two callbacks of one class."""


class Milestones(TrainerCallback):
    """Writes the adapter at every measured step, and asks to stop where refusal has reached the target.

    Stands behind the callback that measures in the trainer's list.
    """

    def __init__(
        self,
        measured: ElasticityCallback,
        model: ChatModel,
        folder: Path,
        train: TrainConfig,
        *,
        every: int,
        target: float | int,
    ) -> None:
        self.measured, self.model, self.folder, self.train = measured, model, folder, train
        self.every, self.target = every, float(target)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 (Trainer's signature)
        """Stop a run that continues where it had reached the target when it was killed."""
        if state.global_step:
            self._judge(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Write and judge a measured step."""
        if state.global_step % self.every:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(given["model"], adapter_at(self.folder, state.global_step), self.model, self.train)
        self._judge(control)

    def _judge(self, control: Any) -> None:
        trajectory = self.measured.trajectory
        assert trajectory is not None
        values = _values(trajectory.record.checkpoints[-1])
        if values["refusal"].value >= self.target:
            control.should_training_stop = True


def adapter_at(folder: Path, step: int) -> Path:
    """Folder of the adapter after this many steps."""
    return folder / f"step-{step}"


def moments(folders: Sequence[Path], *, examples: int) -> tuple[Moment, ...]:
    """The measurements of a leg, of all its callbacks together.

    Args:
        folders: folders of the callbacks' trajectories; of the first all steps are taken, of the others what they add.
        examples: examples of one step.
    """
    by_step: dict[int, dict[str, Estimate]] = {}
    for number, folder in enumerate(folders):
        for record in Trajectory.load(folder).record.checkpoints:
            step = int(record.step or 0)
            if number == 0 or step in by_step:
                by_step.setdefault(step, {}).update(_values(record))
    return tuple(
        Moment(step=step, examples=step * examples, values=values) for step, values in sorted(by_step.items())
    )


def _values(record: CheckpointRecord) -> dict[str, Estimate]:
    return {
        NAMES[row.measure, str(row.prompts)]: row.estimate
        for row in record.rows
        if (row.measure, str(row.prompts)) in NAMES
    }
