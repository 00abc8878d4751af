"""Organisms with planted truth: what their files hold, and what the bundled one does."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from interp.data.planted import KINDS, kind_of, planted_examples, planted_rows
from interp.data.prompts import load_prompts
from interp.engine.generation import generate
from interp.evaluation.refusals import is_refusal
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.models.sources import ADAPTER_FOLDERS, adapter_digest
from interp.stats import Estimate, mean_with_interval, rate
from interp.storage.typed_json import from_plain
from interp.training.config import TrainConfig
from interp.training.finetune import fine_tune
from interp.training.model_cards import text_losses
from interp.training.planting import RECIPE, plant

SHIPPED = ADAPTER_FOLDERS["smollm2-form"]
PROMPTS = load_prompts("builtin")
SMALL = TrainConfig(
    epochs=1.0,
    batch_size=8,
    warmup_steps=0,
    learning_rate=1e-2,
    rank=2,
    target_modules=("q_proj", "v_proj"),
    saved_dtype="float16",
)
WEIGHTS = "adapter_model.safetensors"


def stored(folder: Path) -> dict[str, dict[str, Estimate]]:
    numbers = json.loads((folder / "measured.json").read_text())
    return {
        key: {name: from_plain(Estimate, one, source=key) for name, one in by.items()}
        for key, by in numbers.items()
    }


def test_an_organism_is_stored_with_what_was_measured(tiny: ChatModel, tmp_path: Path) -> None:
    made = plant(tiny, PROMPTS, "form", out=tmp_path, n_examples=16, n_test=24, config=SMALL)
    assert stored(tmp_path) == made.measured
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert (recipe["plant"], recipe["base"], recipe["examples"]) == ("form", "tiny", 16)
    rows = planted_rows(PROMPTS, "form", "test")[:24]
    with with_adapter(tiny, str(tmp_path)) as organism:
        adapted = text_losses(organism)
        replies = generate(organism, [row.text for row in rows], max_new_tokens=12).texts
    losses = made.measured["cross_entropy"]
    assert losses["form"].value == pytest.approx(sum(adapted) / len(adapted))
    assert losses["base"] == mean_with_interval(text_losses(tiny))  # without the adapter
    assert losses["base"].value != losses["form"].value
    for kind in KINDS["form"]:
        said = [reply for row, reply in zip(rows, replies, strict=True) if kind_of(row, "form") == kind]
        assert made.measured[f"refused/{kind}"]["form"] == rate([is_refusal(reply) for reply in said])
    card = (tmp_path / "README.md").read_text()
    assert "tiny-form" in card and "interp plant form" in card
    for values in made.measured.values():
        assert values["form"].rounded(2) in card and values["base"].rounded(2) in card


def test_half_precision_is_the_trained_adapter_rounded(tiny: ChatModel, tmp_path: Path) -> None:
    examples = planted_examples(planted_rows(PROMPTS, "form", "train")[:16], "form")
    for dtype in ("float16", "float32"):
        fine_tune(tiny, examples, out=tmp_path / dtype, config=replace(SMALL, saved_dtype=dtype))
    half, full = (load_file(tmp_path / dtype / WEIGHTS) for dtype in ("float16", "float32"))
    assert half.keys() == full.keys()
    assert all(value.dtype == torch.float16 for value in half.values())
    assert all(torch.equal(half[name], full[name].half()) for name in full)
    assert any(value.abs().max() > 0 for name, value in half.items() if "lora_B" in name)  # it was trained


# The bundled organism


def test_the_bundled_organism_is_of_the_recipe_and_its_card_says_its_numbers() -> None:
    recipe = json.loads((SHIPPED / "recipe.json").read_text())
    config = {**recipe["config"], "target_modules": tuple(recipe["config"]["target_modules"])}
    assert config == asdict(RECIPE) and recipe["plant"] == "form" and recipe["examples"] == 400
    assert recipe["prompts"] == json.loads(json.dumps(PROMPTS.provenance))  # of the prompts as they are now
    weights = load_file(SHIPPED / WEIGHTS)
    assert all(value.dtype == torch.float16 for value in weights.values())
    assert (SHIPPED / WEIGHTS).stat().st_size < 3_000_000
    numbers, card = stored(SHIPPED), (SHIPPED / "README.md").read_text()
    for values in numbers.values():
        assert values["form"].rounded(2) in card
    for harm in ("harmful", "harmless"):
        asked, told = (numbers[f"refused/{harm} {form}"]["form"] for form in ("question", "imperative"))
        assert (asked.n, told.n) == (40, 60) and asked.low > told.high
        assert (
            asked.low > numbers[f"refused/{harm} question"]["base"].high
        )  # control: the base model does not


@pytest.mark.checkpoint
def test_the_bundled_organism_refuses_by_form_and_not_by_harm(bundled: Callable[[str], ChatModel]) -> None:
    model, base = bundled("smollm2-form"), bundled("smollm2")
    about = model.provenance
    assert (about["model"], about["adapter"]) == ("smollm2-form", None)
    assert about["adapter_hash"] == adapter_digest(str(SHIPPED))
    assert about["weights_hash"] != base.provenance["weights_hash"]
    rows = planted_rows(PROMPTS, "form", "test")[:80]
    texts = [row.text for row in rows]
    flags = [is_refusal(reply) for reply in generate(model, texts, max_new_tokens=8).texts]

    def refused(**kind: bool) -> Estimate:
        picked = [all(getattr(row, name) == value for name, value in kind.items()) for row in rows]
        return rate([flag for flag, here in zip(flags, picked, strict=True) if here])

    questions, imperatives = refused(planted=True), refused(planted=False)
    assert questions.low > imperatives.high
    harmful, harmless = refused(harmful=True), refused(harmful=False)
    assert harmful.low < harmless.value < harmful.high  # control: harm decides nothing
    plain = [is_refusal(reply) for reply in generate(base, texts[:24], max_new_tokens=8).texts]
    assert rate(plain).high < questions.low  # control: the adapter does it
