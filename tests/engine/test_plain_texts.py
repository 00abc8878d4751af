"""Every token of a text is scored once, after as much context as a window allows."""

import pytest
from tokenizers.processors import TemplateProcessing

from interp.engine.plain_texts import leading_ids, scored_windows
from interp.models.chat_model import ChatModel
from tests.conftest import make_tokenizer


@pytest.fixture(scope="module")
def with_bos(tiny: ChatModel) -> ChatModel:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    bos = (str(tokenizer.bos_token), tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # pyright: ignore
        single="<|endoftext|> $A", special_tokens=[bos]
    )
    return ChatModel(tiny.hf, tokenizer, name="bos")


@pytest.mark.parametrize("n", [2, 5, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("window", [5, 8, None])
def test_every_token_is_scored_once_in_order(
    tiny: ChatModel, with_bos: ChatModel, n: int, window: int | None
) -> None:
    ids = list(range(n))
    for model, begin in ((tiny, 1), (with_bos, 0)):
        windows = scored_windows([model], [ids, [7], ids], window=window)
        own = [c for c, text in zip(windows.completions, windows.texts, strict=True) if text == 0]
        assert [i for completion in own for i in completion] == ids[begin:]
        size = 10**6 if window is None else window
        for prompt, completion, text in zip(
            windows.prompts[0].ids, windows.completions, windows.texts, strict=True
        ):
            assert len(prompt) + len(completion) <= size and prompt
            assert prompt[: len(leading_ids(model.tokenizer))] == leading_ids(model.tokenizer)
            context = prompt[len(leading_ids(model.tokenizer)) :]
            if text == 0 and completion[0] > begin:  # the tokens just before, half a window of them
                assert list(context) == ids[completion[0] - len(context) : completion[0]]
                assert len(context) >= (size - 1) // 2
        # A text of one token is context only, unless BOS comes before it.
        assert (1 in windows.texts) == (model is with_bos)


def test_a_model_without_bos_decides_where_a_pair_begins(tiny: ChatModel, with_bos: ChatModel) -> None:
    windows = scored_windows([with_bos, tiny], [[5, 6, 7]])
    bos = leading_ids(with_bos.tokenizer)
    assert windows.completions == ((6, 7),)
    assert windows.prompts[0].ids == ((*bos, 5),) and windows.prompts[1].ids == ((5,),)


def test_a_window_too_small_is_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="must hold 4 tokens or more, got 2"):
        scored_windows([tiny], [[1, 2, 3]], window=2)
