"""The table, verdicts and page of the method-elasticity experiment, from a stored result alone."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import plotly.graph_objects as go

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.method_elasticity import Result
from interp.experiments.method_elasticity.analysis import ArmNumbers, numbers, pooled, start_rates
from interp.experiments.method_elasticity.figures import ABOUT, figures
from interp.experiments.method_elasticity.matching import holds
from interp.experiments.method_elasticity.results import CONTROLS, LABELS, METHODS, Arm, Matching
from interp.stats import Estimate, over_seeds

CAVEAT = (
    "A small model, a handful of examples, LoRA and empty stubs: that the comparison runs is shown here, not how "
    "methods rank on large models. A half-life belongs to its learning rate and batch; only arms of one run compare."
)

FEWEST_METHODS = 3
"""A t interval over two methods is narrow whenever they happen to agree, so claims over methods ask for three."""


def rate_table(result: Result) -> Table:
    """The arms matched by the first matching of the settings, a row each."""
    return arm_table(result, result.config.matchings[0])


def arm_table(result: Result, matching: Matching) -> Table:
    """Start, decline and return of every arm under a matching."""
    rows = [
        [
            LABELS[arm],
            _matched(row),
            row.start.percent,
            row.end.percent,
            _shown(row.half_life, 1),
            _shown(row.tau, 1),
            f"{_shown(row.kl_start, 2)} → {_shown(row.kl_end, 2)}",
            _shown(row.exponent, 1),
            _shown(row.first_over_second, 2),
            _shown(row.forward_over_inverse, 2),
        ]
        for arm, row in numbers(result, matching).items()
    ]
    header = [
        "arm",
        "matched",
        "refuses before",
        "after",
        "half-life, stubs",
        "tau, stubs",
        "KL to base, nats",
        "exponent",
        "first / second alignment",
        "forward / inverse",
    ]
    return Table(header=header, rows=rows, title=f"methods {ABOUT[matching]}")


def match_table(result: Result) -> Table:
    """Which checkpoint was taken of each arm."""
    rows = [
        [
            LABELS[match.arm],
            match.seed,
            "refusal" if match.matching == "refusal" else "KL",
            match.step,
            _number(match.target, match.matching),
            match.reached.percent if match.matching == "refusal" else _shown(match.reached, 3),
            "yes" if match.matched else "no",
        ]
        for match in result.matches
    ]
    return Table(header=["arm", "seed", "by", "step", "target", "reached", "matched"], rows=rows)


def _number(value: float, matching: Matching) -> str:
    return f"{value:.0%}" if matching == "refusal" else f"{value:.3g}"


def _matched(row: ArmNumbers) -> str:
    if row.arm == "none":
        return "control"
    return f"{row.matched} of {row.seeds}"


def _shown(estimate: Estimate, digits: int) -> str:
    return estimate.rounded(digits) if estimate.measurable else "none"


def verdicts(result: Result) -> list[str]:
    """Verdicts on the claims: seen, not seen or not testable, as the intervals allow."""
    sentences = []
    for matching in result.config.matchings:
        sentences += _order(result, matching)
    sentences += [*_ratios(result), _growth(result), *_controls(result)]
    for alignment in (*result.alignments, *result.aligned_again):
        if alignment.collapsed is not None:
            sentences.append(f"{LABELS[alignment.arm]}, seed {alignment.seed}: {alignment.collapsed}.")
    return sentences


def _order(result: Result, matching: Matching) -> list[str]:
    """Whether half-lives of matched methods differ."""
    table: dict[Arm, ArmNumbers] = {
        arm: row for arm, row in numbers(result, matching).items() if arm in METHODS
    }
    known: dict[Arm, Estimate] = {
        arm: row.half_life for arm, row in table.items() if row.half_life.measurable
    }
    whole: list[Arm] = [arm for arm in known if table[arm].matched == table[arm].seeds]
    unmatched = [LABELS[arm] for arm, row in table.items() if row.matched < row.seeds]
    lead = f"Methods {ABOUT[matching]}"
    said = (
        f"{lead}: half-lives "
        + ", ".join(
            f"{LABELS[arm]} {known[arm].rounded(1)}" for arm in sorted(known, key=lambda a: known[a].value)
        )
        + " stubs."
        if known
        else f"{lead}: no half-life could be measured."
    )
    left_out = f" Not matched, so not compared: {', '.join(unmatched)}." if unmatched else ""
    if not all(math.isfinite(known[arm].low) for arm in whole) or len(whole) < 2:
        why = (
            "fewer than two matched methods have one"
            if len(whole) < 2
            else "a half-life of one seed has no interval"
        )
        return [f"{said} Whether the method decides: not testable, {why}.{left_out}"]
    apart: list[tuple[Arm, Arm]] = [
        (one, other)
        for one, other in combinations(whole, 2)
        if known[one].below(known[other]) or known[one].above(known[other])
    ]
    if not apart:
        return [f"{said} Whether the method decides: not seen, all intervals overlap.{left_out}"]
    pairs = "; ".join(
        f"{LABELS[a]} before {LABELS[b]}" if known[a].below(known[b]) else f"{LABELS[b]} before {LABELS[a]}"
        for a, b in apart
    )
    return [f"{said} Whether the method decides: seen ({pairs}).{left_out}"]


def _ratios(result: Result) -> list[str]:
    first = result.config.matchings[0]
    inverse = pooled(result, lambda row: row.forward_over_inverse, first)
    again = pooled(result, lambda row: row.first_over_second, first)
    return [
        f"Going back is easier than going on: {_above_one(inverse)} (examples to the half of the way, forward over "
        f"inverse, {_shown(inverse, 2)} over {inverse.n} methods).",
        f"Aligned again faster than the first time: {_above_one(again)} (examples to the same refusal rate, first over "
        f"second, {_shown(again, 2)} over {again.n} methods).",
    ]


def _above_one(ratio: Estimate) -> str:
    if not ratio.measurable or not math.isfinite(ratio.low):
        return "not testable"
    if ratio.n < FEWEST_METHODS:
        return f"not testable with fewer than {FEWEST_METHODS} methods"
    if ratio.low > 1:
        return "seen"
    return "not seen, the opposite is" if ratio.high < 1 else "not seen"


def _growth(result: Result) -> str:
    table = numbers(result, result.config.matchings[0])
    found = [row.exponent.value for arm, row in table.items() if arm in METHODS and row.exponent.measurable]
    over = over_seeds(found)
    if not math.isfinite(over.low) or over.n < FEWEST_METHODS:
        reading = "not testable"
    elif holds(over, 4) and not holds(over, 1):
        reading = "seen"
    else:
        reading = "not seen"
    return (
        f"Loss of alignment as the fourth power of training time: {reading} (exponent {_shown(over, 2)} over {over.n} "
        "methods, by the code length of refusals)."
    )


def _controls(result: Result) -> list[str]:
    table = numbers(result, "refusal") if "refusal" in result.config.matchings else {}
    table |= {arm: row for arm, row in numbers(result, "refusal").items() if arm in CONTROLS}
    sentences = []
    if "none" in table:
        row = table["none"]
        sentences.append(
            f"Control without alignment: refuses {row.start.percent} before and {row.end.percent} after the stubs."
        )
    if "shuffled" in table:
        row = table["shuffled"]
        reads = (
            "reaches the target, so the target shows no preference" if row.matched else "reaches no target"
        )
        sentences.append(f"Control of shuffled preferences: {reads} ({row.start.percent} on test prompts).")
    return sentences


def report(result: Result) -> str:
    """The page."""
    charts, config, about = figures(result), result.config, result.provenance
    notes = [*about.notes, CAVEAT]
    if config.seeds < 3:
        notes.append(f"{config.seeds} seed(s): intervals over seeds are missing or very wide.")
    floors = ", ".join(f"{rate:.0%}" for rate in start_rates(result).values())
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(result),
                f"Half-lives and time constants are towards the refusal rate of the model that all arms start from "
                f"({floors} on the test prompts). Arms without a number never come there.",
            ],
            notes=notes,
            tables=[rate_table(result)],
            figures=[charts["declines"], charts["half_lives"]],
        ),
        *_by_kl(result, charts),
        Section(
            title="How methods were matched",
            text=[
                f"Each method is stopped at the first measured step at which it refuses {config.target:.0%} of "
                f"{config.n_match} held-out harmful prompts; the measured checkpoint nearest to that is taken. It "
                "counts as matched where the target lies in the Wilson interval of its rate. Steps play no part.",
            ],
            tables=[match_table(result)],
        ),
        Section(
            title="Where the model goes",
            text=[
                "KL is KL(base || checkpoint) on the base's own samples. The refusal direction is fitted at the start "
                "of all arms, on the training prompts; it moves with the activations of held-out harmful prompts.",
                *_inside(result),
            ],
            figures=[charts["kl"], charts["inside"]],
        ),
        Section(
            title="How the loss grows",
            text=[
                "The code length of refusals to held-out harmful prompts is a smooth measure of what is lost. Its "
                "growth since the aligned model is fitted as a power of the number of stubs, up to 90% of the largest "
                "growth; an arm whose code length does not grow has no exponent.",
            ],
            figures=[charts[name] for name in ("refusals", "exponents") if name in charts],
        ),
        *_again(charts),
    ]
    methods = ", ".join(LABELS[arm] for arm in config.methods)
    lead = (
        f"{methods}; {config.seeds} seed(s); LoRA rank {config.rank}; up to {config.n_pairs} pairs or "
        f"{config.updates * config.rollouts} rollouts, then {config.n_stubs} stubs; {result.seconds['total']:.0f} s on "
        f"{about.device}."
    )
    return html_report(
        "Which alignment is the most elastic?",
        lead,
        sections,
        about,
        paper="2406.06144",
        next_steps=[("See whether more alignment is lost faster", "interp run rebound --out runs/rebound")],
    )


def _by_kl(result: Result, charts: Mapping[str, go.Figure]) -> list[Section]:
    if "declines_by_kl" not in charts:
        return []
    return [
        Section(
            title="Moved equally far",
            text=[
                "Here the checkpoints are those nearest to the largest KL to the base that every method reaches. "
                "Refusal rates may differ at the start, so half-lives compare, starts do not.",
            ],
            tables=[arm_table(result, "kl")],
            figures=[charts["declines_by_kl"]],
        )
    ]


def _again(charts: Mapping[str, go.Figure]) -> list[Section]:
    if "both_times" not in charts:
        return []
    return [
        Section(
            title="Aligned again",
            text=[
                "The unlearned model is aligned by the same method on the same pairs, with a fresh adapter and "
                "optimiser. Examples are counted to the refusal rate half-way between the first start and the matched "
                "checkpoint; an arm that unlearning left above it has no second number.",
            ],
            figures=[charts["both_times"]],
        )
    ]


def _inside(result: Result) -> list[str]:
    """What happens to directions and beliefs between the aligned and the unlearned model, over arms."""
    sentences = []
    for name, what in (
        ("cosine_refusal", "cosine of the refusal direction with the start's"),
        ("cosine_harmfulness", "cosine of the harmfulness direction with the start's"),
        ("belief_harmfulness", "belief that harmful prompts are harmful, by the start's centres"),
        ("belief_refusal", "belief that harmful prompts are refused, by the start's centres"),
    ):
        ends = [_ends(result, arm, name) for arm in result.config.arms]
        known = [pair for pair in ends if pair is not None]
        if known:
            before, after = (over_seeds([pair[i] for pair in known]) for i in (0, 1))
            sentences.append(
                f"Over arms, {what}: {before.rounded(2)} aligned, {after.rounded(2)} after the stubs."
            )
    return sentences


def _ends(result: Result, arm: Arm, name: str) -> tuple[float, float] | None:
    """First and last value of a measure, over the seeds of an arm."""
    pairs: list[Sequence[float]] = []
    for leg in result.unlearned:
        values = [m.values[name].value for m in leg.moments if name in m.values and m.values[name].measurable]
        if (leg.arm, leg.matching) == (arm, result.config.matchings[0]) and len(values) > 1:
            pairs.append((values[0], values[-1]))
    if not pairs:
        return None
    return sum(p[0] for p in pairs) / len(pairs), sum(p[1] for p in pairs) / len(pairs)
