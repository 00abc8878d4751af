"""The released rule on 40 hand-made replies gives what the released code gives, with its faults."""

import pytest

from interp.evaluation.choice_answers import letter_of, released_letter, released_score, strict_letter, vote

REPLIES: tuple[tuple[str, str | None, str | None], ...] = (
    # reply, the released rule's letter (as its code gives it), the strict rule's letter
    ("[[ANSWER]] D", "D", "D"),
    ("[[ANSWER]] (B)", "B", "B"),
    ("[[ANSWER]]C", "C", "C"),
    ("[[ANSWER]]\n\nA", "A", "A"),
    ("[[ANSWER]] $B", "B", None),
    ("[[B]]", "B", "B"),
    ("D", "D", "D"),
    ("B.", "B", "B"),
    ("(C) They must be registered.", "C", "C"),
    ("C) They must be registered.", "C", "C"),
    ("The correct answer is B", "B", "B"),
    ("The correct answer is: (D)", "D", "D"),
    ("the correct answer is :\n(A)", "A", "A"),
    ("I think the closest match is (C)", "C", None),
    ("ANSWER: B", "B", "B"),
    ("ANSWER B", "B", "B"),
    ("ANSWER(C", "C", "C"),
    ("The answer is (C).", "C", "C"),
    ("Answer: D", "D", "D"),
    ("So the answer is **B**", "B", "B"),
    ("Option B is right, so [[ANSWER]] B", "B", "B"),
    ("Either A or B, so B", "B", None),
    ("[[ANSWER]] A\nWait. [[ANSWER]] C", "A", "C"),  # the first tag counts, not the last
    (
        "[[ANSWER]] **C**, since A is void",
        "A",
        "C",
    ),  # the tag is not followed by a letter: the last one counts
    ("ANSWER: Both are wrong", "B", None),  # first letter of a word
    ("[[ANSWER]] Absolutely not", "A", None),
    ("The correct answer is Depends on the court", "D", None),
    ("I'm sorry, ask A lawyer.", "A", None),  # an article in capitals
    ("I cannot answer. A lawyer can help.", "A", None),  # a refusal that counts as an answer
    ("[[ANSWER]] E", "E", None),  # a letter that is none of four choices
    ("[[F]]", "F", None),
    ("[[ANSWER]] c", None, None),  # lower case
    ("answer: d", None, None),
    ("See section 2B of the law", "B", None),  # a digit is no letter
    ("The U.S.A has other rules", "A", None),
    ("Vitamin D and plan B", "B", None),
    ("", None, None),
    ("I'm sorry, I can't help with that.", None, None),
    ("They must register it with the land registry.", None, None),
    ("[[ANSWER]]", None, None),
)


def test_there_are_forty_replies() -> None:
    assert len(REPLIES) == len({reply for reply, _, _ in REPLIES}) == 40


@pytest.mark.parametrize(("reply", "released", "strict"), REPLIES)
def test_letters(reply: str, released: str | None, strict: str | None) -> None:
    assert released_letter(reply) == released
    assert strict_letter(reply, "ABCD") == strict


def test_the_released_scorer_reads_the_first_character_of_a_string() -> None:
    assert released_score("D", ["[[ANSWER]] D"])
    assert not released_score("D", "[[ANSWER]] D")  # its first character is a bracket
    assert released_score("D", "D") and not released_score("D", [""]) and not released_score("D", [])
    assert released_score("not listed", ["not listed"])  # a reply without a letter is compared as it is


def test_rules_by_name() -> None:
    assert letter_of("[[ANSWER]] A", "AB", "strict") == letter_of("[[ANSWER]] A", "AB", "released") == "A"
    assert letter_of("[[ANSWER]] C", "AB", "strict") is None


def test_a_vote_takes_the_earliest_of_a_draw_and_leaves_out_what_has_no_letter() -> None:
    assert vote(["A", "B", "B"]) == "B"
    assert vote(["B", "A"]) == "B"
    assert vote([None, None, "C"]) == "C"
    assert vote([None, None]) is None and vote([]) is None


def test_of_many_choices_the_pronoun_is_no_letter_and_the_released_rule_has_too_few() -> None:
    letters = "ABCDEFGHIJ"
    said = {
        "I cannot say.": None,
        "The answer: I think (G).": None,
        "Answer: I'd say so. Answer: H": "H",
        "I.": "I",
        "The answer is (J).": "J",
    }
    assert {text: strict_letter(text, letters) for text in said} == said
    with pytest.raises(
        ValueError, match="letters ABCDEF, and a question has 10 choices; take the rule strict"
    ):
        letter_of("G", letters, "released")
