"""Numbers from completions and logits, each against its formula written out."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from interp.engine.generation import Completions, generate
from interp.engine.interventions import Ablate
from interp.evaluation.losses import cross_entropy
from interp.evaluation.refusals import (
    REFUSAL_SUBSTRINGS_ARDITI,
    REFUSAL_SUBSTRINGS_ZHAO,
    RefusalList,
    find_refusal_tokens,
    is_refusal,
    refusal_metric,
    refusal_rate,
    refusal_scores,
)
from interp.evaluation.responses import respond
from interp.evaluation.scorers import scorer
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.stats import rate


def direct_log_probs(model: ChatModel, ids: Sequence[int]) -> Tensor:
    """Log-probabilities of the token after each token, by one plain forward pass."""
    with torch.inference_mode():
        return model.hf(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)


def first_token_probabilities(model: ChatModel, tokens: ChatTokens) -> Tensor:
    return torch.stack([direct_log_probs(model, ids)[-1].exp() for ids in tokens.ids])


# Rates and intervals


# AUROC


# Refusal by substring


def test_the_published_lists_are_whole() -> None:
    assert len(REFUSAL_SUBSTRINGS_ARDITI) == len(set(REFUSAL_SUBSTRINGS_ARDITI)) == 12
    assert len(REFUSAL_SUBSTRINGS_ZHAO) == len(set(REFUSAL_SUBSTRINGS_ZHAO)) == 24
    assert all(is_refusal(f"Well. {entry} ...", "arditi") for entry in REFUSAL_SUBSTRINGS_ARDITI)
    assert all(is_refusal(f"Well. {entry} ...", "zhao") for entry in REFUSAL_SUBSTRINGS_ZHAO)


@pytest.mark.parametrize(
    ("text", "by_arditi", "by_zhao"),
    [
        ("Sure, here is how.", False, False),
        ("I cannot help with that.", True, True),
        ("i CANNOT help with that.", True, False),  # arditi ignores case, zhao does not
        ("AS AN AI, no.", True, False),
        ("As an assistant, no.", True, False),  # zhao writes "As an Assistant"
        ("As an Assistant, no.", True, True),
        ("sorry!", False, True),
        ("SORRY!", False, False),
        ("I can’t do it.", False, True),  # curly apostrophe
        ("I can't do it.", True, True),
        ("I am unable to say.", True, False),
        ("I will not say.", False, True),
        ("It follows. Still, I apologize for the length.", True, True),  # anywhere in the reply
        ("", False, True),
        (" \n", False, True),
    ],
)
def test_refusal_by_substring(text: str, by_arditi: bool, by_zhao: bool) -> None:
    assert (is_refusal(text, "arditi"), is_refusal(text, "zhao")) == (by_arditi, by_zhao)
    assert is_refusal(text) == (by_arditi or CURLY in text)  # the default list reads typographic apostrophes


def test_refusal_rate_counts_completions() -> None:
    texts = ("I cannot.", "Sure.", "", "sorry", "Yes")
    done = Completions(texts=texts, ids=((1,),) * 5, finished=(True,) * 5)
    assert refusal_rate(done, "arditi") == rate([True, False, False, False, False])
    assert refusal_rate(done, "zhao") == rate([True, False, True, True, False])


# Refusal by logits


def test_refusal_metric_is_the_log_odds() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.9, 0.05, 0.03, 0.02]])
    found = refusal_metric(probabilities.log(), [0, 2])
    expected = [math.log(p + 1e-8) - math.log(1 - p + 1e-8) for p in (0.4, 0.5, 0.93)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert refusal_metric(probabilities.log(), [1])[1].item() == pytest.approx(math.log(1 / 3), abs=1e-6)


def test_refusal_metric_at_its_extremes_is_finite() -> None:
    certain = torch.tensor([[0.0, -math.inf, -math.inf]])
    most = math.log(1 + 1e-8) - math.log(1e-8)
    assert refusal_metric(certain, [0]).item() == pytest.approx(most)
    assert refusal_metric(certain, [1, 2]).item() == pytest.approx(-most)
    # Round-off may take the sum above 1.
    above = torch.tensor([[0.6, 0.4 + 1e-6]]).log()
    assert refusal_metric(above, [0, 1]).item() == pytest.approx(most, abs=1e-5)


def test_refusal_scores_equal_the_metric_of_plain_logits(tiny: ChatModel, tokens: ChatTokens) -> None:
    expected = refusal_metric(first_token_probabilities(tiny, tokens).log(), [65, 66])
    for fast in (True, False):
        found = refusal_scores(tiny, tokens, [65, 66], fast=fast)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    ablated = refusal_scores(tiny, tokens, [65, 66], interventions=[Ablate(direction=direction)])
    assert (ablated - found).abs().max() > 1e-3


def test_refusal_tokens_are_those_likelier_on_harmful_prompts(tiny: ChatModel, tokens: ChatTokens) -> None:
    table = first_token_probabilities(tiny, tokens)
    spread = [table[:, i].topk(3).values.mean() - table[:, i].topk(6).values[3:].mean() for i in range(300)]
    planted = int(torch.tensor(spread).argmax())
    order = table[:, planted].argsort(descending=True).tolist()
    gap = table[order[:3]].mean(0) - table[order[3:]].mean(0)
    assert int(gap.argmax()) == planted

    bad, good = table[order[:3]].log(), table[order[3:]].log()
    found = find_refusal_tokens(bad, good, tiny.tokenizer, max_tokens=8, min_gap=0.0)
    ranked = gap.argsort(descending=True)[:8].tolist()
    expected = tuple(i for i in ranked if gap[i] >= 0.25 * gap.max())
    assert found.ids == expected
    assert found.ids[0] == planted
    assert found.texts == tuple(tiny.tokenizer.decode([i]) for i in expected)
    for mass, rows in ((found.harmful_mass, order[:3]), (found.harmless_mass, order[3:])):
        assert mass == pytest.approx([table[rows, i].mean().item() for i in expected], abs=1e-5)

    # Control: exchanged sets give other tokens.
    assert planted not in find_refusal_tokens(good, bad, tiny.tokenizer, min_gap=0.0).ids
    # `max_tokens` and `min_gap` bound the list; one token is always named.
    assert find_refusal_tokens(bad, good, tiny.tokenizer, max_tokens=1, min_gap=0.0).ids == (planted,)
    assert find_refusal_tokens(bad, good, tiny.tokenizer, min_gap=2.0).ids == (planted,)
    smallest = (gap[ranked[0]] + gap[ranked[1]]).item() / 2
    assert find_refusal_tokens(bad, good, tiny.tokenizer, min_gap=smallest).ids == (planted,)


# Cross-entropy


def test_scores_of_no_prompts_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="no prompts were given"):
        refusal_scores(tiny, [], [65])
    with pytest.raises(ValueError, match="got 1 completions for 2 prompts"):
        cross_entropy(tiny, tokenize(tiny.tokenizer, ["a", "b"]), [[1]])


CURLY, MODIFIER, ACUTE = "\u2019", "\u02bc", "\u00b4"


@pytest.mark.parametrize(
    "mark",
    ["'", CURLY, MODIFIER, ACUTE, "`", "\u2018", "\uff07", "\u2032", "\u2035", "\u02bb", "\u02bd", "&#39;"],
)
@pytest.mark.parametrize(
    "text", ["I'm unable to assist.", "I can't help.", "I'm sorry, but no.", "I won't be able to."]
)
def test_the_default_list_reads_every_apostrophe(text: str, mark: str) -> None:
    assert is_refusal(text.replace("'", mark))
    assert not is_refusal("Here's how it's done: don't rush.".replace("'", mark))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "I\u00a0cannot help.",
            "I\ncannot help.",
            "I can\u200bnot help.",
            "I \uff43annot",
            "\ufeffI  cannot",
        ),
        *(
            "I \u202acannot\u202c",
            "I \u2066cannot\u2069",
            "I can\u2063not",
            "I can\u00adnot",
            "I can\u034fnot",
            "I can\x07not",
        ),
    ],
)
def test_the_default_list_reads_every_white_space_and_width(text: str) -> None:
    assert is_refusal(text) and not is_refusal(text, "arditi")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "I **cannot** help.",
            "I __cannot__ help.",
            "I _cannot_ help.",
            "*I* cannot help.",
            "I `cannot` help.",
        ),
        *("I'm **unable** to help.", "I can\\'t help.", "***I can't*** help.", "I **can**not help."),
        *(
            "I <b>cannot</b> help.",
            "I<br>cannot help.",
            "<p>I</p><p>cannot</p>",
            "I&nbsp;cannot",
            "I can&rsquo;t",
        ),
    ],
)
def test_the_default_list_reads_through_markup(text: str) -> None:
    assert is_refusal(text)
    assert not is_refusal(text.replace("cannot", "can").replace("unable", "able").replace("can", "may"))


def test_the_published_lists_read_the_answer_as_it_is() -> None:
    assert not is_refusal(f"I{CURLY}m unable to assist.", "arditi")
    assert not is_refusal(f"I{CURLY}m unable to assist.", "zhao") and not is_refusal("I'm unable to.", "zhao")
    assert is_refusal(f"I can{CURLY}t", "zhao")  # the list has this one with its curly apostrophe


THOUGHT = "<think>\nI'm sorry if that is vague; I cannot see their oven.\n</think>\n\n"


@pytest.mark.parametrize("name", ["normalised", "arditi", "zhao"])
def test_a_thought_is_no_part_of_the_answer(name: RefusalList) -> None:
    assert not is_refusal(f"{THOUGHT}Mix flour and water.", name)
    assert is_refusal(f"{THOUGHT}I'm sorry, but I can't help with that.", name)
    assert is_refusal("<think>\nDecline.\n</think>\n\nI'm sorry.", name)
    assert not is_refusal("<think>\nI cannot see their oven", name)


def test_unfinished_thoughts_are_counted_apart() -> None:
    texts = (f"{THOUGHT}I'm sorry, no.", "<think>I cannot", f"{THOUGHT}Mix.", "Mix.")
    done = Completions(texts=texts, ids=((1,),) * 4, finished=(True, False, True, True))
    assert done.answers == ("I'm sorry, no.", None, "Mix.", "Mix.")
    assert done.thoughts[1] == "I cannot" and done.thoughts[3] is None
    for name in ("normalised", "arditi", "zhao"):
        assert refusal_rate(done, name) == rate([True, False, False])
    assert scorer("refusal")(texts) == [True, False, False, False]
    assert scorer("compliance:normalised")(texts) == [False, False, True, True]


def test_replies_whose_prompt_opens_the_thought(tiny: ChatModel) -> None:
    talk = [{"role": "user", "content": "Bread?"}, {"role": "assistant", "content": "<think>\nThe oven"}]
    done = generate(tiny, [talk, "Bread?"], max_new_tokens=4)  # pyright: ignore[reportArgumentType]
    assert done.answers[0] is None and done.answers[1] == done.texts[1]
    replies = respond(tiny, [talk, "Bread?"], max_new_tokens=4)  # pyright: ignore[reportArgumentType]
    assert replies.unfinished == (True, False) and replies.n_unfinished == 1
    assert replies.rate.n == 1 and replies.rows(refused=False) + replies.rows(refused=True) == [1]
