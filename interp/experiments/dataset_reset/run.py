"""The method of the dataset-reset experiment at three scales: exact, toy transformer, the given model.

The tabular part takes seconds. The toy takes about ten seconds an arm and seed on one core; a finished seed is kept. On
the given model every share of resets is one run of policy optimisation, which continues where it was killed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interp.data.preferences import builtin_preferences
from interp.data.prompt_sets import PromptSet
from interp.experiments.dataset_reset import Config, Result
from interp.experiments.dataset_reset.alignment import aligned_row, alignment_config, measured_row
from interp.experiments.dataset_reset.results import AlignmentRow, Curve, TabularCurve, ToyRow
from interp.experiments.dataset_reset.tabular import (
    TabularRow,
    TabularSetting,
    coverage_coefficient,
    random_reference,
    regularised_optimum,
    tabular_runs,
    written_reward,
)
from interp.experiments.dataset_reset.toy import fine_tuned, toy_arms, toy_config
from interp.experiments.definition import Outcome
from interp.models.chat_model import ChatModel
from interp.stats import Estimate, over_seeds
from interp.storage.stages import Stages
from interp.training.reward_trainer import train_reward_model


@dataclass(frozen=True, kw_only=True)
class _ToySeed:
    rows: tuple[ToyRow, ...]
    curves: tuple[Curve, ...]


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the three scales."""
    # Tabular: closed-form NPG, KL bound, coverage.
    rows = stages.keep("tabular", lambda: _tabular(config), tuple[TabularRow, ...])
    stages.lap("tabular")
    # Toy transformer: all arms at equal tokens.
    seeds = range(config.seed, config.seed + config.runs) if config.toy_updates else range(0)
    toys = [
        stages.keep(f"toy-{seed}", lambda seed=seed: _toy(config, seed, stages.workspace("toy")), _ToySeed)
        for seed in stages.progress(seeds, "toy transformers")
    ]
    stages.lap("toy")
    # The given model.
    alignment, accuracy = (), None
    if config.model_updates:
        alignment, accuracy = _alignment(model, prompts, config, stages)
    stages.lap("alignment")
    return Outcome(
        result=Result(
            provenance=stages.provenance,
            seconds=stages.seconds,
            config=config,
            tabular=_curves(rows),
            bound_kept=all(row.largest_state_kl <= row.bound + 1e-9 for row in rows),
            coverage=_coverage(config),
            toy=tuple(row for toy in toys for row in toy.rows),
            toy_curves=tuple(curve for toy in toys for curve in toy.curves),
            alignment=alignment,
            reward_accuracy=accuracy,
        )
    )


def _tabular(config: Config) -> tuple[TabularRow, ...]:
    setting = TabularSetting(
        symbols=config.symbols,
        length=config.length,
        eta=config.eta,
        lam=config.lam,
        updates=config.tabular_updates,
        rollouts=config.tabular_rollouts,
        labels=config.tabular_labels,
        references=config.tabular_references,
    )
    return tabular_runs(setting, config.betas, range(config.seed, config.seed + config.runs))


def _curves(rows: tuple[TabularRow, ...]) -> tuple[TabularCurve, ...]:
    def over(beta: float | int, name: str) -> tuple[Estimate, ...]:
        steps = sorted({row.step for row in rows})
        return tuple(
            over_seeds([getattr(r, name) for r in rows if r.beta == beta and r.step == step])
            for step in steps
        )

    return tuple(
        TabularCurve(
            beta=beta,
            reward=over(beta, "reward"),
            model_reward=over(beta, "model_reward"),
            kl=over(beta, "kl"),
            covered=over(beta, "covered"),
        )
        for beta in dict.fromkeys(row.beta for row in rows)
    )


def _coverage(config: Config) -> Estimate:
    found = []
    for seed in range(config.seed, config.seed + config.runs):
        reference = random_reference(np.random.default_rng(seed), config.symbols, config.length)
        optimum = regularised_optimum(reference, written_reward(config.symbols, config.length), config.lam)
        found.append(coverage_coefficient(optimum, reference))
    return over_seeds(found)


def _toy(config: Config, seed: int, folder: Path) -> _ToySeed:
    base = fine_tuned(folder / f"sft-{seed}", examples=config.toy_examples, seed=seed)
    rows, curves = toy_arms(
        base,
        folder / f"arms-{seed}",
        toy_config(
            updates=config.toy_updates,
            rollouts=config.toy_rollouts,
            learning_rate=config.toy_learning_rate,
            kl=config.kl_coefficient,
            seed=seed,
        ),
        betas=config.betas,
        grpo=config.toy_grpo,
    )
    return _ToySeed(rows=tuple(rows), curves=tuple(curves))


def _alignment(
    model: ChatModel, prompts: PromptSet, config: Config, stages: Stages
) -> tuple[tuple[AlignmentRow, ...], Estimate]:
    preferences = builtin_preferences()
    reward = train_reward_model(model, preferences)
    settings = {
        beta: alignment_config(
            beta=beta,
            updates=config.model_updates,
            rollouts=config.model_rollouts,
            tokens=config.model_tokens,
            learning_rate=config.model_learning_rate,
            kl=config.kl_coefficient,
            seed=config.seed,
        )
        for beta in config.model_betas
    }
    first = next(iter(settings.values()))
    rows = [
        stages.keep(
            "aligned-none",
            lambda: measured_row(model, prompts, reward, first, config.n_test, None),
            AlignmentRow,
        )
    ]
    for beta in stages.progress(config.model_betas, "shares of resets"):
        rows.append(
            stages.keep(
                f"aligned-{beta}",
                lambda beta=beta: aligned_row(
                    model,
                    prompts,
                    preferences,
                    reward,
                    settings[beta],
                    stages.workspace("policies") / f"beta-{beta}",
                    config.n_test,
                ),
                AlignmentRow,
            )
        )
    return tuple(rows), Estimate(**dict(reward.about["accuracy"]))
