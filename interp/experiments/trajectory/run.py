"""A model aligned and un-aligned in stages, measured at every checkpoint on the way.

Ji et al. 2025, arXiv:2406.06144, whose grids (`rebound`) only see scores and KL: here behaviour, beliefs, directions,
compression, KL and weights along one path, on the same axis (`interp.tracking.tracker`). One path and one seed: it
shows what moves first and what comes back, and cannot say whether the data are consistent with rebound.

Steps (`run`):

1. LoRA through the stages, each with fresh optimiser and schedule, each continuing the adapter of the one before:
   `align` teaches refusals of harmful requests and the model's own answers to harmless and borderline ones, `stubs`
   empty affirmative replies to other harmful requests ("Sure, here is how to do that.");
2. `track` over the model as it was and every checkpoint, against the most aligned model that the path begins from.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from interp.data.examples import Example
from interp.data.prompts import Kind, PromptSet, load_prompts
from interp.data.tasks import stubs
from interp.models.chat_model import ChatModel
from interp.storage.untyped import Parts
from interp.tracking.report import figures, rate_table, report, verdicts
from interp.tracking.tracker import Probe, Trajectory, track
from interp.training.finetune import fine_tune
from interp.training.runner import one_pass
from interp.training.safety_adapter import safety_examples

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

NAME = "trajectory"
SUMMARY = "fine-tune in stages (align, un-align, align again) and track every checkpoint"
DEFAULT_MODEL = "smollm2"
STAGES = ("align", "stubs")
Result = Trajectory


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    stages: tuple[str, ...] = ("align", "stubs")
    """`align` and `stubs`, in any order; an aligned model begins with `stubs`."""
    counts: tuple[int, ...] = (16, 32, 64, 128)
    """Examples of a stage at which a checkpoint is measured, ascending."""
    n: int = 32
    """Test prompts of each kind."""
    n_fit: int = 48
    """Training prompts of each kind that directions and centres are fitted on."""
    n_documents: int = 16
    """Documents of each corpus."""
    max_new_tokens: int = 20
    """Length of a reply."""
    answer_tokens: int = 20
    """Length of the model's own answers that `align` trains on."""
    learning_rate: float = 5e-4
    """Of every stage."""
    batch_size: int = 8
    """Examples per optimiser step; every count must be a multiple."""
    rank: int = 8
    """Of the LoRA."""
    seed: int = 0
    """Of initialisation, the examples' order and sampling."""

    def __post_init__(self) -> None:
        if not self.stages or any(stage not in STAGES for stage in self.stages):
            raise ValueError(
                f"stages must be some of {', '.join(STAGES)}, got {', '.join(self.stages) or 'none'}"
            )
        if not self.counts or list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 1:
            raise ValueError(f"counts must ascend from 1 or more, got {list(self.counts)}")
        if wrong := [n for n in self.counts if n % self.batch_size]:
            raise ValueError(
                f"counts must be multiples of batch_size = {self.batch_size}, got {wrong[0]}; change either"
            )


def run(
    model: ChatModel,
    prompts: PromptSet,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> Trajectory:
    """Train through the stages and measure every checkpoint; `model` has its own weights again when it returns.

    Args:
        out: run folder; adapters and finished checkpoints are kept beside it until the run is whole, and a run started
            again continues.

    Raises:
        ValueError: too few training prompts for the counts.
    """
    config = config or Config()
    with ExitStack() as stack:
        target = Path(out or Path(stack.enter_context(tempfile.TemporaryDirectory())) / NAME)
        settings = {"config": asdict(config), "model": model.provenance, "prompts": prompts.provenance}
        parts = Parts(target.with_name(f"{target.name}.training"), settings)
        folders: list[Path] = []
        start: Path | None = None
        for number, stage in enumerate(config.stages):
            trained = fine_tune(
                model,
                [
                    Example(*row)
                    for row in parts.numbers(stage, lambda s=stage: examples(model, prompts, s, config))
                ],
                out=parts.folder / f"{number + 1}-{stage}",
                config=one_pass(
                    batch_size=config.batch_size,
                    learning_rate=config.learning_rate,
                    rank=config.rank,
                    seed=config.seed,
                ),
                checkpoints=(0, *config.counts) if start is None else config.counts,
                start=start,
            )
            start = trained.folder
            folders.append(start)
        probe = Probe(
            prompts=prompts,
            n=config.n,
            n_fit=config.n_fit,
            n_documents=config.n_documents,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
        )
        aligned = config.counts[-1] if config.stages[0] == "align" else 0
        reference = f"{folders[0].name}/checkpoint-{aligned}"
        found = track(
            folders, probe, base=model, reference=reference, out=target, show_progress=show_progress
        )
        # The adapters are not kept, so the model of the run is the one that it began with.
        found = replace(found, provenance={**found.provenance, **model.provenance, "config": asdict(config)})
        if out is not None:
            found.save(target)
        parts.discard()
    return found


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
