"""Tables, verdicts and page of the endings experiment, from a stored result alone."""

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.endings import PLANTED, TREATMENT_LABELS, TREATMENTS, ModelResult, Result
from interp.experiments.endings.figures import figures
from interp.representations.records import THRESHOLD


def rate_table(result: Result) -> Table:
    """Leak, cosine and guard of every model and set under every treatment."""
    rows = []
    for model, found in result.models.items():
        for name, cells in found.cells.items():
            for treatment in TREATMENTS:
                cell = cells[treatment]
                rows.append(
                    [
                        model,
                        name,
                        TREATMENT_LABELS[treatment],
                        cell.leak,
                        cell.cosine,
                        f"{cell.cosine_shuffled[0]:.2f} to {cell.cosine_shuffled[1]:.2f}",
                        cell.guard,
                        f"{cell.guard_shuffled[0]:.2f} to {cell.guard_shuffled[1]:.2f}",
                    ]
                )
    header = ["model", "set", "endings", "leak", "cosine", "shuffled labels", "guard", "shuffled labels "]
    return Table(title="endings", header=header, rows=rows)


def endings_table(result: Result) -> Table:
    """How training prompts end, as they are."""
    rows = []
    for name, found in result.endings.items():
        for kind, shares in (("harmful", found.harmful), ("harmless", found.harmless)):
            rows.append([name, kind, found.n_train, *(f"{share:.0%}" for share in shares.values())])
    names = list(next(iter(result.endings.values())).harmful)
    return Table(title="how prompts end", header=["set", "kind", "n", *names], rows=rows)


def verdicts(result: Result) -> list[str]:
    """One sentence a claim, model and set; only sets whose endings leak can show what a leak does."""
    lines = []
    for model, found in result.models.items():
        for name in result.endings:
            lines += _set_verdicts(model, name, found)
    return lines


def _set_verdicts(model: str, name: str, found: ModelResult) -> list[str]:
    cells = found.cells[name]
    plain, equal, swapped = cells["as-is"], cells["period"], cells["swapped"]
    where = f"{model}, {name}"
    if plain.leak.value <= THRESHOLD:
        return [
            f"Not testable ({where}): prompts of both kinds end alike (leak {plain.leak}); the guard has AUROC "
            f"{plain.guard} as they are and {equal.guard} with a full stop."
        ]
    role = " (positive control)" if name == PLANTED else ""
    closer = equal.cosine.above(plain.cosine)
    fails = swapped.guard.below(plain.guard)
    gone = equal.leak.low <= 0.5 <= equal.leak.high
    return [
        f"{'Seen' if gone else 'Not seen'} ({where}{role}): the last token alone tells harmful from harmless prompts "
        f"as they are ({plain.leak}) and no longer with a full stop ({equal.leak}).",
        f"{'Seen' if closer else 'Not seen'} ({where}): with a full stop the directions at t_inst and t_post_inst are "
        f"closer, cosine {equal.cosine} against {plain.cosine} as they are, at layer {found.layer}.",
        f"{'Seen' if fails else 'Not seen'} ({where}): a guard fitted on prompts as they are fails when endings are "
        f"exchanged, AUROC {swapped.guard} against {plain.guard}; with a full stop it has {equal.guard}.",
    ]


def report(result: Result) -> str:
    """The experiment's page."""
    charts, about = figures(result), result.provenance
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(result),
                "The leak is naive Bayes on the identity of the last instruction token. Grey bars are the range over "
                "shuffled labels: a cosine above 0 there is what the two tokens of one prompt share, whatever they say."
                " With the endings of the other set, the guard is fitted on prompts as they are.",
            ],
            notes=about.notes,
            figures=[chart for key, chart in charts.items() if key.startswith("endings_")],
            tables=[endings_table(result)],
        ),
        Section(title="Layers", figures=[charts["cosine_layers"]]),
        Section(
            title="Other sets",
            text=["The same guard on test prompts of the other sets."],
            figures=[charts["transfer"]],
            tables=[rate_table(result)],
        ),
    ]
    lead = (
        f"{', '.join(result.models)} on {len(result.endings)} sets; {result.seconds['total']:.0f} s on {about.device}. "
        "Labels are those of the sets, not what the model refuses."
    )
    return html_report(
        "How prompts end",
        lead,
        sections,
        about,
        next_steps=[("Check a set of your own", "interp data check NAME")],
    )
