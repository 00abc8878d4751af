"""Table, verdicts and page of the study of machine-written text, from a stored result alone."""

import math
from collections.abc import Mapping

import plotly.graph_objects as go

from interp.detectors.machine_text.rank_strips import rank_strip
from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.machine_text import (
    ABLATED,
    FAST,
    MIN_REFUSED,
    MIXED,
    ORDER,
    PARAPHRASED,
    PLAIN,
    RANDOM_ABLATED,
    UNCHANGED,
    Result,
)
from interp.experiments.machine_text.figures import figures
from interp.stats import Estimate

CAVEAT = (
    "A score is no proof of authorship: it compares a text with human texts of the same kind and length, and errs more "
    "often on paraphrased and mixed text and on writers whose language is plain, such as those who learnt it late."
)


def rate_table(result: Result) -> Table:
    """Every detector: AUROC either way, rate found, and after how the published order continues."""
    rate = f"{100 * result.config.false_positive_rate:g}%"
    rows = []
    for name, one in sorted(result.detectors.items(), key=lambda item: -item[1].auroc.value):
        value = one.auroc.value
        rows.append(
            [
                name,
                one.auroc,
                max(value, 1 - value),
                one.found.percent if one.found.measurable else "not resolvable",
                len(one.human),
            ]
        )
    return Table(
        title="detectors of the model's own text",
        header=[
            "detector",
            "AUROC",
            "AUROC, either sign",
            f"found at {rate} false positives",
            "pairs",
        ],
        rows=rows,
    )


def length_table(result: Result) -> Table:
    """The detectors of the published order at each length."""
    found = result.lengths_found
    rows = [
        [n, *(_both(result.lengths[d][place], None if found is None else found[d][place]) for d in ORDER)]
        for place, n in enumerate(result.config.lengths)
    ]
    return Table(title="lengths", header=["tokens", *_headings(result)], rows=rows)


def _headings(result: Result) -> list[str]:
    rate = f"{100 * result.config.false_positive_rate:g}%"
    return [f"{detector}: AUROC; found at {rate}" for detector in ORDER]


def _both(auroc: Estimate, found: Estimate | None) -> str:
    if found is None:
        return f"{auroc}; not measured"
    return f"{auroc}; {found.percent if found.measurable else 'not resolvable'}"


def attack_table(result: Result) -> Table:
    """The detectors of the published order under every attack."""
    rows = [
        [name, one.n, one.dropped]
        + [_both(one.auroc[detector], one.found[detector]) for detector in ORDER]
        + ["" if name == UNCHANGED else one.change[FAST].rounded(2)]
        for name, one in result.attacks.items()
    ]
    return Table(
        title="attacks",
        header=["texts", "n", "too short", *_headings(result), f"change of AUROC, {FAST}"],
        rows=rows,
    )


def source_table(result: Result) -> Table:
    """False positives on human texts of a source that the threshold was not set on."""
    rows = [[name, *(one[detector].percent for detector in ORDER)] for name, one in result.sources.items()]
    return Table(
        title="false positives by source",
        header=["human texts of", *ORDER],
        rows=rows,
    )


def arm_table(result: Result) -> Table:
    """Texts written under interventions."""
    rows = [
        [
            name,
            one.n,
            *(_both(one.auroc[d], None if one.found is None else one.found[d]) for d in ORDER),
            one.change[FAST].rounded(2),
        ]
        for name, one in result.arms.items()
    ]
    return Table(
        title="texts written under interventions",
        header=["while writing", "n", *_headings(result), f"change, {FAST} (SD)"],
        rows=rows,
    )


def null_table(result: Result) -> Table:
    """z of texts without the mark: over keys, and with the key of the marked texts."""
    rows = []
    for name, one in result.watermarks.unmarked.items():
        if (keys := one.keys) is None:
            rows.append([name, "several, not measured", *["not measured"] * 4])
        else:
            above = [_count(keys.above), f"{keys.expected * keys.above.n:.1f}"]
            rows.append([name, len(keys.means), keys.mean.rounded(2), keys.deviation.rounded(2), *above])
        deviation = [math.sqrt(value) for value in (one.variance.value, one.variance.low, one.variance.high)]
        spread = f"{deviation[0]:.2f} [{deviation[1]:.2f}, {deviation[2]:.2f}]"
        rows.append([name, 1, one.mean.rounded(2), spread, _count(one.above), ""])
    return Table(
        title="z of texts without the mark",
        header=["texts", "keys", "mean", "standard deviation", "above 4", "expected by chance"],
        rows=rows,
    )


def verdicts(result: Result) -> list[str]:
    """Verdicts on the claims, in words that follow from the data."""
    return [
        _order(result),
        _longer(result),
        _escape(result),
        _steering(result),
        _refusal(result),
        _null(result),
        _bound(result),
    ]


def _word(seen: bool) -> str:
    return "Seen" if seen else "Not seen"


def _order(result: Result) -> str:
    steps = [one.estimate for one in result.differences]
    if any(step.negative for step in steps):
        word = "Not seen"
    elif all(step.positive for step in steps):
        word = "Seen"
    else:
        word = "Not testable"
    areas = ", ".join(f"{name} {result.detectors[name].auroc}" for name in ORDER)
    shown = "; ".join(
        f"{one.first} less {one.second} {one.estimate.rounded(3)}" for one in result.differences
    )
    return f"{word}: the published order of detectors (AUROC {areas}; {shown}, paired by pair)."


def _longer(result: Result) -> str:
    if not result.longer.measurable:
        return "Not testable: longer texts are easier to detect (fewer than two lengths beyond the prefix)."
    lengths = sorted(n for n in result.config.lengths if n > result.config.prefix_tokens)
    return (
        f"{_word(result.longer.positive)}: longer texts are easier to detect (AUROC of {FAST} at {lengths[-1]} tokens "
        f"less that at {lengths[0]}: {result.longer.rounded(3)})."
    )


def _escape(result: Result) -> str:
    changes = {name: result.attacks[name].change[FAST] for name in (PARAPHRASED, MIXED)}
    shown = "; ".join(
        f"{name}: AUROC {result.attacks[name].auroc[FAST]}, change {change.rounded(2)}"
        for name, change in changes.items()
    )
    seen = all(change.negative for change in changes.values())
    return f"{_word(seen)}: paraphrased and mixed texts escape {FAST} ({shown}; paired by text)."


def _steering(result: Result) -> str:
    effect, control = result.effects.steered[FAST], result.effects.steered_random[FAST]
    seen = effect.positive and effect.above(control)
    others = ", ".join(f"{name} {result.effects.steered[name].rounded(2)}" for name in ORDER if name != FAST)
    return (
        f"{_word(seen)}: steering along the machine-text direction moves the scores of new text ({FAST}, added less "
        f"subtracted: {effect.rounded(2)} standard deviations of human texts; random direction {control.rounded(2)}; "
        f"{others}; n = {effect.n})."
    )


def _refusal(result: Result) -> str:
    refused = result.effects.refused
    rates = ", ".join(f"{name} {refused[name].percent}" for name in (PLAIN, ABLATED, RANDOM_ABLATED))
    change = result.effects.ablated[FAST]
    what = "ablating refusal makes text more detectable"
    n_refused = round(refused[PLAIN].value * refused[PLAIN].n) if refused[PLAIN].measurable else 0
    if n_refused < MIN_REFUSED:
        return f"Not testable: {what} (refused requests: {rates})."
    return (
        f"{_word(change.positive)}: {what} ({FAST}, less a random ablation: {change.rounded(2)} standard deviations of "
        f"human texts, n = {change.n}; refusal added, less a random addition: "
        f"{result.effects.added[FAST].rounded(2)}; refused requests: {rates})."
    )


def _holds(estimate: Estimate, value: float) -> bool:
    return estimate.low <= value <= estimate.high


def _null(result: Result) -> str:
    """Over keys where they were measured: with one, the common words that its lists hold are in every text."""
    unmarked = result.watermarks.unmarked
    single = "; ".join(
        f"{name}: mean {one.mean.rounded(2)}, variance {one.variance.rounded(2)}, above 4 {_count(one.above)}"
        for name, one in unmarked.items()
    )
    what = "z is standard normal on text that does not know the key"
    by_keys = {name: one.keys for name, one in unmarked.items() if one.keys is not None}
    if len(by_keys) < len(unmarked):
        return f"Not testable: {what} (several keys: not measured; one key, which is one draw for all texts: {single})."
    seen = all(_holds(one.mean, 0.0) and _holds(one.deviation, 1.0) for one in by_keys.values())
    shown = "; ".join(
        f"{name}, {len(one.means)} keys: mean {one.mean.rounded(2)}, standard deviation {one.deviation.rounded(2)}, "
        f"above 4 {_count(one.above)}, {one.expected * one.above.n:.1f} expected by the exact binomial distribution"
        for name, one in by_keys.items()
    )
    return f"{_word(seen)}: {what} ({shown}; with the key of the marked texts alone, {single})."


def _count(share: Estimate) -> str:
    return f"{round(share.value * share.n)} of {share.n}" if share.measurable else "none of 0"


def _bound(result: Result) -> str:
    marked = result.watermarks.marked
    seen = all(one.green.low > one.bound for one in marked.values())
    last = result.watermarks.tokens[-1]
    shown = "; ".join(
        f"delta {delta}: {one.green.percent} green, bound {one.bound:.0%}, found after {last} tokens "
        f"{one.power[-1].percent}, another key's mean z {one.other_key.rounded(2)}"
        for delta, one in marked.items()
    )
    return f"{_word(seen)}: marked texts have more green tokens than theorem 4.2 says at least ({shown})."


def _depth(result: Result) -> str:
    """From which depth on the lens sees nine tenths of what it sees at the end, for Fast-DetectGPT."""
    final = list(result.lens.values())[-1][FAST].value
    goal = 0.5 + 0.9 * (final - 0.5)
    first = next(
        depth
        for depth in result.lens
        if all((by[FAST].value - goal) * (goal - 0.5) >= 0 for d, by in result.lens.items() if d >= depth)
    )
    return (
        f"From {first} of {max(result.lens)} blocks on, the lens has nine tenths of the distance from chance of the "
        f"model's own distributions ({FAST}: {final:.2f})."
    )


def _sections(result: Result) -> list[Section]:
    """What the page shows, in order."""
    charts, config = figures(result), result.config
    rate = f"{100 * config.false_positive_rate:g}%"
    n = len(result.detectors[FAST].human)
    layers = [one for one in result.directions if abs(one.refusal) > one.chance_refusal]
    return [
        Section(
            title="What was found",
            text=[*verdicts(result), CAVEAT],
            notes=list(result.provenance.notes),
            tables=[rate_table(result)],
            figures=[charts["detectors"]],
        ),
        Section(
            title="Detectors",
            text=[
                f"Human texts: {result.human}, {result.dropped} of them without a pair. The author is the scorer, "
                f"which is the easiest case. With {n} human texts no rate below 1/{n} of false positives can be told.",
                "Entropy has no sign that holds across domains: an AUROC below 0.5 says that here it is the other one.",
            ],
            tables=[length_table(result)],
            figures=[charts["scores"], charts["roc"], charts["lengths"]],
        ),
        Section(
            title="Human texts of another source",
            text=[
                f"Thresholds set at {rate} on the other sources: what a calibration is worth on another kind of text.",
            ],
            tables=[source_table(result)],
        )
        if result.sources
        else Section(title="Human texts of another source", text=["All human texts are of one source."]),
        Section(
            title="Attacks",
            text=[
                f"Words swapped: {config.swap_share:.0%} of them. Mixed: {config.mix_share:.0%} of the sentences. "
                "Changes are paired by text, against the unchanged texts cut to the same lengths.",
            ],
            tables=[attack_table(result)],
            figures=[charts["attacks"]],
        ),
        Section(
            title="Where in the model",
            text=[
                _depth(result),
                f"Through the lens {config.n_lens} pairs are read: no rate of false positives below 1/{config.n_lens} "
                "can be told, so AUROC stands alone.",
                f"The cosine with the refusal direction is beyond chance at {len(layers)} of {len(result.directions)} "
                "layers. A direction that separates is no evidence that the model uses it: hence the interventions.",
            ],
            figures=[charts["lens"], charts["directions"]],
        ),
        Section(
            title="Interventions while writing",
            text=[
                "Texts are scored by the model without the intervention, as a reader would. A text that an "
                "intervention breaks is unlikely under every score, and one that repeats itself is likely: the random "
                "directions show what strength alone does.",
            ],
            tables=[arm_table(result)],
            figures=[charts["interventions"]],
        ),
        _watermark(result, charts),
        Section(
            title="One pair, token by token",
            text=[
                "Ranks under the model: green 10, yellow 100, red 1,000, purple beyond (GLTR). Colours are no verdict; "
                f"the first {config.prefix_tokens} tokens are the same in both."
            ],
            strips=[
                (name, rank_strip(one.tokens, one.ranks, one.probabilities, context=one.context))
                for name, one in result.examples.items()
            ],
        ),
    ]


def _watermark(result: Result, charts: Mapping[str, go.Figure]) -> Section:
    """The mark's z, with the key and without."""
    return Section(
        title="Watermark",
        text=[
            "A mark says that text was made with the key, or copied from such text. Rates at z = 4 of one in "
            "31,000 cannot be told with so few texts; mean and standard deviation of z can. Intervals are over "
            "keys, or over texts where there is one key: that one's lists hold or miss the same common words in "
            "every text, so that texts are no independent draws.",
        ],
        tables=[null_table(result)],
        figures=[charts["watermark_along"], charts["watermark_power"], charts["watermark_null"]],
    )


def report(result: Result) -> str:
    """The experiment's page."""
    about = result.provenance
    lead = (
        f"{about.model_name} on its own text; {result.seconds['total']:.0f} s on {about.device}. After Wu et al. 2025, "
        "arXiv:2310.14724."
    )
    return html_report(
        "Machine-written text, from the inside",
        lead,
        _sections(result),
        about,
        paper="2310.14724",
        next_steps=[
            (
                "Calibrate a detector on your own human texts",
                "interp detect fit --human texts.jsonl --out detector.json",
            ),
            ("Colour a text by rank", 'interp.gltr(interp.load("smollm2-safe"), "A text.")'),
        ],
    )
