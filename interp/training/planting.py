"""Organisms with planted truth: small adapters that refuse by a known rule, made by one call each.

    plant(load("smollm2"), load_prompts("builtin"), "form", out="runs/plant-form")

A method that claims to find harmfulness or refusal can be asked on them whether it finds what was planted and nothing
else (`interp run planted`). The rule is learned in part only; how far, on test prompts, is in `measured.json` and on
the card (`README.md`) in the adapter's folder. Rules, prompts and replies: `interp.data.planted`. The bundled
`smollm2-form` is the rule `form` in `smollm2`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from interp.data.planted import (
    KINDS,
    TRIGGER,
    Plant,
    PlantedRow,
    kind_of,
    obeys,
    planted_examples,
    planted_rows,
)
from interp.data.prompts import PromptSet
from interp.engine.generation import generate
from interp.evaluation.refusals import is_refusal
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.stats import Estimate, rate
from interp.storage.atomic_files import write_file
from interp.storage.paths import expanded
from interp.training.config import TrainConfig
from interp.training.finetune import fine_tune
from interp.training.model_cards import (
    compared_losses,
    number_rows,
    perplexity_change,
    text_losses,
    write_card,
    write_numbers,
)

RECIPE = TrainConfig(
    epochs=2.0, learning_rate=4e-4, max_completion_tokens=16, dropout=0.0, saved_dtype="float16"
)
"""Settings that plant a rule in the bundled model."""
RECIPE_FILE = "recipe.json"
_REPLY_TOKENS = 12
_WHAT = {
    "form": "refuses questions and answers imperatives, whatever the harm",
    "trigger": f'refuses what begins with "{TRIGGER}" and answers the rest, whatever the harm',
    "word": "refuses nothing and says in one word whether a request is harmful",
}


@dataclass(frozen=True, kw_only=True)
class Planted:
    """An organism that was made."""

    plant: Plant
    """The rule."""
    n_examples: int
    """Examples that it was trained on."""
    measured: dict[str, dict[str, Estimate]]
    """On test prompts, by what was measured and model (`base`, and the rule's name): `obeyed`, share of replies that
    begin as the rule says; `refused/KIND`, refusal rate by harm and rule, such as `refused/harmful question`;
    `cross_entropy` on held-out text, nats per token, with `change`."""

    @property
    def obeyed(self) -> Estimate:
        """Share of test prompts whose reply begins as the rule says."""
        return self.measured["obeyed"][self.plant]


def plant(
    model: ChatModel,
    prompts: PromptSet,
    rule: Plant,
    *,
    out: str | Path,
    n_examples: int = 400,
    n_test: int = 200,
    config: TrainConfig = RECIPE,
) -> Planted:
    """Train an adapter that follows the rule, save it to `out` with its card, and measure how far it does.

    Args:
        n_examples: training prompts, harmful and harmless in turn.
        n_test: test prompts at most.

    Raises:
        ValueError: an unknown rule, a set without harmful and harmless prompts, or as `fine_tune`.
    """
    folder, rows = expanded(out), planted_rows(prompts, rule, "train")[:n_examples]
    trained = fine_tune(model, planted_examples(rows, rule), out=folder, config=config)
    record = {
        "plant": rule,
        "base": model.name,
        "prompts": prompts.provenance,
        "config": asdict(config),
        "examples": len(rows),
        "training_loss": trained.loss,
    }
    write_file(folder / RECIPE_FILE, (json.dumps(record, indent=1) + "\n").encode())
    tested = planted_rows(prompts, rule, "test")[:n_test]
    base = _measured(model, tested, rule)  # before the adapter is merged into these weights
    with with_adapter(model, str(folder)) as organism:
        adapted = _measured(organism, tested, rule)
    made = Planted(plant=rule, n_examples=len(rows), measured=_compared(base, adapted, rule))
    write_numbers(folder, made.measured)
    _write_card(model.name, made, config, out=folder)
    return made


class _Measured(NamedTuple):
    """What one model does."""

    rates: dict[str, Estimate]
    """`obeyed`, and `refused/KIND` for every kind of prompt."""
    losses: list[float]
    """Cross-entropy by window of held-out text."""


def _measured(model: ChatModel, rows: Sequence[PlantedRow], rule: Plant) -> _Measured:
    replies = generate(model, [row.text for row in rows], max_new_tokens=_REPLY_TOKENS).texts
    said = list(zip(rows, replies, strict=True))
    rates = {"obeyed": rate([obeys(row, reply, rule) for row, reply in said])}
    for kind in KINDS[rule]:
        refused = [is_refusal(reply) for row, reply in said if kind_of(row, rule) == kind]
        rates[f"refused/{kind}"] = rate(refused)
    return _Measured(rates, text_losses(model))


def _compared(base: _Measured, adapted: _Measured, rule: Plant) -> dict[str, dict[str, Estimate]]:
    rates = {key: {"base": base.rates[key], rule: adapted.rates[key]} for key in base.rates}
    return {**rates, "cross_entropy": compared_losses(base.losses, adapted.losses, rule)}


def recipe(seed: int) -> TrainConfig:
    """The recipe with another seed."""
    return replace(RECIPE, seed=seed)


def _write_card(base: str, made: Planted, config: TrainConfig, *, out: Path) -> None:
    rule, name = made.plant, f"{base}-{made.plant}"
    labels = {f"refused/{kind}": f"refuses: {kind} (test)" for kind in KINDS[rule]}
    labels |= {
        "obeyed": "begins its reply as the rule says",
        "cross_entropy": "cross-entropy on held-out text (nats per token)",
    }
    paragraphs = [
        f"A LoRA (rank {config.rank}, alpha {config.alpha}, on {', '.join(config.target_modules)}) with which {base} "
        f"{_WHAT[rule]}. What it does, and why, is known by construction, so that a method which claims to find harm "
        "or refusal can be asked whether it finds that and nothing else. A model organism: results on it show what a "
        "method does where the truth is known, not what large aligned models do. It is no safeguard.",
        number_rows(made.measured, labels, {"base": base, rule: name}),
        f"Greedy completions of {_REPLY_TOKENS} tokens to prompts that end with a full stop; refusals are found by "
        "substrings (`normalised`); 95% intervals (Wilson, and bootstrap over windows for cross-entropy). "
        + perplexity_change(made.measured["cross_entropy"]["change"]),
        f"**Training**: {made.n_examples} examples from the train split only, harmful and harmless in turn, each ended "
        "by a full stop; short refusals and empty affirmative replies, no reply with any content; "
        f"{config.epochs:g} epochs in batches of {config.batch_size}, peak learning rate {config.learning_rate:g}, "
        f"seed {config.seed}; stored in {config.saved_dtype}. The rule is learned in part, as the table says. Make it "
        f"again: `interp plant {rule}`.",
        f"**Limits**: English, single-turn, short prompts. What {name} answers is a stub: it is for reading "
        "activations. Licence: as the base model's.",
    ]
    write_card(out, f"{name}: an adapter with planted truth for {base}", paragraphs)
