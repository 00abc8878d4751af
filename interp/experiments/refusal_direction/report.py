"""Tables, verdicts and the page of the refusal-direction experiment, from its stored numbers alone.

Table numbers are those of the final arXiv version of Arditi et al. 2024 (2406.11717).
"""

from collections.abc import Mapping
from typing import Any

from interp.display.page import Section, Table, html_report, notes_on, shown_rate
from interp.experiments.refusal_direction.figures import ARM_LABELS, CONTROLS, SCORES, figures

__all__ = ["figures", "rate_table", "report", "verdicts"]


def rate_table(numbers: Mapping[str, Any]) -> Table:
    """Refusal rates by kind and intervention, both substring lists."""
    rows = [
        [
            kind,
            ARM_LABELS[arm] + (" (control)" if ARM_LABELS[arm] in CONTROLS else ""),
            by["12"]["n"],
            shown_rate(by["12"]),
            shown_rate(by["24"]),
        ]
        for kind, arms in numbers["refusal_rate"].items()
        for arm, by in arms.items()
    ]
    return Table(header=["prompts", "intervention", "n", "12 substrings", "24 substrings"], rows=rows)


def selection_table(numbers: Mapping[str, Any]) -> Table:
    """Table 5: the picked candidate and its scores."""
    s, where = numbers["selected"], numbers["provenance"]
    row = [where["model"], s["position"], f"{s['layer']}/{where['n_layers']}"]
    return Table(
        header=["model", "i*", "l*/L", "bypass", "induce", "KL"],
        rows=[[*row, *(round(s[k], 3) for k in ("bypass", "induce", "kl"))]],
    )


def stability_table(numbers: Mapping[str, Any], most: int = 5) -> Table:
    """How often each candidate is picked over resampled validation prompts."""
    by_place = {(c["position"], c["layer"]): c for c in numbers["candidates"]}
    rows = []
    for entry in numbers["pick_stability"][:most]:
        if entry["position"] is None:
            rows.append(["nothing passes", "", entry["share"], "", "", ""])
            continue
        scored = by_place[entry["position"], entry["layer"]]
        rows.append([entry["position"], entry["layer"], entry["share"], *(scored[k] for k in SCORES)])
    return Table(header=["position", "layer", "share of draws", "bypass", "induce", "KL"], rows=rows)


def cross_entropy_table(numbers: Mapping[str, Any]) -> Table:
    """Table 9: cross-entropy in nats per token, with 95% intervals."""
    arms = list(next(iter(numbers["cross_entropy"].values())))
    rows = [
        [
            corpus,
            by["baseline"]["n"],
            *(f"{by[a]['value']:.3f} [{by[a]['low']:.3f}, {by[a]['high']:.3f}]" for a in arms),
        ]
        for corpus, by in numbers["cross_entropy"].items()
    ]
    return Table(header=["corpus", "tokens", *(ARM_LABELS[arm] for arm in arms)], rows=rows)


def verdicts(numbers: Mapping[str, Any]) -> list[str]:
    """What the data say, claim by claim, in words that follow from the intervals."""
    rates = numbers["refusal_rate"]

    def against(kind: str, arm: str, control: str, claim: str, lower: bool) -> str:
        if arm not in rates[kind]:
            return f"Not measured: {claim} ({numbers['skipped'][arm]})."
        a, b = rates[kind][arm]["12"], rates[kind][control]["12"]
        seen = a["high"] < b["low"] if lower else a["low"] > b["high"]
        return (
            f"{'Seen' if seen else 'Not seen'}: {claim} ({shown_rate(a)} against {shown_rate(b)} for "
            f"{ARM_LABELS[control]}, {kind}, n = {a['n']})."
        )

    losses = numbers["cross_entropy"]
    order = all(by["ablation"]["value"] < by["addition_minus"]["value"] for by in losses.values())
    changes = "; ".join(
        f"{corpus} {by['ablation']['value'] - by['baseline']['value']:+.3f} and "
        f"{by['addition_minus']['value'] - by['baseline']['value']:+.3f}"
        for corpus, by in losses.items()
    )
    return [
        against("harmful", "ablation", "random_ablation", "ablation removes refusals (figure 1)", True),
        against(
            "harmful",
            "orthogonalized",
            "random_ablation",
            "the edited weights remove refusals (section 4)",
            True,
        ),
        against(
            "harmful", "addition_minus", "random_ablation", "subtraction removes refusals (figure 23)", True
        ),
        against(
            "harmless", "addition_plus", "random_addition", "addition induces refusals (figure 3)", False
        ),
        f"{'Seen' if order else 'Not seen'}: ablation costs less cross-entropy than subtraction (table 9; ablation and "
        f"subtraction in nats per token: {changes}).",
    ]


def report(numbers: Mapping[str, Any]) -> str:
    """The experiment's page."""
    drawn, where, picked = figures(numbers), numbers["provenance"], numbers["selected"]
    notes = notes_on(where)
    if not numbers["rule"]["published"]:
        notes.append(
            "The selection rule was relaxed by the user: "
            f"{numbers['rule']['text']}; the published one is KL <= 0.1, induce >= 0."
        )
    counts = ", ".join(
        f"{k.replace('_', ' ')} {v['kept']}/{v['of']}" for k, v in numbers["filtered_counts"].items()
    )
    tokens = numbers["refusal_tokens"]
    named = ", ".join(
        f"{text!r} ({a:.2f} on harmful, {b:.2f} on harmless)"
        for text, a, b in zip(tokens["texts"], tokens["harmful_mass"], tokens["harmless_mass"], strict=True)
    )
    inside = numbers["mechanism"]
    explained = inside["explained"]
    sections = [
        Section(
            title="What was found",
            text=verdicts(numbers),
            notes=notes,
            tables=[rate_table(numbers)],
            figures=[drawn["fig01_bypass"], drawn["fig03_induce"], drawn["fig23_subtract"]],
        ),
        Section(
            title="Prompts and refusal metric (section 2.3)",
            text=[
                f"Refusal tokens, {'found on the training prompts' if tokens['found'] else 'given'}: {named}. Kept "
                f"after filtering: {counts}."
            ],
            figures=[drawn["fig09_first_tokens"], drawn["fig10_refusal_metric"]],
        ),
        Section(
            title="Selection (section 2.3, appendix C)",
            text=[
                f"Rule: {numbers['rule']['text']}. Picked: layer {picked['layer']}, position {picked['position']} "
                f"({numbers['post_inst_tokens'][picked['position']]!r}), norm {numbers['selected_norm']:.2f}.",
                "Sweep: "
                + (
                    "every score of every candidate was measured."
                    if numbers["sweep"] == "exhaustive"
                    else "what provably cannot win was not measured, so lines have gaps."
                ),
                "The second table draws the validation prompts anew with replacement: near-ties swap.",
            ],
            tables=[selection_table(numbers), stability_table(numbers)],
            figures=[drawn["fig11_selection"]],
        ),
        Section(
            title="Cross-entropy (appendix G.3)",
            text=[
                "Nats per token, 95% bootstrap intervals; 'own replies' are the unmodified model's to harmless prompts."
            ],
            tables=[cross_entropy_table(numbers)],
        ),
        Section(
            title="Mechanism (section 5)",
            text=[
                f"{inside['n']['refused']} harmful prompts that the model refuses, under each condition; "
                f"{inside['n']['answered']} harmless ones for reference.",
                f"Projection of the final stream on the direction, plain requests: total {explained['total']:.2f} = "
                f"embedding {explained['embedding']:.2f} + heads {explained['heads']:.2f} (the top "
                f"{len(inside['heads'])} of them {explained['top_heads']:.2f}) + MLPs {explained['mlps']:.2f} + rest "
                f"{explained['rest']:.2f}."
                if explained
                else f"No attribution to heads: {inside['skipped']}.",
            ],
            tables=[
                Table(
                    header=["condition", "refusal metric (nats)", "95% interval"],
                    rows=[
                        [name, e["value"], f"[{e['low']:.2f}, {e['high']:.2f}]"]
                        for name, e in inside["refusal_metric"].items()
                    ],
                )
            ],
            figures=[
                drawn[name] for name in ("fig05_cosine", "fig06a_heads", "fig06b_attention") if name in drawn
            ],
        ),
        Section(
            title="Subtraction moves activations off their distribution (appendix I.1)",
            text=["The paper does not name its axes; here they are the first two principal components."],
            figures=[drawn["fig22_scatter"]],
        ),
    ]
    if "fig24_base_model" in drawn:
        sections.append(
            Section(
                title="The base model (appendix J)",
                text=["Solid: chat model. Dotted: base model."],
                figures=[drawn["fig24_base_model"]],
            )
        )
    lead = (
        f"Arditi et al. 2024 on {where['model']}, prompt set {where['prompts']['name']}; "
        f"{numbers['seconds']['total']:.0f} s on {where['device']}."
    )
    return html_report("Refusal is mediated by a single direction", lead, sections, where)
