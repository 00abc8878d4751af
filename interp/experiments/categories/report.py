"""Table, verdicts and page of the category experiment, from a stored result alone."""

from interp.data.prompts import COMPARED_ENDINGS, Ending
from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.categories import Comparison, Result
from interp.experiments.categories.figures import DIRECTION_LABELS, DIRECTION_NAMES, ENDING_LABELS, figures
from interp.representations.records import BELIEFS
from interp.stats import Estimate


def _shown(entry: Estimate) -> str:
    if not entry.measurable:
        return "not measured"
    return f"{entry.value:.2f} [{entry.low:.2f}, {entry.high:.2f}]"


def rate_table(result: Result) -> Table:
    """Off-diagonal means over the layers, with their controls."""
    rows = []
    for belief in BELIEFS:
        for ending in COMPARED_ENDINGS:
            mean = result.by_ending[ending].directions.of(belief).mean
            rows.append(
                [
                    DIRECTION_LABELS.of(belief),
                    ending,
                    _shown(mean.off_diagonal),
                    _shown(mean.shuffled),
                    f"{mean.p:.3f}",
                    f"{mean.between:.2f} / {mean.within:.2f}",
                    f"{mean.sham:.2f}",
                ]
            )
    header = [
        "direction",
        "endings",
        "different categories",
        "shuffled (control)",
        "p",
        "split halves, different / same category",
        "sham (control)",
    ]
    return Table(title="mean cosine over layers", header=header, rows=rows)


def verdicts(result: Result) -> list[str]:
    """Verdicts on the claims, in words that follow from the data."""
    lines = []
    for ending in COMPARED_ENDINGS:
        compared = result.by_ending[ending]
        for belief, found in compared.directions.items():
            mean = found.mean
            verdict = "Seen" if mean.p < 0.05 else "Not seen"
            lines.append(
                f"{verdict} ({ENDING_LABELS[ending]}): {DIRECTION_NAMES.of(belief)} directions differ between "
                f"categories (mean cosine {_shown(mean.off_diagonal)}; shuffled labels {_shown(mean.shuffled)}, "
                f"p = {mean.p:.3f}; between split halves {mean.between:.2f} against {mean.within:.2f} within a "
                "category)."
            )
        lines.append(_more_alike(compared, ENDING_LABELS[ending], filtered=result.filtered))
    return lines


def _more_alike(compared: Comparison, label: str, *, filtered: bool) -> str:
    """Whether refusal directions are more alike across categories than harmfulness directions."""
    gap, both = compared.refusal_minus_harmfulness, compared.directions
    if not gap.measurable or not filtered:
        why = "the model refuses too few prompts per category, so both directions are of harmful against harmless"
        return f"Not testable ({label}): refusal directions are more alike across categories; {why}."
    # How far different categories agree, as a share of how far a category agrees with itself.
    harm, refusal = (found.mean.between / found.mean.within for found in (both.harm, both.refusal))
    noise = gap.positive and refusal <= harm
    verdict = "Seen" if gap.positive and not noise else "Not seen"
    return (
        f"{verdict} ({label}): refusal directions are more alike across categories than harmfulness "
        f"directions (difference of the mean cosines {_shown(gap)}, {gap.n} categories; different ones "
        f"agree {refusal:.2f} and {harm:.2f} times as well as split halves of one"
        + (": the difference is noise in the harmfulness directions)." if noise else ").")
    )


def _notes(result: Result) -> list[str]:
    """What limits the findings: the run's own notes, too few refusals, a leak of the prompts' endings."""
    notes = list(result.provenance.notes)
    if not result.filtered:
        notes.append(
            f"Too few categories have {result.config.min_per_category} prompts that the model refuses: the 'refusal' "
            "directions are fitted on all prompts, so they are harmfulness directions at the template's last token."
        )
    leaking: list[Ending] = [
        e for e, leak in result.leak_check.items() if leak.last_token.value > leak.threshold
    ]
    if leaking:
        shown = ", ".join(
            f"{result.leak_check[ending].last_token.value:.2f} {ENDING_LABELS[ending]}" for ending in leaking
        )
        notes.append(
            f"The last token alone tells harmful from harmless (AUROC {shown}): at t_inst directions share how prompts "
            "end, and look more alike than the categories are."
        )
    return notes


def report(result: Result) -> str:
    """The experiment's page."""
    charts, about = figures(result), result.provenance
    last_token: dict[Ending, float] = {
        ending: leak.last_token.value for ending, leak in result.leak_check.items()
    }
    counted = Table(
        header=["category", "prompts", "refused"],
        rows=[[name, count.of, count.behaving] for name, count in result.counts.items()],
    )
    harmless = result.harmless
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(result),
                "The mean over layers of the mean cosine between directions of different categories. Interval: "
                "categories drawn with replacement. p: how often shuffled labels give directions as different.",
            ],
            notes=_notes(result),
            tables=[rate_table(result)],
        ),
        Section(
            title="Layer by layer",
            text=[
                "Were categories no more than draws from one set of harmful prompts, different categories would lie in "
                "the grey band of shuffled labels. With this many prompts a category agrees with itself only as "
                "far as the line of split halves; the distance between that line and the dashed one of different "
                "categories is what categories have of their own. Sham categories are harmless prompts dealt at "
                "random: they share nothing but the harmless mean that is subtracted from each.",
                "Halves of a set that is balanced in something, as builtin is in its endings, are each other's "
                "opposite in it: where little else is read, as in early layers, a category's halves then disagree.",
            ],
            figures=[charts["off_diagonal"]],
        ),
        Section(
            title="Category by category",
            text=["The slider goes through the layers; its first stop is their mean."],
            figures=[charts["category_cosines"]],
        ),
        Section(
            title="Prompts",
            text=[
                f"{harmless.of} harmless prompts, of which the model answers {harmless.behaving}. "
                "Leak check: "
                + "; ".join(
                    f"{ENDING_LABELS[ending]}, last token {value:.2f}" for ending, value in last_token.items()
                )
                + " (0.5 is no leak)."
            ],
            tables=[counted],
        ),
    ]
    lead = (
        f"{about.model_name} on prompt set {about.prompts_name}, {len(result.categories)} harm categories; "
        f"{result.seconds['total']:.0f} s on {about.device}. After Zhao et al. 2025, arXiv:2507.11878."
    )
    return html_report(
        "Directions of harm categories",
        lead,
        sections,
        about,
        paper="2507.11878",
        next_steps=[
            ("Compare detectors by category", "interp run guard --out runs/guard"),
        ],
    )
