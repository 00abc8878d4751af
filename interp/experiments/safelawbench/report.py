"""Tables, verdicts and page of SafeLawBench under steering, from a stored result alone."""

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.safelawbench import BASELINE, CRITICAL, RANDOM, Result
from interp.experiments.safelawbench.figures import figures


def rate_table(result: Result) -> Table:
    """Accuracy, by group as well, change and refusals of every arm."""
    groups = list(result.groups)
    replies = any(arm.refused is not None for arm in result.arms.values())
    header = [
        "arm",
        "accuracy",
        *groups,
        "change of the right choice",
        *(["refused", "no letter"] if replies else []),
    ]
    rows = [
        [
            name,
            arm.scores.accuracy,
            *(arm.scores.by_group[group] for group in groups),
            arm.change if name != BASELINE else None,
            *([arm.refused, arm.unread] if replies else []),
        ]
        for name, arm in result.arms.items()
    ]
    return Table(title=f"{result.questions} under steering", header=header, rows=rows)


def verdicts(result: Result) -> list[str]:
    """Whether the model knows anything, whether refusing costs it, and where."""
    base = result.arms[BASELINE].scores
    knows = base.accuracy.low > base.chance
    lines = [
        f"{'Seen' if knows else 'Not seen'}: the model knows more than chance ({base.accuracy}, "
        f"chance {base.chance:.0%}, n = {base.accuracy.n})."
    ]
    additions = [name for name in result.arms if name.startswith("addition")]
    for name in additions:
        change, control = result.arms[name].change, result.arms[f"{RANDOM} {name}"].change
        costs = change.negative and change.below(control)
        lines.append(
            f"{'Seen' if costs else 'Not seen'}: steering towards refusal ({name}) costs knowledge: the right choice "
            f"changes by {change}, with random directions by {control}."
        )
        if name in result.critical_against_rest:
            more = result.critical_against_rest[name]
            lines.append(
                f"{'Seen' if more.negative else 'Not seen'}: it costs more in {CRITICAL} ({name}): difference to the "
                f"other groups {more}."
            )
    ablation, control = result.arms["ablation"].change, result.arms[f"{RANDOM} ablation"].change
    lines.append(
        f"Ablating the refusal direction changes the right choice by {ablation}, a random one by {control}."
    )
    if (refused := result.arms[BASELINE].refused) is not None:
        counts = ", ".join(f"{name} {result.arms[name].refused}" for name in [*additions, "ablation"])
        lines.append(
            f"Replies to {min(result.config.n_replies, base.accuracy.n)} questions that refuse: {refused} without "
            f"steering; {counts}."
        )
    return lines


def report(result: Result) -> str:
    """The experiment's page."""
    charts, about = figures(result), result.provenance
    notes = list(about.notes)
    if result.questions == "builtin":
        notes.append("The builtin questions are common knowledge, written to try this offline: no benchmark.")
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(result),
                "A choice's score is its letter's log-probability after the answer tag, in every cyclic order of the "
                "choices, so that no letter is favoured and no reply has to be read. Random directions have the norm "
                "of the refusal direction; their change is the mean over directions.",
            ],
            notes=notes,
            figures=[charts["change"]],
            tables=[rate_table(result)],
        ),
        Section(title="By risk group", figures=[charts["accuracy"]]),
        Section(
            title="Letters",
            text=[
                "A model that prefers a letter gains nothing by it; a low sum says that it would not answer so."
            ],
            figures=[charts["letters"]],
        ),
    ]
    lead = (
        f"{about.model_name} on {sum(result.groups.values())} questions of {result.questions}; refusal direction of "
        f"layer {result.layer}; {result.seconds['total']:.0f} s on {about.device}. "
        "After Cao et al. 2025, arXiv:2506.06636."
    )
    return html_report(
        "Legal knowledge under steering",
        lead,
        sections,
        about,
        paper="2506.06636",
        next_steps=[("Run the published questions", "interp data show safelawbench")],
    )
