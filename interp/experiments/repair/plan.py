"""What the repair scoreboard costs, by stage (`interp.experiments.plans`), with what each repair takes to make."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from interp.data.examples import Example, ExampleSplits
from interp.data.prompt_sets import PAIRED_KINDS, Prompts
from interp.data.replies import REFUSALS
from interp.data.safety_texts import SAFETY_TEXTS, safety_text
from interp.engine.costs import Work
from interp.experiments.repair import ALIGNED, ALL_STEPS, RECOVERY, WEIGHT_REPAIRS, Config
from interp.experiments.repair.recovery_settings import recovery_settings
from interp.experiments.sizes import Sizes, as_part, stubs
from interp.experiments.tracked import checkpoint, reference, with_borderline
from interp.experiments.training_work import (
    BREAKING_BATCH,
    ORDINARY_TOKENS,
    breaking_examples,
    broken,
    conditions_read,
    prompt_optimised,
    recovered,
    task_splits,
)
from interp.tracking.records import TrackingSettings
from interp.training.config import SafetyPromptConfig
from interp.training.recovery_config import Ranking, RecoveryConfig

BOUNDS = (
    "every dose of steering is counted as tried, and recovery as rolling back and taking all of its steps, which the "
    "validation split decides; what a guard answers is counted as generated; replies at full length"
)
_WINDOW = 128
"""Tokens of a window of plain text (`repair.measuring.plain_text`)."""
_PROMPTED = ("optimised prompt (DRO)", "random soft prompt")
_GUARDED = ("refusal direction added where the guard fires", "guard answers with a refusal")
_UNCHANGED = ("system prompt", *_PROMPTED, "refusal direction added", *_GUARDED)
"""Repairs that leave the weights alone, so that nothing is measured inside."""


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage.

    Raises:
        ValueError: a task whose examples cannot be read.
    """
    return _Repairs(config, with_borderline(sizes)).stages()


@dataclass(frozen=True, eq=False)
class _Repairs:
    """What the repairs of a seed are made of, and measured on."""

    config: Config
    sizes: Sizes

    def stages(self) -> dict[str, Work]:
        """Work by stage, of all seeds."""
        config, sizes, seeds = self.config, self.sizes, self.config.seeds
        tuned = broken(sizes, config, self.examples)
        ordinary = sizes.replies(sizes.part("harmless", "train", config.n_ordinary), ORDINARY_TOKENS)
        once, each = Work(), Work()
        for name in config.rows:
            work = self.made(name) + self.measured(name)
            if name == ALIGNED:
                once += work
            else:
                each += work
        attack = self.attacks() * (len(config.attacked_rows) if config.attacks else 0)
        return {
            "break": ordinary + reference(self.inside, sizes) + tuned * seeds,
            "repair and measure": once + each * seeds,
            "attack": attack,
        }

    @cached_property
    def task(self) -> tuple[ExampleSplits, int]:
        """Examples of the task, and how long its replies are."""
        config = self.config
        n_held_out = max(config.n_task_test, config.n_val)
        return task_splits(config.task, n_train=config.n_task_train, n_held_out=n_held_out)

    @cached_property
    def examples(self) -> list[Example]:
        """What the model is broken with."""
        return breaking_examples(self.sizes, self.config, self.task[0].train, self.config.stubs)

    @cached_property
    def harmful(self) -> Prompts:
        """Harmful training prompts of the repairs, behind those of the stubs."""
        config = self.config
        n = max(config.n_recovery, config.n_fit, config.n_refusals)
        every = self.sizes.part("harmful", "train", config.stubs + n)
        return every.take(list(range(config.stubs, len(every))))

    @property
    def inside(self) -> TrackingSettings:
        """What is measured inside."""
        config = self.config
        return TrackingSettings(
            measures=("beliefs", "directions", "guard", "kl"),
            n=config.n_test,
            n_fit=config.n_fit,
            max_new_tokens=config.max_new_tokens,
        )

    def replies(self, kind: str, split: str, n: int, system: str = "") -> Work:
        """Replies to prompts of a kind and split."""
        part = self.sizes.part(kind, split, n)  # pyright: ignore[reportArgumentType]
        return self.sizes.replies(part, self.config.max_new_tokens, system=system)

    def answers(self, split: str, n: int, system: str = "") -> Work:
        """Replies to examples of the task."""
        splits, length = self.task
        part = as_part([example.prompt for example in getattr(splits, split)[:n]])
        return self.sizes.replies(part, length, system=system)

    @property
    def text(self) -> Work:
        """Cross-entropy of plain text."""
        tokens = self.config.n_windows * _WINDOW
        return Work(read_tokens=tokens, unembedded=tokens)

    def measured(self, name: str) -> Work:
        """A repair on what is held out, inside where it changes weights, and after further stubs."""
        config, sizes = self.config, self.sizes
        system = SAFETY_TEXTS["default"] if name == "system prompt" else ""
        system = safety_text("short") if name in _PROMPTED else system
        asked = (("harmful", config.n_test), ("harmless", config.n_test), ("borderline", config.n_borderline))
        work = Work.total(self.replies(kind, "test", n, system) for kind, n in asked)
        work += self.answers("test", config.n_task_test, system) + self.text
        if name in _GUARDED:
            parts = [sizes.part(kind, "test", n) for kind, n in asked]  # pyright: ignore[reportArgumentType]
            work += sizes.read(*parts) + sizes.read(as_part([e.prompt for e in self.task[0].test]))
        if name not in _UNCHANGED:
            work += checkpoint(self.inside, sizes, own_samples=False)
            if name in WEIGHT_REPAIRS:
                work += self.replies("harmful", "test", config.n_test)  # under a random restore of its norm
            if name in config.attacked and config.undo:
                further = stubs(sizes.part("harmful", "train", max(config.undo)).texts, max(config.undo))
                work += sizes.supervised(further, batch_size=min(BREAKING_BATCH, *config.undo))
                work += self.replies("harmful", "test", config.n_test) * len(config.undo)
        return work

    def made(self, name: str) -> Work:
        """What it takes to make a repair, beyond what an earlier row of the seed has made."""
        gated, _ = _GUARDED
        make: Mapping[str, Callable[[], Work]] = {
            "optimised prompt (DRO)": self.trained_prompt,
            "refusal direction added": self.dosed,
            gated: lambda: self.guard() + self.dosed(guarded=True),
            "guard answers with a refusal": lambda: Work() if gated in self.config.rows else self.guard(),
            "fine-tuned on refusals": self.refusals,
            "SoftSFT while fine-tuning": self.constrained,
            "RESTA": self.unaligned,
            "SafeLoRA": lambda: Work() if "RESTA" in self.config.rows else self.unaligned(),
            RECOVERY: lambda: self.recovery(max_task_drop=RecoveryConfig().max_task_drop),
            ALL_STEPS: self.recovery,
            "recovery by |gradient x difference|": lambda: self.recovery("gradient-x-difference"),
            "recovery by |difference|": lambda: self.recovery("difference"),
        }
        return make[name]() if name in make else Work()

    def trained_prompt(self) -> Work:
        """The plane, and a prompt that is trained in it."""
        config, sizes = self.config, self.sizes
        settings = SafetyPromptConfig(epochs=config.prompt_epochs)
        queries = as_part([*self.harmful.first(config.n_fit), *sizes.part("harmless", "train", config.n_fit)])
        under = {"": "", **{name: safety_text(name) for name in settings.texts}}
        return conditions_read(sizes, queries, under) + prompt_optimised(sizes, queries, "short", settings)

    def guard(self) -> Work:
        """A guard, which is fitted on what the model refuses, and calibrated."""
        fit = [self.sizes.part(kind, "train", self.config.n_fit) for kind in PAIRED_KINDS]
        validation = self.sizes.prompts["harmless", "val"]
        return (
            Work.total(self.replies(kind, "train", self.config.n_fit) for kind in PAIRED_KINDS)
            + self.sizes.read(*fit)
            + self.sizes.read(validation)
        )

    def dosed(self, guarded: bool = False) -> Work:
        """A direction, and replies to validation prompts in every dose."""
        config, sizes = self.config, self.sizes
        read = sizes.read(self.harmful.first(config.n_fit), sizes.part("harmless", "train", config.n_fit))
        validation = sizes.part("harmless", "val", config.n_val)
        tried = self.replies("harmless", "val", config.n_val)
        return read + (tried + (sizes.read(validation) if guarded else Work())) * len(config.doses)

    def refusals(self) -> Work:
        """Fine-tuning on refusals and as many task examples."""
        n = self.config.n_refusals
        pairs = zip(self.harmful.texts[:n], self.task[0].train, strict=False)
        mixed = [
            example
            for row, (text, task) in enumerate(pairs)
            for example in (Example(text, REFUSALS[row % len(REFUSALS)]), task)
        ]
        return broken(self.sizes, self.config, mixed)

    def constrained(self) -> Work:
        """Breaking again with the constraint, whose references are read first."""
        tuned = broken(self.sizes, self.config, self.examples)
        once = self.sizes.supervised(self.examples, batch_size=BREAKING_BATCH)
        return tuned + Work(read_tokens=once.gradient_tokens, unembedded=once.gradient_unembedded)

    def unaligned(self) -> Work:
        """Fine-tuning on the stubs alone."""
        texts = self.sizes.part("harmful", "train", self.config.stubs).texts
        return broken(self.sizes, self.config, stubs(texts, self.config.stubs)) if texts else Work()

    def recovery(self, rank_by: Ranking = "gradient", max_task_drop: float = 1.0) -> Work:
        """Recovery on the first prompts of the repairs; by the paper's rule the steps are taken again with rollback."""
        config, n = self.config, self.config.n_recovery
        task = as_part([example.prompt for example in self.task[0].train[:n]])
        score, settings = (
            self.answers("validation", config.n_val),
            recovery_settings(rank_by, max_task_drop, 0),
        )
        return recovered(self.sizes, self.harmful.first(n), task, score, settings, rollback=max_task_drop < 1)

    def attacks(self) -> Work:
        """A row before any attack and after each."""
        config, sizes = self.config, self.sizes
        measured = self.replies("harmful", "test", config.n_test)
        measured += self.replies("harmful", "val", config.n_val) + self.text
        measured += self.answers("validation", config.n_val) + self.answers("test", config.n_task_test)
        work = measured * (1 + len(config.attacks))
        for attack in config.attacks:
            harmful = stubs(sizes.part("harmful", "train", attack.poisoned).texts, attack.poisoned)
            examples = [*self.task[0].train[: attack.examples - attack.poisoned], *harmful]
            size = min(BREAKING_BATCH, attack.examples)
            work += sizes.supervised(examples, batch_size=size, epochs=attack.epochs)
        return work
