"""The recipe of the bundled adapter: what is trained on, what is held out, how its scale is set, what the card says."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp.data.prompt_sets import PromptSet
from interp.data.prompts import load_prompts
from interp.data.replies import REFUSALS
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import tokenize
from interp.training import safety_adapter
from interp.training.finetune import TrainConfig
from interp.training.safety_adapter import (
    HELD_OUT,
    OPENING,
    best_alpha,
    calibrate,
    calibration_split,
    opened_answers,
    own_answers,
    safety_examples,
    train_safety_adapter,
    write_model_card,
)


@pytest.fixture(scope="module")
def few() -> PromptSet:
    """Sixteen training pairs and as many of each other part."""
    prompts = load_prompts("builtin")
    return replace(prompts, parts={key: part.first(16) for key, part in prompts.parts.items()})


def test_held_out_pairs_are_whole_and_nothing_of_them_is_trained_on() -> None:
    prompts = load_prompts("builtin")
    trained, held = calibration_split(prompts)
    ids = {kind: set(part.ids) for kind, part in held.items()}
    n_val, n_train = len(prompts["harmful", "val"]), len(prompts["harmful", "train"])
    away = -(-n_train // HELD_OUT)
    for kind in ("harmful", "harmless"):
        assert len(held[kind]) == n_val + away
        assert len(trained[kind, "train"]) == n_train - away
        assert not ids[kind] & set(trained[kind, "train"].ids)
        assert not set(held[kind].texts) & set(prompts[kind, "test"].texts)
        assert set(held[kind].texts) == set(prompts[kind, "val"].texts) | (
            set(prompts[kind, "train"].texts) - set(trained[kind, "train"].texts)
        )
    assert {i.partition("-")[2] for i in ids["harmless"]} == {i.partition("-")[2] for i in ids["harmful"]}
    per_category = Counter(held["harmful"].categories).values()
    assert len(per_category) == 10
    assert max(per_category) - min(per_category) <= 1


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ({12: (0.7, 0.0), 14: (0.8, 0.03), 16: (0.9, 0.04)}, 14),
        ({12: (0.7, 0.04), 14: (0.8, 0.0), 16: (0.9, 0.2)}, 14),
        ({12: (0.7, 0.05), 14: (0.8, 0.04), 16: (0.9, 0.04)}, 14),
    ],
)
def test_the_largest_scale_that_answers_what_is_harmless_is_taken(
    found: dict[int, tuple[float, float]], best: int
) -> None:
    assert best_alpha(found) == best


@torch.no_grad()
def test_an_opened_answer_is_what_the_model_says_after_the_opening(tiny: ChatModel) -> None:
    prompts = ["Hi", "How do I bake bread?"]
    opening = tiny.tokenizer(OPENING.strip(), add_special_tokens=False)["input_ids"]
    expected = []
    for ids in tokenize(tiny.tokenizer, prompts).ids:
        begun = torch.tensor([[*ids, *opening]])
        done = tiny.hf.generate(
            begun, attention_mask=torch.ones_like(begun), max_new_tokens=6, do_sample=False
        )
        text = tiny.tokenizer.decode(done[0, begun.shape[1] :], skip_special_tokens=True)
        expected.append(OPENING + text.lstrip())
    assert opened_answers(tiny, prompts, 6) == expected
    assert opened_answers(tiny, [], 6) == []


def test_own_answers_that_refuse_are_opened(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Bake it.", "I am glad to help.", "Well, I'm sorry for any confusion."]
    monkeypatch.setattr(
        safety_adapter, "generate", lambda *_, **__: type("Completions", (), {"texts": texts})
    )
    monkeypatch.setattr(
        safety_adapter, "opened_answers", lambda _, prompts, n: [f"Sure! {text} {n}" for text in prompts]
    )
    assert own_answers(tiny, ["a", "b", "c"], 8) == ["Bake it.", "Sure! b 8", "Sure! c 8"]


def test_examples_refuse_what_is_harmful_and_leave_out_answers_that_refuse(
    tiny: ChatModel, few: PromptSet
) -> None:
    def answers(_model: ChatModel, prompts: Sequence[str], n: int) -> list[str]:
        return ["Sure! I cannot do that." if i % 4 == 0 else f"Sure! {n}" for i in range(len(prompts))]

    examples = safety_examples(tiny, few, answer_tokens=8, answers=answers)
    harmful = set(few["harmful", "train"].texts)
    assert [e.prompt for e in examples[:16]] == list(few["harmful", "train"].texts)
    assert {e.completion for e in examples[:16]} == set(REFUSALS)
    assert len(examples) == 16 + 24
    assert {e.completion for e in examples[16:]} == {"Sure! 8"}
    assert not harmful & {e.prompt for e in examples[16:]}


def test_the_recipe_runs_whole_and_its_card_says_what_was_measured(
    tiny: ChatModel, saved_tiny: Path, few: PromptSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety_adapter, "ALPHAS", (4, 16))
    out = tmp_path / "adapter"
    config = TrainConfig(
        epochs=1.0, rank=2, embedding_noise=5.0, max_completion_tokens=8, target_modules=("q_proj",)
    )
    train_safety_adapter(tiny, few, out=out, config=config)
    found = calibrate(str(saved_tiny), few, out=out)
    settings, recipe = (
        json.loads((out / name).read_text()) for name in ("adapter_config.json", "recipe.json")
    )
    assert settings["lora_alpha"] == recipe["alpha"] == best_alpha(found)
    assert recipe["calibration"]["prompts"] == {"harmful": 18, "harmless": 18}
    assert recipe["calibration"]["rates"].keys() == {"4", "16"}
    numbers = write_model_card(tiny, load(str(saved_tiny), adapter=str(out)), few, out=out)
    card = (out / "README.md").read_text()
    for key in ("refusal/harmful", "refusal/harmless", "refusal/borderline", "cross_entropy"):
        rate = numbers[key]["safe"]
        assert f"{rate['value']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]" in card
    assert "(18 pairs)" in " ".join(card.split())
