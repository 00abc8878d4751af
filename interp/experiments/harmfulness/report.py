"""Tables, verdicts and the page of the harmfulness experiment, from its stored numbers alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from interp.display.page import Section, Table, html_report, notes_on, shown_rate
from interp.experiments.harmfulness.figures import ENDING_TITLES, figures

__all__ = ["figures", "rate_table", "report", "verdicts"]

_LEAST = 5
_RANDOM = ("random, harmfulness norm", "random, refusal norm")


def rate_table(numbers: Mapping[str, Any]) -> Table:
    """Table 1: refusal of held-out prompts with and without the template's tokens after the instruction."""
    return Table(
        header=["prompts", "ending", "n", "whole prompt", "cut after the instruction", "of these without a word"],
        rows=[
            [kind.removesuffix(" test"), ENDING_TITLES[ending], by["full"]["n"], shown_rate(by["full"]),
             shown_rate(by["truncated"]), shown_rate(by["silent"])]
            for ending in numbers["endings"]
            for kind, by in numbers["table1"][ending].items()
        ],
    )  # fmt: skip


def verdicts(numbers: Mapping[str, Any]) -> list[str]:
    """What the data say, claim by claim, in words that follow from the intervals."""
    return [
        _truncation(numbers),
        *(_signs(numbers, role) for role in ("t_inst", "t_post_inst")),
        _orthogonal(numbers),
        *_separation(numbers),
        *(_induces(numbers, arm) for arm in ("harmfulness", "refusal")),
        *_inverted(numbers),
        _only_t_inst(numbers),
    ]


def _said(seen: Mapping[str, bool], claim: str, details: str) -> str:
    """Seen under which endings."""
    where = [ENDING_TITLES[ending] for ending, found in seen.items() if found]
    word = "Seen" if len(where) == len(seen) else "Not seen" if not where else f"Seen only {', '.join(where)}"
    return f"{word}: {claim} ({details})."


def _truncation(numbers: Mapping[str, Any]) -> str:
    rows = {e: numbers["table1"][e]["harmful test"] for e in numbers["endings"]}
    seen = {e: by["truncated"]["high"] < by["full"]["low"] for e, by in rows.items()}
    details = "; ".join(
        f"{ENDING_TITLES[e]} {shown_rate(by['full'])} to {shown_rate(by['truncated'])} "
        f"(without a word {shown_rate(by['silent'])}), n = {by['full']['n']}"
        for e, by in rows.items()
    )
    return _said(
        seen, "cutting the template's tokens after the instruction lowers refusal (table 1)", details
    )


def _signs(numbers: Mapping[str, Any], role: str) -> str:
    """Signs of the two misbehaving groups' mean margins."""
    belief = "harmfulness" if role == "t_inst" else "refusal"
    sign = 1 if role == "t_inst" else -1
    claim = (
        "at t_inst misbehaving prompts lie with their kind: accepted harmful above 0, refused harmless below (figure 2)"
        if role == "t_inst"
        else "at t_post_inst they lie with what the model does: the signs flip (figure 2)"
    )
    seen, details = {}, []
    for ending in numbers["endings"]:
        means = numbers["beliefs"][ending]["means"]
        bad, good = means["accepted harmful"][belief], means["refused harmless"][belief]
        if min(bad["n"], good["n"]) < _LEAST:
            details.append(f"{ENDING_TITLES[ending]} too few: n = {bad['n']} and {good['n']}")
            seen[ending] = False
            continue
        seen[ending] = (bad["low"] > 0 > good["high"]) if sign > 0 else (bad["high"] < 0 < good["low"])
        details.append(
            f"{ENDING_TITLES[ending]} {_interval(bad)} n = {bad['n']}, {_interval(good)} n = {good['n']}"
        )
    if all("too few" in text for text in details):
        return f"Not testable here: {claim} ({'; '.join(details)})."
    return _said(seen, claim, "; ".join(details) + ", means over layers")


def _interval(entry: Mapping[str, Any]) -> str:
    return f"{entry['value']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}]"


def _orthogonal(numbers: Mapping[str, Any]) -> str:
    means = {e: numbers["geometry"][e]["mean_cosine"] for e in numbers["endings"]}
    seen = {e: m["high"] < 0.2 for e, m in means.items()}
    details = "; ".join(f"{ENDING_TITLES[e]} {_interval(m)}" for e, m in means.items())
    return _said(seen, "the two directions are nearly orthogonal, mean cosine below 0.2", details)


def _separation(numbers: Mapping[str, Any]) -> list[str]:
    """Whether each belief tells its own label apart better than the other belief does."""
    lines = []
    for tells, own in (("harmful from harmless", "harmfulness"), ("refused from accepted", "refusal")):
        seen, details = {}, []
        for ending in numbers["endings"]:
            rows = [r for r in numbers["beliefs"][ending]["separation"] if r["tells"] == tells and r["auroc"]]
            pairs = [
                (mine, other)
                for mine in rows
                for other in rows
                if mine["belief"] == own and other["belief"] != own and other["among"] == mine["among"]
            ]
            seen[ending] = bool(pairs) and all(
                a["auroc"]["low"] > 0.5 and a["auroc"]["value"] > b["auroc"]["value"] for a, b in pairs
            )
            details += [
                f"{ENDING_TITLES[ending]}, among {a['among']} ({a['n_positive']} and {a['n_negative']}): "
                f"{a['auroc']['value']:.2f} against {b['auroc']['value']:.2f}"
                for a, b in pairs
            ]
        claim = f"the {own} belief tells {tells} better than the other belief does (figure 3)"
        lines.append(
            _said(seen, claim, "AUROC, " + "; ".join(details))
            if details
            else f"Not testable here: {claim} (fewer than {_LEAST} prompts in a group)."
        )
    return lines


def _peak(rates: Sequence[Mapping[str, Any]], layers: Sequence[int]) -> tuple[int, Mapping[str, Any]]:
    best = max(range(len(rates)), key=lambda i: rates[i]["value"])
    return layers[best], rates[best]


def _induces(numbers: Mapping[str, Any], arm: str) -> str:
    claim = f"adding the {arm} direction induces refusal of harmless prompts (figure 4)"
    seen, details = {}, []
    for ending, sweep in numbers["steering"].items():
        if not sweep:
            continue
        layer, top = _peak(sweep["rates"][arm], sweep["layers"])
        control = max(
            (_peak(sweep["rates"][r], sweep["layers"])[1] for r in _RANDOM), key=lambda e: e["value"]
        )
        seen[ending] = top["low"] > control["high"]
        details.append(
            f"{ENDING_TITLES[ending]} {shown_rate(top)} at layer {layer}, random at its best {shown_rate(control)}"
        )
    if not details:
        return f"Not testable here: {claim} (too few harmless prompts are answered)."
    return _said(seen, claim, "; ".join(details))


def _inverted(numbers: Mapping[str, Any]) -> list[str]:
    question = numbers["inversion_question"]
    if not numbers["inversion"]:
        return [
            "Not testable here: reply inversion (figure 5): unsteered, the model answers none of the questions well "
            f"enough (best gap between harmless and harmful {question['gap']:.2f}; 1 is always right)."
        ]
    return [
        _turned(
            numbers,
            "harmless",
            "+harmfulness",
            "+harmfulness makes harmless prompts look harmful (figure 5a)",
        ),
        _turned(
            numbers, "harmful", "-harmfulness", "-harmfulness makes harmful prompts look harmless (figure 5b)"
        ),
        _turned(
            numbers,
            "harmful",
            "+refusal",
            '+refusal pushes towards the refusing "No", against the content (figure 5b)',
        ),
        _turned(
            numbers,
            "harmless",
            "-refusal",
            '-refusal pushes towards the accepting "Certainly", against the content (figure 5a)',
        ),
    ]


def _turned(numbers: Mapping[str, Any], kind: str, arm: str, claim: str) -> str:
    """Whether an arm turns more verdicts at its best layer than random directions do at theirs."""
    seen, details = {}, []
    for ending in numbers["endings"]:
        best: dict[str, Mapping[str, Any]] = {}
        for name, entries in numbers["inversion"][ending][kind]["arms"].items():
            turned = [t for entry in entries if (t := _against_content(entry, kind))["n"]]
            if turned:
                best[name] = max(turned, key=lambda t: t["value"])
        controls = [best[name] for name in _RANDOM if name in best]
        seen[ending] = arm in best and all(best[arm]["low"] > control["high"] for control in controls)
        details.append(
            f"{ENDING_TITLES[ending]} "
            + (f"{shown_rate(best[arm])}, n = {best[arm]['n']}" if arm in best else "no valid replies")
            + (f", random {shown_rate(max(controls, key=lambda c: c['value']))}" if controls else "")
        )
    return _said(seen, claim, "verdicts turned at the best layer: " + "; ".join(details))


def _against_content(entry: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Share of verdicts against the content: "Certainly" on harmless prompts, "No" on harmful ones."""
    no = entry["strict"]["no"]
    if kind == "harmful" or not no["n"]:
        return no
    return {"value": 1 - no["value"], "low": 1 - no["high"], "high": 1 - no["low"], "n": no["n"]}


def _only_t_inst(numbers: Mapping[str, Any]) -> str:
    table = numbers["positions"]["margins"]
    claim = "only t_inst puts accepted harmful above 0 and refused harmless below (figure 14)"
    if min(table[0][g]["n"] for g in ("accepted harmful", "refused harmless")) < _LEAST:
        return f"Not testable here: {claim} (fewer than {_LEAST} prompts in a group)."
    both = [
        row["position"]
        for row in table
        if row["accepted harmful"]["middle"]["value"] > 0 > row["refused harmless"]["middle"]["value"]
    ]
    seen = "Seen" if both == ["0"] else "Not seen"
    return f"{seen}: {claim} (positions with both signs: {', '.join(both) or 'none'})."


# Tables


def counts_table(numbers: Mapping[str, Any]) -> Table:
    """Held-out prompts in each behaviour group."""
    return Table(
        header=["ending", "group", "n, by the whole prompt's reply", "n, by the truncated prompt's words"],
        rows=[
            [ENDING_TITLES[ending], name, by["full"], by["truncated"]]
            for ending in numbers["endings"]
            for name, by in numbers["counts"][ending].items()
        ],
    )


def separation_table(numbers: Mapping[str, Any]) -> Table:
    """AUROC of each belief for each label, among prompts that share the other label."""
    rows = []
    for ending in numbers["endings"]:
        for r in numbers["beliefs"][ending]["separation"]:
            value = r["auroc"]
            shown = f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" if value else "too few"
            rows.append(
                [
                    ENDING_TITLES[ending],
                    r["tells"],
                    r["among"],
                    r["belief"],
                    r["n_positive"],
                    r["n_negative"],
                    shown,
                ]
            )
    return Table(header=["ending", "tells", "among", "belief", "n", "n against", "AUROC"], rows=rows)


def anchors_table(numbers: Mapping[str, Any]) -> Table:
    """Harm belief with harmless anchors of the test prompts' source and of another one."""
    rows = []
    for ending in numbers["endings"]:
        found = numbers["anchors"][ending]
        for name in ("same source", "other source") if found else ():
            by = found[name]
            aurocs = [by[k] for k in ("harmful against harmless", "harmful against borderline")]
            rows.append(
                [
                    ENDING_TITLES[ending],
                    name,
                    *(f"{a['value']:.2f} [{a['low']:.2f}, {a['high']:.2f}]" for a in aurocs),
                    *(shown_rate(by["called harmful"][g]) for g in by["called harmful"]),
                ]
            )
    groups = ("refused harmful", "accepted harmful", "refused harmless", "accepted harmless")
    return Table(
        header=[
            "ending",
            "harmless anchors",
            "AUROC, harmless",
            "AUROC, borderline",
            *(f"{g}: called harmful" for g in groups),
        ],
        rows=rows,
    )


def questions_table(numbers: Mapping[str, Any]) -> Table:
    """How the unsteered model answers each inverted question, on validation prompts."""
    rows = [
        [
            row["question"],
            row["gap"],
            *(
                shown_rate(row[kind][score]["no"])
                for kind in ("harmless", "harmful")
                for score in ("strict", "published")
            ),
            shown_rate(row["harmless"]["strict"]["invalid"]),
            shown_rate(row["harmful"]["strict"]["invalid"]),
        ]
        for row in numbers["inversion_question"]["table"]
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


def report(numbers: Mapping[str, Any]) -> str:
    """The experiment's page."""
    drawn, where = figures(numbers), numbers["provenance"]
    worst = {e: numbers["leak"][e]["last_token"]["value"] for e in numbers["endings"]}
    labels = {e: numbers["clusters"][e]["t_inst"]["labels"] for e in numbers["endings"]}
    few = sorted(
        {
            f"{name} ({ENDING_TITLES[e]}: {by['full']})"
            for e in numbers["endings"]
            for name, by in numbers["counts"][e].items()
            if by["full"] < _LEAST
        }
    )
    notes = notes_on(where)
    if few:
        notes.append(
            f"Groups with fewer than {_LEAST} prompts, from which nothing is concluded: {', '.join(few)}."
        )
    names = [name for name in drawn if name.startswith(("fig05", "fig10", "fig16"))]
    sections = [
        Section(
            title="What was found",
            text=verdicts(numbers),
            notes=notes,
            tables=[rate_table(numbers), counts_table(numbers)],
        ),
        Section(
            title="How prompts end (the confound at t_inst)",
            text=[
                "The last instruction token is how a prompt ends before it is anything else. Each panel below is shown "
                "with prompts as they are, stripped of closing punctuation, and ended by a full stop. AUROC of harmful "
                "against harmless from the identity of that token alone: "
                + ", ".join(f"{ENDING_TITLES[e]} {v:.2f}" for e, v in worst.items())
                + " (0.5 gives nothing away)."
            ],
            figures=[drawn["confound_endings"]],
        ),
        Section(
            title="Clusters (section 3.1, figure 2)",
            text=[
                "Margins towards refused harmful training prompts, away from accepted harmless ones. Groups at t_inst "
                "are by the reply to the prompt cut after the instruction where that fills all of them, else by the "
                f"whole prompt's: {', '.join(f'{ENDING_TITLES[e]} {label}' for e, label in labels.items())}. Grey: "
                "what shuffled labels give."
            ],
            figures=[drawn["fig02_clusters"]],
        ),
        Section(
            title="Beliefs (section 3.1, figure 3)",
            text=[
                "AUROC of each belief among prompts that share the other label, so that neither borrows from it."
            ],
            tables=[separation_table(numbers)],
            figures=[drawn["fig03_beliefs"]],
        ),
        Section(
            title="Another source of harmless anchors (confound check)",
            text=[
                f"Harmless centres from {next(f['source'] for f in numbers['anchors'].values() if f)} instead of the "
                "test prompts' own source."
                if any(numbers["anchors"].values())
                else "No second source of harmless prompts: not checked."
            ],
            tables=[anchors_table(numbers)] if any(numbers["anchors"].values()) else [],
        ),
        Section(
            title="Directions and their geometry (section 3.2)",
            text=[
                "Where a direction fitted on one half of the prompts does not agree with that of the other half (at or "
                "below 0 in sets that are balanced by design), these prompts do not determine it, and a cosine there "
                "says nothing."
            ],
            figures=[drawn["geometry_cosine"], drawn["geometry_yardstick"]],
        ),
        Section(
            title="Steering towards refusal (section 3.3, figure 4)",
            text=[
                "The raw difference in means is added at one layer's input, at all prompt tokens and no generated one. "
                "Refusal at instruction tokens only is a control: it shows how much of a difference between the two "
                "directions would come from the tokens alone."
            ],
            figures=[drawn[name] for name in drawn if name.startswith("fig04")],
        ),
        Section(
            title="Reply inversion (section 3.4, figure 5)",
            text=[
                f"Question {numbers['inversion_question']['question']} was chosen on validation prompts: gap "
                f"{numbers['inversion_question']['gap']:.2f}."
            ],
            tables=[questions_table(numbers)],
            figures=[drawn[name] for name in names],
        ),
        Section(
            title="Other token positions (appendix F, figures 14 and 15)",
            figures=[drawn["fig14_positions"], drawn["fig15_position_layers"]],
        ),
    ]
    lead = (
        f"Zhao et al. 2025 on {where['model']}, prompt set {where['prompts']['name']}; "
        f"{numbers['seconds']['total']:.0f} s on {where['device']}."
    )
    return html_report("Harmfulness and refusal, separately", lead, sections, where)
