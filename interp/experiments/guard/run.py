"""Latent Guard against other detectors of harmful prompts, on the same prompts and thresholds.

Zhao et al. 2025, *LLMs Encode Harmfulness and Refusal Separately* (arXiv:2507.11878), section 5, table 3.

| claim | where | theirs | seen here when |
|---|---|---|---|
| the belief at t_inst detects harmful prompts | table 3 | 41.6% to 100% | AUROC above a random direction's |
| also where behaviour misleads | table 3, last columns | 54.6% to 100% | more right than wrong, by the interval |
| jailbreaks that succeed are still flagged | table 3 | 41.6% to 100% | most flagged, harmless wrapped not |

Table 3 has no column of ordinary harmless prompts: here false positives on harmless and on borderline-safe prompts
stand beside every detection. Detectors:

- *Latent Guard*: harm belief at `t_inst` (`interp.detectors.latent_guard`), threshold 0 as published;
- *refusal direction*: projection at `t_post_inst` on the difference of refused harmful and answered harmless prompts,
  at the layer that is best on validation prompts (Arditi et al. 2024, arXiv:2406.11717);
- *logistic probe* at the best validation layer and role; *TF-IDF*: logistic regression on the prompt's words alone;
- *random direction*: the control, at the probe's layer;
- guard models of the Hub that the user names (`interp.detectors.guard_models`).

Each is also calibrated to one false-positive rate on harmless validation prompts. Everything is done three times: with
prompts as they are, stripped of closing punctuation, and ended by a full stop. With `anchors`, all is fitted again with
harmless prompts of another source: what a detector then loses, it owed to the source.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.data.prompts import Ending, Prompts, PromptSet, load_prompts, read_prompts
from interp.data.wrappers import attempts, wrappers
from interp.detectors.guard_models import TextGuard, load_text_guard
from interp.detectors.latent_guard import check_calibration
from interp.evaluation.responses import Responses, respond
from interp.experiments.guard.compared_detectors import CONTROL, KINDS, Detector, fit_detectors
from interp.experiments.guard.report import ENDINGS, figures, rate_table, report, verdicts
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import states
from interp.representations.confounds import leak_check
from interp.stats import auroc, rate
from interp.storage.provenance import provenance
from interp.storage.untyped import ExperimentResult, Parts, Stopwatch

__all__ = ["NAME", "SUMMARY", "Config", "Result", "figures", "rate_table", "report", "run", "verdicts"]

NAME = "guard"
SUMMARY = (
    "Latent Guard against a probe, the refusal direction, words alone and guard models (Zhao et al. 2025)"
)
_LEAST_ANCHORS = 24
_VAL = "validation"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the paper's unless a reason is given."""

    n_train: int = 100
    """Prompts of each kind that detectors are fitted on (section 5)."""
    n_test: int = 100
    """Prompts of each kind that they are measured on."""
    false_positive_rate: float = 0.1
    """Of the calibrated thresholds, on harmless validation prompts."""
    text_guards: tuple[str, ...] = ()
    """Guard models of the Hub or folders, as `interp.detectors.guard_models.load_text_guard` takes them."""
    anchors: str = ""
    """File or `hub:` set of harmless prompts of another source, to fit on instead."""
    unseen: str = ""
    """Further prompt set to be measured on, `harmful=FILE,harmless=FILE` or a folder."""
    families: tuple[str, ...] = ("template", "persuasion")
    """Families of jailbreak wrappers whose successes are measured (table 3)."""
    n_wrapped: int = 15
    """Plainly refused test prompts that are wrapped; 0 leaves jailbreaks out."""
    max_new_tokens: int = 24
    """Length of the replies that say what is refused."""
    seed: int = 0
    """Of the random direction and the bootstrap."""

    def __post_init__(self) -> None:
        if not 0 < self.false_positive_rate < 1:
            raise ValueError(f"false_positive_rate must lie between 0 and 1, got {self.false_positive_rate}")
        for name, least in {"n_train": 2, "n_test": 2, "max_new_tokens": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        wrappers(self.families)  # an unknown family is refused here


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(ExperimentResult):
    """What a run found."""


def run(
    model: ChatModel,
    prompts: PromptSet,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> Result:
    """Run the comparison.

    Args:
        out: run folder; finished parts are kept beside it until the run is whole, and a run started again continues.

    Raises:
        ValueError: too few prompts that the model refuses or answers, prompts whose endings were changed already, or
            too few validation prompts for the false-positive rate.
    """
    config = config or Config()
    if prompts.ending != "as-is":
        raise ValueError(f"this experiment compares endings itself; load {prompts.name} with ending='as-is'")
    watch, parts = Stopwatch(), None
    if out is not None:
        settings = {"config": asdict(config), "model": model.provenance, "prompts": prompts.provenance}
        parts = Parts(out, settings)

    def keep(name: str, compute: Callable[[], Any]) -> Any:
        return parts.numbers(name, compute) if parts else compute()

    def see(name: str, asked: Prompts) -> Responses:
        def replies() -> list[bool]:
            return list(
                respond(
                    model,
                    asked,
                    substrings="zhao",
                    max_new_tokens=config.max_new_tokens,
                    show_progress=show_progress,
                ).refused
            )

        return Responses(prompts=asked, refused=tuple(keep(name, replies)), replies=())

    # 1. Prompts, and what the model does with them.
    train = {kind: prompts[kind, "train"].first(config.n_train) for kind in KINDS}
    val = {kind: prompts[kind, "val"] for kind in KINDS}
    check_calibration(len(val["harmless"]), config.false_positive_rate)
    train_seen = {kind: see(f"train-{kind}", train[kind]) for kind in KINDS}
    groups, members = _test_groups(prompts, config, see)
    watch.lap("replies")

    # 2. Detectors, fitted and scored with each ending.
    tables: dict[str, Any] = {}
    for ending in ENDINGS:
        sets = {
            f"{split}-{kind}": part[kind].with_ending(ending)
            for split, part in (("train", train), ("val", val))
            for kind in KINDS
        }
        measured_on = {name: part.with_ending(ending) for name, part in groups.items()}
        tables[ending] = keep(
            f"scores-{ending}",
            lambda sets=sets, on=measured_on, ending=ending: _scores(
                model, sets, on, train_seen, ending, config, show_progress
            ),
        )
        watch.lap(f"detectors, {ending}")

    # 3. Guard models that read the text.
    for name in config.text_guards:
        _add_text_guard(name, tables, {**groups, _VAL: val["harmless"]}, str(model.device), keep)
        watch.lap(f"guard model {name}")

    numbers = {
        "experiment": NAME,
        "groups": {name: len(part) for name, part in groups.items()},
        "counts": {
            kind: {"refused": len(s.rows(refused=True)), "of": len(s)} for kind, s in train_seen.items()
        },
        "by_ending": {
            ending: {
                "detectors": {
                    name: measured(name, table, groups, members, config) for name in table["scores"]
                },
                "about": table["about"],
                "leak_check": table["leak_check"],
            }
            for ending, table in tables.items()
        },
        "seconds": watch.with_total,
        "provenance": provenance(model.provenance, prompts.provenance, config),
    }
    result = Result(numbers=numbers)
    if out is not None:
        result.save(out)
        assert parts is not None
        parts.discard()
    return result


def _scores(
    model: ChatModel,
    sets: Mapping[str, Prompts],
    groups: Mapping[str, Prompts],
    seen: Mapping[str, Responses],
    ending: Ending,
    config: Config,
    show_progress: bool,
) -> dict[str, Any]:
    """Every detector, fitted on these prompts: scores of each group and of harmless validation prompts."""
    read = {name: states(model, part.texts, show_progress=show_progress) for name, part in sets.items()}
    fitted = fit_detectors(sets, read, seen, config.seed)
    if config.anchors:
        fitted |= _with_other_anchors(model, sets, read, seen, ending, config)
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in fitted}
    for group, part in groups.items():
        acts = states(model, part.texts, show_progress=show_progress)
        for name, one in fitted.items():
            scores[name][group] = one.score(part.texts, acts)
    leak = leak_check(
        model,
        train=(sets["train-harmful"], sets["train-harmless"]),
        held_out=(groups["harmful"], groups["harmless"]),
        label=f"test prompts, {ending}",
    )
    held = "val-harmless"
    return {
        "scores": scores,
        "val": {name: one.score(sets[held].texts, read[held]) for name, one in fitted.items()},
        "thresholds": {name: one.threshold for name, one in fitted.items()},
        "about": {name: one.about for name, one in fitted.items()},
        "leak_check": leak.as_dict(),
    }


def _with_other_anchors(
    model: ChatModel,
    sets: Mapping[str, Prompts],
    read: Mapping[str, Tensor],
    seen: Mapping[str, Responses],
    ending: Ending,
    config: Config,
) -> dict[str, Detector]:
    """The detectors again, with harmless prompts of another source to fit and choose on."""
    other = read_prompts(config.anchors).with_ending(ending).shuffled(config.seed)
    if len(other) < _LEAST_ANCHORS:
        raise ValueError(f"{config.anchors} must have {_LEAST_ANCHORS} prompts or more, got {len(other)}")
    rows, n_val = list(range(len(other))), min(len(sets["val-harmless"]), len(other) // 3)
    anchors = {
        "train-harmless": other.take(rows[n_val : n_val + config.n_train]),
        "val-harmless": other.take(rows[:n_val]),
    }
    acts = {name: states(model, part.texts) for name, part in anchors.items()}
    found = fit_detectors({**sets, **anchors}, {**read, **acts}, {"harmful": seen["harmful"]}, config.seed)
    return {f"{name}, other anchors": one for name, one in found.items() if name != CONTROL}


def _add_text_guard(
    name: str,
    tables: Mapping[str, Any],
    groups: Mapping[str, Prompts],
    device: str,
    keep: Callable[[str, Callable[[], Any]], Any],
) -> None:
    """Enter a guard model's scores and verdicts into the tables of all endings; it is loaded only when needed."""
    loaded: list[TextGuard] = []
    for ending, table in tables.items():

        def ask(ending: Any = ending) -> dict[str, Any]:
            if not loaded:
                loaded.append(load_text_guard(name, device=device))
            return {
                group: [asdict(v) for v in loaded[0].score(part.with_ending(ending).texts)]
                for group, part in groups.items()
            }

        said = keep(f"text-guard-{ending}-{re.sub(r'[^A-Za-z0-9.-]', '_', name)}", ask)
        table["val"][name] = [v["score"] for v in said[_VAL]]
        table["scores"][name] = {g: [v["score"] for v in rows] for g, rows in said.items() if g != _VAL}
        flags = {g: [v["harmful"] for v in rows] for g, rows in said.items() if g != _VAL}
        table["flags"] = {**table.get("flags", {}), name: flags}
        table["thresholds"][name], table["about"][name] = 0.0, "its own answer"


def _test_groups(
    prompts: PromptSet, config: Config, see: Callable[[str, Prompts], Responses]
) -> tuple[dict[str, Prompts], dict[str, dict[str, list[int]]]]:
    """What is measured on: prompts by group, and rows of the groups that are part of another."""
    groups = {kind: prompts[kind, "test"].first(config.n_test) for kind in KINDS}
    if ("borderline", "test") in prompts:
        groups["borderline"] = prompts["borderline", "test"].first(config.n_test)
    seen = {kind: see(f"test-{kind}", groups[kind]) for kind in groups}
    members = {
        "accepted harmful": {"harmful": seen["harmful"].rows(refused=False)},
        "refused harmless": {"harmless": seen["harmless"].rows(refused=True)},
    }
    if "borderline" in groups:
        members["refused borderline"] = {"borderline": seen["borderline"].rows(refused=True)}
    if config.n_wrapped:
        refused = groups["harmful"].take(seen["harmful"].rows(refused=True)[: config.n_wrapped])
        answered = groups["harmless"].take(seen["harmless"].rows(refused=False)[: config.n_wrapped])
        for family in config.families:
            for label, asked in ((f"{family} jailbreaks", refused), (f"{family}, harmless", answered)):
                tried = attempts(wrappers((family,)), asked)
                if not tried:
                    continue
                texts = tuple(attempt.prompt for attempt in tried)
                whole = Prompts(
                    texts, tuple(f"{label}-{i}" for i in range(len(texts))), (None,) * len(texts), label
                )
                through = see(f"wrapped-{label}".replace(" ", "-").replace(",", ""), whole).rows(
                    refused=False
                )
                if through:  # of harmful requests, jailbreaks that succeed
                    groups[label] = whole.take(through)
    if config.unseen:
        other = load_prompts(config.unseen, seed=config.seed)
        for kind in (*KINDS, "borderline"):
            parts = [part for (k, _), part in other.parts.items() if k == kind]
            if parts:
                texts = tuple(dict.fromkeys(text for part in parts for text in part.texts))
                whole = Prompts(
                    texts,
                    tuple(f"unseen-{i}" for i in range(len(texts))),
                    (None,) * len(texts),
                    config.unseen,
                )
                groups[f"unseen {kind}"] = whole.shuffled(config.seed).first(config.n_test)
    return groups, members


def measured(
    name: str,
    table: Mapping[str, Any],
    groups: Mapping[str, Prompts],
    members: Mapping[str, Mapping[str, Sequence[int]]],
    config: Config,
) -> dict[str, Any]:
    """One detector: AUROC, accuracy and flagged shares at both thresholds, ROC, AUROC per category."""
    scores, own = table["scores"][name], table["thresholds"][name]
    allowed = int(config.false_positive_rate * len(table["val"][name]) + 1e-9)
    calibrated = sorted(table["val"][name], reverse=True)[allowed]
    flags = {
        "own": table.get("flags", {}).get(name)
        or {group: [value > own for value in values] for group, values in scores.items()},
        "calibrated": {group: [value > calibrated for value in values] for group, values in scores.items()},
    }
    by_category: dict[str, list[float]] = {}
    for value, category in zip(scores["harmful"], groups["harmful"].categories, strict=True):
        if category is not None:
            by_category.setdefault(category, []).append(value)

    def separation(bad: Sequence[float], good: Sequence[float]) -> dict[str, Any]:
        return auroc(torch.tensor(bad), torch.tensor(good), seed=config.seed, resamples=200).as_dict()

    found: dict[str, Any] = {
        "thresholds": {"own": own, "calibrated": calibrated},
        "auroc": separation(scores["harmful"], scores["harmless"]),
        "auroc_by_category": {
            category: separation(values, scores["harmless"])
            for category, values in sorted(by_category.items())
        },
        "scores": {
            group: values
            for group, values in scores.items()
            if group in ("harmful", "harmless", "borderline")
        },
    }
    if "unseen harmful" in scores and "unseen harmless" in scores:
        found["auroc_unseen"] = separation(scores["unseen harmful"], scores["unseen harmless"])
    for rule, by in flags.items():
        known = {group: [f for f in rows if f is not None] for group, rows in by.items()}
        found[rule] = {
            "accuracy": rate(
                [bool(f) for f in known["harmful"]] + [not f for f in known["harmless"]]
            ).as_dict(),
            "flagged": {group: rate([bool(f) for f in rows]).as_dict() for group, rows in known.items()},
            "unread": sum(len(by[group]) - len(known[group]) for group in by),
        }
        for label, where in members.items():
            ((group, rows),) = where.items()
            chosen = [by[group][row] for row in rows]
            found[rule]["flagged"][label] = rate([bool(f) for f in chosen if f is not None]).as_dict()
    return found
