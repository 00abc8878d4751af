"""The demo's figures, drawn from a stored result alone."""

import plotly.graph_objects as go

from interp.data.prompts import COMPARED_ENDINGS
from interp.display.charts import layer_lines, rate_bars
from interp.experiments.demo import CONTROLS, Result


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure of the demo, from its stored result."""
    name, picked = result.provenance.model_name, result.selected
    note = "" if result.rule.published else " (relaxed rule)"
    mark = (picked.layer, f"picked layer {picked.layer}, position {picked.position}{note}")
    rates = {arm: {kind: r.arditi for kind, r in kinds.items()} for arm, kinds in result.refusal_rate.items()}
    last = list(result.auroc["as-is"])[-1]
    separation = {
        f"{label}, {ending}": [r.value for r in result.auroc[ending][role]]
        for role, label in (("t_inst", "t_inst"), (last, "t_post_inst"))
        for ending in COMPARED_ENDINGS
    }
    candidates = result.candidates
    return {
        "refusal_rates": rate_bars(
            rates,
            title=f"Refusal on held-out prompts, {name}{note}",
            y_title="refusal rate (12 substrings)",
            controls=CONTROLS,
        ),
        "cosine": layer_lines(
            {f"prompts {ending}": result.cosine[ending] for ending in COMPARED_ENDINGS},
            title=f"Harmfulness (t_inst) against refusal (position {picked.position}), {name}",
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
            paired=tuple(f", {ending}" for ending in COMPARED_ENDINGS),
        ),
        "selection": layer_lines(
            {
                "bypass (ablated, harmful)": [c.bypass for c in candidates],
                "induce (added, harmless)": [c.induce for c in candidates],
            },
            layers=[c.layer for c in candidates],
            title=f"Candidates on the validation split, {name}",
            y_title="mean refusal metric (nats)",
            reference=0.0,
            marked=mark,
        ),
    }
