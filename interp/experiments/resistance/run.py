"""Resistance: is it easier to train a model back to where it came from than onwards?

Ji, Wang, Qiu, Chen, Zhou, Li, Lou, Dai, Liu, Yang, "Language Models Resist Alignment: Evidence From Data Compression",
arXiv:2406.06144 (ACL 2025), resistance experiment (table 1: inverse loss below forward loss in all cells, gaps of
0.0002 to 0.096; table 2: KL change of the forward arm above the inverse one's in all pairs, such as 0.4568 and 0.2796;
no seeds or variance printed).

Steps (`run`), for every seed:

1. fine-tune the base for one pass over three consecutive slices; theta_1, theta_2, theta_3 are the model after each;
2. every theta_k answers the same held-out prompts, sampled at temperature 1: D_1, D_2, D_3;
3. for k < l: forward arm, theta_k trained on D_l; inverse arm, theta_l trained on D_k; same prompts, same settings;
4. loss on the trained-on answers after training, and *excess* loss: that minus the loss of the checkpoint that wrote
   them. The arms fit different targets, so a raw gap may be the targets' entropy; the excess has it removed;
5. KL change: KL(start || trained) of each arm, mean nats per token over the answers of both checkpoints of the pair,
   teacher-forced, so that both arms are measured on the same tokens. The paper does not define its KL change: neither
   between which models, nor which way, nor on which tokens;
6. gap = forward - inverse over seeds, paired t test, for both losses and the KL change. Positive: the inverse direction
   is easier, or moves the model less.

The control is the same pair before any training step: a gap that is there already was not made by training.
The paper trains fully and for an epoch on larger sets; here LoRA on the small base and small sets.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.data.examples import Example
from interp.data.prompts import PromptSet
from interp.data.tasks import Task, load_task
from interp.display.progress import progress
from interp.engine.generation import generate
from interp.engine.log_probs import completion_log_probs, map_completions
from interp.evaluation.losses import token_kl
from interp.experiments.resistance.report import figures, rate_table, report, verdicts
from interp.models.chat_model import ChatModel, with_adapter
from interp.storage.provenance import provenance
from interp.storage.untyped import ExperimentResult, Parts, Stopwatch
from interp.training.finetune import fine_tune
from interp.training.runner import one_pass

__all__ = [
    "DEFAULT_MODEL",
    "NAME",
    "SUMMARY",
    "Config",
    "Result",
    "figures",
    "rate_table",
    "report",
    "run",
    "verdicts",
]

NAME = "resistance"
SUMMARY = (
    "train checkpoints forward and back on each other's answers: loss, excess loss and KL change over seeds"
)
DEFAULT_MODEL = "smollm2"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    slices: int = 3
    """Consecutive slices, as in the paper."""
    slice_size: int = 32
    """Examples of a slice."""
    n_targets: int = 24
    """Held-out prompts that every checkpoint answers and the arms train on."""
    max_new_tokens: int = 16
    """Length of an answer."""
    seeds: int = 5
    """Orders of the examples, initialisations and samples."""
    task: str = "builtin"
    """Its positive examples are the data set; as in `rebound`."""
    learning_rate: float = 5e-4
    """Of both stages."""
    batch_size: int = 8
    """Examples per optimiser step."""
    rank: int = 8
    """Of the LoRA."""
    seed: int = 0
    """First seed."""

    def __post_init__(self) -> None:
        if self.slices < 2 or self.seeds < 2:
            raise ValueError(f"slices and seeds must be 2 or more, got {self.slices} and {self.seeds}")
        if self.slice_size % self.batch_size:
            raise ValueError(
                f"slice_size must be a multiple of batch_size = {self.batch_size}, got {self.slice_size}"
            )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(ExperimentResult):
    """What a run found."""


def run(
    model: ChatModel,
    prompts: PromptSet,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> Result:
    """Run every seed and pair.

    Args:
        out: run folder; trained checkpoints and finished arms are kept beside it until the run is whole, and a run
            started again continues.

    Raises:
        ValueError: a task with too few examples or prompts.
    """
    config = config or Config()
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
    watch = Stopwatch()
    with ExitStack() as stack:
        target = Path(out or Path(stack.enter_context(tempfile.TemporaryDirectory())) / NAME)
        settings = {
            "experiment": NAME,
            "config": asdict(config),
            "model": model.provenance,
            "task": task.provenance,
        }
        parts = Parts(target, settings)
        seeds = range(config.seed, config.seed + config.seeds)
        rows: list[dict[str, Any]] = []
        for seed in progress(seeds, total=len(seeds), label="resistance", show=show_progress):
            rows += one_seed(model, task, config, parts, seed)
        watch.lap("arms")
        numbers = {
            "experiment": NAME,
            "task": task.provenance,
            "rows": rows,
            "seconds": watch.with_total,
            "provenance": provenance(model.provenance, prompts.provenance, config),
        }
        result = Result(numbers=numbers)
        if out is not None:
            result.save(out)
        parts.discard()
    return result


def one_seed(base: ChatModel, task: Task, config: Config, parts: Parts, seed: int) -> list[dict[str, Any]]:
    """A row per pair and arm: losses before and after training, the targets' self-entropy, and the KL change."""
    training = one_pass(
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        rank=config.rank,
        max_completion_tokens=config.max_new_tokens,
        seed=seed,
    )
    folder = parts.folder / f"train-{seed}"
    counts = [config.slice_size * (i + 1) for i in range(config.slices)]
    examples, _ = task.shuffled(seed)
    thetas = fine_tune(
        base, examples[: counts[-1]], out=folder / "slices", config=training, checkpoints=counts
    ).checkpoints
    # One text for sampling, training and scoring: what re-tokenises otherwise would be no fair target.
    targets: list[list[str]] = []
    for number, count in enumerate(counts):

        def answer(path: Path = thetas[count]) -> list[str]:
            with with_adapter(base, str(path)) as model:
                done = generate(
                    model, task.prompts, temperature=1.0, seed=seed, max_new_tokens=config.max_new_tokens
                )
            return [text.strip() or "." for text in done.texts]

        targets.append(parts.numbers(f"targets-{seed}-{number}", answer))
    losses = parts.numbers(
        f"before-{seed}",
        lambda: [[_loss(base, thetas[count], task, answers) for answers in targets] for count in counts],
    )
    rows = []
    for k, l in combinations(range(config.slices), 2):  # noqa: E741 (the paper's name)
        for arm, start, end in (("forward", k, l), ("inverse", l, k)):

            def train(
                start: int = start, end: int = end, arm: str = arm, pair: tuple[int, int] = (k, l)
            ) -> dict[str, float]:
                trained = fine_tune(
                    base,
                    [Example(*row) for row in zip(task.prompts, targets[end], strict=True)],
                    out=folder / f"{arm}-{pair[0]}{pair[1]}",
                    config=training,
                    start=thetas[counts[start]],
                )
                both = [targets[number] for number in pair]
                return {
                    "final": _loss(base, trained.folder, task, targets[end]),
                    "kl_change": _kl_change(base, thetas[counts[start]], trained.folder, task, both),
                }

            found = parts.numbers(f"trained-{arm}-{seed}-{k}{l}", train)
            final, own = found["final"], losses[end][end]
            rows.append(
                {
                    "seed": seed,
                    "pair": f"{k + 1}-{l + 1}",
                    "arm": arm,
                    "final": final,
                    "self_entropy": own,
                    "excess": final - own,
                    "before": losses[start][end],
                    "before_excess": losses[start][end] - own,
                    "kl_change": found["kl_change"],
                }
            )
    return rows


def _loss(base: ChatModel, adapter: Path, task: Task, answers: list[str]) -> float:
    """Mean cross-entropy of the answers under base and adapter, nats per token (L_SFT = -E log p(y | x))."""
    with with_adapter(base, str(adapter)) as model:
        found = completion_log_probs(model, task.prompts, _ids(base, answers))
    return float(-np.concatenate([row.double().numpy() for row in found]).mean())


def _kl_change(
    base: ChatModel, start: Path, trained: Path, task: Task, answers: Sequence[list[str]]
) -> float:
    """KL(start || trained), mean nats per token over all the answers, each list of which answers the task's prompts."""
    divergences = []
    for (
        each
    ) in answers:  # one list at a time: distributions take two bytes a token and word of the vocabulary
        ids = _ids(base, each)
        with with_adapter(base, str(start)) as model:
            log_p = map_completions(model, task.prompts, ids, lambda logs, _: logs.half())
        with with_adapter(base, str(trained)) as model:
            divergences += token_kl(model, task.prompts, ids, log_p)
    return float(torch.cat(divergences).double().mean())


def _ids(base: ChatModel, answers: Sequence[str]) -> list[list[int]]:
    encoded = base.tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    return [list(row) for row in encoded]  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
