"""Verdicts of completions that end once they are settled are those of whole completions."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch

from interp.data.prompts import load_prompts
from interp.engine.generation import generate
from interp.engine.interventions import Add
from interp.evaluation import refusals
from interp.evaluation.early_verdicts import (
    refusal_verdicts,
    refusal_verdicts_each,
    settled_refusals,
)
from interp.evaluation.records import REFUSAL_LISTS, RefusalList
from interp.evaluation.refusals import refuses
from interp.evaluation.responses import respond, respond_each
from interp.models.chat_model import ChatModel
from interp.models.thinking import separated
from interp.models.tokens import ChatTokens, tokenize
from interp.storage.reply_records import recording
from tests.conftest import PROMPTS, make_tokenizer

SAID = (
    "I cannot help with that, and I apologize.",
    "I can\u2019t help. Sure, here is how",
    "Sure! I cannot\u0301 say no",
    "I am unable to help\u0301 or not able to assist\u0323\u0301 here",
    "I ca",
    "",
    "  \n ",
    "\n\nOf course, sorry",
    "Sorry",
    "As an AI, I\u2019m just here to say yes",
    "<think>I cannot say that</think> Sure",
    "<think>I cannot say that and I go on",
)


@pytest.mark.parametrize("substrings", REFUSAL_LISTS)
def test_what_is_settled_stays_a_refusal_whatever_follows(tiny: ChatModel, substrings: RefusalList) -> None:
    settled = settled_refusals(tiny, tokenize(tiny.tokenizer, PROMPTS[:1]), substrings)
    assert settled is not None
    early = 0
    for text, more in itertools.product(
        SAID, ("", "\u0301", "\u0323\u0301", " and", ", sure\u200b", "<think>")
    ):
        ids = tiny.tokenizer.encode(text + more, add_special_tokens=False)
        flags = []
        for n in range(len(ids) + 1):
            part = separated(str(tiny.tokenizer.decode(ids[:n])))
            flags.append(part.finished and refuses(part.answer, substrings))
        first = next((n for n in range(len(ids) + 1) if settled(ids[:n])), None)
        if first is not None:
            assert all(flags[first:])
            early += first < len(ids)
    assert early > 5  # control: most refusals are settled before their end


@pytest.fixture
def common_words(tiny: ChatModel, tokens: ChatTokens, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A list whose phrases are what the random model writes, so that some of its completions refuse early."""
    said = generate(tiny, tokens, max_new_tokens=24).texts
    letters = sorted({letter for text in said for letter in text if letter.isalpha()})
    # The phrase that about half of the completions hold.
    phrase = min(letters, key=lambda letter: abs(sum(letter in text for text in said) - len(said) / 2))
    monkeypatch.setattr(refusals, "REFUSAL_SUBSTRINGS_ARDITI", (phrase,))
    yield phrase


def counted(model: ChatModel) -> tuple[list[int], Callable[[], None]]:
    """Rows of every pass of the model from now on, and a function that ends the counting."""
    rows: list[int] = []
    handle = model.blocks[-1].module.register_forward_hook(lambda _m, args, _out: rows.append(len(args[0])))
    return rows, handle.remove


def test_verdicts_are_those_of_whole_completions(
    tiny: ChatModel, tokens: ChatTokens, common_words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random bytes have few spaces: every text counts as whole words here.
    monkeypatch.setattr("interp.evaluation.early_verdicts._whole_words", lambda text: text)
    whole = respond(tiny, tokens, substrings="arditi")
    assert 0 < sum(whole.refused) < len(whole), common_words  # control: the list tells them apart
    spent = []
    for early_stop in (True, False):
        rows, end = counted(tiny)
        found = refusal_verdicts(tiny, tokens, substrings="arditi", early_stop=early_stop)
        end()
        spent.append(sum(rows))
        assert found.flags == whole.flags and found.rate == whole.rate
        assert found.rows(refused=True) == whole.rows(refused=True)
    assert spent[0] < spent[1]  # rows left the batch
    vector = torch.randn(tiny.d_model, generator=torch.Generator().manual_seed(1))
    arms = [[Add(vector, coefficient=c, layers=[1], new_tokens="none")] for c in (0.0, 0.01)]
    expected = [each.flags for each in respond_each(tiny, tokens, arms, substrings="arditi")]
    rows, end = counted(tiny)
    found = refusal_verdicts_each(tiny, tokens, arms, substrings="arditi")
    end()
    assert [each.flags for each in found] == expected
    assert sum(rows) < 2 * spent[1]


def test_whole_replies_are_generated_where_they_matter(tiny: ChatModel, tokens: ChatTokens) -> None:
    assert settled_refusals(tiny, tokens, "arditi") is not None
    with recording() as recorder:
        assert settled_refusals(tiny, tokens, "arditi") is None
        refusal_verdicts(tiny, tokens, max_new_tokens=2)
    assert len(recorder.replies) == len(tokens)
    thinks = make_tokenizer(template=str(tiny.tokenizer.chat_template) + "{# <think></think> #}")
    other = ChatModel(tiny.hf, thinks, name="thinks")
    assert settled_refusals(other, tokenize(thinks, PROMPTS), "arditi") is None
    opened = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>Let me"}]
    assert settled_refusals(tiny, tokenize(tiny.tokenizer, [opened]), "arditi") is None


@pytest.mark.checkpoint
@pytest.mark.parametrize("kind", ["harmful", "harmless"])
def test_the_bundled_model_has_the_verdicts_of_whole_completions(
    bundled: Callable[[str], ChatModel], kind: str
) -> None:
    model, part = bundled("smollm2-safe"), load_prompts()[kind, "test"].first(24)  # pyright: ignore[reportArgumentType]
    whole = respond(model, part, max_new_tokens=32)
    assert refusal_verdicts(model, part, max_new_tokens=32).flags == whole.flags
    assert (sum(whole.refused) > 12) == (kind == "harmful")
