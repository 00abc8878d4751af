"""Figures of SafeLawBench under steering, drawn from a stored result alone."""

import plotly.graph_objects as go

from interp.display.charts import finish, named, panels, points, reference_line
from interp.display.styles import CONTROL, Style, style
from interp.experiments.safelawbench import BASELINE, RANDOM, Result

# Arms in colours of their meaning; controls are grey.
_LOOKS = {BASELINE: "baseline", "ablation": "ablation"}


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    return {"accuracy": _accuracy(result), "change": _change(result), "letters": _letters(result)}


def _look(result: Result, arm: str) -> Style:
    if arm.startswith(RANDOM):
        return CONTROL
    if arm in _LOOKS:
        return style(_LOOKS[arm])
    additions = [name for name in result.arms if name.startswith("addition")]
    return named(additions)[arm]


def _accuracy(result: Result) -> go.Figure:
    """Accuracy in every group under every arm."""
    arms = list(result.arms)
    groups = list(result.groups)
    figure = panels(
        [f"{group} (n = {n})" for group, n in result.groups.items()],
        columns=2,
        width=330,
        height=30 * len(arms) + 20,
        x_title="accuracy",
    )
    for number, group in enumerate(groups):
        for arm in arms:
            entry = result.arms[arm].scores.by_group[group]
            figure.add_trace(
                points(arm, [arm], [entry], _look(result, arm), horizontal=True, in_legend=False),
                row=number // 2 + 1,
                col=number % 2 + 1,
            )
    figure.update_yaxes(categoryorder="array", categoryarray=arms[::-1])
    figure.update_xaxes(range=[-0.03, 1.03], tickformat=".0%")
    reference_line(figure, x=result.arms[BASELINE].scores.chance, name="chance")
    return finish(
        figure,
        title="Accuracy by risk group under steering",
        note=f"{result.provenance.model_name}; {result.questions}; likeliest choice, mean over cyclic orders; 95% "
        "Wilson intervals",
    )


def _change(result: Result) -> go.Figure:
    """Paired change of the right choice's probability, by group."""
    arms = [arm for arm in result.arms if arm != BASELINE]
    groups = list(result.groups)
    figure = panels(
        x_title="change of the right choice's probability", width=620, height=70 * len(groups) + 30
    )
    step = 0.8 / max(1, len(arms))
    seen: set[str] = set()
    for number, arm in enumerate(arms):
        places = [i + step * (number - (len(arms) - 1) / 2) for i in range(len(groups))]
        entries = [result.arms[arm].change_by_group[group] for group in groups]
        control = arm.startswith(RANDOM)
        name = "random direction (control)" if control else arm
        figure.add_trace(
            points(name, places, entries, _look(result, arm), horizontal=True, in_legend=name not in seen)
        )
        seen.add(name)
    names = [f"{group} (n = {n})" for group, n in result.groups.items()]
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5], showgrid=False
    )
    reference_line(figure, x=0, name="no change")
    return finish(
        figure,
        title="What steering does to the right choice",
        note=f"{result.provenance.model_name}; paired by question; 95% bootstrap intervals",
    )


def _letters(result: Result) -> go.Figure:
    """Mean probability of each letter, whatever choice stands there, and of any letter at all."""
    arms = list(result.arms)
    letters = list(result.arms[BASELINE].letter_bias)
    figure = panels(y_title="mean probability", width=620, height=300)
    looks = named(letters)
    for letter in letters:
        figure.add_bar(
            name=letter,
            x=arms,
            y=[result.arms[arm].letter_bias[letter] for arm in arms],
            marker={"color": looks[letter].colour, "pattern": {"shape": looks[letter].pattern}},
            hovertemplate=f"{letter}, %{{x}}: %{{y:.2f}}<extra></extra>",
        )
    figure.update_layout(barmode="group")
    figure.update_xaxes(tickangle=-25)
    reference_line(figure, y=1 / len(letters), name="no preference")
    mass = ", ".join(
        f"{arm} {result.arms[arm].letter_mass:.2f}" for arm in arms if not arm.startswith(RANDOM)
    )
    return finish(
        figure,
        title="Which letter the model prefers",
        note=f"normalised over the letters; probability that the next token is a letter: {mass}",
    )
