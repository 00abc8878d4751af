"""The method of the resistance experiment.

Steps (`run`), for every seed:

1. Fine-tune the base for one pass over consecutive slices; theta_1, theta_2, theta_3 are the models after each slice.
2. Sample answers of every theta_k to the same held-out prompts at temperature 1: D_1, D_2, D_3.
3. Measure the loss of every theta on every D. The loss of theta_l on D_k before training on it is the control: a gap
   that exists already was not made by training. The loss of theta_k on its own D_k is the self-entropy of that target.
4. For k < l train the forward arm, theta_k on D_l, and the inverse arm, theta_l on D_k, with the same prompts and
   settings. Two numbers are measured after training. The loss on the trained-on answers, also as *excess* loss over the
   target's self-entropy, since the arms fit targets of different entropy. And the KL change, KL(start || trained) in
   mean nats per token, teacher-forced on the answers of both checkpoints, so that both arms are measured on the same
   tokens.

`gaps.py` computes the gaps, forward minus inverse over seeds with a paired t test, from the stored result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from interp.data.examples import Example
from interp.data.prompts import PromptSet
from interp.data.tasks import Task, load_task
from interp.engine.generation import generate
from interp.engine.log_probs import completion_log_probs, map_completions
from interp.evaluation.losses import token_kl
from interp.experiments.definition import Outcome
from interp.experiments.resistance import ARMS, Arm, Config, Result, TrainedArm
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.stats import Measured
from interp.storage.stages import Stages
from interp.training.config import TrainConfig, one_pass
from interp.training.finetune import fine_tune

Answers = list[str]
"""One checkpoint's answers to the task's prompts, in their order."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Measurements of an arm after training, as stored by its stage."""

    final: Measured
    """Loss on the answers that were trained on."""
    kl_change: Measured
    """KL(start || trained)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Seed:
    """Values shared by the stages of one seed."""

    base: ChatModel
    task: Task
    config: Config
    stages: Stages
    seed: int

    @property
    def training(self) -> TrainConfig:
        """Settings of both stages: one pass at a constant learning rate."""
        return one_pass(
            batch_size=self.config.batch_size,
            learning_rate=self.config.learning_rate,
            rank=self.config.rank,
            max_completion_tokens=self.config.max_new_tokens,
            seed=self.seed,
        )

    @property
    def key(self) -> str:
        """Prefix of its stages' names; it contains the task's hash, since file contents are not among the settings."""
        return f"{self.task.provenance.hash[:8]}-{self.seed}"

    @property
    def folder(self) -> Path:
        """Folder of its checkpoints."""
        return self.stages.workspace(f"train-{self.key}")


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run every seed and pair.

    Raises:
        ValueError: a task with too few examples or prompts.
    """
    task = _load_task(prompts, config)
    arms: list[TrainedArm] = []
    for number in stages.progress(range(config.seed, config.seed + config.seeds), "resistance"):
        seed = _Seed(base=model, task=task, config=config, stages=stages, seed=number)
        # 1. Checkpoints after each slice.
        thetas = _train_slices(seed)
        stages.lap("slices")
        # 2. What each answers: the targets.
        targets = _sample_targets(seed, thetas)
        stages.lap("targets")
        # 3. Losses before any training on the targets, and the targets' self-entropies.
        losses = _losses_before(seed, thetas, targets)
        stages.lap("losses before training")
        # 4. Both arms of every pair.
        arms += [
            _arm(seed, arm, pair, thetas, targets, losses)
            for pair in combinations(range(config.slices), 2)
            for arm in ARMS
        ]
        stages.lap("arms")
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        task=task.provenance,
        arms=tuple(arms),
    )
    return Outcome(result=result)


def _load_task(prompts: PromptSet, config: Config) -> Task:
    task = load_task(config.task, prompts, n_eval=config.n_targets)
    if (needed := config.slices * config.slice_size) > len(task.positive):
        raise ValueError(
            f"{config.slices} slices of {config.slice_size} need {needed} examples, the task has {len(task.positive)}; "
            "give more or a smaller slice_size"
        )
    if len(task.prompts) < config.n_targets:
        raise ValueError(
            f"n_targets is {config.n_targets}, the task has {len(task.prompts)} prompts; lower it"
        )
    return task


def _train_slices(seed: _Seed) -> list[Path]:
    """Adapters after each slice, theta_1 first."""
    counts = [seed.config.slice_size * (i + 1) for i in range(seed.config.slices)]
    examples, _ = seed.task.shuffled(seed.seed)
    trained = fine_tune(
        seed.base,
        examples[: counts[-1]],
        out=seed.folder / "slices",
        config=seed.training,
        checkpoints=counts,
    )
    return [trained.checkpoints[count] for count in counts]


def _sample_targets(seed: _Seed, thetas: Sequence[Path]) -> list[Answers]:
    """Each checkpoint's answers to the task's prompts."""

    def answers(theta: Path) -> Answers:
        with with_adapter(seed.base, str(theta)) as model:
            sampled = generate(
                model,
                seed.task.prompts,
                temperature=1.0,
                seed=seed.seed,
                max_new_tokens=seed.config.max_new_tokens,
            )
        # One text for sampling, training and scoring: what re-tokenises otherwise would be no fair target.
        return [text.strip() or "." for text in sampled.texts]

    return [
        seed.stages.keep(f"targets-{seed.key}-{number}", lambda theta=theta: answers(theta), Answers)
        for number, theta in enumerate(thetas)
    ]


def _losses_before(
    seed: _Seed, thetas: Sequence[Path], targets: Sequence[Answers]
) -> tuple[tuple[Measured, ...], ...]:
    """Loss of every checkpoint on every checkpoint's answers, [checkpoint][target]."""
    return seed.stages.keep(
        f"before-{seed.key}",
        lambda: tuple(
            tuple(_loss(seed.base, theta, seed.task, answers) for answers in targets) for theta in thetas
        ),
        tuple[tuple[Measured, ...], ...],
    )


def _arm(
    seed: _Seed,
    arm: Arm,
    pair: tuple[int, int],
    thetas: Sequence[Path],
    targets: Sequence[Answers],
    losses: Sequence[Sequence[Measured]],
) -> TrainedArm:
    """Train one checkpoint of the pair on the other one's answers, and measure it."""
    start, end = pair if arm == "forward" else pair[::-1]
    label = "-".join(str(number + 1) for number in pair)

    def train() -> Trained:
        done = fine_tune(
            seed.base,
            [Example(*row) for row in zip(seed.task.prompts, targets[end], strict=True)],
            out=seed.folder / f"{arm}-{label}",
            config=seed.training,
            start=thetas[start],
        )
        return Trained(
            final=_loss(seed.base, done.folder, seed.task, targets[end]),
            kl_change=_kl_change(
                seed.base, thetas[start], done.folder, seed.task, [targets[number] for number in pair]
            ),
        )

    trained = seed.stages.keep(f"trained-{seed.key}-{arm}-{label}", train, Trained)
    return TrainedArm(
        seed=seed.seed,
        pair=label,
        arm=arm,
        final=trained.final,
        before=losses[start][end],
        self_entropy=losses[end][end],
        kl_change=trained.kl_change,
    )


def _loss(base: ChatModel, adapter: Path, task: Task, answers: Answers) -> float:
    """Mean cross-entropy of the answers under base and adapter, nats per token (L_SFT = -E log p(y | x))."""
    with with_adapter(base, str(adapter)) as model:
        log_probs = completion_log_probs(model, task.prompts, _ids(base, answers))
    return float(-np.concatenate([row.double().numpy() for row in log_probs]).mean())


def _kl_change(base: ChatModel, start: Path, trained: Path, task: Task, answers: Sequence[Answers]) -> float:
    """KL(start || trained), mean nats per token over all the answers, each list of which answers the task's prompts."""
    divergences = []
    # One list at a time: a token's distribution takes two bytes a word of the vocabulary.
    for each in answers:
        ids = _ids(base, each)
        with with_adapter(base, str(start)) as model:
            log_p = map_completions(model, task.prompts, ids, lambda logs, _: logs.half())
        with with_adapter(base, str(trained)) as model:
            divergences += token_kl(model, task.prompts, ids, log_p)
    return float(torch.cat(divergences).double().mean())


def _ids(base: ChatModel, answers: Sequence[str]) -> list[list[int]]:
    encoded = base.tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    return [list(row) for row in encoded]  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
