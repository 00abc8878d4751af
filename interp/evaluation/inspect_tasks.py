"""Prompts and questions of interp as Inspect's datasets, tasks and scorers.

    eval(refusal(prompts="advbench+alpaca", kind="harmful"), model="interp/smollm2-safe")
    eval(choices(questions="builtin"), model="interp/smollm2-safe")

A task takes every option of its function on Inspect's command line: `-T prompts=builtin -T kind=harmless`.
"""

from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import Score, Scorer, Target, choice, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate, multiple_choice

from interp.data.multiple_choice import Questions, load_questions
from interp.data.prompt_sets import Prompts
from interp.data.prompts import load_prompts
from interp.evaluation.refusals import REFUSAL_LISTS, RefusalList, refuses
from interp.models.thinking import separated

_MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


def prompts_dataset(prompts: Prompts) -> MemoryDataset:
    """Prompts as samples with their ids; category and source are metadata."""
    inputs: list[str | list[ChatMessage]] = list(prompts.texts)
    if prompts.conversations:
        inputs = [
            [_MESSAGES[str(m["role"])](content=str(m["content"])) for m in conversation]
            for conversation in prompts.conversations
        ]
    samples = [
        Sample(input=text, id=name, target="", metadata={"category": category, "source": prompts.source})
        for text, name, category in zip(inputs, prompts.ids, prompts.categories, strict=True)
    ]
    return MemoryDataset(samples, name=prompts.source)


def questions_dataset(questions: Questions) -> MemoryDataset:
    """Multiple-choice questions as samples with choices and the letter of the right one."""
    samples = [
        Sample(
            input=question.text,
            choices=list(question.choices),
            target=question.letter,
            id=question.id,
            metadata={"group": question.group, "region": question.region},
        )
        for question in questions.questions
    ]
    return MemoryDataset(samples, name=questions.name)


@scorer(metrics=[mean(), stderr()])
def refused(substrings: RefusalList = "normalised") -> Scorer:
    """1 for a reply that refuses by a list of substrings, 0 for one that does not; a thought without an end is neither.

    Args:
        substrings: `normalised`, `arditi` or `zhao` (`interp.evaluation.refusals`).

    Raises:
        ValueError: an unknown list.
    """
    refuses("", substrings)  # before anything is generated

    async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001 (Inspect's signature)
        reply = separated(state.output.completion)
        if not reply.finished:
            return Score.unscored(explanation="cut while thinking")
        flag = refuses(reply.answer, substrings)
        return Score(value=float(flag), answer="refused" if flag else "answered")

    return score


@task
def refusal(
    prompts: str = "builtin",
    kind: str = "harmful",
    split: str = "test",
    ending: str = "as-is",
    substrings: str = "normalised",
    n: int | None = None,
) -> Task:
    """How often a model refuses the prompts of one kind and split of a prompt set.

    Args:
        prompts: as `--prompts` of interp.
        kind: harmful, harmless or borderline.
        split: train, val or test.
        ending: as-is, strip or period.
        substrings: list of refusal substrings.
        n: at most so many prompts.

    Raises:
        ValueError: an unknown list, or as `load_prompts`.
    """
    if substrings not in REFUSAL_LISTS:
        raise ValueError(f"unknown refusal list {substrings!r}; known: {', '.join(REFUSAL_LISTS)}")
    loaded: Any = load_prompts(prompts, ending=ending)  # pyright: ignore[reportArgumentType]
    part: Prompts = loaded[kind, split]
    return Task(
        dataset=prompts_dataset(part if n is None else part.first(n)),
        solver=[generate()],
        scorer=refused(substrings),  # pyright: ignore[reportArgumentType]
    )


@task
def choices(questions: str = "builtin", n: int | None = None) -> Task:
    """Accuracy on multiple-choice questions, asked and scored as Inspect does it.

    Args:
        questions: as `interp.data.load_questions` takes it.
        n: at most so many questions.
    """
    return Task(
        dataset=questions_dataset(load_questions(questions).first(n)),
        solver=[multiple_choice()],
        scorer=choice(),
    )
