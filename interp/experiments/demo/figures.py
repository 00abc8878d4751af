"""The demo's figures, drawn from a stored result alone."""

import plotly.graph_objects as go

from interp.data.prompts import COMPARED_ENDINGS
from interp.display.charts import ENDING_LABELS, Style, layer_lines, rate_bars, style
from interp.experiments.demo import CONTROLS, Result


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure of the demo, from its stored result."""
    name, picked = result.provenance.model_name, result.selected
    note = name if result.rule.published else f"{name}; selection rule relaxed"
    mark = (picked.layer, f"selected: layer {picked.layer}, token {picked.position}")
    looks = {ENDING_LABELS[ending]: style(ending) for ending in COMPARED_ENDINGS}
    candidates, trained = result.candidates, result.filtered_counts
    return {
        "refusal_rates": _refusal_rates(result, note),
        "cosine": layer_lines(
            {ENDING_LABELS[ending]: result.cosine[ending] for ending in COMPARED_ENDINGS},
            title="Cosine of the harmfulness and the refusal direction",
            note=f"{note}; harmfulness at the last instruction token (t_inst), refusal at template token "
            f"{picked.position}; n = {trained.harmful} harmful, {trained.harmless} harmless training prompts",
            y_title="cosine",
            reference=0.0,
            marked=mark,
            y_range=(-1.0, 1.03),
            looks=looks,
        ),
        "auroc": _auroc(result, note),
        "selection": layer_lines(
            {
                "direction ablated, harmful prompts (bypass score)": [c.bypass for c in candidates],
                "direction added, harmless prompts (induce score)": [c.induce for c in candidates],
            },
            layers=[c.layer for c in candidates],
            title="Candidate directions on the validation prompts",
            note=f"{note}; up to n = {result.config.n_val} of each kind; above 0 refusing is likelier than answering",
            y_title="mean refusal metric (log-odds, nats)",
            reference=0.0,
            marked=mark,
            looks={
                "direction ablated, harmful prompts (bypass score)": style("ablation"),
                "direction added, harmless prompts (induce score)": style("addition"),
            },
        ),
    }


def _refusal_rates(result: Result, note: str) -> go.Figure:
    arms = result.refusal_rate
    labels = {arm: _arm_label(arm) for arm in arms}
    kinds = list(dict.fromkeys(kind for by in arms.values() for kind in by))
    return rate_bars(
        {kind: {labels[arm]: by[kind].arditi for arm, by in arms.items() if kind in by} for kind in kinds},
        title="Refusal of held-out prompts under each intervention",
        note=f"{note}; substring match on 12 refusals; 95% intervals",
        y_title="refusal rate",
        looks={kind: style(kind) for kind in kinds},
    )


def _arm_label(arm: str) -> str:
    """An intervention on two lines, controls marked."""
    words = {
        "baseline": "no<br>intervention",
        "ablation": "refusal<br>ablated",
        "addition": "refusal<br>added",
        "harmfulness addition": "harmfulness<br>added",
    }
    control = arm.replace("random ", "random<br>").replace("ablation", "ablated").replace("addition", "added")
    return f"{control} (control)" if arm in CONTROLS else words.get(arm, arm)


def _auroc(result: Result, note: str) -> go.Figure:
    last = list(result.auroc["as-is"])[-1]
    series: dict[str, list[float]] = {}
    looks: dict[str, Style] = {}
    for role, label in (("t_inst", "last instruction token (t_inst)"), (last, "last token (t_post_inst)")):
        for ending in COMPARED_ENDINGS:
            name = f"{label}, {ENDING_LABELS[ending]}"
            series[name] = [r.value for r in result.auroc[ending][role]]
            direction = style("harmfulness" if role == "t_inst" else "refusal")
            looks[name] = direction._replace(dash=style(ending).dash, symbol=style(ending).symbol)
    return layer_lines(
        series,
        title="Harmful against harmless held-out prompts, by layer",
        note=f"{note}; n = {result.auroc['as-is'][last][0].n} prompts; projection on the difference in means of the "
        "training prompts at the same token",
        y_title="AUROC",
        reference=0.5,
        reference_name="chance",
        y_range=(0.0, 1.03),
        looks=looks,
    )
