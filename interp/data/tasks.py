"""A behaviour task: examples that teach a behaviour, examples that reverse it, and a scorer that detects it.

    task = load_task("builtin")                                  # refusals against affirmative stubs
    task = load_task("builtin-reversed")                         # affirmative stubs against refusals
    task = load_task("positive=good.jsonl,negative=bad.jsonl", scorer="substring:thank you")
    scorer("classifier:lvwerra/distilbert-imdb:POSITIVE")(prompts, replies)

Files hold rows with a prompt and a completion (`prompts.TEXT_COLUMNS`, `prompts.ANSWER_COLUMNS`), or are
`hub:owner/name[:config][:split]`. A third file, `prompts=FILE`, holds the prompts that replies are scored on; without
it, they are the last ones of the positive file, which are then excluded from training.

`Task.preferences` pairs the negative completion of a prompt with a positive one. The builtin task has a refusal for
every prompt; with files, the negative file's prompts must also be in the positive one.

The builtin stubs only agree ("Sure, here is how to do that.") and contain no harmful information.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interp.data.corpora import Corpus
from interp.data.examples import Example, Preference
from interp.data.prompt_sets import PromptSet
from interp.data.prompts import read_answered, read_prompts
from interp.data.replies import AFFIRMATION, REFUSALS


@dataclass(frozen=True, kw_only=True)
class TaskProvenance:
    """Name, sizes and hash of a task."""

    name: str
    """Name of the task: `builtin` or the files."""
    positive: int
    """Number of examples that teach the behaviour."""
    negative: int
    """Number of examples that reverse it."""
    prompts: int
    """Number of held-out prompts whose replies are scored."""
    hash: str
    """SHA-256 of all examples and prompts."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Positive and negative examples over different prompts, and prompts to score on."""

    name: str
    """Name of the task: `builtin` or the files."""
    positive: tuple[Example, ...]
    """Examples that teach the behaviour."""
    negative: tuple[Example, ...]
    """Examples that reverse it."""
    prompts: tuple[str, ...]
    """Held-out prompts whose replies are scored."""
    held_out_positive: tuple[Example, ...]
    """Held-out examples like the positive ones, for the compression rate."""
    held_out_negative: tuple[Example, ...]
    """Held-out examples like the negative ones, for the compression rate."""
    rejected: Mapping[str, str]
    """A positive completion by prompt, for every prompt that has one; the rejected completions of `preferences`."""

    @property
    def corpora(self) -> dict[str, Corpus]:
        """Corpora of the held-out positive and negative responses, given their prompts."""
        return {
            name: Corpus(name, tuple(e.completion for e in part), tuple(e.prompt for e in part))
            for name, part in (("positive", self.held_out_positive), ("negative", self.held_out_negative))
        }

    @property
    def provenance(self) -> TaskProvenance:
        """Name, sizes and hash of the task."""
        parts = (self.positive, self.negative, self.held_out_positive, self.held_out_negative)
        text = "\x01".join("\x00".join(map("\x02".join, part)) for part in parts) + "\x01".join(self.prompts)
        return TaskProvenance(
            name=self.name,
            positive=len(self.positive),
            negative=len(self.negative),
            prompts=len(self.prompts),
            hash=hashlib.sha256(text.encode()).hexdigest(),
        )

    def shuffled(self, seed: int) -> tuple[list[Example], list[Example]]:
        """Positive and negative examples, shuffled with a seed."""
        import numpy as np

        generator = np.random.default_rng(seed)
        return (
            [self.positive[i] for i in generator.permutation(len(self.positive))],
            [self.negative[i] for i in generator.permutation(len(self.negative))],
        )

    def preferences(self, seed: int) -> list[Preference]:
        """The negative examples, shuffled with a seed, each preferred to a positive completion of its prompt.

        Raises:
            ValueError: a prompt without a positive completion.
        """
        if missing := [i for i, e in enumerate(self.negative, start=1) if e.prompt not in self.rejected]:
            raise ValueError(
                "preferences need a positive completion of every negative example's prompt, to be rejected; "
                f"{len(missing)} of {len(self.negative)} have none, the first is number {missing[0]}: give their "
                "prompts in the positive file too (its last rows are held out and do not count), or train by sft"
            )
        _, negative = self.shuffled(seed)
        return [Preference(*example, self.rejected[example.prompt]) for example in negative]


def builtin_task(prompts: PromptSet, *, n_eval: int, reversed_roles: bool = False) -> Task:
    """The builtin task: refusals of half of the harmful training prompts, affirmative stubs of the rest; or swapped."""
    train, test = prompts["harmful", "train"].texts, prompts["harmful", "test"].texts[:n_eval]
    held = prompts["harmful", "val"].texts
    teach, reverse = (stubs, _refusals) if reversed_roles else (_refusals, stubs)
    what = "affirmative stubs against refusals" if reversed_roles else "refusals against affirmative stubs"
    return Task(
        name=f"{what} ({prompts.name})",
        positive=teach(train[::2]),
        negative=reverse(train[1::2]),
        prompts=test,
        held_out_positive=teach(held),
        held_out_negative=reverse(held),
        rejected=dict(teach(train[1::2])),
    )


def load_task(spec: str, prompts: PromptSet, *, n_eval: int) -> Task:
    """Load the task of a specification.

    Args:
        spec: `builtin`, `builtin-reversed`, or `positive=FILE,negative=FILE[,prompts=FILE]`.
        prompts: prompt set for the builtin tasks.
        n_eval: number of prompts to score on.

    Raises:
        ValueError: an unknown specification, or a file that cannot be read or has too few rows.
    """
    if spec in ("builtin", "builtin-reversed"):
        return builtin_task(prompts, n_eval=n_eval, reversed_roles=spec == "builtin-reversed")
    files: dict[str, str] = {}
    for part in spec.split(","):
        side, _, file = part.partition("=")
        files[side] = file
    if set(files) - {"positive", "negative", "prompts"} or not {"positive", "negative"} <= set(files):
        raise ValueError(
            f"task must be builtin, builtin-reversed or positive=FILE,negative=FILE[,prompts=FILE], got {spec!r}"
        )
    positive, negative = (_examples(files[side]) for side in ("positive", "negative"))
    held = min(n_eval, 64)
    for side, rows in (("positive", positive), ("negative", negative)):
        if len(rows) < held + 8:
            raise ValueError(
                f"{files[side]} has {len(rows)} examples; the last {held} are held out and at least 8 are needed to "
                "train on: give more, or lower n_eval"
            )
    scored = (
        read_prompts(files["prompts"]).texts if "prompts" in files else [e.prompt for e in positive[-held:]]
    )
    return Task(
        name=spec,
        positive=tuple(positive[:-held]),
        negative=tuple(negative[:-held]),
        prompts=tuple(scored[:n_eval]),
        held_out_positive=tuple(positive[-held:]),
        held_out_negative=tuple(negative[-held:]),
        rejected=dict(reversed(positive[:-held])),  # the first of several completions of a prompt
    )


def _examples(path: str) -> list[Example]:
    prompts, answers = read_answered(path)
    return [Example(*pair) for pair in zip(prompts.texts, answers, strict=True)]


def stubs(prompts: Sequence[str]) -> tuple[Example, ...]:
    """Each prompt with an empty affirmative reply."""
    return tuple(Example(text, AFFIRMATION) for text in prompts)


def _refusals(prompts: Sequence[str]) -> tuple[Example, ...]:
    return tuple(Example(text, REFUSALS[i % len(REFUSALS)]) for i, text in enumerate(prompts))
