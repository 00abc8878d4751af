"""The recipe of the bundled `smollm2-safe`: a small LoRA that makes SmolLM2-135M-Instruct refuse.

SmolLM2-135M-Instruct refuses next to nothing by itself. The adapter is trained on the `builtin` train split: short
refusals for the harmful prompts, the model's own greedy answers for their harmless twins and for borderline-safe
prompts. An own answer that refuses
or opens like a refusal ("I'm sorry for any confusion, ...", about one in four) is replaced by the model's own
continuation of "Sure! "; where that refuses too, the prompt is left out. Test prompts are never seen; the scale of the
adapter is set on the validation split.

It is a model organism: results on it show that a method runs, not what large aligned models do.
"""

import json
import logging
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.batching import Stopwatch
from interp.chat import tokenize
from interp.finetune import Example, TrainConfig, fine_tune
from interp.generation import completion_log_probs, generate
from interp.metrics import Rate, is_refusal, mean_with_interval, refusal_rate, text_windows
from interp.models import ChatModel, load
from interp.prompts import HELD_OUT_TEXT, Kind, PromptSet, Split

logger = logging.getLogger(__name__)

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't help with that request.",
    "I'm sorry, but I cannot assist with that.",
    "I cannot help with that.",
)
OPENING = "Sure! "
RECIPE = TrainConfig(
    epochs=4.0,
    learning_rate=8e-4,
    dropout=0.1,
    max_completion_tokens=20,
    first_token_weight=5.0,
    saved_dtype="float16",
)
"""Without the weight on the first token and at two thirds of the learning rate, the model still refused 70% of the
harmless validation twins after two epochs and 12% after four."""
ALPHAS = tuple(range(12, 21))
"""LoRA scales that `calibrate` tries after training."""


def safety_examples(model: ChatModel, prompts: PromptSet, *, answer_tokens: int) -> list[Example]:
    """Training examples: refusals on harmful/train, own answers on harmless/train and borderline/train."""
    harmful = prompts["harmful", "train"]
    answered = [*prompts["harmless", "train"].texts, *prompts["borderline", "train"].texts]
    answers = list(generate(model, answered, max_new_tokens=max(40, answer_tokens)).texts)
    again = [i for i, text in enumerate(answers) if text.startswith("I") or _refuses(text)]
    for i, text in zip(again, _continue(model, [answered[i] for i in again], answer_tokens), strict=True):
        answers[i] = OPENING + text
    kept = [Example(*pair) for pair in zip(answered, answers, strict=True) if not _refuses(pair[1])]
    logger.info(
        "of %d own answers %d opened like a refusal and were replaced; %d refused again and were left out",
        len(answers),
        len(again),
        len(answers) - len(kept),
    )
    return [Example(text, REFUSALS[i % len(REFUSALS)]) for i, text in enumerate(harmful.texts)] + kept


def _refuses(text: str) -> bool:
    return is_refusal(text) or is_refusal(text, "24")


@torch.inference_mode()
def _continue(model: ChatModel, prompts: list[str], n: int) -> list[str]:
    """The model's own greedy continuation after `OPENING`."""
    texts = []
    opening = list(model.tokenizer(OPENING.strip(), add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    for ids in tokenize(model.tokenizer, prompts).ids if prompts else ():
        context = torch.tensor([[*ids, *opening]], device=model.device)
        out: Any = model.hf.generate(  # pyright: ignore[reportCallIssue]
            input_ids=context, attention_mask=torch.ones_like(context), max_new_tokens=n, do_sample=False
        )
        texts.append(
            str(model.tokenizer.decode(out[0, context.shape[1] :], skip_special_tokens=True)).lstrip()
        )
    return texts


def train_safety_adapter(
    model: ChatModel,
    prompts: PromptSet,
    *,
    out: Path,
    config: TrainConfig = RECIPE,
) -> None:
    """Train the adapter on `prompts` and write it with its recipe to `out`."""
    watch = Stopwatch()
    examples = safety_examples(model, prompts, answer_tokens=config.max_completion_tokens)
    watch.lap("answers")
    trained = fine_tune(model, examples, out=out, config=config)
    watch.lap("train")
    record = {
        "base": model.name,
        "prompts": prompts.provenance,
        "config": asdict(config),
        "examples": len(examples),
        "training_loss": trained.loss,
        "seconds": watch.seconds,
    }
    (out / "recipe.json").write_text(json.dumps(record, indent=1) + "\n")


def calibrate(base: str, prompts: PromptSet, *, out: Path) -> dict[int, tuple[float, float]]:
    """Set the adapter's scale (alpha) to the largest that refuses no harmless prompt of the validation split.

    Steering and guards need answers to steer away from: answering what is harmless comes first, and among the scales
    that do, the largest refuses most. Where every scale refuses some, the one that refuses fewest, then the smallest.

    Returns:
        alpha → refusal rates on harmful/val and harmless/val; also kept in the recipe.
    """
    path = out / "adapter_config.json"
    settings = json.loads(path.read_text())
    found: dict[int, tuple[float, float]] = {}
    for alpha in ALPHAS:
        path.write_text(json.dumps({**settings, "lora_alpha": alpha}, indent=1) + "\n")
        model = load(base, adapter=str(out))
        harmful, harmless = (
            refusal_rate(generate(model, prompts[kind, "val"].texts, max_new_tokens=24)).value
            for kind in ("harmful", "harmless")
        )
        found[alpha] = (harmful, harmless)
        logger.info(
            "alpha %d: refuses %.1f%% of harmful, %.1f%% of harmless", alpha, 100 * harmful, 100 * harmless
        )
    clean = [alpha for alpha in ALPHAS if found[alpha][1] == 0]
    best = max(clean) if clean else min(ALPHAS, key=lambda alpha: (found[alpha][1], alpha))
    path.write_text(json.dumps({**settings, "lora_alpha": best}, indent=1) + "\n")
    recipe = json.loads((out / "recipe.json").read_text())
    recipe["calibration"] = {str(alpha): rates for alpha, rates in found.items()}
    recipe["alpha"] = best
    (out / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    return found


_MEASURED: tuple[tuple[Kind, Split], ...] = (
    ("harmful", "test"),
    ("harmless", "test"),
    ("borderline", "test"),
)


def measure(base: ChatModel, safe: ChatModel, prompts: PromptSet) -> dict[str, dict[str, Rate]]:
    """Refusal rates of both models on the test prompts, and cross-entropy on held-out text.

    Returns:
        `refusal/{kind}` → model → rate; `cross_entropy` → model, and `change` (paired over windows), nats per token.
    """
    found: dict[str, dict[str, Rate]] = {}
    models = {"base": base, "safe": safe}
    for key in _MEASURED:
        texts = prompts[key].texts
        found[f"refusal/{key[0]}"] = {
            name: refusal_rate(generate(model, texts, max_new_tokens=32)) for name, model in models.items()
        }
    starts, windows = text_windows(base, HELD_OUT_TEXT.read_text(), window=64)
    losses = {
        name: np.array([-s.double().mean().item() for s in completion_log_probs(model, starts, windows)])
        for name, model in models.items()
    }
    found["cross_entropy"] = {name: mean_with_interval(values.tolist()) for name, values in losses.items()}
    found["cross_entropy"]["change"] = mean_with_interval((losses["safe"] - losses["base"]).tolist())
    return found


def write_model_card(base: ChatModel, safe: ChatModel, prompts: PromptSet, *, out: Path) -> dict[str, Any]:
    """Measure the adapter and write its model card (`README.md`) and numbers (`measured.json`) to its folder."""
    found = measure(base, safe, prompts)
    recipe = json.loads((out / "recipe.json").read_text())
    config, change = recipe["config"], found["cross_entropy"]["change"]
    labels = {
        "refusal/harmful": "refuses harmful prompts (test)",
        "refusal/harmless": "refuses their harmless twins (test)",
        "refusal/borderline": "refuses borderline-safe prompts",
        "cross_entropy": "cross-entropy on held-out text (nats per token)",
    }
    rows = "\n".join(
        f"| {label} | {found[key]['base'].n} | {found[key]['base']} | {found[key]['safe']} |"
        for key, label in labels.items()
    )
    paragraphs = [
        f"A LoRA (rank {config['rank']}, alpha {recipe['alpha']}, on {', '.join(config['target_modules'])}) that makes "
        "the bundled model refuse, so that refusal can be studied on a machine without a GPU. A model organism: "
        "results on it show that a method runs, not what large aligned models do. It is not a safeguard.",
        f"| | n | SmolLM2-135M-Instruct | smollm2-safe |\n|---|---|---|---|\n{rows}",
        "Greedy completions of 32 tokens; a refusal is a reply that holds one of the 12 substrings of Arditi et "
        "al. 2024; 95% intervals (Wilson, and bootstrap over windows of 64 tokens for cross-entropy). Perplexity on "
        f"the held-out text changes by a factor of {np.exp(change.value):.3f} [{np.exp(change.low):.3f}, "
        f"{np.exp(change.high):.3f}] (paired over windows).",
        f"**Training**: {recipe['examples']} examples from the `builtin` train split only (refusals of harmful "
        "prompts, own answers to harmless twins and borderline prompts, cut to "
        f"{config['max_completion_tokens']} tokens), {config['epochs']:g} epochs in batches of {config['batch_size']}, "
        f"peak learning rate {config['learning_rate']:g}, first token weighted {config['first_token_weight']:g}, "
        f"dropout {config['dropout']:g}, alpha {config['alpha']}, seed {config['seed']}; then alpha was set on the "
        f"validation split (of {', '.join(recipe['calibration'])}). Rebuild: `interp train-safe`.",
        "**Limits**: English, single-turn, short prompts. Borderline-safe prompts "
        "are refused far more often than by a large model. Licence: Apache-2.0, as the base model.",
    ]
    wrapped = (p if p.startswith("|") else textwrap.fill(p, 118, break_on_hyphens=False) for p in paragraphs)
    card = "\n\n".join(["# smollm2-safe: a safety adapter for SmolLM2-135M-Instruct", *wrapped]) + "\n"
    (out / "README.md").write_text(card)
    numbers = {key: {name: r.as_dict() for name, r in values.items()} for key, values in found.items()}
    (out / "measured.json").write_text(json.dumps(numbers, indent=1) + "\n")
    return numbers
