"""Every number that the pages quote, by name: the stored run it is in, its path there, and how it is written.

This is the only file that knows the layout of `figures/*/result.json.gz`. A page writes {stored}`RUN: NAME`, e.g.
{stored}`refusal-direction: harmful ablation`, or `refusal-direction@qwen` for the same number of the run on
Qwen2.5-Coder-0.5B-Instruct. A path goes down by keys and list indices; a mapping in it picks the one row of a list with
those values. A number that is a statistic over stored rows is a function of the result.

    text_of("refusal-direction: harmful ablation")          # '1% [0, 5]'
"""

import gzip
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from stored_entries import Stored, at, follow, formatted, peak, percent
from stored_preferences import dataset_reset, method_elasticity, reward_topology
from stored_readings import endings, machine_text, planted, safe_rlhf, safelawbench
from stored_repairs import recovery, recovery_qwen, repair, repair_fast, repair_qwen, safety_prompts

from interp.stats import Estimate, paired_test

FIGURES = Path(__file__).parents[2] / "figures"
QWEN = "-qwen2.5-coder-0.5b"
"""What the folder of a run on Qwen2.5-Coder-0.5B-Instruct is called behind its experiment."""


def row(measure: str, checkpoint: str, prompts: str | None = None, *, form: str = ".2f") -> Stored:
    """One measure of one checkpoint of a tracked series."""
    picked = {"measure": measure, "checkpoint": checkpoint} | (
        {} if prompts is None else {"prompts": prompts}
    )
    return Stored(lambda result: follow(_rows(result), (picked,)), form)


def _rows(result: Any) -> list[dict[str, Any]]:
    """Every measurement of a tracked series with the label of its checkpoint."""
    if "rows" in result:  # format 1
        return result["rows"]
    return [
        {**entry, **entry["estimate"], "checkpoint": checkpoint["label"]}
        for checkpoint in result["checkpoints"]
        for entry in checkpoint["rows"]
    ]


def _resistance_gap(loss: str) -> Callable[[Any], Estimate]:
    """Forward minus inverse arm, averaged over pairs within each seed, with the interval of a paired t test."""

    def gap(result: Any) -> Estimate:
        seeds = sorted({entry["seed"] for entry in result["arms"]})
        means = {
            arm: [
                _mean(
                    [
                        _loss(entry, loss)
                        for entry in result["arms"]
                        if (entry["arm"], entry["seed"]) == (arm, seed)
                    ]
                )
                for seed in seeds
            ]
            for arm in ("forward", "inverse")
        }
        return paired_test(means["forward"], means["inverse"]).difference

    return gap


def _loss(entry: Mapping[str, Any], loss: str) -> float:
    name = loss.removesuffix(" in excess")
    return entry[name] - (entry["self_entropy"] if loss.endswith(" in excess") else 0)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _final_kl(positives: int) -> Callable[[Any], float]:
    """Mean over seeds of the KL to the base model at the largest number of negative examples."""

    def kl(result: Any) -> float:
        points = [point for point in result["models"]["smollm2"]["points"] if point["n_plus"] == positives]
        most = max(point["n_minus"] for point in points)
        return _mean([point["kl"] for point in points if point["n_minus"] == most])

    return kl


def _refusal_direction() -> dict[str, Stored]:
    names = {
        "harmful": ("baseline", "ablation", "orthogonalized", "addition_minus", "random_ablation"),
        "harmless": ("baseline", "addition_plus", "random_addition"),
    }
    entries = {
        f"{kind} {name.replace('_', ' ')}": percent("refusal_rate", kind, name, "arditi")
        for kind, arms in names.items()
        for name in arms
    }
    for text in ("own replies", "text"):
        for arm in ("baseline", "ablation", "addition_minus"):
            entries[f"{text} {arm.replace('_', ' ')}"] = at("cross_entropy", text, arm)
    return entries | {
        "n": at("refusal_rate", "harmful", "baseline", "arditi", "n", form="d"),
        "position": at("selected", "position", form="d"),
        "layer": at("selected", "layer", form="d"),
        "kl": at("selected", "kl", form=".3f"),
        "second layer": at("pick_stability", 0, "layer", form="d"),
        "share of the first": percent("pick_stability", 0, "share"),
        "share of the pick": Stored(_share_of_the_pick, "percent"),
        "random kl, smallest": Stored(lambda result: min(_random_kl(result)), ".3f"),
        "random kl, largest": Stored(lambda result: max(_random_kl(result)), ".3f"),
        "metric plain": at("mechanism", "refusal_metric", "plain", form=".1f"),
        "metric affirmative opening": at("mechanism", "refusal_metric", "affirmative opening", form=".1f"),
    }


def _share_of_the_pick(result: Any) -> float:
    picked = {key: result["selected"][key] for key in ("position", "layer")}
    return follow(result, ("pick_stability", picked, "share"))


def _random_kl(result: Any) -> list[float]:
    return [entry["kl"] for entry in result["random_directions"]["directions"]]


def _demo() -> dict[str, Stored]:
    arms = ("baseline", "ablation", "addition", "random ablation", "random addition")
    entries = {
        f"{kind} {arm}": percent("refusal_rate", arm, kind, "arditi")
        for kind in ("harmful", "harmless")
        for arm in arms
    }
    return entries | {
        "harmless harmfulness addition": percent(
            "refusal_rate", "harmfulness addition", "harmless", "arditi"
        ),
        "n": at("refusal_rate", "baseline", "harmful", "arditi", "n", form="d"),
        "layer": at("selected", "layer", form="d"),
        "kl": at("selected", "kl", form=".3f"),
        "leak": at("leak_check", "as-is", "last_token", bare=True),
    }


def _harmfulness() -> dict[str, Stored]:
    entries: dict[str, Stored] = {}
    for ending in ("as-is", "strip", "period"):
        here = ("by_ending", ending)
        rates = (*here, "steering", "rates")
        entries |= {
            f"{ending} cosine": at(*here, "geometry", "mean_cosine"),
            f"{ending} + harmfulness": peak(*rates, "harmfulness"),
            f"{ending} + refusal": peak(*rates, "refusal"),
            f"{ending} + random": peak(*rates, "random, harmfulness norm"),
            f"{ending} belief": at(*here, "anchors", "same_source", "harmless"),
            f"{ending} belief, other anchors": at(*here, "anchors", "other_source", "harmless"),
        }
    among = {"tells": "harmful from harmless", "among": "refused"}
    period = ("by_ending", "period")
    for belief in ("harm", "refusal"):
        entries[f"among refused, {belief} belief"] = at(
            *period, "beliefs", "separation", {**among, "belief": belief}, "auroc"
        )
    entries["period silent, harmful"] = percent(*period, "truncation", "harmful", "silent")
    entries["accepted harmful"] = at(
        "by_ending", "as-is", "group_sizes", "accepted harmful", "whole", form="d"
    )
    return entries


def _adversarial_finetune(stubs: int) -> dict[str, Stored]:
    after, refusals, harmless = (
        f"{stubs} stubs",
        f"{stubs} refusals (control)",
        f"{stubs} harmless with stubs (control)",
    )
    guard = ("guard", "period", "fitted_before")
    return {
        "stubs": Stored(lambda result: max(result["sizes"]), "d"),
        "before": percent("conditions", "before", "refusal_rate", "harmful"),
        "after": percent("conditions", after, "refusal_rate", "harmful"),
        "after refusals": percent("conditions", refusals, "refusal_rate", "harmful"),
        "after harmless stubs": percent("conditions", harmless, "refusal_rate", "harmful"),
        "harm shift": at("changes", after, "period", "harm", form="+.2f"),
        "refusal shift": at("changes", after, "period", "refusal", form="+.2f"),
        "flagged before": percent("conditions", "before", *guard, "harmful"),
        "flagged after": percent("conditions", after, *guard, "harmful"),
        "harmless flagged before": percent("conditions", "before", *guard, "harmless"),
        "harmless flagged after": percent("conditions", after, *guard, "harmless"),
    }


def _guard() -> dict[str, Stored]:
    detectors = {
        "guard": "Latent Guard",
        "direction": "refusal direction",
        "probe": "logistic probe",
        "words": "TF-IDF",
        "random": "random direction (control)",
    }
    entries = {
        name: at("by_ending", "period", "detectors", detector, "auroc")
        for name, detector in detectors.items()
    }
    return entries | {
        "guard, as they are": at("by_ending", "as-is", "detectors", "Latent Guard", "auroc"),
        "borderline flagged": percent(
            "by_ending", "period", "detectors", "Latent Guard", "own", "flagged", "borderline"
        ),
    }


def _jailbreaks() -> dict[str, Stored]:
    shifts = ("shifts", "period", "families")
    return {
        "templates": percent("families", "template", "harmful_answered"),
        "persuasion": percent("families", "persuasion", "harmful_answered"),
        "templates, harmless side": percent(*shifts, "template", "beliefs", "harm", "negative_side"),
        "persuaded requests": at(*shifts, "persuasion", "requests", form="d"),
        "refused requests": at("counts", "plain", "harmful", "behaving", form="d"),
    }


STORED: dict[str, dict[str, Stored]] = {
    "recovery": recovery(),
    "recovery-qwen2.5-coder-0.5b": recovery_qwen(),
    "repair": repair(),
    "repair-fast": repair_fast(),
    "repair-qwen2.5-coder-0.5b": repair_qwen(),
    "safety-prompts": safety_prompts(),
    "endings": endings(),
    "safe-rlhf": safe_rlhf(),
    "safelawbench": safelawbench(),
    "machine-text": machine_text(),
    "reward-topology": reward_topology(),
    "dataset-reset": dataset_reset(),
    "method-elasticity": method_elasticity(),
    **{f"planted-{rule}": planted(rule) for rule in ("form", "trigger", "word")},
    "demo": _demo(),
    "refusal-direction": _refusal_direction(),
    "harmfulness": _harmfulness(),
    "jailbreaks": _jailbreaks(),
    "categories": {
        f"{ending} difference": at("by_ending", ending, "refusal_minus_harmfulness", form="+.2f")
        for ending in ("as-is", "period")
    },
    "guard": _guard(),
    "adversarial-finetune": _adversarial_finetune(200),
    "adversarial-finetune" + QWEN: _adversarial_finetune(50),
    "elasticity-theory": {
        "in stages, pre-training": at("sequential", "exponents", "in stages", "n_p"),
        "in stages, alignment": at("sequential", "exponents", "in stages", "n_a"),
        "joint, pre-training": at("sequential", "exponents", "joint optimum (control)", "n_p"),
        "mixture error": at("mixture", "largest_error", form=".1e"),
        "token tree error": at("token_tree", "largest_error", form=".1e"),
        "log-linear verdict": at("rebound_statistics", "E5 log-linear", "verdict", form="s"),
    },
    "rebound": {
        "verdict": at("models", "smollm2", "statistics", "verdict", form="s"),
        "steepness": Stored(lambda result: _scaled(result, "steepness", 100)),
        "log tau": at("models", "smollm2", "statistics", "trends", "log_tau", form="+.2f"),
        "kl after 32 positives": Stored(_final_kl(32), ".1f"),
        "kl after 128 positives": Stored(_final_kl(128), ".1f"),
        "kl asked": at("models", "smollm2", "statistics", "kl_threshold"),
    },
    "resistance": {
        "final": Stored(_resistance_gap("final"), "+.2f"),
        "excess": Stored(_resistance_gap("final in excess"), "+.2f"),
        "before": Stored(_resistance_gap("before in excess"), "+.2f"),
        "kl": Stored(_resistance_gap("kl_change"), "+.3f"),
    },
    "trajectory": {
        "start": row("refusal_rate", "1-align/checkpoint-0", "harmful", form="percent"),
        "aligned": row("refusal_rate", "1-align/checkpoint-128", "harmful", form="percent"),
        "harmless start": row("refusal_rate", "1-align/checkpoint-0", "harmless", form="percent"),
        "harmless aligned": row("refusal_rate", "1-align/checkpoint-128", "harmless", form="percent"),
        "stubs": row("refusal_rate", "2-stubs/checkpoint-32", "harmful", form="percent"),
    },
    "trajectory" + QWEN: {
        "start": row("refusal_rate", "1-stubs/checkpoint-0", "harmful", form="percent"),
        "stubs": row("refusal_rate", "1-stubs/checkpoint-32", "harmful", form="percent"),
        "aligned": row("refusal_rate", "2-align/checkpoint-64", "harmful", form="percent"),
        "kl": row("kl_from_reference", "2-align/checkpoint-64", "harmful"),
        "harmfulness cosine": Stored(lambda result: _lowest(result, "cosine_harmfulness")),
        "refusal cosine": Stored(lambda result: _lowest(result, "cosine_refusal")),
        "control cosine": Stored(lambda result: _lowest(result, "cosine_control_refusal")),
        "refusal cosine, aligned": row("cosine_refusal", "2-align/checkpoint-64"),
    },
    "track": {
        "start": row("refusal_rate", "stubs/checkpoint-0", "harmful", form="percent"),
        "end": row("refusal_rate", "stubs/checkpoint-160", "harmful", form="percent"),
        "guard start": row("guard_auroc", "stubs/checkpoint-0"),
        "guard end": row("guard_auroc", "stubs/checkpoint-160"),
        "harmfulness shift": row("shift_harmfulness", "stubs/checkpoint-160", "harmful"),
        "control shift": row("shift_control_harmfulness", "stubs/checkpoint-160", "harmful"),
    },
}
"""Run (or experiment) → name → number."""


def _scaled(result: Any, trend: str, factor: float) -> dict[str, Any]:
    """A trend of the rebound grid in other units, here per 100 negative examples."""
    entry = result["models"]["smollm2"]["statistics"]["trends"][trend]
    return {**entry, **{end: factor * entry[end] for end in ("value", "low", "high")}}


def _lowest(result: Any, measure: str) -> Any:
    """The row in which a measure is lowest along the series."""
    rows = [entry for entry in _rows(result) if entry["measure"] == measure]
    return min(rows, key=lambda entry: entry["value"])


@cache
def result_of(run: str) -> Any:
    """The stored result of a run folder in `figures/`."""
    return json.loads(gzip.decompress((FIGURES / run / "result.json.gz").read_bytes()))


def find(reference: str) -> tuple[str, Stored]:
    """Run folder and entry of a reference such as `demo@qwen: harmful ablation`.

    Raises:
        KeyError: unknown run or name.
    """
    run, _, name = (part.strip() for part in reference.partition(":"))
    folder = run.replace("@qwen", QWEN)
    entries = STORED.get(folder, STORED.get(run.removesuffix("@qwen"), {}))
    if name not in entries:
        raise KeyError(f"no stored number {name!r} of {run!r}; there are {', '.join(entries) or 'none'}")
    return folder, entries[name]


def text_of(reference: str) -> str:
    """The number as the pages write it, e.g. `97% [89, 99]`.

    Raises:
        KeyError: unknown reference, or a path that the stored result does not have.
        ValueError: the number was not measurable.
    """
    folder, stored = find(reference)
    result = result_of(folder)
    entry = stored.where(result) if callable(stored.where) else follow(result, stored.where)
    return formatted(entry, stored)
