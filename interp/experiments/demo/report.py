"""The demo's figures, tables and page, drawn from its stored numbers alone."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from interp.display.charts import layer_lines, rate_bars
from interp.display.page import Section, Table, html_report, notes_on, shown_rate

ENDINGS = ("as-is", "period")
"""How prompts end, side by side in everything read at `t_inst`."""
CONTROLS = ("random ablation", "random addition")


def figures(numbers: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure of the demo, from its stored numbers."""
    name, picked = numbers["provenance"]["model"], numbers["selected"]
    note = "" if numbers["rule"]["published"] else " (relaxed rule)"
    mark = (picked["layer"], f"picked layer {picked['layer']}, position {picked['position']}{note}")
    rates = {
        arm: {kind: r["12"] for kind, r in kinds.items()} for arm, kinds in numbers["refusal_rate"].items()
    }
    last = list(numbers["auroc"]["as-is"])[-1]
    separation = {
        f"{label}, {ending}": [r["value"] for r in numbers["auroc"][ending][role]]
        for role, label in (("t_inst", "t_inst"), (last, "t_post_inst"))
        for ending in ENDINGS
    }
    candidates = numbers["candidates"]
    return {
        "refusal_rates": rate_bars(
            rates,
            title=f"Refusal on held-out prompts, {name}{note}",
            y_title="refusal rate (12 substrings)",
            controls=CONTROLS,
        ),
        "cosine": layer_lines(
            {f"prompts {ending}": numbers["cosine"][ending] for ending in ENDINGS},
            title=f"Harmfulness (t_inst) against refusal (position {picked['position']}), {name}",
            y_title="cosine of the two directions",
            reference=0.0,
            marked=mark,
            y_range=(-1.0, 1.0),
        ),
        "auroc": layer_lines(
            separation,
            title=f"Harmful against harmless, held out, {name}",
            y_title="AUROC",
            reference=0.5,
            y_range=(0.0, 1.03),
            paired=tuple(f", {ending}" for ending in ENDINGS),
        ),
        "selection": layer_lines(
            {
                "bypass (ablated, harmful)": [c["bypass"] for c in candidates],
                "induce (added, harmless)": [c["induce"] for c in candidates],
            },
            layers=[c["layer"] for c in candidates],
            title=f"Candidates on the validation split, {name}",
            y_title="mean refusal metric (nats)",
            reference=0.0,
            marked=mark,
        ),
    }


def rate_table(numbers: Mapping[str, Any]) -> Table:
    """Refusal rates with intervals, by arm and kind."""
    kinds = list(numbers["refusal_rate"]["baseline"])
    first = numbers["refusal_rate"]["baseline"]
    header = ["intervention", *(f"{kind} (n = {first[kind]['12']['n']})" for kind in kinds)]
    rows = [
        [
            arm + (" (control)" if arm in CONTROLS else ""),
            *(shown_rate(by[kind]["12"]) if kind in by else "" for kind in kinds),
        ]
        for arm, by in numbers["refusal_rate"].items()
    ]
    return Table(header=header, rows=rows)


def candidate_table(numbers: Mapping[str, Any]) -> Table:
    """The shortlist with its validation scores; the pick is marked."""
    picked = numbers["selected"]
    rows = [
        [
            c["layer"],
            c["position"],
            *(
                "not measured" if c[score] is None else round(c[score], digits)
                for score, digits in (("bypass", 2), ("induce", 2), ("kl", 3))
            ),
            "picked"
            if (c["layer"], c["position"]) == (picked["layer"], picked["position"])
            else c.get("reason") or "",
        ]
        for c in numbers["candidates"]
    ]
    return Table(header=["layer", "position", "bypass (nats)", "induce (nats)", "KL (nats)", ""], rows=rows)


def verdicts(numbers: Mapping[str, Any]) -> list[str]:
    """What the data say, claim by claim, in words that follow from the intervals."""
    rates = {arm: {k: v["12"] for k, v in by.items()} for arm, by in numbers["refusal_rate"].items()}

    def against(arm: str, control: str, kind: str, claim: str, lower: bool) -> str:
        a, b = rates[arm][kind], rates[control][kind]
        seen = a["high"] < b["low"] if lower else a["low"] > b["high"]
        verdict = "Seen" if seen else "Not seen"
        return f"{verdict}: {claim} ({shown_rate(a)} against {shown_rate(b)} for {control}, {kind}, n = {a['n']})."

    picked = numbers["selected"]
    cosines = {ending: numbers["cosine"][ending][picked["layer"]] for ending in ENDINGS}
    return [
        against(
            "ablation", "random ablation", "harmful", "ablating the refusal direction removes refusals", True
        ),
        against(
            "addition",
            "random addition",
            "harmless",
            "adding the refusal direction makes the model refuse harmless prompts",
            False,
        ),
        against(
            "harmfulness addition",
            "random addition",
            "harmless",
            "adding the harmfulness direction makes the model refuse harmless prompts",
            False,
        ),
        f"At the picked layer the cosine of harmfulness and refusal is {cosines['as-is']:.2f} with prompts as "
        f"they are and {cosines['period']:.2f} with equal endings (random directions: 0 +- "
        f"{numbers['random_cosine_sd']:.2f}).",
    ]


def report(numbers: Mapping[str, Any]) -> str:
    """The demo's page."""
    drawn = figures(numbers)
    where, picked, rule = numbers["provenance"], numbers["selected"], numbers["rule"]
    filtered, leaks = numbers["filtered_counts"], numbers["leak_check"]
    notes = notes_on(where)
    if not filtered["applied"]:
        notes.append(
            f"Only {filtered['harmful_refused']} of {filtered['harmful']} harmful training prompts are refused and "
            f"{filtered['harmless_answered']} of {filtered['harmless']} harmless ones answered: too few "
            "to filter by behaviour, so the 'refusal' direction is fitted on all prompts and is a "
            "harmfulness direction at the template tokens."
        )
    if not rule["published"]:
        notes.append(
            f"No candidate met the published rule (induce >= 0, KL <= 0.1). Used instead: {rule['text']}."
        )
    tokens = numbers["refusal_tokens"]
    shown = ", ".join(
        f"{text!r} ({a:.2f} on harmful, {b:.2f} on harmless)"
        for text, a, b in zip(tokens["texts"], tokens["harmful_mass"], tokens["harmless_mass"], strict=True)
    )
    leak_rows = [
        [
            ending,
            "last token identity",
            leak["last_token"]["value"],
            f"[{leak['last_token']['low']:.2f}, {leak['last_token']['high']:.2f}]",
        ]
        for ending, leak in leaks.items()
    ] + [
        [ending, f"embedding at {role}", r["value"], f"[{r['low']:.2f}, {r['high']:.2f}]"]
        for ending, leak in leaks.items()
        for role, r in leak["embedding"].items()
    ]
    leaking = [
        ending
        for ending in ENDINGS
        if max(r[2] for r in leak_rows if r[0] == ending) > leaks[ending]["threshold"]
    ]
    sections = [
        Section(
            title="What was found",
            text=verdicts(numbers),
            notes=notes,
            tables=[rate_table(numbers)],
            figures=[drawn["refusal_rates"]],
        ),
        Section(
            title="Where refusal lives",
            text=[
                f"Refusal tokens found on the training prompts: {shown}. Chosen on "
                f"{where['config']['n_val']} + {where['config']['n_val']} validation prompts: "
                f"layer {picked['layer']}, position {picked['position']} "
                f"({numbers['post_inst_tokens'][picked['position']]!r}); bypass {picked['bypass']:.2f}, "
                f"induce {picked['induce']:.2f}, KL {picked['kl']:.3f}. Rule: {rule['text']}.",
                "Candidates are the template tokens that separate the validation prompts best, one each in the best "
                "layers.",
            ],
            figures=[drawn["selection"]],
            tables=[candidate_table(numbers)],
        ),
        Section(
            title="Harmfulness and refusal",
            text=[
                "Cosine per layer of the harmfulness direction (at the last instruction token) with the "
                "refusal direction, with prompts as they are and with every prompt ended by a full stop."
            ],
            figures=[drawn["cosine"]],
        ),
        Section(
            title="How well the inside tells harmful from harmless",
            text=[
                "AUROC of held-out prompts projected on the direction fitted on the training prompts, per layer. "
                "Layer 0 is the embedding: what it separates is the last token itself.",
                "The leak check asks how well the way prompts end tells the sets apart; 0.5 is no leak.",
            ],
            notes=[
                f"Leak above {leaks['as-is']['threshold']} with endings {', '.join(leaking)}: read t_inst results "
                "with care."
            ]
            if leaking
            else [],
            figures=[drawn["auroc"]],
            tables=[Table(header=["endings", "from", "AUROC", "95% interval"], rows=leak_rows)],
        ),
        Section(
            title="Five harmless prompts before and after adding the refusal direction",
            text=[f"Greedy replies, cut at {where['config']['max_new_tokens']} tokens."],
            tables=[
                Table(
                    header=["prompt", "before", "after"],
                    rows=[[e["prompt"], e["before"], e["after"]] for e in numbers["examples"]],
                )
            ],
        ),
    ]
    lead = (
        f"{where['model']} on prompt set {where['prompts']['name']}; {numbers['seconds']['total']:.0f} s on "
        f"{where['device']}."
    )
    return html_report("Refusal and harmfulness inside a chat model", lead, sections, where)
