"""Attacks change what they say, the share that they say, and nothing else."""

import pytest

from interp.detectors.machine_text.attacks import mix_sentences, paraphrase, swap_words
from interp.engine.generation import generate
from interp.models.chat_model import ChatModel

MACHINE = ["One here.  Two here! Three here? Four here.", "A b c d e f g h i j."]
HUMAN = ["Alpha. Beta. Gamma. Delta. Epsilon.", "Only one."]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_swaps_keep_the_words_and_move_the_share(share: float) -> None:
    text = " ".join(f"w{i}" for i in range(100))
    (found,) = swap_words([text], share=share)
    assert sorted(found.split()) == sorted(text.split())
    moved = sum(a != b for a, b in zip(found.split(), text.split(), strict=True))
    assert moved == share * 100
    assert swap_words([text], share=share, seed=1) == swap_words([text], share=share, seed=1)
    assert swap_words(["one", ""], share=share) == ["one", ""]


def test_mixed_texts_hold_the_share_of_human_sentences_in_order() -> None:
    mixed = mix_sentences(MACHINE, HUMAN, share=0.5)
    first = mixed[0].split(" ")
    human = [word for word in first if word[:-1] in ("Alpha", "Beta", "Gamma", "Delta", "Epsilon")]
    assert len(human) == 2 and human == sorted(human, key=HUMAN[0].index)
    assert len([word for word in first if word.startswith("here")]) == 2
    assert mix_sentences(MACHINE, HUMAN, share=0.0)[1] == MACHINE[1]
    assert mix_sentences(MACHINE[1:], HUMAN[1:], share=1.0) == ["Only one."]
    with pytest.raises(ValueError, match="got 1 human texts for 2 machine-written ones"):
        mix_sentences(MACHINE, HUMAN[:1])
    with pytest.raises(ValueError, match="texts must be a list of strings, got one string"):
        swap_words(HUMAN[0])
    with pytest.raises(ValueError, match=r"share must lie between 0 and 1, got 1\.5"):
        swap_words(MACHINE, share=1.5)


def test_a_paraphrase_is_the_chat_models_answer(tiny: ChatModel) -> None:
    instruction = "Say it again: {text}"
    found = paraphrase(tiny, ["Rain."], instruction=instruction, max_new_tokens=8, temperature=0)
    assert found == [generate(tiny, ["Say it again: Rain."], max_new_tokens=8).texts[0].strip()]
    with pytest.raises(ValueError, match=r"the instruction must hold \{text\}"):
        paraphrase(tiny, ["Rain."], instruction="Say it again")
