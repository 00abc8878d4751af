"""Table, verdicts and page of the planted experiment, from a stored result alone."""

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.planted import Found, Result
from interp.experiments.planted.figures import LABELS, figures
from interp.stats import Estimate

_NEAR = 0.3
"""Absolute cosine below which two contrasts count as apart."""
_MIN_OBEYED = 0.7
"""Share of obeyed prompts below which nothing is claimed about methods."""


def rate_table(result: Result) -> Table:
    """Every method, label and token."""
    header = [
        "method",
        "fitted on",
        "token",
        "layer",
        "own AUROC",
        "over seeds",
        "other AUROC",
        "shuffled",
        "recovered",
        "leaked",
    ]
    rows = [
        [
            each.method,
            LABELS[each.label],
            each.role,
            "all" if each.layer < 0 else each.layer,
            _shown(each.own),
            _shown(each.own_seeds),
            _shown(each.other),
            _shown(each.shuffled),
            _shown(each.recovered),
            _shown(each.leaked),
        ]
        for each in result.found
    ]
    return Table(title="what methods find", header=header, rows=rows)


def _shown(estimate: Estimate) -> str:
    return estimate.rounded(2) if estimate.measurable else "none"


def finds_it(found: Found) -> bool:
    """Whether a method finds its label: AUROC above 0.5 and above that of shuffled labels, by its interval."""
    return found.own.low > max(0.5, found.shuffled.value if found.shuffled.measurable else 0.5)


def finds_other(found: Found) -> bool:
    """Whether it tells the other label, too, in either direction."""
    return found.other.low > 0.5 or found.other.high < 0.5


def verdicts(result: Result) -> list[str]:
    """Verdicts, in words that follow from the data."""
    lines = [
        f"The rule `{result.config.plant}` is obeyed on {result.obeyed.percent} (n = {result.obeyed.n})."
    ]
    if not result.obeyed.value > _MIN_OBEYED:
        lines.append(
            "Not testable: the model does not follow the rule; make an organism with `interp plant`."
        )
    if result.config.plant == "word":
        lines.append("With the rule `word` harm is what is said: there is one label, and no other to find.")
    else:
        deep = result.dissociation[len(result.dissociation) // 3 :]
        largest = max(deep, key=abs)
        lines.append(
            f"{'Seen' if abs(largest) < _NEAR else 'Not seen'}: harm at t_inst and the rule at t_post_inst are apart "
            f"(largest cosine in the upper two thirds of layers {largest:.2f})."
        )
    for each in result.found:
        if not each.own.measurable:
            lines.append(
                f"{each.method}, {LABELS[each.label]} at {each.role}: not asked (groups too small, or nothing picked)."
            )
            continue
        own = "finds it" if finds_it(each) else "does not find it"
        other = (
            ""
            if result.config.plant == "word"
            else ("; the other label is told, too" if finds_other(each) else "; nothing of the other label")
        )
        lines.append(
            f"{each.method}, {LABELS[each.label]} at {each.role}: {own} (AUROC {each.own.rounded(2)}){other}"
            + (f" ({each.other.rounded(2)})." if other else ".")
        )
    return lines


def report(result: Result) -> str:
    """The experiment's page."""
    charts, where = figures(result), result.provenance
    sections = [
        Section(
            title="What was found",
            text=verdicts(result),
            notes=list(where.notes),
            figures=[charts["contrasts"]],
        ),
        Section(title="What the organism does", figures=[charts["refused"]]),
        Section(
            title="Methods",
            figures=[charts["found_t_inst"], charts["found_t_post_inst"]],
            tables=[rate_table(result)],
        ),
    ]
    lead = (
        f"{where.model_name} with the rule {result.config.plant!r}; {result.seconds['total']:.0f} s on {where.device}. "
        "Harm and rule are independent by construction."
    )
    return html_report(
        "Planted truth",
        lead,
        sections,
        where,
        paper="2507.11878",
        next_steps=[("Make another organism", "interp plant --help")],
    )
