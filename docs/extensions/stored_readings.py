"""Numbers of the pages on what is read from prompts and answers: endings, severity, benchmarks, planted truth."""

from collections.abc import Mapping
from typing import Any

from stored_entries import Stored, at, formatted, percent


def endings() -> dict[str, Stored]:
    """Leak, cosine of the two directions and the guard, by how prompts end: of both models."""
    entries: dict[str, Stored] = {}
    treatments = {
        "builtin": ("as-is", "strip", "period", "question", "swapped"),
        "planted endings": ("as-is", "period", "swapped"),
    }
    for short, model in {"": "smollm2-safe", "qwen, ": "Qwen2.5-Coder-0.5B-Instruct"}.items():
        cells = ("models", model, "cells")
        for prompts, endings in treatments.items():
            for ending in endings:
                cell = (*cells, prompts, ending)
                entries |= {
                    f"{short}{prompts}, {ending}: leak": at(*cell, "leak"),
                    f"{short}{prompts}, {ending}: cosine": at(*cell, "cosine"),
                    f"{short}{prompts}, {ending}: guard": at(*cell, "guard"),
                }
        entries |= {
            f"{short}layer": at("models", model, "layer", form="d"),
            f"{short}planted, on builtin": at(*cells, "planted endings", "as-is", "transfer", "builtin"),
        }
    return entries | {"n": at("models", "smollm2-safe", "cells", "builtin", "as-is", "guard", "n", form="d")}


def safe_rlhf() -> dict[str, Stored]:
    """Harm, severity, preferences and moderation of the bundled miniature."""
    layer = 7
    return {
        "pairs": at("counts", "pairs", form="d"),
        "layer": at("layer", form="d"),
        "told apart": percent("told_apart", layer),
        "mixed pairs": at("told_apart", layer, "n", form="d"),
        "shuffled": percent("told_apart_shuffled", layer),
        "cosine with refusal": at("cosine_with_refusal", layer),
        "severity along harm": at("severity", "along the harm direction", "spearman"),
        "severity": at("severity", "all directions", "spearman"),
        "severity without harm": at("severity", "without the harm direction", "spearman"),
        "severity, shuffled": at("severity_shuffled", "spearman"),
        "helpful in conflict": percent("preferences", "better", "conflict"),
        "harmless in conflict": percent("preferences", "safer", "conflict"),
        "preference cosine": at("preference_cosine"),
        "states: accuracy": percent("moderation", "severity moderator", "accuracy"),
        "states: flags": percent("moderation", "severity moderator", "exact_match"),
        "words: accuracy": percent("moderation", "words alone", "accuracy"),
        "words: flags": percent("moderation", "words alone", "exact_match"),
    }


def safelawbench() -> dict[str, Stored]:
    """Accuracy, probability of the right choice and refusing replies under steering."""
    entries: dict[str, Stored] = {}
    arms = (
        "baseline",
        "ablation",
        "addition x0.5",
        "addition x1",
        "random addition x0.5",
        "random addition x1",
    )
    for arm in arms:
        entries[f"{arm}: accuracy"] = percent("arms", arm, "scores", "accuracy")
        entries[f"{arm}: right"] = at("arms", arm, "right_probability")
        entries[f"{arm}: refused"] = at("arms", arm, "refused", form="d")
        entries[f"{arm}: unread"] = at("arms", arm, "unread", form="d")
    return entries | {
        "n": at("arms", "baseline", "scores", "accuracy", "n", form="d"),
        "n replies": at("config", "n_replies", form="d"),
        "letter mass": at("arms", "baseline", "letter_mass"),
        "letter A": at("arms", "baseline", "letter_bias", "A"),
        "critical, addition x1": at("critical_against_rest", "addition x1", form="+.3f"),
    }


PLANTED_METHODS = {
    "means": ("difference in means", ("harm", "the rule")),
    "component": ("principal component", ("harm", "the rule")),
    "probe": ("logistic probe", ("harm", "the rule")),
    "beliefs": ("beliefs", ("harm", "the rule")),
    "random": ("random direction (control)", ("harm", "the rule")),
    "guard": ("guard", ("harm", "the rule")),
    "inversion": ("reply inversion", ("harm",)),
    "steered": ("reply inversion, steered", ("harm",)),
    "shifts": ("jailbreak shifts", ("the rule",)),
    "selection": ("selection", ("the rule",)),
}
"""Methods that are asked of an organism, and the labels that each is fitted on."""


def planted(rule: str) -> dict[str, Stored]:
    """How far an organism obeys, and what each method finds of harm and of the rule."""
    entries = {"obeyed": percent("obeyed"), "n": at("obeyed", "n", form="d")}
    for short, (method, labels) in PLANTED_METHODS.items():
        for label in labels:
            if rule == "word" and label != "harm":
                continue
            entries[f"{short}, {label}: own"] = _found(method, label, "own")
            if rule != "word":
                entries[f"{short}, {label}: other"] = _found(method, label, "other")
            if rule == "form" and short not in ("component", "random", "inversion", "steered"):
                entries[f"{short}, {label}: shuffled"] = _found(method, label, "shuffled")
    if rule == "form":
        entries["seeds"] = Stored(lambda result: result["config"].get("seeds", 1), "d")
    if rule != "word":
        entries["largest cosine"] = Stored(_largest_cosine, ".2f")
    return entries


def _found(method: str, label: str, value: str) -> Stored:
    """One number of a method at the token of its label; `not asked` where the run has none."""
    wanted = ("harm", "t_inst") if label == "harm" else ("planted", "t_post_inst")

    def shown(result: Any) -> str:
        rows = [
            each
            for each in result["found"]
            if each["method"] == method and (each["label"], each["role"]) == wanted
        ]
        if not rows:
            return "not asked"
        entry = rows[0][value]
        measured = entry["value"] if isinstance(entry, Mapping) else entry
        return "not asked" if measured is None else formatted(entry, at(value, bare=value == "shuffled"))

    return Stored(shown, "s")


def _over_keys(texts: str, value: str) -> Stored:
    """z of unmarked texts over keys; runs of before tried one key."""

    def shown(result: Any) -> str:
        keys = result["watermarks"]["unmarked"][texts].get("keys")
        if keys is None:
            return "not measured"
        if value == "above":
            share = keys["above"]
            return f"{round(share['value'] * share['n'])} of {share['n']}"
        if value == "expected":
            return f"{keys['expected'] * keys['above']['n']:.1f}"
        return formatted(keys[value], at(value))

    return Stored(shown, "s")


def _largest_cosine(result: Any) -> float:
    """Cosine of harm at `t_inst` and the rule at `t_post_inst`, largest in the upper two thirds of layers."""
    upper = result["dissociation"][len(result["dissociation"]) // 3 :]
    return max(upper, key=abs)


def machine_text() -> dict[str, Stored]:
    """Detectors, attacks and interventions on the model's own text."""
    fast = "Fast-DetectGPT"
    entries: dict[str, Stored] = {}
    for name in (fast, "log-rank", "log-likelihood", "entropy"):
        entries[f"auroc {name}"] = at("detectors", name, "auroc")
        entries[f"found {name}"] = percent("detectors", name, "found")
    for short, texts in (("human", "human"), ("own", "the model's own, unmarked")):
        for value in ("mean", "deviation", "above", "expected"):
            entries[f"z over keys, {short}: {value}"] = _over_keys(texts, value)
    return entries | {
        "n": at("detectors", fast, "auroc", "n", form="d"),
        "paraphrased": at("attacks", "paraphrased by the model", "auroc", fast),
        "mixed": at("attacks", "human sentences mixed in", "auroc", fast),
        "layer": at("layer", form="d"),
        "steered": at("effects", "steered", fast, form="+.2f"),
        "steered random": at("effects", "steered_random", fast, form="+.2f"),
        "ablated": at("effects", "ablated", fast, form="+.2f"),
        "z, human": at("watermarks", "unmarked", "human", "mean"),
        "z, own": at("watermarks", "unmarked", "the model's own, unmarked", "mean"),
        "marked": percent("watermarks", "marked", "4", "power", -1),
        "marked, delta 2": percent("watermarks", "marked", "2", "power", -1),
    }
