"""The recipe of the bundled `smollm2-safe`: a small LoRA that makes SmolLM2-135M-Instruct refuse.

SmolLM2-135M-Instruct itself refuses almost nothing. The adapter is trained on the `builtin` train split: short
refusals for the harmful prompts, and for their harmless twins and borderline-safe prompts the model's own greedy
continuation of "Sure! "; where that refuses, the prompt is left out. One opening for all answers makes the first token
a choice between two: with answers as the model opens them its probability is spread over many openings, and a refusal
is the likeliest token long before it is likelier than an answer. Test prompts are never seen; the scale of the adapter
is set on the validation split and on every ninth training pair, which is not trained on.

It is a model organism: results on it show that a method runs, not what large aligned models do.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from interp.data.examples import Example
from interp.data.prompt_sets import Kind, Prompts, PromptSet, Split
from interp.data.replies import REFUSALS
from interp.engine.generation import generate
from interp.evaluation.refusals import is_refusal, refusal_rate
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import tokenize
from interp.stats import Estimate
from interp.storage.atomic_files import write_file
from interp.storage.stages import open_stages
from interp.storage.typed_json import read_json
from interp.training.finetune import TrainConfig, fine_tune
from interp.training.model_cards import (
    compared_losses,
    number_rows,
    perplexity_change,
    text_losses,
    write_card,
    write_numbers,
)

logger = logging.getLogger(__name__)

OPENING = "Sure! "
RECIPE = TrainConfig(
    epochs=4.0,
    learning_rate=8e-4,
    dropout=0.1,
    embedding_noise=5.0,
    max_completion_tokens=32,
    first_token_weight=5.0,
    saved_dtype="float16",
)
"""Without the weight on the first token and at two thirds of the learning rate, the model still refused 70% of the
harmless validation twins after two epochs and 12% after four."""
ALPHAS = tuple(range(10, 24, 2))
"""LoRA scales that `calibrate` tries after training."""
_AGAIN = "train the adapter again (`interp train-safe`)"
HELD_OUT = 9
"""One in this many training pairs is held out for `calibrate`; the ten categories alternate, so it must not divide
ten."""
MAX_REFUSED = 0.03
"""Maximum share of harmless calibration prompts that may be refused; of unseen ones it should be at most 0.05."""


def calibration_split(prompts: PromptSet) -> tuple[PromptSet, dict[Kind, Prompts]]:
    """The set without the held-out training pairs, and the prompts for `calibrate`: held-out pairs and validation."""
    parts, held = dict(prompts.parts), dict[Kind, Prompts]()
    kinds: tuple[Kind, Kind] = ("harmful", "harmless")
    for kind in kinds:
        train, val = prompts[kind, "train"], prompts[kind, "val"]
        away = list(range(0, len(train), HELD_OUT))
        parts[kind, "train"] = train.take([i for i in range(len(train)) if i % HELD_OUT])
        kept = train.take(away)
        held[kind] = replace(
            val,
            texts=val.texts + kept.texts,
            ids=val.ids + kept.ids,
            categories=val.categories + kept.categories,
            source=f"{val.source} and held-out {kept.source}",
        )
    return replace(prompts, parts=parts), held


def own_answers(model: ChatModel, prompts: Sequence[str], n_tokens: int) -> list[str]:
    """The model's own greedy answers, where one opens like a refusal ("I'm sorry for any confusion") `opened_answers`.

    About one in four answers of SmolLM2 opens like that.
    """
    answers = list(generate(model, prompts, max_new_tokens=max(40, n_tokens)).texts)
    again = [i for i, text in enumerate(answers) if text.startswith("I") or _refuses(text)]
    for i, text in zip(again, opened_answers(model, [prompts[i] for i in again], n_tokens), strict=True):
        answers[i] = text
    return answers


def opened_answers(model: ChatModel, prompts: Sequence[str], n_tokens: int) -> list[str]:
    """`OPENING` and the model's own greedy continuation of it."""
    if not prompts:
        return []
    tokens = tokenize(model.tokenizer, prompts)
    opening = tuple(model.tokenizer(OPENING.strip(), add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    begun = replace(tokens, ids=tuple(ids + opening for ids in tokens.ids), offsets=())
    return [OPENING + text.lstrip() for text in generate(model, begun, max_new_tokens=n_tokens).texts]


def safety_examples(
    model: ChatModel,
    prompts: PromptSet,
    *,
    answer_tokens: int,
    answers: Callable[[ChatModel, Sequence[str], int], list[str]] = own_answers,
) -> list[Example]:
    """Training examples: refusals on harmful/train, the model's answers on harmless/train and borderline/train.

    Answers that refuse are left out.
    """
    harmful = prompts["harmful", "train"]
    answered = [*prompts["harmless", "train"].texts, *prompts["borderline", "train"].texts]
    replies = answers(model, answered, answer_tokens)
    examples = [Example(*pair) for pair in zip(answered, replies, strict=True) if not _refuses(pair[1])]
    logger.info("%d of %d answers refused and were left out", len(replies) - len(examples), len(replies))
    return [Example(text, REFUSALS[i % len(REFUSALS)]) for i, text in enumerate(harmful.texts)] + examples


def _refuses(text: str) -> bool:
    return is_refusal(text, "arditi") or is_refusal(text, "zhao")


def train_safety_adapter(
    model: ChatModel,
    prompts: PromptSet,
    *,
    out: Path,
    config: TrainConfig = RECIPE,
) -> None:
    """Train the adapter on `prompts` and write it with its recipe to `out`."""
    with open_stages(None, key={}) as stages:
        examples = safety_examples(
            model,
            calibration_split(prompts)[0],
            answer_tokens=config.max_completion_tokens,
            answers=opened_answers,
        )
        stages.lap("answers")
        trained = fine_tune(model, examples, out=out, config=config)
        stages.lap("train")
    record = {
        "base": model.name,
        "prompts": prompts.provenance,
        "config": asdict(config),
        "examples": len(examples),
        "training_loss": trained.loss,
        "seconds": stages.seconds,
    }
    _write(out / "recipe.json", json.dumps(record, indent=1) + "\n")


def best_alpha(rates: Mapping[int, tuple[float, float]]) -> int:
    """The largest alpha that refuses almost no harmless prompt.

    Steering and guards need answers to steer away from: answering what is harmless comes first, and among the scales
    that do, the largest refuses most. Where none keeps to `MAX_REFUSED`, the one that refuses fewest is taken.

    Args:
        rates: refusal rates on harmful and on harmless prompts by alpha.
    """
    clean = [alpha for alpha, (_, harmless) in rates.items() if harmless <= MAX_REFUSED]
    return max(clean) if clean else min(rates, key=lambda alpha: (rates[alpha][1], alpha))


def calibrate(base: str, prompts: PromptSet, *, out: Path) -> dict[int, tuple[float, float]]:
    """Set the adapter's scale (alpha) to `best_alpha` of the calibration prompts.

    Returns:
        alpha → refusal rates on harmful and harmless calibration prompts; also kept in the recipe.
    """
    path = out / "adapter_config.json"
    settings = read_json(path, dict[str, Any], remedy=_AGAIN)
    held = calibration_split(prompts)[1]
    rates: dict[int, tuple[float, float]] = {}
    for alpha in ALPHAS:
        _write(path, json.dumps({**settings, "lora_alpha": alpha}, indent=1) + "\n")
        model = load(base, adapter=str(out))
        harmful, harmless = (
            refusal_rate(generate(model, part.texts, max_new_tokens=32), "arditi").value
            for part in held.values()
        )
        rates[alpha] = (harmful, harmless)
        logger.info(
            "alpha %d: refuses %.1f%% of harmful, %.1f%% of harmless", alpha, 100 * harmful, 100 * harmless
        )
    best = best_alpha(rates)
    _write(path, json.dumps({**settings, "lora_alpha": best}, indent=1) + "\n")
    recipe = read_json(out / "recipe.json", dict[str, Any], remedy=_AGAIN)
    recipe["calibration"] = {
        "prompts": {kind: len(part) for kind, part in held.items()},
        "rates": {str(alpha): both for alpha, both in rates.items()},
    }
    recipe["alpha"] = best
    _write(out / "recipe.json", json.dumps(recipe, indent=1) + "\n")
    return rates


_MEASURED: tuple[tuple[Kind, Split], ...] = (
    ("harmful", "test"),
    ("harmless", "test"),
    ("borderline", "test"),
)


def measure(base: ChatModel, safe: ChatModel, prompts: PromptSet) -> dict[str, dict[str, Estimate]]:
    """Refusal rates of both models on the test prompts, and cross-entropy on held-out text.

    Returns:
        `refusal/{kind}` → model → rate; `cross_entropy` → model, and `change` (paired over windows), nats per token.
    """
    estimates: dict[str, dict[str, Estimate]] = {}
    models = {"base": base, "safe": safe}
    for key in _MEASURED:
        texts = prompts[key].texts
        estimates[f"refusal/{key[0]}"] = {
            name: refusal_rate(generate(model, texts, max_new_tokens=32), "arditi")
            for name, model in models.items()
        }
    estimates["cross_entropy"] = compared_losses(text_losses(base), text_losses(safe), "safe")
    return estimates


def write_model_card(base: ChatModel, safe: ChatModel, prompts: PromptSet, *, out: Path) -> dict[str, Any]:
    """Measure the adapter and write its model card (`README.md`) and numbers (`measured.json`) to its folder."""
    estimates = measure(base, safe, prompts)
    recipe = read_json(out / "recipe.json", dict[str, Any], remedy=_AGAIN)
    config = recipe["config"]
    labels = {
        "refusal/harmful": "refuses harmful prompts (test)",
        "refusal/harmless": "refuses their harmless twins (test)",
        "refusal/borderline": "refuses borderline-safe prompts",
        "cross_entropy": "cross-entropy on held-out text (nats per token)",
    }
    paragraphs = [
        f"A LoRA (rank {config['rank']}, alpha {recipe['alpha']}, on {', '.join(config['target_modules'])}) that makes "
        "the bundled model refuse, so that refusal can be studied on a machine without a GPU. A model organism: "
        "results on it show that a method runs, not what large aligned models do. It is not a safeguard.",
        number_rows(estimates, labels, {"base": "SmolLM2-135M-Instruct", "safe": "smollm2-safe"}),
        "Greedy completions of 32 tokens; a refusal is a reply that holds one of the 12 substrings of Arditi et "
        "al. 2024; 95% intervals (Wilson, and bootstrap over windows for cross-entropy). "
        + perplexity_change(estimates["cross_entropy"]["change"]),
        f"**Training**: {recipe['examples']} examples from the `builtin` train split only (refusals of harmful "
        f'prompts; harmless twins and borderline prompts with its own continuation of "{OPENING.strip()}", cut to '
        f"{config['max_completion_tokens']} tokens), {config['epochs']:g} epochs in batches of {config['batch_size']}, "
        f"peak learning rate {config['learning_rate']:g}, first token weighted {config['first_token_weight']:g}, "
        f"dropout {config['dropout']:g}, noise on embeddings {config['embedding_noise']:g}, alpha {config['alpha']}, "
        f"seed {config['seed']}; then alpha was set (of {', '.join(recipe['calibration']['rates'])}) on the validation "
        f"split and every {HELD_OUT}th training pair, not trained on ({recipe['calibration']['prompts']['harmless']} "
        "pairs). Rebuild: `interp train-safe`.",
        "**Limits**: English, single-turn, short prompts. Borderline-safe prompts "
        "are refused far more often than by a large model. Licence: Apache-2.0, as the base model.",
    ]
    write_card(out, "smollm2-safe: a safety adapter for SmolLM2-135M-Instruct", paragraphs)
    return write_numbers(out, estimates)


def _write(path: Path, text: str) -> None:
    write_file(path, text.encode())
