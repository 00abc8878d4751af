"""What the questions on the law cost under every intervention, by stage (`interp.experiments.plans`)."""

from collections.abc import Sequence

from interp.data.multiple_choice import Question, Questions, load_questions
from interp.data.prompt_sets import PAIRED_KINDS
from interp.engine.costs import Work
from interp.evaluation.choice_prompts import TAG, ChoiceFormat, choice_messages
from interp.experiments.safelawbench import BASELINE, RANDOM, Config
from interp.experiments.sizes import Sizes, distinct, replied

BOUNDS = "replies at full length"
_REPLY_TOKENS = 24


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage.

    Raises:
        ValueError: questions that cannot be read, or fewer examples than shots.
    """
    questions = load_questions(config.questions, seed=config.seed).first(config.n_questions)
    form = ChoiceFormat(shots=config.shots)
    fit = [sizes.part(kind, "train", config.n_train) for kind in PAIRED_KINDS]
    orders = [
        question.rotated(shift) for question in questions.questions for shift in range(len(question.choices))
    ]
    asked = _ids(sizes, orders, questions, form, prefill=TAG)
    tag = sum(sizes.counter.lengths([TAG])) * len(orders)
    read = Work(read_tokens=distinct(asked) + tag, unembedded=len(orders))
    reply = replied(_ids(sizes, questions.questions[: config.n_replies], questions, form), _REPLY_TOKENS)
    arms = {name: 1 for name in (BASELINE, "ablation")}
    arms |= {f"addition x{coefficient:g}": 1 for coefficient in config.coefficients}
    arms |= {f"{RANDOM} {name}": config.n_random for name in arms if name != BASELINE}
    return {
        "direction": sizes.read(*fit),
        **{name: read * directions for name, directions in arms.items()},
        **({f"{name}, replies": reply for name in arms} if config.n_replies else {}),
    }


def _ids(
    sizes: Sizes,
    asked: Sequence[Question],
    shown: Questions,
    form: ChoiceFormat,
    *,
    prefill: str | None = None,
) -> list[tuple[int, ...]]:
    """Token ids of questions as they are asked, the beginning of the reply left out."""
    ids: list[tuple[int, ...]] = []
    for question in asked:
        system, user = choice_messages(question, examples=shown.examples, format=form, prefill=prefill)[:2]
        ids += sizes.counter.ids([user["content"]], system=system["content"])
    return ids
