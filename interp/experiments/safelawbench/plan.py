"""What the questions on the law cost under every intervention, by stage (`interp.experiments.plans`)."""

from collections.abc import Sequence

from interp.data.multiple_choice import Question, load_questions
from interp.data.prompt_sets import PAIRED_KINDS
from interp.engine.costs import Work
from interp.experiments.safelawbench import BASELINE, RANDOM, Config
from interp.experiments.sizes import Sizes, as_part

BOUNDS = "replies at full length"
_SYSTEM = 80
"""Tokens of the system prompt and of what is asked for, which all questions of a region begin with."""
_TAG = 5
"""Tokens of the answer tag, with which a reply is begun for the model."""
_REPLY_TOKENS = 24


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage.

    Raises:
        ValueError: questions that cannot be read.
    """
    questions = load_questions(config.questions, seed=config.seed).first(config.n_questions)
    fit = [sizes.part(kind, "train", config.n_train) for kind in PAIRED_KINDS]
    shown = sum(sizes.counter.lengths([_text(question) for question in questions.examples[: config.shots]]))
    orders = [
        question.rotated(shift) for question in questions.questions for shift in range(len(question.choices))
    ]
    read = sizes.read(as_part([_text(question) for question in orders]), roles=0)
    regions = len({question.region for question in questions.questions})
    read += Work(read_tokens=regions * (_SYSTEM + shown) + len(orders) * _TAG, unembedded=len(orders))
    asked = as_part([_text(question) for question in questions.questions[: config.n_replies]])
    reply = sizes.replies(asked, _REPLY_TOKENS) + Work(read_tokens=len(asked) * (_SYSTEM + shown))
    arms = {name: 1 for name in (BASELINE, "ablation")}
    arms |= {f"addition x{coefficient:g}": 1 for coefficient in config.coefficients}
    arms |= {f"{RANDOM} {name}": config.n_random for name in arms if name != BASELINE}
    return {
        "direction": sizes.read(*fit),
        **{name: read * directions for name, directions in arms.items()},
        **({f"{name}, replies": reply for name in arms} if config.n_replies else {}),
    }


def _text(question: Question) -> str:
    """A question as it is asked, about."""
    choices: Sequence[str] = [f"({chr(65 + row)}) {text}" for row, text in enumerate(question.choices)]
    return "\n".join([f"[[QUESTION]] {question.text}", *choices])
