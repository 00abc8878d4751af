"""Tables, verdicts and the page of the refusal-direction experiment, from a stored result alone.

Table numbers are those of the final arXiv version of Arditi et al. 2024 (2406.11717).
"""

from collections.abc import Mapping

import plotly.graph_objects as go

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.refusal_direction import Result
from interp.experiments.refusal_direction.figures import ARM_LABELS, figures
from interp.experiments.refusal_direction.selection_figures import SCORES
from interp.representations.selection import Confirmation


def rate_table(result: Result) -> Table:
    """Refusal rates by kind and intervention, both substring lists."""
    rows = [
        [
            kind,
            ARM_LABELS[arm],
            rates.arditi.n,
            rates.arditi.percent,
            rates.zhao.percent,
        ]
        for kind, arms in result.refusal_rate.items()
        for arm, rates in arms.items()
    ]
    return Table(header=["prompts", "intervention", "n", "12 substrings", "24 substrings"], rows=rows)


def selection_table(result: Result) -> Table:
    """Table 5: the picked candidate and its scores."""
    picked, model = result.selected, result.provenance.model
    n_layers = "" if model is None else f"/{model.n_layers}"
    row = [result.provenance.model_name, picked.position, f"{picked.layer}{n_layers}"]
    return Table(
        header=["model", "i*", "l*/L", "bypass", "induce", "KL"],
        rows=[[*row, *(round(getattr(picked, score), 3) for score in SCORES)]],
    )


def stability_table(result: Result, *, n: int = 5) -> Table:
    """How often each candidate is picked over resampled validation prompts: the n most frequent picks."""
    by_place = {(c.position, c.layer): c for c in result.candidates}
    rows = []
    for pick in result.pick_stability[:n]:
        if pick.position is None or pick.layer is None:
            rows.append(["nothing passes", "", pick.share, "", "", ""])
            continue
        scored = by_place[pick.position, pick.layer]
        rows.append([pick.position, pick.layer, pick.share, *(getattr(scored, score) for score in SCORES)])
    return Table(header=["position", "layer", "share of draws", "bypass", "induce", "KL"], rows=rows)


def cross_entropy_table(result: Result) -> Table:
    """Table 9: cross-entropy in nats per token, with 95% intervals."""
    arms = list(next(iter(result.cross_entropy.values())))
    rows = [
        [
            corpus,
            by["baseline"].n,
            *(f"{by[arm].value:.3f} [{by[arm].low:.3f}, {by[arm].high:.3f}]" for arm in arms),
        ]
        for corpus, by in result.cross_entropy.items()
    ]
    return Table(header=["corpus", "tokens", *(ARM_LABELS[arm] for arm in arms)], rows=rows)


def verdicts(result: Result) -> list[str]:
    """What the data say, claim by claim, in words that follow from the intervals."""
    rates = result.refusal_rate

    def against(kind: str, arm: str, control: str, claim: str, lower: bool) -> str:
        if arm not in rates[kind]:
            return f"Not measured: {claim} ({result.skipped[arm]})."
        a, b = rates[kind][arm].arditi, rates[kind][control].arditi
        holds = a.below(b) if lower else a.above(b)
        return (
            f"{'Seen' if holds else 'Not seen'}: {claim} ({a.percent} against {b.percent} for "
            f"{ARM_LABELS[control]}, {kind}, n = {a.n})."
        )

    losses = result.cross_entropy
    order = all(by["ablation"].value < by["addition_minus"].value for by in losses.values())
    changes = "; ".join(
        f"{corpus} {by['ablation'].value - by['baseline'].value:+.3f} and "
        f"{by['addition_minus'].value - by['baseline'].value:+.3f}"
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


def _confirmed(confirmation: Confirmation | None) -> list[str]:
    """What a pick in `fast` rests on, in words."""
    if confirmation is None:
        return []
    return [
        f"Candidates were screened with products rounded to bfloat16. {confirmation.confirmed} of "
        f"{confirmation.screened} were scored again in float32, the pick among them; rounding moved their bypass by "
        f"{confirmation.bypass:.2g}, induce by {confirmation.induce:.2g} and KL by {confirmation.kl:.2g} nats a prompt "
        f"at most. No other candidate wins even if rounding moved it {confirmation.margin:g} times as far."
    ]


def _selection(result: Result, drawn: go.Figure) -> Section:
    """Which direction was picked, by which rule, and how firmly."""
    picked, rule = result.selected, result.rule
    return Section(
        title="Selection (section 2.3, appendix C)",
        text=[
            f"Rule: {rule.text}. Picked: layer {picked.layer}, position {picked.position} "
            f"({result.post_inst_tokens[picked.position]!r}), norm {result.selected_norm:.2f}.",
            "Sweep: "
            + (
                "every score of every candidate was measured."
                if result.config.sweep == "exhaustive"
                else "what provably cannot win was not measured, so lines have gaps."
            ),
            *_confirmed(result.confirmation),
            "The second table draws the validation prompts anew with replacement: near-ties swap.",
        ],
        tables=[selection_table(result), stability_table(result)],
        figures=[drawn],
    )


def _mechanism(result: Result, drawn: Mapping[str, go.Figure]) -> Section:
    """What refusing prompts look like inside under each condition."""
    mechanism, explained = result.mechanism, result.mechanism.explained
    return Section(
        title="Mechanism (section 5)",
        text=[
            f"{mechanism.n_refused} harmful prompts that the model refuses, under each condition; "
            f"{mechanism.n_answered} harmless ones for reference.",
            f"Projection of the final stream on the direction, plain requests: total {explained.total:.2f} = "
            f"embedding {explained.embedding:.2f} + heads {explained.heads:.2f} (the top "
            f"{len(mechanism.heads)} of them {explained.top_heads:.2f}) + MLPs {explained.mlps:.2f} + rest "
            f"{explained.rest:.2f}."
            if explained
            else f"No attribution to heads: {mechanism.skipped}.",
        ],
        tables=[
            Table(
                header=["condition", "refusal metric (nats)", "95% interval"],
                rows=[
                    [name, e.value, f"[{e.low:.2f}, {e.high:.2f}]"]
                    for name, e in mechanism.refusal_metric.items()
                ],
            )
        ],
        figures=[
            drawn[name] for name in ("fig05_cosine", "fig06a_heads", "fig06b_attention") if name in drawn
        ],
    )


def report(result: Result) -> str:
    """The experiment's page."""
    charts, about, rule = figures(result), result.provenance, result.rule
    notes = list(about.notes)
    if not rule.published:
        notes.append(
            f"The selection rule was relaxed by the user: {rule.text}; the published one is KL <= 0.1, induce >= 0."
        )
    counts = ", ".join(
        f"{name.replace('_', ' ')} {count.behaving}/{count.of}"
        for name, count in result.filtered_counts.items()
    )
    sections = [
        Section(
            title="What was found",
            text=verdicts(result),
            notes=notes,
            tables=[rate_table(result)],
            figures=[charts["fig01_bypass"], charts["fig03_induce"], charts["fig23_subtract"]],
        ),
        Section(
            title="Prompts and refusal metric (section 2.3)",
            text=[
                f"Refusal tokens, {'given' if result.config.refusal_tokens else 'found on the training prompts'}: "
                f"{result.refusal_tokens}. Kept after filtering: {counts}."
            ],
            figures=[charts["fig09_first_tokens"], charts["fig10_refusal_metric"]],
        ),
        _selection(result, charts["fig11_selection"]),
        Section(
            title="Cross-entropy (appendix G.3)",
            text=[
                "Nats per token, 95% bootstrap intervals; 'own replies' are the unmodified model's to harmless prompts."
            ],
            tables=[cross_entropy_table(result)],
        ),
        _mechanism(result, charts),
        Section(
            title="Subtraction moves activations off their distribution (appendix I.1)",
            text=["The paper does not name its axes; here they are the first two principal components."],
            figures=[charts["fig22_scatter"]],
        ),
    ]
    if "fig24_base_model" in charts:
        sections.append(
            Section(
                title="The base model (appendix J)",
                text=["Solid: chat model. Dotted: base model."],
                figures=[charts["fig24_base_model"]],
            )
        )
    lead = (
        f"Arditi et al. 2024 on {about.model_name}, prompt set {about.prompts_name}; "
        f"{result.seconds['total']:.0f} s on {about.device}."
    )
    return html_report(
        "Refusal is mediated by a single direction",
        lead,
        sections,
        about,
        paper="2406.11717",
        next_steps=[
            ("See harmfulness and refusal apart", "interp run harmfulness --out runs/harmfulness"),
            (
                "Use the direction as a llama.cpp control vector",
                "interp export runs/refusal-direction/refusal.safetensors --out refusal.gguf",
            ),
        ],
    )
