"""Numbers of the pages on repairs: alignment recovery and safety prompts."""

from collections.abc import Callable
from typing import Any

from stored_entries import Step, Stored, at, percent

from interp.stats import Estimate, mean_with_interval, rate


def recovery() -> dict[str, Stored]:
    """The run on smollm2-safe: two models and every comparison."""
    more: dict[str, tuple[Step, ...]] = {
        "0 stubs, fine-tuned": ("cases", "0 stubs", "finetuned"),
        "0 stubs, picked": ("cases", "0 stubs", "recovery", "behaviour"),
        "0 stubs, last step": ("cases", "0 stubs", "recovery", "saved", "20"),
        "last step": ("cases", "50 stubs", "recovery", "saved", "20"),
    }
    return _behaviours(more) | {
        **_recovered("50 stubs"),
        "0 stubs, step": at("cases", "0 stubs", "recovery", "picked", form="d"),
        "loss after a step": at("cases", "50 stubs", "recovery", "steps", 2, "loss", form=".3f"),
        "first step's prediction": at("cases", "50 stubs", "recovery", "steps", 1, "predicted", form=".2g"),
        "loss before": at("cases", "50 stubs", "recovery", "steps", 1, "loss", form=".3f"),
    }


def recovery_qwen() -> dict[str, Stored]:
    """The run on Qwen2.5-Coder-0.5B-Instruct: one model, ten steps."""
    steps = ("cases", "50 stubs", "recovery", "steps")
    return _recovered("50 stubs") | {
        "state before": at(*steps, 0, "cosine_harmful", form=".3f"),
        "state after": at(*steps, 10, "cosine_harmful", form=".3f"),
    }


def _recovered(case: str) -> dict[str, Stored]:
    """Refusal of harmful prompts and task score of every model compared with this case, and what was restored."""
    models: dict[str, tuple[Step, ...]] = {
        "aligned": ("aligned",),
        "fine-tuned": ("cases", case, "finetuned"),
        "picked": ("cases", case, "recovery", "behaviour"),
        "all steps": ("all_steps", "behaviour"),
        "random": ("ablations", "random weights (control)", "behaviour"),
        "attribution": ("ablations", "|gradient x difference|", "behaviour"),
        "below": ("all_below",),
        "above": ("all_above",),
    }
    return _behaviours(models) | {
        "n harmful": at("n", "harmful", form="d"),
        "n task": at("n", "task", form="d"),
        "step": at("cases", case, "recovery", "picked", form="d"),
        "share": at("all_steps", "share", form=".2%"),
    }


def _behaviours(models: dict[str, tuple[Step, ...]]) -> dict[str, Stored]:
    entries: dict[str, Stored] = {}
    for name, where in models.items():
        entries[f"{name}: harmful"] = percent(*where, "refusal_rate", "harmful")
        entries[f"{name}: harmless"] = percent(*where, "refusal_rate", "harmless")
        entries[f"{name}: task"] = percent(*where, "task")
    return entries


REPAIRS = {
    "aligned": "aligned model",
    "none": "no repair",
    "system prompt": "system prompt",
    "DRO": "optimised prompt (DRO)",
    "steering": "refusal direction added",
    "gated": "refusal direction added where the guard fires",
    "guard": "guard answers with a refusal",
    "refusals": "fine-tuned on refusals",
    "SoftSFT": "SoftSFT while fine-tuning",
    "RESTA": "RESTA",
    "SafeLoRA": "SafeLoRA",
    "WiSE": "interpolation (WiSE)",
    "recovery": "recovery",
    "all steps": "recovery, all steps",
    "random": "random restore, equal count",
}
"""Rows of the scoreboard that the page quotes, by the short names it uses."""


def repair() -> dict[str, Stored]:
    """The scoreboard: refusal by kind and task score of every row."""
    return _rows(REPAIRS) | {
        "seeds": at("config", "seeds", form="d"),
        "over random": _over("recovery, all steps", "over_count"),
        **{
            f"{name}: over random": _over(REPAIRS[name], "over_norm")
            for name in ("RESTA", "SafeLoRA", "WiSE")
        },
        "all steps: by seed": _by_seed("recovery, all steps"),
        "random: by seed": _by_seed("random restore, equal count"),
        "DRO: by seed": _by_seed("optimised prompt (DRO)"),
        "by both: by seed": _by_seed("recovery by |gradient x difference|"),
        "minutes": _minutes(),
    }


def repair_qwen() -> dict[str, Stored]:
    """The same for the run on Qwen2.5-Coder-0.5B-Instruct, which has fewer rows."""
    left_out = {"steering", "SoftSFT", "recovery"}
    rows = {name: row for name, row in REPAIRS.items() if name not in left_out}
    return _rows(rows) | {"SafeLoRA: over random": _over("SafeLoRA", "over_norm")}


FAST = ("aligned", "none", "DRO", "gated", "guard", "RESTA", "SafeLoRA", "WiSE", "all steps", "random")
"""Rows of the run in rounded products that the page quotes beside the exact ones."""


def repair_fast() -> dict[str, Stored]:
    """The same with `--precision fast --workers 2`."""
    rows = {
        f"{name}: {column}": percent("rows", REPAIRS[name], *where)
        for name in FAST
        for column, where in (("harmful", ("refused", "harmful")), ("task", ("task",)))
    }
    return rows | {
        "minutes": _minutes(),
        "DRO: by seed": _by_seed("optimised prompt (DRO)"),
        "by both: by seed": _by_seed("recovery by |gradient x difference|"),
        "all steps: by seed": _by_seed("recovery, all steps"),
        "SafeLoRA: over random": _over("SafeLoRA", "over_norm"),
    }


def _minutes() -> Stored:
    """Minutes of the whole run."""
    return Stored(lambda result: f"{result['seconds']['total'] / 60:.0f}", "s")


def _rows(rows: dict[str, str]) -> dict[str, Stored]:
    entries: dict[str, Stored] = {}
    for name, row in rows.items():
        for kind in ("harmful", "harmless"):
            entries[f"{name}: {kind}"] = percent("rows", row, "refused", kind)
        entries[f"{name}: task"] = percent("rows", row, "task")
    return entries | {"n": at("n", "harmful", form="d")}


def _over(row: str, control: str) -> Stored:
    """Refusal of harmful prompts minus that of a control, in points."""
    return Stored(lambda result: _points(result["rows"][row][control]), "+.0f")


def _by_seed(row: str) -> Stored:
    """Refusal of harmful prompts at each seed."""
    return Stored(
        lambda result: ", ".join(f"{100 * share:.0f}%" for share in result["rows"][row]["by_seed"]), "s"
    )


def _points(entry: dict[str, float]) -> dict[str, float]:
    return {**entry, **{end: 100 * entry[end] for end in ("value", "low", "high")}}


def safety_prompts() -> dict[str, Stored]:
    """Separation, shifts along the refusal normal, and held-out behaviour under every system prompt."""
    prompts = {
        "none": "none",
        "neutral": "neutral text (control)",
        "text": "text: default",
        "tuning": "prompt tuning",
        "DRO": "DRO",
        "random": "random soft prompt (control)",
    }
    as_is = ("geometry", "as-is")
    entries = {
        "auroc": at(*as_is, "separation", "harmfulness"),
        "auroc, shuffled": at(*as_is, "separation", "shuffled"),
        "auroc, equal endings": at("geometry", "period", "separation", "harmfulness"),
        "alike": at(*as_is, "similarity", "harmful", "safety"),
        "alike, neutral": at(*as_is, "similarity", "harmful", "neutral"),
        "n": at("n", "harmful", form="d"),
        "n train": at("config", "n_train", form="d"),
    }
    for name, key in prompts.items():
        entries[f"{name}: harmful probability"] = Stored(_probability_under(key, "harmful"))
        for kind in ("harmful", "harmless"):
            entries[f"{name}: {kind} refused"] = Stored(_refused_under(key, kind), "percent")
            if name != "none":
                entries[f"{name}: {kind} shift"] = at("behaviour", key, "shift", kind, "refusal", form="+.2f")
    return entries


def _refused_under(prompt: str, kind: str) -> Callable[[Any], Estimate]:
    return lambda result: rate(result["behaviour"][prompt]["refused"][kind])


def _probability_under(prompt: str, kind: str) -> Callable[[Any], Estimate]:
    return lambda result: mean_with_interval(result["behaviour"][prompt]["probability"][kind])
