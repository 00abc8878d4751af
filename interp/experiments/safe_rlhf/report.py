"""Table, verdicts and page of the PKU-SafeRLHF experiment, from a stored result alone."""

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.safe_rlhf import Result
from interp.experiments.safe_rlhf.figures import figures
from interp.representations.severity_records import SeverityReading
from interp.stats import Estimate

WORDS = "words alone"
STATES = "severity moderator"


def rate_table(result: Result) -> Table:
    """Moderation in the form of the paper's table."""
    rows = [
        [
            name,
            _share(each.accuracy),
            f"{each.f1:.2f}",
            _share(each.false_positive_rate),
            *(_share(each.level_accuracy[level]) for level in ("1", "2", "3")),
            _share(each.exact_match),
            f"{each.severity_kappa:.2f}",
        ]
        for name, each in result.moderation.items()
    ]
    header = [
        "moderator",
        "accuracy",
        "F1",
        "false positives",
        "minor",
        "moderate",
        "severe",
        "all 19 flags",
        "kappa",
    ]
    return Table(title="moderation of held-out answers", header=header, rows=rows)


def _share(estimate: Estimate) -> str:
    return estimate.percent if estimate.measurable else "none"


def severity_table(result: Result) -> Table:
    """Severity by reader."""
    readers: dict[str, SeverityReading] = {
        **result.severity,
        "all directions, shuffled severities (control)": result.severity_shuffled,
    }
    rows = [
        [
            name,
            _share(each.accuracy),
            each.macro_f1.rounded(2),
            each.kappa.rounded(2),
            each.spearman.rounded(2),
            each.cosine_with_harm,
        ]
        for name, each in readers.items()
    ]
    header = ["read from", "accuracy", "macro F1", "quadratic kappa", "Spearman", "|cosine| with harm"]
    return Table(title="severity of held-out unsafe answers", header=header, rows=rows)


def counts_table(result: Result) -> Table:
    """Published counts beside those of the data."""
    rows = [[each.what, each.published, each.found, each.holds] for each in result.published]
    return Table(title="published counts", header=["count", "published", "found", "holds"], rows=rows)


def verdicts(result: Result) -> list[str]:
    """Verdicts, in words that follow from the data."""
    at = result.told_apart[result.layer]
    lines = list[str]()
    if result.miniature:
        lines.append(
            "This is the bundled miniature (refusals and harmless sentences): it shows that the method runs, and "
            "nothing about harm."
        )
    if result.published:
        fails = [each.what for each in result.published if not each.holds]
        lines.append(
            f"{len(result.published) - len(fails)} of {len(result.published)} published counts hold in this copy"
            + (f"; not: {', '.join(fails)}." if fails else ".")
        )
    seen = "Seen" if at.low > 0.5 else "Not seen"
    control = 100 * result.told_apart_shuffled[result.layer]
    lines.append(
        f"{seen}: the harm direction puts the unsafe answer of a held-out mixed pair further along ({at.percent} at "
        f"layer {result.layer}, n = {at.n}; signs shuffled {control:.0f}% and a norm smaller by a factor of "
        f"{result.norm_ratio[result.layer]:.1f}). Unsafe answers are "
        f"{result.length_gap:+.0f} words longer, and its cosine with the refusal direction of prompts is "
        f"{result.cosine_with_refusal[result.layer]:.2f}."
    )
    lines += [_severity(result), _overlap(result), _preferences(result), _moderation(result)]
    return lines


def _severity(result: Result) -> str:
    along, every, without = (
        result.severity[name].spearman
        for name in ("along the harm direction", "all directions", "without the harm direction")
    )
    control = result.severity_shuffled.spearman
    if not every.measurable or not every.low > max(0.0, control.value if control.measurable else 0.0):
        verdict = "Not seen: severity within unsafe answers is readable on held-out prompts"
    elif along.measurable and along.above(without):
        verdict = "Severity is rather the length along the harm direction"
    elif without.measurable and without.above(along):
        verdict = "Severity is a direction of its own: it is readable with the harm direction taken out"
    else:
        verdict = (
            "Severity is readable, and intervals do not tell the length along the harm direction from another"
        )
    best = max(
        (result.severity[name].spearman for name in ("categories", "length", "majority")),
        key=lambda each: each.value if each.measurable else -1.0,
    )
    return (
        f"{verdict} (Spearman with the latent value along it {along.rounded(2)}, in any direction "
        f"{every.rounded(2)}, without it {without.rounded(2)}; best baseline "
        f"{best.rounded(2)}; shuffled {control.rounded(2)})."
    )


def _overlap(result: Result) -> str:
    found = result.categories
    pairs = [
        (found.label_correlation[i][j], found.own_cosine[i][j], found.names[i], found.names[j])
        for i in range(len(found.names))
        for j in range(i + 1, len(found.names))
        if found.label_correlation[i][j] == found.label_correlation[i][j]
    ]
    if not pairs:
        return "Not testable: overlap of categories; fewer than two have enough mixed pairs."
    phi, own, first, second = max(pairs)
    return (
        f"Of {len(found.names)} categories the labels of {first} and {second} overlap most (phi {phi:.2f}); their own "
        f"directions have cosine {own:.2f}, and over all pairs cosine and label correlation have rank correlation "
        f"{found.rank_correlation:.2f}."
    )


def _preferences(result: Result) -> str:
    conflict = {name: each.conflict for name, each in result.preferences.items()}
    if any(each.n < 10 for each in conflict.values()):
        return "Not testable: helpful and harmless apart; there are fewer than 10 held-out pairs in conflict."
    apart = all(each.low > 0.5 for each in conflict.values())
    return (
        f"{'Seen' if apart else 'Not seen'}: both preferences are read on pairs where they conflict (helpful "
        f"{conflict['better'].percent}, harmless {conflict['safer'].percent}; cosine of the probes "
        f"{result.preference_cosine:.2f})."
    )


def _moderation(result: Result) -> str:
    states, words = (result.moderation[name].accuracy for name in (STATES, WORDS))
    better = (
        "better than" if states.above(words) else "worse than" if states.below(words) else "no different from"
    )
    return (
        f"Moderation from states is {better} words alone, by intervals (accuracy {states.percent} against "
        f"{words.percent}; the paper reports 93% for its fine-tuned moderator on its own data)."
    )


def report(result: Result) -> str:
    """The experiment's page."""
    charts, where = figures(result), result.provenance
    sections = [
        Section(
            title="What was found",
            text=verdicts(result),
            notes=[
                *where.notes,
                "Labels come from people and models jointly, answers from models of 2023 and 2024: directions may hold "
                "the style of those models. Answers are not shown; ids and labels are in the data.",
            ],
            figures=[charts["told_apart"]],
        ),
        Section(title="Categories", figures=[charts["categories"]]),
        Section(title="Severity", figures=[charts["severity"]], tables=[severity_table(result)]),
        Section(title="Helpful and harmless", figures=[charts["preferences"]]),
        Section(title="Moderation", figures=[charts["moderation"]], tables=[rate_table(result)]),
    ]
    if result.published:
        sections.append(Section(title="Published counts", tables=[counts_table(result)]))
    lead = (
        f"{where.model_name} on {result.data}, {result.counts['pairs']} pairs; {result.seconds['total']:.0f} s on "
        f"{where.device}. Data and labels of Ji et al. 2025, arXiv:2406.15513."
    )
    return html_report(
        "Harm and its severity in answers",
        lead,
        sections,
        where,
        paper="2406.15513",
        next_steps=[("Judge answers of your own", "interp judge --help")],
    )
