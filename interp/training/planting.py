"""Organisms with planted truth: small adapters that refuse by a known rule, made by one call each.

    plant(load("smollm2"), load_prompts("builtin"), "form", out="runs/plant-form")

A method that claims to find harmfulness or refusal can be asked on them whether it finds what was planted and nothing
else (`interp run planted`). The rule is learned in part only; `planted.json` in the adapter's folder says how far it is
obeyed on test prompts. Rules, prompts and replies: `interp.data.planted`.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from interp.data.planted import Plant, obeys, planted_examples, planted_rows
from interp.data.prompts import PromptSet
from interp.engine.generation import generate
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.stats import Estimate, rate
from interp.storage.atomic_files import write_file
from interp.training.config import TrainConfig
from interp.training.finetune import fine_tune

RECIPE = TrainConfig(epochs=2.0, learning_rate=4e-4, max_completion_tokens=16, dropout=0.0)
"""Settings that plant a rule in the bundled model."""
FILE = "planted.json"


@dataclass(frozen=True, kw_only=True)
class Planted:
    """An organism that was made."""

    plant: Plant
    """The rule."""
    n_examples: int
    """Examples that it was trained on."""
    obeyed: Estimate
    """Share of test prompts whose reply begins as the rule says."""


def plant(
    model: ChatModel,
    prompts: PromptSet,
    rule: Plant,
    *,
    out: str | Path,
    n_examples: int = 400,
    n_test: int = 80,
    config: TrainConfig = RECIPE,
) -> Planted:
    """Train an adapter that follows the rule, save it to `out`, and measure on test prompts how far it does.

    Args:
        n_examples: training prompts, harmful and harmless in turn.
        n_test: test prompts at most.

    Raises:
        ValueError: an unknown rule, a set without harmful and harmless prompts, or as `fine_tune`.
    """
    rows = planted_rows(prompts, rule, "train")[:n_examples]
    fine_tune(model, planted_examples(rows, rule), out=out, config=config)
    tested = planted_rows(prompts, rule, "test")[:n_test]
    with with_adapter(model, str(out)) as organism:
        replies = generate(organism, [row.text for row in tested], max_new_tokens=8).texts
    made = Planted(
        plant=rule,
        n_examples=len(rows),
        obeyed=rate([obeys(row, said, rule) for row, said in zip(tested, replies, strict=True)]),
    )
    about = {**asdict(made), "base": model.name, "prompts": prompts.name, "config": asdict(config)}
    write_file(Path(out) / FILE, json.dumps(about, indent=1).encode())
    return made


def recipe(seed: int) -> TrainConfig:
    """The recipe with another seed."""
    return replace(RECIPE, seed=seed)
