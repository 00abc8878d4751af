"""Tables and page of the harmfulness experiment, from a stored result alone."""

import plotly.graph_objects as go

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.evaluation.records import GROUPS, MIN_IN_GROUP
from interp.experiments.harmfulness import Result
from interp.experiments.harmfulness.figures import figures
from interp.experiments.harmfulness.panels import ENDING_TITLES
from interp.experiments.harmfulness.verdicts import BELIEF_NAMES, verdicts
from interp.stats import Estimate

__all__ = ["figures", "rate_table", "report", "verdicts"]


def rate_table(result: Result) -> Table:
    """Table 1: refusal of held-out prompts with and without the template's tokens after the instruction."""
    return Table(
        header=[
            "prompts",
            "ending",
            "n",
            "whole prompt",
            "cut after the instruction",
            "of these without a word",
        ],
        rows=[
            [
                kind,
                ENDING_TITLES[ending],
                by.whole.n,
                by.whole.percent,
                by.truncated.percent,
                by.silent.percent,
            ]
            for ending, one in result.by_ending.items()
            for kind, by in one.truncation.items()
        ],
    )


def counts_table(result: Result) -> Table:
    """Held-out prompts in each behaviour group."""
    return Table(
        header=["ending", "group", "n, by the whole prompt's reply", "n, by the truncated prompt's words"],
        rows=[
            [ENDING_TITLES[ending], name, by.whole, by.truncated]
            for ending, one in result.by_ending.items()
            for name, by in one.group_sizes.items()
        ],
    )


def separation_table(result: Result) -> Table:
    """AUROC of each belief for each label, among prompts that share the other label."""
    rows = [
        [
            ENDING_TITLES[ending],
            row.tells,
            row.among,
            BELIEF_NAMES[row.belief],
            row.n_positive,
            row.n_negative,
            _auroc(row.auroc) if row.auroc.measurable else "too few",
        ]
        for ending, one in result.by_ending.items()
        for row in one.beliefs.separation
    ]
    return Table(header=["ending", "tells", "among", "belief", "n", "n against", "AUROC"], rows=rows)


def _auroc(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def anchors_table(result: Result) -> Table:
    """Harm belief with harmless anchors of the test prompts' source and of another one."""
    rows = [
        [
            ENDING_TITLES[ending],
            name,
            _auroc(reading.harmless),
            _auroc(reading.borderline),
            *(share.percent for share in reading.called_harmful.values()),
        ]
        for ending, one in result.by_ending.items()
        if (check := one.anchors) is not None
        for name, reading in (("same source", check.same_source), ("other source", check.other_source))
    ]
    return Table(
        header=[
            "ending",
            "harmless anchors",
            "AUROC, harmless",
            "AUROC, borderline",
            *(f"{g}: called harmful" for g in GROUPS),
        ],
        rows=rows,
    )


def questions_table(result: Result) -> Table:
    """How the unsteered model answers each inverted question, on validation prompts."""
    rows = [
        [
            row.question,
            row.gap,
            row.harmless.strict.no.percent,
            row.harmless.published.no.percent,
            row.harmful.strict.no.percent,
            row.harmful.published.no.percent,
            row.harmless.strict.invalid.percent,
            row.harmful.strict.invalid.percent,
        ]
        for row in result.question.table
    ]
    return Table(
        header=[
            "question",
            "gap",
            '"No", harmless, strict',
            "published score",
            '"No", harmful, strict',
            "published score",
            "invalid, harmless",
            "invalid, harmful",
        ],
        rows=rows,
    )


def _notes(result: Result) -> list[str]:
    """What was noted in the run, and the groups that are too small to conclude from."""
    few = sorted(
        f"{name} ({ENDING_TITLES[ending]}: {size.whole})"
        for ending, one in result.by_ending.items()
        for name, size in one.group_sizes.items()
        if size.whole < MIN_IN_GROUP
    )
    notes = list(result.provenance.notes)
    if few:
        notes.append(
            f"Groups with fewer than {MIN_IN_GROUP} prompts, from which nothing is concluded: {', '.join(few)}."
        )
    return notes


def _endings(result: Result, drawn: go.Figure) -> Section:
    """What the last instruction token gives away."""
    return Section(
        title="How prompts end (the confound at t_inst)",
        text=[
            "The last instruction token is how a prompt ends before it is anything else. Each panel below is shown "
            "with prompts as they are, stripped of closing punctuation, and ended by a full stop. AUROC of harmful "
            "against harmless from the identity of that token alone: "
            + ", ".join(
                f"{ENDING_TITLES[e]} {one.leak.last_token.value:.2f}" for e, one in result.by_ending.items()
            )
            + " (0.5 gives nothing away)."
        ],
        figures=[drawn],
    )


def _clusters(result: Result, drawn: go.Figure) -> Section:
    """Where behaviour groups lie between the centres of refused and accepted prompts."""
    labels = [
        f"{ENDING_TITLES[ending]} {one.clusters.t_inst.labels}" for ending, one in result.by_ending.items()
    ]
    return Section(
        title="Clusters (section 3.1, figure 2)",
        text=[
            "How much nearer each group's activations lie to refused harmful training prompts than to accepted "
            "harmless ones: the cosine to the centre of the former minus that to the centre of the latter, above 0 on "
            "the harmful side. Prompts stripped of closing punctuation are left out of the figure, which would have "
            "six panels; the verdicts above and figure 3 include them. Groups at t_inst are by the reply to the prompt "
            "cut after the instruction where that fills all of them, else by the whole prompt's: "
            f"{', '.join(labels)}. Grey: what shuffled labels give."
        ],
        figures=[drawn],
    )


def _anchors(result: Result) -> Section:
    """Whether the harm belief depends on where its harmless anchors come from."""
    sources = [one.anchors.source for one in result.by_ending.values() if one.anchors is not None]
    return Section(
        title="Another source of harmless anchors (confound check)",
        text=[
            f"Harmless centres from {sources[0]} instead of the test prompts' own source."
            if sources
            else "No second source of harmless prompts: not checked."
        ],
        tables=[anchors_table(result)] if sources else [],
    )


def report(result: Result) -> str:
    """The experiment's page."""
    charts, about = figures(result), result.provenance
    names = [name for name in charts if name.startswith(("fig05", "fig10", "fig16"))]
    sections = [
        Section(
            title="What was found",
            text=verdicts(result),
            notes=_notes(result),
            tables=[rate_table(result), counts_table(result)],
        ),
        _endings(result, charts["confound_endings"]),
        _clusters(result, charts["fig02_clusters"]),
        Section(
            title="Beliefs (section 3.1, figure 3)",
            text=[
                "AUROC of each belief among prompts that share the other label, so that neither borrows from it."
            ],
            tables=[separation_table(result)],
            figures=[charts["fig03_beliefs"]],
        ),
        _anchors(result),
        Section(
            title="Directions and their geometry (section 3.2)",
            text=[
                "Where a direction fitted on one half of the prompts does not agree with that of the other half (at or "
                "below 0 in sets that are balanced by design), these prompts do not determine it, and a cosine there "
                "says nothing."
            ],
            figures=[charts["geometry_cosine"], charts["geometry_yardstick"]],
        ),
        Section(
            title="Steering towards refusal (section 3.3, figure 4)",
            text=[
                "The raw difference in means is added at one layer's input, at all prompt tokens and no generated one. "
                "Refusal at instruction tokens only is a control: it shows how much of a difference between the two "
                "directions would come from the tokens alone."
            ],
            figures=[charts[name] for name in charts if name.startswith("fig04")],
        ),
        Section(
            title="Reply inversion (section 3.4, figure 5)",
            text=[
                f"Question {result.question.question} was chosen on validation prompts: gap "
                f"{result.question.gap:.2f}."
            ],
            tables=[questions_table(result)],
            figures=[charts[name] for name in names],
        ),
        Section(
            title="Other token positions (appendix F, figures 14 and 15)",
            figures=[charts["fig14_positions"], charts["fig15_position_layers"]],
        ),
    ]
    lead = (
        f"Zhao et al. 2025 on {about.model_name}, prompt set {about.prompts_name}; "
        f"{result.seconds['total']:.0f} s on {about.device}."
    )
    return html_report(
        "Harmfulness and refusal, separately",
        lead,
        sections,
        about,
        paper="2507.11878",
        next_steps=[
            ("See which of the two jailbreaks move", "interp run jailbreaks --out runs/jailbreaks"),
            ("Fit a detector on the harmfulness belief", "interp guard fit --help"),
        ],
    )
