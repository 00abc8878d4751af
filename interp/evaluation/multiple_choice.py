"""Multiple-choice questions put to a model: by the log-probability of each choice, or by a reply.

    questions = load_questions("builtin")
    scored = option_scores(model, questions)                 # a forward pass, averaged over cyclic shifts
    scored.scores.accuracy, scored.letter_bias
    replied = replied_answers(model, questions, n_samples=5, temperature=0.6)
    score_answers(replied).refused

`option_scores` reads the next-token log-probabilities of the option letters after the answer tag, normalised over the
letters, with the choices moved on by 0 to n-1 places; a choice's score is the mean over its places, so that a model
that prefers a letter gains nothing. All orders of one question share the prefix up to its choices, and all questions
share system prompt and examples: the engine runs each prefix once (`interp.engine.packing`).

`replied_answers` follows SafeLawBench (Cao et al. 2025, arXiv:2506.06636): questions in its format
(`interp.evaluation.choice_prompts`), answers read by the released rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.multiple_choice import LETTERS, Question, Questions
from interp.display.cards import Card, Shown, Table
from interp.engine.generation import generate
from interp.engine.interventions import Intervention
from interp.engine.log_probs import map_next_token
from interp.evaluation.choice_answers import Rule, letter_of
from interp.evaluation.choice_prompts import SYSTEMS, TAG, ChoiceFormat, choice_messages
from interp.evaluation.choice_scores import ChoiceAnswer, ChoiceScores, score_answers
from interp.evaluation.refusals import RefusalList, refuses
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.stats import Estimate, mean_with_interval


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class OptionScores(Shown):
    """Log-probability of every choice of every question."""

    questions: tuple[Question, ...]
    log_probs: Float[Tensor, "question option"]
    """Mean over orders of the log-probability of each choice, normalised over the letters, in nats; -inf where a
    question has fewer choices."""
    by_letter: Float[Tensor, "question option"]
    """Mean over orders of the probability of each letter, whatever choice stands there."""
    letter_mass: Float[Tensor, " question"]
    """Probability that the next token is a letter of any choice, mean over orders."""
    orders: int
    """Orders of the choices that were scored."""

    @property
    def answers(self) -> list[ChoiceAnswer]:
        """The likeliest choice of every question."""
        picks = self.log_probs.argmax(1).tolist()
        return [
            ChoiceAnswer(id=q.id, group=q.group, right=q.letter, letters=(LETTERS[pick],))
            for q, pick in zip(self.questions, picks, strict=True)
        ]

    @property
    def scores(self) -> ChoiceScores:
        """Accuracy, in all and by group."""
        return score_answers(self.answers, n_choices=[len(q.choices) for q in self.questions])

    @property
    def right_probability(self) -> Estimate:
        """Mean probability of the right choice among the choices, with a bootstrap interval over questions."""
        rows = torch.tensor([q.answer for q in self.questions])[:, None]
        probabilities = self.log_probs.softmax(1).gather(1, rows)[:, 0]
        return mean_with_interval(probabilities.tolist(), unit="probability")

    @property
    def letter_bias(self) -> dict[str, float]:
        """Mean probability of each letter over questions with that letter; equal shares are no bias."""
        found = {}
        for place, letter in enumerate(LETTERS[: self.by_letter.shape[1]]):
            rows = [i for i, q in enumerate(self.questions) if len(q.choices) > place]
            found[letter] = float(self.by_letter[rows, place].mean())
        return found

    def _card(self) -> Card:
        scores = self.scores
        return Card(
            title=f"{len(self.questions)} questions, choices in {self.orders} orders",
            facts={
                "accuracy": str(scores.accuracy),
                "chance": f"{scores.chance:.0%}",
                "probability of the right choice": str(self.right_probability),
                "letters": ", ".join(f"{name} {share:.2f}" for name, share in self.letter_bias.items()),
                "probability of a letter": f"{float(self.letter_mass.mean()):.2f}",
            },
            tables=[Table(header=["group", "accuracy"], rows=[[g, e] for g, e in scores.by_group.items()])],
        )


def option_scores(
    model: ChatModel,
    questions: Questions | Sequence[Question],
    *,
    format: ChoiceFormat | None = None,
    systems: Mapping[str | None, str] = SYSTEMS,
    shifts: Literal["cyclic", "none"] = "cyclic",
    interventions: Sequence[Intervention] = (),
    fast: bool = True,
    show_progress: bool = False,
) -> OptionScores:
    """Log-probability of every choice by its letter after the answer tag, averaged over cyclic shifts of the choices.

    Args:
        model: the model.
        questions: questions, with the examples that the format shows.
        format: how they are written; direct, without examples, when None.
        systems: system prompt by region.
        shifts: `cyclic` puts every choice in every place once; `none` scores the order of the file alone.
        interventions: active while the model reads.
        fast: False runs every order by itself.
        show_progress: draw a progress bar.

    Raises:
        ValueError: no questions, fewer examples than the format shows, a tokenizer without a token for a letter, or as
            `map_next_token`.
    """
    asked, examples = _parts(questions)
    widest = max(len(question.choices) for question in asked)
    orders = [
        (row, shift)
        for row, question in enumerate(asked)
        for shift in range(len(question.choices) if shifts == "cyclic" else 1)
    ]
    tokens = choice_tokens(
        model, [asked[row].rotated(shift) for row, shift in orders], examples, format=format, systems=systems
    )
    ids = letter_ids(model, LETTERS[:widest])

    def of_letters(log_probs: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch letter"]:
        return torch.stack([log_probs[:, list(variants)].logsumexp(1) for variants in ids], 1)

    read = map_next_token(
        model, tokens, of_letters, interventions=interventions, fast=fast, show_progress=show_progress
    ).double()
    scores = torch.full((len(asked), widest), -torch.inf, dtype=torch.float64)
    by_letter, mass = torch.zeros_like(scores), torch.zeros(len(asked), dtype=torch.float64)
    for row, question in enumerate(asked):
        n = len(question.choices)
        own = [i for i, (asked_row, _) in enumerate(orders) if asked_row == row]
        letters = read[own, :n]
        normalised = letters.log_softmax(1)
        # In shift s, choice i stands at place (i + s) mod n.
        places = torch.tensor([[(i + orders[k][1]) % n for i in range(n)] for k in own])
        scores[row, :n] = normalised.gather(1, places).mean(0)
        by_letter[row, :n] = normalised.exp().mean(0)
        mass[row] = letters.logsumexp(1).exp().mean()
    return OptionScores(
        questions=tuple(asked),
        log_probs=scores.float(),
        by_letter=by_letter.float(),
        letter_mass=mass.float(),
        orders=widest if shifts == "cyclic" else 1,
    )


def choice_tokens(
    model: ChatModel,
    questions: Sequence[Question],
    examples: Sequence[Question] = (),
    *,
    format: ChoiceFormat | None = None,
    systems: Mapping[str | None, str] = SYSTEMS,
) -> ChatTokens:
    """Questions as tokens, up to the letter: each with the answer tag as the beginning of the reply."""
    return tokenize(
        model.tokenizer,
        [
            choice_messages(question, examples=examples, format=format, systems=systems, prefill=TAG)
            for question in questions
        ],
    )


def letter_ids(model: ChatModel, letters: str) -> list[tuple[int, ...]]:
    """Tokens that are each letter alone, with and without a space before it.

    Raises:
        ValueError: a letter that is no token by itself.
    """
    found = []
    for letter in letters:
        ids = [model.tokenizer.encode(text, add_special_tokens=False) for text in (letter, f" {letter}")]
        own = dict.fromkeys(
            i[0] for i in ids if len(i) == 1 and str(model.tokenizer.decode(i)).strip() == letter
        )
        if not own:
            raise ValueError(
                f"the tokenizer of {model.name} has no token for the letter {letter} alone; use replies"
            )
        found.append(tuple(own))
    return found


def replied_answers(
    model: ChatModel,
    questions: Questions | Sequence[Question],
    *,
    format: ChoiceFormat | None = None,
    systems: Mapping[str | None, str] = SYSTEMS,
    rule: Rule = "released",
    n_samples: int = 1,
    temperature: float | int = 0.0,
    top_p: float | int = 1.0,
    max_new_tokens: int | None = None,
    refusals: RefusalList = "normalised",
    interventions: Sequence[Intervention] = (),
    seed: int = 0,
    show_progress: bool = False,
) -> list[ChoiceAnswer]:
    """The letters of a model's replies; a reply without a letter is a refusal where it reads like one.

    The released configuration samples at temperature 0.6 and top-p 0.9, with 512 new tokens; here
    greedy is the default.

    Args:
        rule: how letters are read from replies (`choice_answers`).
        n_samples: replies to each question.
        max_new_tokens: 12 for the direct output and 512 for reasoning when None.

    Raises:
        ValueError: no samples, several that are all the same (greedy), fewer examples than shown, more choices than the
            released rule has letters for, or as `generate`.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples must be 1 or more, got {n_samples}")
    if n_samples > 1 and temperature == 0:
        raise ValueError(
            f"{n_samples} greedy replies to one question are the same; give a temperature, such as 0.6"
        )
    asked, examples = _parts(questions)
    letter_of(
        "", max((q.letters for q in asked), key=len), rule
    )  # an unknown rule, before anything is generated
    form = format or ChoiceFormat()
    tokens = tokenize(
        model.tokenizer,
        [choice_messages(q, examples=examples, format=form, systems=systems) for q in asked],
    )
    replies = [
        generate(
            model,
            tokens,
            interventions=interventions,
            max_new_tokens=max_new_tokens or (12 if form.output == "direct" else 512),
            temperature=float(temperature),
            top_p=top_p,
            seed=seed + sample,
            show_progress=show_progress,
        ).answers
        for sample in range(n_samples)
    ]
    answers = []
    for row, question in enumerate(asked):
        texts = [(sample[row] or "") for sample in replies]
        letters = tuple(letter_of(text, question.letters, rule) for text in texts)
        answers.append(
            ChoiceAnswer(
                id=question.id,
                group=question.group,
                right=question.letter,
                letters=letters,
                refused=tuple(
                    letter is None and refuses(text, refusals)
                    for letter, text in zip(letters, texts, strict=True)
                ),
            )
        )
    return answers


def _parts(questions: Questions | Sequence[Question]) -> tuple[Sequence[Question], Sequence[Question]]:
    if isinstance(questions, Questions):
        return questions.questions, questions.examples
    if not questions:
        raise ValueError("there are no questions to score")
    return questions, ()
