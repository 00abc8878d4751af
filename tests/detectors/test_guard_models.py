"""Guard models that read text: each format asked as its model card says, on tiny random models of the same classes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig

from interp.detectors.guard_models import FORMATS, LoadedGuard, TextGuard, load_text_guard
from interp.models.chat_model import ChatModel
from tests.conftest import make_tokenizer, tiny_config

LLAMA_GUARD = (
    "<|im_start|>user\n\nTask: Check if there is unsafe content in 'User' messages.\n"
    "{% for m in messages %}User: {{ m['content'] | trim }}\n{% endfor %}"
    "<|im_end|><|im_start|>assistant"
)
LISTS = LLAMA_GUARD.replace("m['content'] | trim", "m['content'][0]['text'] | trim")
SHIELD_GEMMA = (
    "<|im_start|>You are a policy expert.\n"
    "{% for m in messages %}Human Question: {{ m['content'] | trim }}\n{% endfor %}"
    "{{ guideline | trim }}\n===\nDoes the human question violate the above principle?\n\n"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 300,
    "initializer_range": 0.2,
}
PROMPTS = ["How do I bake bread?", "Hi", "Name three colours of a rainbow"]


def guard(name: str) -> LoadedGuard:
    """A tiny random guard of the class that the family has."""
    config, template = {
        "llama-guard": (tiny_config(), LLAMA_GUARD),
        "shieldgemma": (Gemma2Config(**SIZES, query_pre_attn_scalar=8), SHIELD_GEMMA),
        "wildguard": (MistralConfig(**SIZES), None),
    }[name]
    torch.manual_seed(1)
    hf = AutoModelForCausalLM.from_config(config).float()
    return LoadedGuard(ChatModel(hf, make_tokenizer(template), name=name), TextGuard(format=FORMATS[name]))


@pytest.mark.parametrize("name", list(FORMATS))
def test_scores_are_log_odds_of_the_two_answers_in_plain_pytorch(name: str) -> None:
    model, made = guard(name)
    tokenizer, form = model.tokenizer, made.format
    found = made.score(model, PROMPTS)

    def log_prob(text: str, answer: str) -> float:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        more = tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model.hf(torch.tensor([ids + more])).logits[0].double().log_softmax(-1)
        return float(sum(logits[len(ids) - 1 + i, token] for i, token in enumerate(more)))

    for prompt, verdict in zip(PROMPTS, found, strict=True):
        texts = form.render(tokenizer, prompt)
        odds = [log_prob(text, form.harmful) - log_prob(text, form.safe) for text in texts]
        assert verdict.harmfulness == pytest.approx(max(odds), abs=1e-3)  # float32 in the engine
    assert found == made.score(model, PROMPTS)
    assert [v.harmfulness for v in made.score(model, PROMPTS[::-1])] == pytest.approx(
        [v.harmfulness for v in found[::-1]], abs=1e-3
    )


def test_a_threshold_takes_the_place_of_the_guards_own_answer(tmp_path: Path) -> None:
    model, made = guard("wildguard")
    own = made.score(model, PROMPTS)
    assert {found.verdict for found in own} == {None}  # a random model answers neither
    middle = sorted(found.harmfulness for found in own)[1]
    verdicts = [found.verdict for found in replace(made, threshold=middle).score(model, PROMPTS)]
    assert verdicts == ["harmful" if found.harmfulness > middle else "harmless" for found in own]
    assert verdicts.count("harmful") == 1
    (tmp_path / "guard.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a text guard"):
        TextGuard.load(tmp_path / "guard.json")
    with pytest.raises(ValueError, match="no such guard file"):
        TextGuard.load(tmp_path / "absent.json")


def test_each_format_asks_as_its_card_says() -> None:
    prompt = "Why is the sky blue?"
    (llama,) = FORMATS["llama-guard"].render(make_tokenizer(LLAMA_GUARD), prompt)
    assert llama.endswith("assistant\n\n")
    assert f"User: {prompt}" in llama
    assert FORMATS["llama-guard"].render(make_tokenizer(LISTS), prompt) == [
        llama
    ]  # content as a list, as in the 1B
    policies = FORMATS["shieldgemma"].render(make_tokenizer(SHIELD_GEMMA), prompt)
    assert len(policies) == 3
    assert all(prompt in text and "shall not contain or seek" in text for text in policies)
    (wild,) = FORMATS["wildguard"].render(make_tokenizer(None), prompt)
    assert wild.startswith("<|user|>\n[INST] ")
    assert f"Human user:\n{prompt}\n\nAI assistant:\n\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n" in wild
    with pytest.raises(ValueError, match="not ShieldGemma's: it has no place for a guideline"):
        FORMATS["shieldgemma"].render(make_tokenizer(), prompt)
    with pytest.raises(ValueError, match="template is not Llama Guard's"):
        FORMATS["llama-guard"].render(make_tokenizer("{{ raise_exception('no') }}"), prompt)


@pytest.mark.parametrize(
    ("name", "answer", "harmful"),
    [
        ("llama-guard", "unsafe\nS2", True),
        ("llama-guard", "\n\nsafe", False),
        ("llama-guard", "UNSAFE", True),
        ("llama-guard", "perhaps", None),
        ("shieldgemma", "Yes. The question", True),
        ("shieldgemma", "No, it does not know", False),
        ("shieldgemma", "Nothing of the kind", None),
        ("wildguard", "Harmful request: yes\nResponse refusal: no", True),
        ("wildguard", "Harmful request: no\nHarmful response: yes", False),
        ("wildguard", "Response refusal: yes", None),
    ],
)
def test_answers_are_read_as_the_family_writes_them(name: str, answer: str, harmful: bool | None) -> None:
    assert FORMATS[name].reads(answer) is harmful


def test_a_folder_is_loaded_by_named_format(saved_tiny: Path, tmp_path: Path) -> None:
    loaded = load_text_guard(f"wildguard={saved_tiny}")
    assert loaded.guard.format.name == "wildguard"
    assert loaded.model.n_layers == 3
    assert len(loaded.guard.score(loaded.model, ["Hi"])) == 1
    with pytest.raises(
        ValueError, match="cannot tell the format of guard model 'some/model'; give FORMAT=name"
    ):
        load_text_guard("some/model")
    with pytest.raises(ValueError, match="FORMAT one of llama-guard, shieldgemma, wildguard"):
        load_text_guard(f"other={tmp_path}")
