"""Alignment recovery, after Yang et al. 2025 (arXiv:2504.09757); sections are those of the released code.

1. The models to recover: the aligned one fine-tuned on a task with 0 to 100 empty affirmative stubs, or one given.
2. Recovery of each by the paper's rule (`interp.training.recovery`). The task score on a validation split decides about
   rollback and picks the step; every saved model is measured on held-out prompts and task beside it.
3. Ablations on the last of them: what weights are ranked by, the target, the token that is read, gradients cleared, and
   the controls: random weights, and all weights below the cut.
4. Sweeps of the cut and of the rate.
5. Bounds: all aligned weights below the cut, or above it, whatever the task score.
6. The states: cosines with both references by layer, raw and centred, and one plane for all three models.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from interp.data.examples import Example
from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import Kind, Prompts, PromptSet
from interp.engine.stored_activations import using_store
from interp.evaluation.downstream_tasks import DownstreamTask, downstream_task, score_model
from interp.evaluation.early_verdicts import refusal_verdicts
from interp.experiments.definition import Outcome
from interp.experiments.recovery import (
    ABLATIONS,
    ALIGNED,
    ALL_STEPS,
    FINE_TUNED,
    MODELS,
    RECOVERED,
    Behaviour,
    Case,
    Config,
    Plane,
    Profile,
    Recovery,
    Result,
    Step,
)
from interp.models.adapted_models import copy_with_weights, load_like, with_delta, with_weights
from interp.models.adapters import adapter_named
from interp.models.chat_model import ChatModel
from interp.models.weight_deltas import WeightDelta, read_delta
from interp.representations.beliefs import states
from interp.stats import Estimate
from interp.storage.stages import Stages, stage_name
from interp.training.breaking import breaking_settings, downstream_examples, ordinary_examples
from interp.training.finetune import fine_tune
from interp.training.recovery import Recovered, RecoveryConfig, RecoveryStep, recover, restored_share
from interp.training.weight_repairs import block_weights, weights_of, weights_with_adapter


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the experiment; `model`, the aligned one, has its own weights when it returns.

    Raises:
        ValueError: too few harmful training prompts, a model to recover that is no pair of the aligned one or equal to
            it, or a task without a score.
    """
    study = _Study(
        aligned=model,
        task=downstream_task(
            config.task, n_train=config.n_task_train, n_held_out=max(config.n_task_test, config.n_val)
        ),
        test={kind: prompts[kind, "test"].first(config.n_test) for kind in PAIRED_KINDS},
        config=config,
        deltas=stages.workspace("deltas"),
        stages=stages,
        ordinary=_ordinary(model, prompts, config, stages),
        **_training_prompts(prompts, config),
    )
    aligned = stages.keep("aligned", lambda: study.behaviour(model), Behaviour)
    stages.lap("measure")

    # 1. The models to recover. 2. Recovery of each by the paper's rule.
    cases: dict[str, Case] = {}
    finetuned, label = model, ""
    for label, n in _models(config).items():
        finetuned = _finetuned(study, n, stages)
        stages.lap("fine-tune")
        make = partial(study.recovery, finetuned, label, saved=True)
        recovery = stages.keep(f"recovery-{stage_name(label)}", make, Recovery)
        cases[label] = Case(finetuned=recovery.saved[0], recovery=recovery)
        stages.lap("recover")

    # 3. All steps, and ablations. 4. Sweeps.
    taken = partial(study.recovery, finetuned, ALL_STEPS, _EVERY_STEP)
    all_steps = stages.keep("all-steps", taken, Recovery)
    variants: dict[str, Mapping[str, Mapping[str, object]]] = {
        "ablations": {name: ABLATIONS[name] for name in config.ablations},
        "cuts": {f"{cut:.4g}": {"cut": cut} for cut in config.cuts},
        "rates": {f"{rate:.4g}": {"rate": rate} for rate in config.rates},
    }
    further: dict[str, dict[str, Recovery]] = {}
    for group, settings in variants.items():
        further[group] = {}
        for name, changed in stages.progress(settings.items(), group):
            make = partial(study.recovery, finetuned, f"{group} {name}", {**_EVERY_STEP, **changed})
            further[group][name] = stages.keep(f"{group}-{stage_name(name)}", make, Recovery)
        stages.lap(group)

    # 5. Bounds.
    cut = study.settings({}).cut_layer(model.n_layers)
    bounds = study.bounds(finetuned, cut)
    stages.lap("bounds")

    # 6. The states of the three models.
    read = {ALIGNED: study.states(model), FINE_TUNED: study.states(finetuned)}
    with with_delta(finetuned, study.delta(ALL_STEPS)) as recovered:
        read[RECOVERED] = study.states(recovered)
    stages.lap("states")

    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        n={**{kind: len(part) for kind, part in study.test.items()}, "task": aligned.task.n},
        cut_layer=cut,
        aligned=aligned,
        cases=cases,
        compared=label,
        all_steps=all_steps,
        ablations=further["ablations"],
        cuts=further["cuts"],
        rates=further["rates"],
        profiles=profiles(read),
        plane=plane(read, cut),
        all_below=bounds["below"],
        all_above=bounds["above"],
    )
    return Outcome(result=result)


_EVERY_STEP: Mapping[str, object] = {"max_task_drop": 1.0}


def _models(config: Config) -> dict[str, int]:
    """The models to recover, and the stubs that each was fine-tuned with."""
    return {"given model": 0} if config.finetuned else {f"{n} stubs": n for n in config.stubs}


def _ordinary(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> list[Example]:
    """Harmless training prompts with the aligned model's own replies, so that fine-tuning does not end all chat."""
    if config.finetuned or not config.n_ordinary:
        return []
    asked = prompts["harmless", "train"].first(config.n_ordinary)

    kept = stages.keep("ordinary", lambda: ordinary_examples(model, asked), list[Example])
    return list(kept)


def _training_prompts(prompts: PromptSet, config: Config) -> dict[str, Prompts]:
    """Harmful training prompts for stubs and for recovery, none in both.

    Raises:
        ValueError: too few.
    """
    n_stubs, harmful = (0 if config.finetuned else config.stubs[-1]), prompts["harmful", "train"]
    if len(harmful) < n_stubs + config.n_recovery:
        raise ValueError(
            f"{prompts.name} has {len(harmful)} harmful training prompts, and {n_stubs} stubs and n_recovery = "
            f"{config.n_recovery} need {n_stubs + config.n_recovery}; lower either"
        )
    return {
        "stubs": harmful.first(n_stubs),
        "harmful": harmful.take(list(range(n_stubs, n_stubs + config.n_recovery))),
    }


@dataclass(frozen=True, eq=False, kw_only=True)
class _Study:
    """What all recoveries of a run have in common."""

    aligned: ChatModel
    task: DownstreamTask
    test: Mapping[Kind, Prompts]
    """Held-out prompts."""
    stubs: Prompts
    """Harmful training prompts that are answered by stubs."""
    harmful: Prompts
    """Harmful training prompts of the gradients."""
    config: Config
    ordinary: Sequence[Example]
    """Harmless prompts with the aligned model's own replies."""
    deltas: Path
    """Folder of the recoveries' weights, and of how far each has come."""
    stages: Stages
    """Stages of the run."""

    @property
    def task_prompts(self) -> list[str]:
        """Task prompts of the gradients."""
        return [example.prompt for example in self.task.train[: self.config.n_recovery]]

    def settings(self, changed: Mapping[str, object]) -> RecoveryConfig:
        """Settings of a recovery: the paper's rule, but for what is changed."""
        ours = {
            name: getattr(self.config, name) for name in vars(RecoveryConfig()) if hasattr(self.config, name)
        }
        return RecoveryConfig(**(ours | dict(changed)))  # pyright: ignore[reportArgumentType]

    def behaviour(self, model: ChatModel) -> Behaviour:
        """A model on held-out prompts and on the held-out task."""
        verdicts = {
            kind: refusal_verdicts(model, part, max_new_tokens=self.config.max_new_tokens)
            for kind, part in self.test.items()
        }
        n = min(self.config.n_task_test, len(self.task.test))
        return Behaviour(
            refused={kind: tuple(flag is True for flag in each.flags) for kind, each in verdicts.items()},
            refusal_rate={kind: each.rate for kind, each in verdicts.items()},
            task=score_model(model, self.task, split="test", n=n),
        )

    def recovery(
        self,
        finetuned: ChatModel,
        name: str,
        changed: Mapping[str, object] = MappingProxyType({}),
        *,
        saved: bool = False,
    ) -> Recovery:
        """A recovery, measured on what is held out; every saved model as well where asked."""

        def task_score(model: ChatModel) -> Estimate:
            n = min(self.config.n_val, len(self.task.validation))
            return score_model(model, self.task, split="validation", n=n)

        begun = time.perf_counter()
        with using_store(None):  # timed, and no later run has the weights of a step
            done = recover(
                finetuned,
                self.aligned,
                self.harmful,
                self.task_prompts,
                task_score,
                self.settings(changed),
                resume=self._file(name, "progress"),
            )
        seconds = time.perf_counter() - begun
        if not done.n_different:
            raise ValueError(
                f"{finetuned.name} has the weights of the aligned model below the cut, so there is nothing to recover; "
                "check finetuned and --model"
            )
        done.write(self._file(name))
        steps = done.saved if saved else (done.picked_step,)
        behaviours = {step: self._behaviour_at(step, done, finetuned, name) for step in steps}
        self._file(name, "progress").unlink(missing_ok=True)
        return Recovery(
            steps=tuple(_step(step) for step in done.steps),
            floor=done.floor,
            picked=done.picked_step,
            used_rollback=done.used_rollback,
            behaviour=behaviours[done.picked_step],
            saved=behaviours if saved else {},
            share=done.delta.n_changed / _block_size(finetuned),
            shares=_by_module(done, before_rollback=False),
            shares_before_rollback=_by_module(done, before_rollback=True),
            seconds=seconds,
        )

    def bounds(self, finetuned: ChatModel, cut: int) -> dict[str, Behaviour]:
        """The fine-tuned model with every aligned weight `below` the cut, and `above` it."""
        below = set(block_weights(self.aligned, cut=cut))
        sides = {"below": below, "above": set(block_weights(self.aligned)) - below}
        return {
            side: self.stages.keep(f"all-{side}", partial(self.restored, finetuned, names), Behaviour)
            for side, names in sides.items()
        }

    def restored(self, finetuned: ChatModel, names: Collection[str]) -> Behaviour:
        """The fine-tuned model with the aligned values of these weights, all of them."""
        aligned = weights_of(self.aligned)
        with with_weights(finetuned, {name: aligned[name] for name in names}) as model:
            return self.behaviour(model)

    def _behaviour_at(self, step: int, done: Recovered, finetuned: ChatModel, name: str) -> Behaviour:
        """A saved model of a recovery, measured on what is held out."""

        def measured() -> Behaviour:
            weights = done.weights_at(step, weights_of(finetuned), weights_of(self.aligned))
            with with_weights(finetuned, weights) as model:
                return self.behaviour(model)

        return self.stages.keep(f"saved-{stage_name(name)}-{step}", measured, Behaviour)

    def _file(self, name: str, kind: str = "delta") -> Path:
        ending = ".safetensors" if kind == "delta" else f".{kind}.safetensors"
        return self.deltas / f"{stage_name(name)}{ending}"

    def delta(self, name: str) -> WeightDelta:
        """The weights that a recovery changed."""
        return read_delta(self._file(name))

    def states(self, model: ChatModel) -> dict[str, Tensor]:
        """States [prompt, layer, d_model] of held-out prompts at the last token, after each block, by kind and task."""
        texts: dict[str, Sequence[str]] = {kind: part.texts for kind, part in self.test.items()}
        texts["task"] = [example.prompt for example in self.task.test[: self.config.n_test]]
        layers = range(1, model.n_layers + 1)
        return {
            name: states(model, list(part), layers=layers, positions="t_post_inst")[:, :, 0].float()
            for name, part in texts.items()
        }


def _finetuned(study: _Study, n_stubs: int, stages: Stages) -> ChatModel:
    """The model to recover: given by name, or fine-tuned on the task with so many stubs."""
    model, config = study.aligned, study.config
    if config.finetuned:
        if adapter := adapter_named(config.finetuned):
            return copy_with_weights(model, weights_with_adapter(model, adapter))
        return load_like(model, config.finetuned)
    examples = downstream_examples(
        study.task, study.stubs.texts, stubs=n_stubs, seed=config.seed, ordinary=study.ordinary
    )
    out = stages.workspace("fine-tuned") / f"{n_stubs}-stubs"
    trained = fine_tune(model, examples, out=out, config=breaking_settings(config, seed=config.seed))
    return copy_with_weights(model, weights_with_adapter(model, str(trained.folder)))


def _step(step: RecoveryStep) -> Step:
    return Step(
        number=step.step,
        loss=step.loss,
        predicted=step.predicted_decrease,
        candidates=step.n_candidates,
        restored=step.n_restored,
        given_back=step.n_returned,
        cosine_harmful=step.harmful_cosine,
        cosine_task=step.task_cosine,
        validation=math.nan if step.task_score is None else step.task_score.value,
    )


def _block_size(model: ChatModel) -> int:
    """Parameters of all blocks."""
    return sum(p.numel() for block in model.blocks for p in block.module.parameters())


def _by_module(done: Recovered, *, before_rollback: bool) -> dict[str, tuple[float, ...]]:
    table = restored_share(done, before_rollback=before_rollback)
    return {
        module: tuple(0.0 if math.isnan(v) else v for v in table.shares[:, column].tolist())
        for column, module in enumerate(table.modules)
    }


def profiles(read: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Profile]:
    """Cosines of every model's mean states with both references, by layer.

    Args:
        read: states [prompt, layer, d_model] by model, then kind of prompt.
    """
    references = {"harmful": read[ALIGNED]["harmful"].mean(0), "task": read[FINE_TUNED]["task"].mean(0)}
    centres = {
        "harmful": (read[ALIGNED]["harmful"].mean(0) + read[ALIGNED]["task"].mean(0)) / 2,
        "task": (read[FINE_TUNED]["harmful"].mean(0) + read[FINE_TUNED]["task"].mean(0)) / 2,
    }

    def cosines(name: str, kind: str, *, centred: bool) -> tuple[float, ...]:
        centre = centres[kind] if centred else torch.zeros_like(centres[kind])
        mean = read[name][kind].mean(0)
        return tuple(torch.cosine_similarity(mean - centre, references[kind] - centre, dim=-1).tolist())

    return {
        name: Profile(
            harmful=cosines(name, "harmful", centred=False),
            task=cosines(name, "task", centred=False),
            harmful_centred=cosines(name, "harmful", centred=True),
            task_centred=cosines(name, "task", centred=True),
        )
        for name in MODELS
    }


def plane(read: Mapping[str, Mapping[str, Tensor]], cut: int) -> Plane:
    """Harmful and harmless prompts after the last block below the cut, in the first two components of all models."""
    at = {name: {kind: read[name][kind][:, cut - 1] for kind in PAIRED_KINDS} for name in MODELS}
    fitted = PCA(2).fit(torch.cat([part for kinds in at.values() for part in kinds.values()]).numpy())
    first, second = fitted.explained_variance_ratio_.tolist()
    return Plane(
        points={
            name: {
                kind: tuple((float(x), float(y)) for x, y in fitted.transform(part.numpy()))
                for kind, part in kinds.items()
            }
            for name, kinds in at.items()
        },
        explained=(first, second),
    )
