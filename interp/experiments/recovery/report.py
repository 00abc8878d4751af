"""Table, verdicts and page of the recovery experiment, from a stored result alone."""

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.recovery import (
    ABLATIONS,
    ALL_STEPS,
    EVERYTHING,
    PAPER,
    RANDOM,
    Behaviour,
    Case,
    Recovery,
    Result,
)
from interp.experiments.recovery.figures import figures
from interp.stats import Estimate, mean_with_interval


def rate_table(result: Result) -> Table:
    """Every model: refusals, task, share of weights restored."""
    n = result.n
    rows: list[list[object]] = [_row("aligned model", result.aligned, None)]
    for name, case in result.cases.items():
        rows += [
            _row(f"{name}, fine-tuned", case.finetuned, None),
            _row(f"{name}, recovered", case.recovery.behaviour, case.recovery),
        ]
    compared = {ALL_STEPS: result.all_steps, **result.ablations}
    rows += [_row(f"{result.compared}, {name}", entry.behaviour, entry) for name, entry in compared.items()]
    for side, bound in (("below", result.all_below), ("above", result.all_above)):
        if bound is not None:
            rows.append(
                _row(f"{result.compared}, all aligned weights {side} the cut, not picked", bound, None)
            )
    header = [
        "model",
        f"refused, harmful (n = {n['harmful']})",
        f"refused, harmless (n = {n['harmless']})",
        f"task (n = {n['task']})",
        "weights restored",
        "picked step",
        "rollback",
        "seconds",
    ]
    return Table(title="recovery", header=header, rows=rows)


def _row(name: str, behaviour: Behaviour, recovery: Recovery | None) -> list[object]:
    return [
        name,
        behaviour.refusal_rate["harmful"].percent,
        behaviour.refusal_rate["harmless"].percent,
        behaviour.task.percent,
        None if recovery is None else f"{100 * recovery.share:.2f}%",
        None if recovery is None else recovery.picked,
        None if recovery is None else recovery.used_rollback,
        None if recovery is None else round(recovery.seconds),
    ]


def gain(after: Behaviour, before: Behaviour) -> Estimate:
    """Refusal of held-out harmful prompts after minus before, paired by prompt."""
    pairs = zip(after.refused["harmful"], before.refused["harmful"], strict=True)
    return mean_with_interval([float(a) - float(b) for a, b in pairs], unit="share")


def verdicts(result: Result) -> list[str]:
    """Verdicts on the claims, in words that follow from the data."""
    lines: list[str] = []
    aligned = result.aligned.refusal_rate["harmful"]
    if "0 stubs" in result.cases:
        after = result.cases["0 stubs"].finetuned.refusal_rate["harmful"]
        lines.append(
            f"{'Seen' if after.below(aligned) else 'Not seen'}: fine-tuning on the task alone weakens refusal "
            f"(held-out harmful prompts refused: {aligned.percent} before, {after.percent} after)."
        )
    for name, case in result.cases.items():
        before, after = case.finetuned, case.recovery.behaviour
        if not before.refusal_rate["harmful"].below(aligned):
            lines.append(
                f"Not testable on {name}: the fine-tuned model still refuses "
                f"({before.refusal_rate['harmful'].percent}, the aligned one {aligned.percent})."
            )
            continue
        rise = gain(after, before)
        lines.append(
            f"{'Seen' if rise.positive else 'Not seen'} on {name}: recovery restores refusal "
            f"({before.refusal_rate['harmful'].percent} -> {after.refusal_rate['harmful'].percent}, {rise.points})."
        )
        kept = after.task.value >= 0.95 * before.task.value
        lines.append(
            f"{'Seen' if kept else 'Not seen'} on {name}: the task is kept ({before.task.percent} -> "
            f"{after.task.percent} of held-out examples; step {case.recovery.picked} picked, "
            f"{'with' if case.recovery.used_rollback else 'without'} rollback)."
        )
        lines.append(_all_steps(name, case))
    if RANDOM in result.ablations and not lines[-1].startswith("Not testable"):
        ours, control = result.all_steps, result.ablations[RANDOM]
        over = gain(ours.behaviour, control.behaviour)
        lines.append(
            f"{'Seen' if over.positive else 'Not seen'}: the gradient finds the weights that matter (all steps; "
            f"{over.points} over as many random weights; {100 * ours.share:.2f}% and {100 * control.share:.2f}% of "
            "the weights)."
        )
    if result.all_below is not None and result.all_above is not None:
        below, above = result.all_below, result.all_above
        lines.append(
            f"Bounds on {result.compared}, whatever the task: every aligned weight below block {result.cut_layer} has "
            f"{below.refusal_rate['harmful'].percent} of held-out harmful prompts refused (task {below.task.percent}), "
            "which is no upper bound, since a part can give more; every one from there on, which recovery never "
            f"touches, {above.refusal_rate['harmful'].percent} (task {above.task.percent})."
        )
    return lines


def _all_steps(name: str, case: Case) -> str:
    """What the last step restores of refusal, whatever it costs the task: the picked one may be none."""
    last = max(case.recovery.saved)
    before, after = case.finetuned, case.recovery.saved[last]
    rise = gain(after, before)
    return (
        f"{'Seen' if rise.positive else 'Not seen'} on {name}: the steps restore refusal, whatever the task loses "
        f"(after step {last} {after.refusal_rate['harmful'].percent} refused, {rise.points}; task "
        f"{after.task.percent})."
    )


def report(result: Result) -> str:
    """The experiment's page."""
    charts, about, config = figures(result), result.provenance, result.config
    recovery = result.cases[result.compared].recovery
    share = f"{100 * recovery.share:.2f}%"
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(result),
                "The step is picked by the task score on a validation split that is reported nowhere else. Stubs teach "
                "how a reply opens, nothing of what is asked. A refusal is found by its words.",
            ],
            notes=list(about.notes),
            tables=[rate_table(result)],
            figures=[charts["cases"], charts["fig01_steps"]],
        ),
        Section(
            title="Which weights",
            text=[
                f"The picked model has {share} of the weights of all blocks from the aligned one, and "
                f"{100 * result.all_steps.share:.2f}% after all steps: those of large gradient whose copy lowers the "
                "loss to first order."
            ],
            figures=[charts["fig02_restored_weights"]],
        ),
        Section(
            title="States, towards the two references",
            text=[
                "The loss is minus the cosine with a mean state of the aligned model. Raw means share a large common "
                "part, so their cosines stay near 1; the centred ones show what differs."
            ],
            figures=[charts["fig03_cosines"], charts["fig06_states"]],
        ),
        Section(
            title=f"What else could be chosen: {PAPER} against {len(ABLATIONS)} ablations",
            text=[
                "All take every step, whatever the task loses, so that they are compared at one budget. "
                f"{EVERYTHING.capitalize()} is the largest change, not the best one; random weights are the control."
            ],
            figures=[charts["fig04_pareto"], *([charts["fig05_sweeps"]] if "fig05_sweeps" in charts else [])],
        ),
    ]
    lead = (
        f"{about.model_name} on prompt set {about.prompts_name}, task {config.task}; "
        f"{result.seconds['total']:.0f} s on {about.device}. After Yang et al. 2025, arXiv:2504.09757."
    )
    return html_report(
        "Alignment, put back",
        lead,
        sections,
        about,
        paper="2504.09757",
        next_steps=[("Compare with everything else that repairs", "interp run repair --out runs/repair")],
    )
