"""The repairs: each a function of the broken model that returns what is to be measured, and changes no weights itself.

What they need beside the broken model is in `Broken`. Doses are chosen on the validation split: the strongest that has
at most `max_false_refusals` of the harmless validation prompts refused.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from interp.data.examples import Example
from interp.data.prompts import Kind, Prompts, PromptSet
from interp.data.replies import REFUSALS
from interp.data.safety_texts import SAFETY_TEXTS
from interp.detectors.latent_guard import LatentGuard
from interp.engine.interventions import Add
from interp.engine.safety_prompts import SafetyPrompt
from interp.evaluation.downstream_tasks import DownstreamTask, score_model
from interp.evaluation.refusals import refuses
from interp.experiments.repair import ALL_STEPS, BROKEN, FULL, RECOVERY, Config
from interp.experiments.repair.measuring import Repaired, reply
from interp.experiments.repair.recovery_settings import recovery_settings
from interp.models.chat_model import ChatModel
from interp.models.weight_deltas import read_delta, with_changes, write_delta
from interp.representations.steering import find_directions
from interp.storage.atomic_files import write_file
from interp.training.breaking import stub_examples
from interp.training.config import SafetyPromptConfig, TrainConfig
from interp.training.finetune import fine_tune
from interp.training.recovery import RecoveryConfig, recover
from interp.training.recovery_config import Ranking
from interp.training.soft_prompts import safety_prompt
from interp.training.weight_repairs import (
    block_weights,
    change_norm,
    changed_count,
    full_restore,
    interpolate,
    random_restore,
    random_restore_of_norm,
    safe_lora,
    task_arithmetic,
    weights_of,
    weights_with_adapter,
)

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Seed:
    """One fine-tuning that breaks the model, with all that repairs and attacks of the same seed may use."""

    aligned: ChatModel
    """The model before it is fine-tuned."""
    task: DownstreamTask
    """The downstream task: its training and validation splits."""
    prompts: PromptSet
    """Prompt set: its training and validation splits."""
    examples: Sequence[Example]
    """What it is fine-tuned on: the task, stubs, and ordinary replies."""
    stubs: Prompts
    """Harmful training prompts of the stubs."""
    harmful: Prompts
    """Harmful training prompts that the stubs did not use."""
    out: Path
    """Folder for checkpoints."""
    config: Config
    """Settings."""
    seed: int
    """The seed."""
    training: TrainConfig
    """Settings of every fine-tuning."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Broken(Seed):
    """A seed with its broken model."""

    model: ChatModel
    """The broken model."""
    lent: list[float] = field(default_factory=list, init=False)
    """Seconds that rows before the one that is being made spent on what it uses as well."""

    @contextmanager
    def shared(self, name: str) -> Iterator[None]:
        """Around what several rows use: the first of them makes it, and its seconds count for every one of them."""
        begun, kept = time.perf_counter(), self.out / f"{name}.seconds"
        yield
        seconds = time.perf_counter() - begun
        if kept.is_file():
            self.lent.append(float(kept.read_text()) - seconds)
        else:
            write_file(kept, repr(seconds).encode())

    @cached_property
    def _fitted_guard(self) -> LatentGuard:
        guard = LatentGuard.fit(self.model, self.prompts, n_prompts=self.config.n_fit)
        return guard.calibrated(self.model, self.prompts["harmless", "val"], false_positive_rate=0.1)

    @property
    def guard(self) -> LatentGuard:
        """Latent Guard of the broken model; at most one in ten harmless validation prompts is flagged."""
        with self.shared("guard"):
            return self._fitted_guard

    @property
    def finetuned_weights(self) -> dict[str, Tensor]:
        """The broken weights by name."""
        return weights_of(self.model)

    @property
    def aligned_weights(self) -> dict[str, Tensor]:
        """The aligned weights by name."""
        return weights_of(self.aligned)

    @cached_property
    def damage(self) -> float:
        """Norm of what fine-tuning changed in the blocks."""
        finetuned = self.finetuned_weights
        return change_norm(
            self.aligned_weights, {name: finetuned[name] for name in block_weights(self.model)}
        )

    def fit(self, kind: Kind) -> Prompts:
        """Training prompts that directions, guards and prompts are fitted on."""
        return (
            self.harmful.first(self.config.n_fit) if kind == "harmful" else self._first("harmless", "train")
        )

    def _first(self, kind: Kind, split: str) -> Prompts:
        n = self.config.n_fit if split == "train" else self.config.n_val
        return self.prompts[kind, split].first(n)  # pyright: ignore[reportArgumentType]

    def task_score(self, model: ChatModel) -> float:
        """Score of a model on the validation split of the task."""
        n = min(self.config.n_val, len(self.task.validation))
        return score_model(model, self.task, split="validation", n=n).value


def nothing(broken: Broken) -> Repaired:  # noqa: ARG001 (every repair is called alike)
    """The broken model itself."""
    return Repaired()


def system_prompt(broken: Broken) -> Repaired:  # noqa: ARG001
    """The default safety prompt in words."""
    return Repaired(system=SAFETY_TEXTS["default"])


def optimised_prompt(broken: Broken) -> Repaired:
    """A prompt trained in representation space (Zheng et al. 2024), from the short text."""
    return Repaired(soft_prompt=_trained_prompt(broken))


def random_soft_prompt(broken: Broken) -> Repaired:
    """Random embeddings, each as long as the one of the short text that stands in its place."""
    trained = _trained_prompt(broken)
    generator = torch.Generator().manual_seed(broken.seed)
    noise = torch.randn(trained.embeddings.shape, generator=generator).to(trained.embeddings)
    noise = noise * (trained.embeddings.norm(dim=1) / noise.norm(dim=1))[:, None]
    return Repaired(soft_prompt=replace(trained, embeddings=noise))


def _trained_prompt(broken: Broken) -> SafetyPrompt:
    """The soft prompt of this trial, trained once."""
    path = broken.out / "prompt.safetensors"
    if not path.is_file():
        trained = safety_prompt(
            broken.model,
            broken.fit("harmful"),
            broken.fit("harmless"),
            start="short",
            config=SafetyPromptConfig(epochs=broken.config.prompt_epochs, seed=broken.seed),
        )
        trained.save(path)
    return SafetyPrompt.read(path)


def steering(broken: Broken) -> Repaired:
    """The refusal direction of the broken model, added at its layer in the validated dose."""
    return _dosed(broken, None)


def gated_steering(broken: Broken) -> Repaired:
    """The same, of prompts that a guard fitted on the broken model flags."""
    return _dosed(broken, broken.guard)


def guard_answers(broken: Broken) -> Repaired:
    """A refusal in place of the answer to every prompt that the guard flags."""
    return Repaired(guard=broken.guard, chosen="threshold of 10% false positives on validation prompts")


def _dosed(broken: Broken, guard: LatentGuard | None) -> Repaired:
    """Steering in the strongest dose under which few enough harmless validation prompts are refused."""
    config = broken.config
    direction = find_directions(
        broken.model, {"harmful": broken.fit("harmful"), "harmless": broken.fit("harmless")}
    )["refusal"]
    harmless = broken.prompts["harmless", "val"].first(config.n_val)
    best = Repaired(guard=guard, chosen="no dose keeps harmless prompts answered")
    for dose in sorted(config.doses):
        tried = Repaired(
            guard=guard, interventions=(Add(direction, coefficient=dose),), chosen=f"dose {dose:g}"
        )
        said = reply(broken.model, tried, harmless.texts, max_new_tokens=config.max_new_tokens)
        if sum(map(refuses, said.texts)) > config.max_false_refusals * len(harmless):
            break
        best = tried
    return best if best.interventions else Repaired(chosen=best.chosen)


def refusal_training(broken: Broken) -> Repaired:
    """Further fine-tuning of the broken model on refusals, with as many task examples."""
    n = broken.config.n_refusals
    examples = [
        Example(text, REFUSALS[row % len(REFUSALS)]) for row, text in enumerate(broken.harmful.texts[:n])
    ]
    mixed = [pair for both in zip(examples, broken.task.train, strict=False) for pair in both]
    return Repaired(weights=_tuned(broken.model, mixed, broken, "refusals"))


def soft_sft(broken: Broken) -> Repaired:
    """The fine-tuning that broke the model, with the constraint on tokens (SoftSFT), from the aligned model."""
    tuned = _tuned(broken.aligned, list(broken.examples), broken, "soft-sft", constraint=0.1)
    return Repaired(weights=_beside(broken, tuned))


def _beside(broken: Broken, tuned: Weights) -> dict[str, Tensor]:
    """Weights of a model tuned from the aligned one, as a change of the broken one."""
    aligned, finetuned = broken.aligned_weights, broken.finetuned_weights
    whole = {name: tuned.get(name, value) for name, value in aligned.items()}
    return {name: value for name, value in whole.items() if not torch.equal(value, finetuned[name])}


def _tuned(model: ChatModel, examples: list[Example], broken: Broken, name: str, **more: float) -> Weights:
    """The weights that LoRA fine-tuning changes."""
    out = broken.out / name
    trained = fine_tune(model, examples, out=out, config=replace(broken.training, **more))  # pyright: ignore[reportArgumentType]
    before = weights_of(model)
    after = weights_with_adapter(model, str(trained.folder))
    return {name: value for name, value in after.items() if not torch.equal(value, before[name])}


def _unaligned(broken: Broken) -> Weights:
    """The aligned model after fine-tuning on stubs alone: what RESTA and SafeLoRA tell alignment apart from."""
    stubs = stub_examples(broken.stubs.texts, len(broken.stubs))
    with broken.shared("unaligned"):
        tuned = _tuned(broken.aligned, stubs, broken, "unaligned")
    return {**broken.aligned_weights, **tuned}


def resta(broken: Broken) -> Repaired:
    """Task arithmetic: plus the aligned minus an unaligned model."""
    return Repaired(
        weights=task_arithmetic(broken.finetuned_weights, broken.aligned_weights, _unaligned(broken))
    )


def safelora(broken: Broken) -> Repaired:
    """Updates projected on what alignment changed, where they leave it."""
    return Repaired(weights=safe_lora(broken.finetuned_weights, broken.aligned_weights, _unaligned(broken)))


def wise(broken: Broken) -> Repaired:
    """The middle between the broken and the aligned weights."""
    share = broken.config.interpolation
    weights = interpolate(broken.finetuned_weights, broken.aligned_weights, aligned_weight=share)
    return Repaired(weights=weights, chosen=f"{share:g} of the aligned weights")


def recovery(broken: Broken, rank_by: Ranking = "gradient", max_task_drop: float = 1.0) -> Repaired:
    """Recovery by the paper's rule with all its steps, or ranked otherwise, or with a floor for the task score."""
    path = broken.out / f"recovery-{rank_by}-{max_task_drop:g}.safetensors"
    if not path.is_file():
        n, progress = broken.config.n_recovery, path.with_suffix(".progress.safetensors")
        done = recover(
            broken.model,
            broken.aligned,
            broken.harmful.first(n),
            [example.prompt for example in broken.task.train[:n]],
            broken.task_score,
            recovery_settings(rank_by, max_task_drop, broken.seed),
            resume=progress,
        )
        about = f"step {done.picked_step}, {'with' if done.used_rollback else 'without'} rollback"
        write_delta(path, replace(done.delta, provenance={"chosen": about}))
        progress.unlink(missing_ok=True)
    delta = read_delta(path)
    return Repaired(
        weights=with_changes(broken.finetuned_weights, delta.changes), chosen=str(delta.provenance["chosen"])
    )


def equal_count(broken: Broken, like: Weights) -> Repaired:
    """As many random coordinates below the cut as recovery restored."""
    names = _below_cut(broken)
    count = changed_count(broken.finetuned_weights, like)
    if not count:
        return Repaired(chosen="recovery restored nothing")
    return Repaired(
        weights=random_restore(
            broken.finetuned_weights, broken.aligned_weights, names, count=count, seed=broken.seed
        ),
        chosen=f"{count} coordinates",
    )


def equal_norm(broken: Broken, like: Weights) -> Repaired:
    """Random coordinates whose change has the norm of another one, below the cut where that one stays below it."""
    finetuned, aligned = broken.finetuned_weights, broken.aligned_weights
    norm, names = change_norm(finetuned, like), _below_cut(broken)
    if not norm:
        return Repaired(chosen="recovery restored nothing")
    if not {name for name, value in like.items() if not torch.equal(value, finetuned[name])} <= set(names):
        names = block_weights(broken.model)
    return Repaired(
        weights=random_restore_of_norm(finetuned, aligned, names, norm=norm, seed=broken.seed),
        chosen=f"norm {norm:.3g}",
    )


def _below_cut(broken: Broken) -> tuple[str, ...]:
    return block_weights(broken.model, cut=RecoveryConfig().cut_layer(broken.model.n_layers))


def everything(broken: Broken) -> Repaired:
    """All aligned weights below the cut: the largest change that a choice of weights there can make."""
    return Repaired(
        weights=full_restore(broken.finetuned_weights, broken.aligned_weights, _below_cut(broken))
    )


REPAIRS: Mapping[str, Callable[[Broken], Repaired]] = {
    BROKEN: nothing,
    "system prompt": system_prompt,
    "optimised prompt (DRO)": optimised_prompt,
    "random soft prompt": random_soft_prompt,
    "refusal direction added": steering,
    "refusal direction added where the guard fires": gated_steering,
    "guard answers with a refusal": guard_answers,
    "fine-tuned on refusals": refusal_training,
    "SoftSFT while fine-tuning": soft_sft,
    "RESTA": resta,
    "SafeLoRA": safelora,
    "interpolation (WiSE)": wise,
    RECOVERY: partial(recovery, max_task_drop=RecoveryConfig().max_task_drop),
    ALL_STEPS: recovery,
    "recovery by |gradient x difference|": partial(recovery, rank_by="gradient-x-difference"),
    "recovery by |difference|": partial(recovery, rank_by="difference"),
    FULL: everything,
}
"""Every repair that needs the broken model alone, by its row."""
