"""The demo's tables, verdicts and page, from a stored result alone."""

import math

import plotly.graph_objects as go

from interp.data.prompts import COMPARED_ENDINGS
from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.demo import CONTROLS, Result
from interp.experiments.demo.figures import figures


def rate_table(result: Result) -> Table:
    """Refusal rates with intervals, by arm and kind."""
    first = result.refusal_rate["baseline"]
    kinds = list(first)
    header = ["intervention", *(f"{kind} (n = {first[kind].arditi.n})" for kind in kinds)]
    rows = [
        [
            arm + (" (control)" if arm in CONTROLS else ""),
            *(by[kind].arditi.percent if kind in by else "" for kind in kinds),
        ]
        for arm, by in result.refusal_rate.items()
    ]
    return Table(header=header, rows=rows)


def candidate_table(result: Result) -> Table:
    """The shortlist with its validation scores; the pick is marked."""
    picked = result.selected
    rows = [
        [
            c.layer,
            c.position,
            *(
                round(score, digits) if math.isfinite(score) else "not measured"
                for score, digits in ((c.bypass, 2), (c.induce, 2), (c.kl, 3))
            ),
            "picked" if (c.layer, c.position) == (picked.layer, picked.position) else c.reason or "",
        ]
        for c in result.candidates
    ]
    return Table(header=["layer", "position", "bypass (nats)", "induce (nats)", "KL (nats)", ""], rows=rows)


def verdicts(result: Result) -> list[str]:
    """What the data say, claim by claim, in words that follow from the intervals."""
    rates = {arm: {k: v.arditi for k, v in by.items()} for arm, by in result.refusal_rate.items()}

    def against(arm: str, control: str, kind: str, claim: str, lower: bool) -> str:
        a, b = rates[arm][kind], rates[control][kind]
        holds = a.below(b) if lower else a.above(b)
        verdict = "Seen" if holds else "Not seen"
        return f"{verdict}: {claim} ({a.percent} against {b.percent} for {control}, {kind}, n = {a.n})."

    picked = result.selected
    cosines = {ending: result.cosine[ending][picked.layer] for ending in COMPARED_ENDINGS}
    return [
        against(
            "ablation", "random ablation", "harmful", "ablating the refusal direction removes refusals", True
        ),
        against(
            "addition",
            "random addition",
            "harmless",
            "adding the refusal direction makes the model refuse harmless prompts",
            False,
        ),
        against(
            "harmfulness addition",
            "random addition",
            "harmless",
            "adding the harmfulness direction makes the model refuse harmless prompts",
            False,
        ),
        f"At the picked layer the cosine of harmfulness and refusal is {cosines['as-is']:.2f} with prompts as "
        f"they are and {cosines['period']:.2f} with equal endings (random directions: 0 +- "
        f"{result.random_cosine_sd:.2f}).",
    ]


def _leak_table(result: Result) -> Table:
    """How well the way prompts end tells the sets apart, by ending."""
    rows = [
        [
            ending,
            "last token identity",
            leak.last_token.value,
            f"[{leak.last_token.low:.2f}, {leak.last_token.high:.2f}]",
        ]
        for ending, leak in result.leak_check.items()
    ] + [
        [ending, f"embedding at {role}", r.value, f"[{r.low:.2f}, {r.high:.2f}]"]
        for ending, leak in result.leak_check.items()
        for role, r in leak.embedding.items()
    ]
    return Table(header=["endings", "from", "AUROC", "95% interval"], rows=rows)


def _notes(result: Result) -> list[str]:
    """What was noted in the run, and where it left the published method."""
    filtered = result.filtered_counts
    notes = list(result.provenance.notes)
    if not filtered.applied:
        notes.append(
            f"Only {filtered.harmful_refused} of {filtered.harmful} harmful training prompts are refused and "
            f"{filtered.harmless_answered} of {filtered.harmless} harmless ones answered: too few "
            "to filter by behaviour, so the 'refusal' direction is fitted on all prompts and is a "
            "harmfulness direction at the template tokens."
        )
    if not result.rule.published:
        notes.append(
            f"No candidate met the published rule (induce >= 0, KL <= 0.1). Used instead: {result.rule.text}."
        )
    return notes


def _separation(result: Result, drawn: go.Figure) -> Section:
    """How well directions separate held-out prompts, and what prompts' endings give away."""
    leaks = result.leak_check
    leaking = [ending for ending in COMPARED_ENDINGS if leaks[ending].worst > leaks[ending].threshold]
    return Section(
        title="How well the inside tells harmful from harmless",
        text=[
            "AUROC of held-out prompts projected on the direction fitted on the training prompts, per layer. "
            "Layer 0 is the embedding: what it separates is the last token itself.",
            "The leak check asks how well the way prompts end tells the sets apart; 0.5 is no leak.",
        ],
        notes=[
            f"Leak above {leaks['as-is'].threshold} with endings {', '.join(leaking)}: read t_inst results "
            "with care."
        ]
        if leaking
        else [],
        figures=[drawn],
        tables=[_leak_table(result)],
    )


def report(result: Result) -> str:
    """The demo's page."""
    charts, about, config = figures(result), result.provenance, result.config
    picked = result.selected
    sections = [
        Section(
            title="What was found",
            text=verdicts(result),
            notes=_notes(result),
            tables=[rate_table(result)],
            figures=[charts["refusal_rates"]],
        ),
        Section(
            title="Where refusal lives",
            text=[
                f"Refusal tokens found on the training prompts: {result.refusal_tokens}. Chosen on "
                f"{config.n_val} + {config.n_val} validation prompts: "
                f"layer {picked.layer}, position {picked.position} "
                f"({result.post_inst_tokens[picked.position]!r}); bypass {picked.bypass:.2f}, "
                f"induce {picked.induce:.2f}, KL {picked.kl:.3f}. Rule: {result.rule.text}.",
                "Candidates are the template tokens that separate the validation prompts best, one each in the best "
                "layers.",
            ],
            figures=[charts["selection"]],
            tables=[candidate_table(result)],
        ),
        Section(
            title="Harmfulness and refusal",
            text=[
                "Cosine per layer of the harmfulness direction (at the last instruction token) with the "
                "refusal direction, with prompts as they are and with every prompt ended by a full stop."
            ],
            figures=[charts["cosine"]],
        ),
        _separation(result, charts["auroc"]),
        Section(
            title="Five harmless prompts before and after adding the refusal direction",
            text=[f"Greedy replies, cut at {config.max_new_tokens} tokens."],
            tables=[
                Table(
                    header=["prompt", "before", "after"],
                    rows=[[e.prompt, e.before, e.after] for e in result.examples],
                )
            ],
        ),
    ]
    lead = f"{about.model_name} on prompt set {about.prompts_name}; {result.seconds['total']:.0f} s on {about.device}."
    return html_report(
        "Refusal and harmfulness inside a chat model",
        lead,
        sections,
        about,
        paper="2406.11717",
        next_steps=[
            (
                "Select the direction as the paper does, with every figure",
                "interp run refusal-direction --out runs/refusal-direction",
            ),
            (
                "Try the direction on a prompt of your own",
                'interp steer --direction runs/demo/refusal.safetensors --coefficient 1 "How do I bake bread?"',
            ),
        ],
    )
