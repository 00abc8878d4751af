"""Table, verdicts and page of the planted experiment, from a stored result alone."""

from interp.data.planted import Plant
from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.planted import STEERED, Found, Result
from interp.experiments.planted.figures import LABELS, figures
from interp.stats import Estimate

_NEAR = 0.3
"""Absolute cosine below which two contrasts count as apart."""
_MIN_OBEYED = 0.7
"""Share of obeyed prompts below which nothing is claimed about methods."""


def rate_table(result: Result) -> Table:
    """Every method, label and token; columns of the other label where there is one."""
    columns = {"own AUROC": "own", "over seeds": "own_seeds", "other AUROC": "other", "shuffled": "shuffled"}
    columns |= {"recovered": "recovered", "leaked": "leaked"}
    if result.config.plant == "word":
        del columns["other AUROC"], columns["leaked"]
    rows = [
        [
            each.method,
            LABELS[each.label],
            each.role,
            "all" if each.layer < 0 else each.layer,
            *(_shown(getattr(each, name)) for name in columns.values()),
        ]
        for each in result.found
    ]
    return Table(
        title="what methods find", header=["method", "fitted on", "token", "layer", *columns], rows=rows
    )


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
    return lines + [_verdict(each, result.config.plant) for each in result.found]


def _verdict(found: Found, plant: Plant) -> str:
    """What one method finds, in a sentence."""
    what = f"{found.method}, {LABELS[found.label]} at {found.role}"
    if not found.own.measurable:
        return f"{what}: not asked (groups too small, or nothing picked)."
    own, other = f"(AUROC {found.own.rounded(2)})", f"({found.other.rounded(2)})"
    if found.method == STEERED:
        return (
            f"{what}: adding the contrast of harm {_moves(found.own)} {own}, adding that of the rule "
            f"{_moves(found.other)} {other}."
        )
    line = f"{what}: {'finds it' if finds_it(found) else 'does not find it'} {own}"
    if plant == "word":
        return f"{line}."
    return f"{line}; {'the other label is told, too' if finds_other(found) else 'nothing of the other label'} {other}."


def _moves(estimate: Estimate) -> str:
    if estimate.low > 0.5:
        return "moves answers towards harmful"
    return "moves answers towards harmless" if estimate.high < 0.5 else "does not move answers"


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
