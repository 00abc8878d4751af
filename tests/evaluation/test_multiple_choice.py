"""Choices scored by log-probability equal plain passes over every order; replies are read, refusals are counted."""

import pytest
import torch

from interp.data.multiple_choice import Question, load_questions
from interp.directions import Direction
from interp.engine.interventions import Add
from interp.evaluation.choice_prompts import TAG, ChoiceFormat, choice_messages, question_text
from interp.evaluation.choice_scores import score_answers
from interp.evaluation.multiple_choice import OptionScores, letter_ids, option_scores, replied_answers
from interp.models.chat_model import ChatModel

ASKED = (
    Question(
        id="a", text="Why is it dark?", choices=("Night", "Day", "Noon", "Dawn"), answer=0, region="Hong Kong"
    ),
    Question(id="b", text="Name a colour", choices=("Bread", "Blue"), answer=1),
    Question(id="c", text="What is two and two?", choices=("One", "Two", "Four"), answer=2),
)
SEVEN = Question(id="d", text="Name a letter", choices=tuple("tuvwxyz"), answer=6)


def by_hand(model: ChatModel, question: Question) -> torch.Tensor:
    """Mean over orders of the normalised log-probability of each choice, one plain pass an order."""
    n = len(question.choices)
    sums = torch.zeros(n, dtype=torch.float64)
    for shift in range(n):
        choices = [question.choices[(place - shift) % n] for place in range(n)]
        moved = Question(id="x", text=question.text, choices=tuple(choices), answer=0, region=question.region)
        head = choice_messages(moved)
        head[-1] = {**head[-1], "content": head[-1]["content"].removesuffix(f"\n{TAG}")}
        text = model.tokenizer.apply_chat_template(head, tokenize=False, add_generation_prompt=True) + TAG
        ids = model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model.hf(ids).logits[0, -1].double()
        letters = torch.stack(
            [logits[model.tokenizer.encode(letter)[0]] for letter in "ABCDEFG"[:n]]
        ).log_softmax(0)
        for place, choice in enumerate(choices):
            sums[question.choices.index(choice)] += letters[place]
    return sums / n


def test_scores_equal_plain_passes_over_every_order(tiny: ChatModel) -> None:
    asked = (*ASKED, SEVEN)
    scored = option_scores(tiny, asked)
    for row, question in enumerate(asked):
        n = len(question.choices)
        torch.testing.assert_close(
            scored.log_probs[row, :n].double(), by_hand(tiny, question), atol=1e-5, rtol=1e-5
        )
        assert torch.isinf(scored.log_probs[row, n:]).all()
    plain = option_scores(tiny, asked, fast=False)
    torch.testing.assert_close(scored.log_probs, plain.log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scored.letter_mass, plain.letter_mass, atol=1e-7, rtol=1e-4)
    assert scored.answers[1].letters[0] in ("A", "B")  # a question of two choices
    assert scored.scores.chance == pytest.approx((1 / 4 + 1 / 2 + 1 / 3 + 1 / 7) / 4)


def test_a_model_that_prefers_a_letter_gains_nothing(tiny: ChatModel) -> None:
    """Planted: the unembedding row of A, added before the reply, makes A the likeliest letter of every order."""
    row = tiny.hf.get_output_embeddings().weight[letter_ids(tiny, "A")[0][0]].detach().clone()
    towards_a = Add(
        Direction(vector=row, layer=2, position="t_prefill"), coefficient=8, positions="t_prefill"
    )
    asked = [Question(id=str(i), text=f"{i}?", choices=tuple("wxyz"), answer=i % 4) for i in range(8)]
    alone = option_scores(tiny, asked, shifts="none", interventions=[towards_a])
    assert all(answer.letters == ("A",) for answer in alone.answers) and alone.orders == 1
    assert alone.scores.accuracy.value == 0.25  # as often right as A is
    cyclic = option_scores(tiny, asked, interventions=[towards_a])
    assert cyclic.letter_bias["A"] > 0.9

    def spread(scored: OptionScores) -> float:
        return float((scored.log_probs.max(1).values - scored.log_probs.min(1).values).mean())

    assert spread(cyclic) < 0.1 * spread(alone)


def test_interventions_and_examples_change_the_scores(tiny: ChatModel) -> None:
    builtin = load_questions("builtin").first(4)
    plain = option_scores(tiny, builtin)
    shown = option_scores(tiny, builtin, format=ChoiceFormat(shots=2))
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    push = Add(Direction(vector=vector, layer=1, position="t_post_inst"), coefficient=3)
    steered = option_scores(tiny, builtin, interventions=[push])
    for other in (shown, steered):
        assert (plain.log_probs - other.log_probs).abs().max() > 1e-3
    slow = option_scores(tiny, builtin, interventions=[push], fast=False)
    torch.testing.assert_close(steered.log_probs, slow.log_probs, atol=1e-4, rtol=1e-4)
    card = repr(plain)
    assert "accuracy" in card and "in 4 orders" in card and builtin.questions[0].choices[0] not in card


def test_the_conversation_has_region_format_and_examples() -> None:
    builtin = load_questions("builtin")
    asked = builtin.questions[0]
    form = ChoiceFormat(output="reasoning", shots=2, example_mark="$")
    system, user = choice_messages(asked, examples=builtin.examples, format=form)
    assert "law of Hong Kong" in system["content"] and "step by step" in system["content"]
    first, second = builtin.examples[:2]
    assert (
        user["content"].index(first.text)
        < user["content"].index(second.text)
        < user["content"].index(asked.text)
    )
    assert f"{TAG} ${first.letter}" in user["content"] and user["content"].endswith(TAG)
    assert "(A) " in question_text(asked) and "(D) " in question_text(asked)
    (alone,) = choice_messages(asked, format=ChoiceFormat(system="user"))
    assert alone["role"] == "user" and "nothing else" in alone["content"]
    (bare,) = choice_messages(asked, format=ChoiceFormat(system="none"))
    assert bare["content"] == question_text(asked)
    with pytest.raises(ValueError, match="shows 9 examples and there are 4; lower shots"):
        choice_messages(asked, examples=builtin.examples, format=ChoiceFormat(shots=9))
    with pytest.raises(ValueError, match="shots must be 0 or more"):
        ChoiceFormat(shots=-1)


def test_replies_are_read_and_sampled(tiny: ChatModel) -> None:
    answers = replied_answers(tiny, ASKED, max_new_tokens=4)
    assert [a.id for a in answers] == ["a", "b", "c"] and all(len(a.letters) == 1 for a in answers)
    scores = score_answers(answers)
    assert (
        scores.accuracy.n == 3
        and scores.unread + scores.refused + sum(a.letters[0] is not None for a in answers) == 3
    )
    several = replied_answers(tiny, ASKED, n_samples=3, temperature=1.0, max_new_tokens=3)
    assert all(len(a.letters) == 3 for a in several)
    with pytest.raises(ValueError, match="3 greedy replies to one question are the same"):
        replied_answers(tiny, ASKED, n_samples=3)
    with pytest.raises(ValueError, match="no questions"):
        replied_answers(tiny, [])


def test_letters_are_single_tokens(tiny: ChatModel) -> None:
    assert letter_ids(tiny, "AB") == [(tiny.tokenizer.encode("A")[0],), (tiny.tokenizer.encode("B")[0],)]


@pytest.mark.checkpoint
def test_the_bundled_model_has_a_letter_with_and_without_a_space(bundled) -> None:
    ids = letter_ids(bundled("smollm2"), "ABCD")
    assert all(len(variants) == 2 for variants in ids) and len({i for v in ids for i in v}) == 8


def test_more_choices_than_the_released_rule_has_letters(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="a question has 7 choices; take the rule strict"):
        replied_answers(tiny, [SEVEN])
    (answer,) = replied_answers(tiny, [SEVEN], rule="strict", max_new_tokens=2)
    assert answer.right == "G"
