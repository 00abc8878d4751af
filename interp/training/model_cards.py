"""Model cards of small adapters that this project trains: what was measured, as a table and as JSON.

    estimates = {"refusal/harmful": {"base": rate(...), "safe": rate(...)}}
    write_numbers(out, estimates)                                         # measured.json
    write_card(out, title, [number_rows(estimates, labels, names), ...])  # README.md

Every number stands with n and its 95% interval.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from interp.data.prompts import HELD_OUT_TEXT
from interp.engine.log_probs import completion_log_probs
from interp.evaluation.losses import text_windows
from interp.models.chat_model import ChatModel
from interp.stats import Estimate, mean_with_interval
from interp.storage.atomic_files import write_file

Numbers = Mapping[str, Mapping[str, Estimate]]
"""Estimates by what was measured and model."""
CARD = "README.md"
NUMBERS = "measured.json"


def text_losses(model: ChatModel) -> list[float]:
    """Cross-entropy on each window of 64 tokens of held-out text, nats per token."""
    starts, windows = text_windows(model, HELD_OUT_TEXT.read_text(), window=64)
    return [-scores.double().mean().item() for scores in completion_log_probs(model, starts, windows)]


def compared_losses(base: Sequence[float], adapted: Sequence[float], name: str) -> dict[str, Estimate]:
    """Mean cross-entropy of `base` and of `name`, the adapted one, and their `change`, paired over windows."""
    return {
        "base": mean_with_interval(base),
        name: mean_with_interval(adapted),
        "change": mean_with_interval([new - old for old, new in zip(base, adapted, strict=True)]),
    }


def perplexity_change(change: Estimate) -> str:
    """A sentence on the change of cross-entropy."""
    value, low, high = np.exp([change.value, change.low, change.high])
    return (
        f"Perplexity on the held-out text changes by a factor of {value:.3f} [{low:.3f}, {high:.3f}] (paired over "
        "windows of 64 tokens)."
    )


def number_rows(estimates: Numbers, labels: Mapping[str, str], names: Mapping[str, str]) -> str:
    """A Markdown table with one row for each label, n, and one column for each model.

    Args:
        labels: what was measured, in words, by its key.
        names: heads of the columns, by the model's key.
    """
    head = f"| | n | {' | '.join(names.values())} |\n|{'---|' * (2 + len(names))}"
    rows = (
        f"| {label} | {estimates[key]['base'].n} | "
        f"{' | '.join(estimates[key][name].rounded(2) for name in names)} |"
        for key, label in labels.items()
    )
    return "\n".join([head, *rows])


def write_card(out: Path, title: str, paragraphs: Sequence[str]) -> None:
    """Write `README.md` with wrapped paragraphs; tables stay as they are."""
    wrapped = (p if p.startswith("|") else textwrap.fill(p, 118, break_on_hyphens=False) for p in paragraphs)
    write_file(out / CARD, ("\n\n".join([f"# {title}", *wrapped]) + "\n").encode())


def write_numbers(out: Path, estimates: Numbers) -> dict[str, Any]:
    """Write `measured.json` and return what it holds."""
    numbers = {key: {name: asdict(r) for name, r in values.items()} for key, values in estimates.items()}
    write_file(out / NUMBERS, (json.dumps(numbers, indent=1) + "\n").encode())
    return numbers
