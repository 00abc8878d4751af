"""The method of the tracked path.

Steps (`run`):

1. LoRA through the stages, each with fresh optimiser and schedule, each continuing the adapter of the one before:
   `align` teaches refusals of harmful requests and the model's own answers to harmless and borderline ones, `stubs`
   empty affirmative replies to other harmful requests ("Sure, here is how to do that.");
2. `track` over the model as it was and every checkpoint, against the most aligned model that the path begins from.
"""

from pathlib import Path

import numpy as np

from interp.data.examples import Example
from interp.data.prompt_sets import Kind, PromptSet
from interp.data.prompts import load_prompts
from interp.data.tasks import stubs
from interp.experiments.definition import Outcome
from interp.experiments.trajectory import STAGES, Config, Result
from interp.models.chat_model import ChatModel
from interp.storage.stages import Stages
from interp.tracking.checkpoints import find_series
from interp.tracking.spec import TrackingSpec
from interp.tracking.tracker import measure_series
from interp.tracking.trajectory import as_csv
from interp.training.config import one_pass
from interp.training.finetune import fine_tune
from interp.training.safety_adapter import safety_examples


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Train through the stages and measure every checkpoint; `model` has its own weights again when it returns.

    Raises:
        ValueError: too few training prompts for the counts.
    """
    # 1. Fine-tuning in stages.
    folders = _train(model, prompts, config, stages)
    stages.lap("train")

    # 2. Every checkpoint against the most aligned model of the beginning.
    spec = TrackingSpec(
        prompts=prompts,
        n=config.n,
        n_fit=config.n_fit,
        n_documents=config.n_documents,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )
    aligned = config.counts[-1] if config.stages[0] == "align" else 0
    series = find_series(folders, reference=f"{folders[0].name}/checkpoint-{aligned}", base=model)
    tracked = measure_series(series, spec, stages, base=model)
    stages.lap("track")
    # The adapters are not kept, so the model of the run is the one that it began with.
    about = {"provenance": stages.provenance, "seconds": stages.seconds, "config": config}
    result = Result(**{**vars(tracked), **about})
    return Outcome(result=result, files={"trajectory.csv": as_csv(result)})


def _train(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> list[Path]:
    """The folder of each stage, with its checkpoints inside."""
    folders: list[Path] = []
    for number, stage in enumerate(config.stages, start=1):
        rows = stages.keep(
            f"{number}-{stage}-examples",
            lambda s=stage: [tuple(example) for example in examples(model, prompts, s, config)],
            list[tuple[str, str]],
        )
        trained = fine_tune(
            model,
            [Example(*row) for row in rows],
            out=stages.workspace("training") / f"{number}-{stage}",
            config=one_pass(
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                rank=config.rank,
                seed=config.seed,
            ),
            checkpoints=config.counts if folders else (0, *config.counts),
            start=folders[-1] if folders else None,
        )
        folders.append(trained.folder)
    return folders


def examples(model: ChatModel, prompts: PromptSet, stage: str, config: Config) -> list[Example]:
    """Examples of a stage, shuffled: `align` has one half of the harmful training prompts, `stubs` the other.

    Raises:
        ValueError: fewer than the largest count.
    """
    wanted = config.counts[-1]
    train = prompts["harmful", "train"]
    half = train.take(list(range(STAGES.index(stage), len(train), 2)))
    if stage == "stubs":
        found = list(stubs(half.first(wanted).texts))
    else:
        # A third each: refusals alone would teach to refuse everything.
        parts = {key: part for key, part in prompts.parts.items() if key[1] == "train"}
        parts["harmful", "train"] = half.first(wanted - 2 * (wanted // 3))
        parts.setdefault(("borderline", "train"), load_prompts("builtin")["borderline", "train"])
        answered: tuple[Kind, ...] = ("harmless", "borderline")
        spare = wanted // 8  # own answers that refuse are left out
        for kind in answered:
            parts[kind, "train"] = parts[kind, "train"].first(wanted // 3 + spare)
        found = safety_examples(
            model,
            PromptSet(prompts.name, parts, prompts.ending, prompts.notes),
            answer_tokens=config.answer_tokens,
        )
    if len(found) < wanted:
        raise ValueError(
            f"{prompts.name} gives {len(found)} examples for the stage {stage}, counts go up to {wanted}; lower counts"
        )
    order = np.random.default_rng(config.seed).permutation(len(found))
    return [found[i] for i in order][:wanted]
