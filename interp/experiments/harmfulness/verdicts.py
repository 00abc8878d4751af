"""Verdicts on the paper's claims, from a stored result alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from interp.data.prompts import Ending, Kind
from interp.evaluation.records import MIN_IN_GROUP
from interp.experiments.harmfulness import RANDOM, Result
from interp.experiments.harmfulness.panels import ENDING_TITLES
from interp.experiments.harmfulness.results import InversionSweep, TruncationRates, Verdicts
from interp.representations.records import Belief
from interp.stats import Estimate

BELIEF_NAMES: dict[Belief, str] = {"harm": "harmfulness", "refusal": "refusal"}


def verdicts(result: Result) -> list[str]:
    """Verdicts on the claims, in words that follow from the intervals."""
    return [
        _truncation(result),
        *(_signs(result, belief) for belief in BELIEF_NAMES),
        _orthogonal(result),
        *_separation(result),
        *(_induces(result, arm) for arm in ("harmfulness", "refusal")),
        *_inverted(result),
        _only_t_inst(result),
    ]


def _said(seen: Mapping[Ending, bool], claim: str, details: str) -> str:
    """Seen under which endings."""
    where = [ENDING_TITLES[ending] for ending, holds in seen.items() if holds]
    word = "Seen" if len(where) == len(seen) else "Not seen" if not where else f"Seen only {', '.join(where)}"
    return f"{word}: {claim} ({details})."


def _truncation(result: Result) -> str:
    rows: dict[Ending, TruncationRates] = {
        ending: one.truncation["harmful"] for ending, one in result.by_ending.items()
    }
    holds: dict[Ending, bool] = {ending: rates.truncated.below(rates.whole) for ending, rates in rows.items()}
    details = "; ".join(
        f"{ENDING_TITLES[ending]} {rates.whole.percent} to {rates.truncated.percent} "
        f"(without a word {rates.silent.percent}), n = {rates.whole.n}"
        for ending, rates in rows.items()
    )
    return _said(
        holds, "cutting the template's tokens after the instruction lowers refusal (table 1)", details
    )


def _signs(result: Result, belief: Belief) -> str:
    """Signs of the two misbehaving groups' mean margins."""
    claim = (
        "at t_inst misbehaving prompts lie with their kind: accepted harmful above 0, refused harmless below (figure 2)"
        if belief == "harm"
        else "at t_post_inst they lie with what the model does: the signs flip (figure 2)"
    )
    holds: dict[Ending, bool] = {}
    details = []
    for ending, one in result.by_ending.items():
        means = one.beliefs.means
        bad, good = means["accepted harmful"].of(belief), means["refused harmless"].of(belief)
        if min(bad.n, good.n) < MIN_IN_GROUP:
            details.append(f"{ENDING_TITLES[ending]} too few: n = {bad.n} and {good.n}")
            holds[ending] = False
            continue
        holds[ending] = bad.positive and good.negative if belief == "harm" else bad.negative and good.positive
        details.append(
            f"{ENDING_TITLES[ending]} {_interval(bad)} n = {bad.n}, {_interval(good)} n = {good.n}"
        )
    if all("too few" in text for text in details):
        return f"Not testable here: {claim} ({'; '.join(details)})."
    return _said(holds, claim, "; ".join(details) + ", means over layers")


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _orthogonal(result: Result) -> str:
    means: dict[Ending, Estimate] = {
        ending: one.geometry.mean_cosine for ending, one in result.by_ending.items()
    }
    holds: dict[Ending, bool] = {ending: mean.high < 0.2 for ending, mean in means.items()}
    details = "; ".join(f"{ENDING_TITLES[ending]} {_interval(mean)}" for ending, mean in means.items())
    return _said(holds, "the two directions are nearly orthogonal, mean cosine below 0.2", details)


def _separation(result: Result) -> list[str]:
    """Whether each belief separates its own label better than the other belief does."""
    own: tuple[tuple[str, Belief], ...] = (
        ("harmful from harmless", "harm"),
        ("refused from accepted", "refusal"),
    )
    lines = []
    for tells, belief in own:
        holds: dict[Ending, bool] = {}
        details = []
        for ending, one in result.by_ending.items():
            rows = [r for r in one.beliefs.separation if r.tells == tells and r.auroc.measurable]
            pairs = [
                (mine, other)
                for mine in rows
                for other in rows
                if mine.belief == belief and other.belief != belief and other.among == mine.among
            ]
            holds[ending] = bool(pairs) and all(
                a.auroc.low > 0.5 and a.auroc.value > b.auroc.value for a, b in pairs
            )
            details += [
                f"{ENDING_TITLES[ending]}, among {a.among} ({a.n_positive} and {a.n_negative}): "
                f"{a.auroc.value:.2f} against {b.auroc.value:.2f}"
                for a, b in pairs
            ]
        claim = (
            f"the {BELIEF_NAMES[belief]} belief tells {tells} better than the other belief does (figure 3)"
        )
        lines.append(
            _said(holds, claim, "AUROC, " + "; ".join(details))
            if details
            else f"Not testable here: {claim} (fewer than {MIN_IN_GROUP} prompts in a group)."
        )
    return lines


class _Peak(NamedTuple):
    layer: int
    rate: Estimate


def _peak(rates: Sequence[Estimate], layers: Sequence[int]) -> _Peak:
    best = max(range(len(rates)), key=lambda i: rates[i].value)
    return _Peak(layers[best], rates[best])


def _induces(result: Result, arm: Literal["harmfulness", "refusal"]) -> str:
    claim = f"adding the {arm} direction induces refusal of harmless prompts (figure 4)"
    holds: dict[Ending, bool] = {}
    details = []
    for ending, one in result.by_ending.items():
        if (sweep := one.steering) is None:
            continue
        top = _peak(sweep.rates[arm], sweep.layers)
        peaks = [_peak(sweep.rates[name], sweep.layers).rate for name in RANDOM]
        control = max(peaks, key=lambda rate: rate.value)
        holds[ending] = top.rate.above(control)
        details.append(
            f"{ENDING_TITLES[ending]} {top.rate.percent} at layer {top.layer}, random at its best {control.percent}"
        )
    if not details:
        return f"Not testable here: {claim} (too few harmless prompts are answered)."
    return _said(holds, claim, "; ".join(details))


def _inverted(result: Result) -> list[str]:
    sweeps: dict[Ending, InversionSweep] = {
        ending: one.inversion for ending, one in result.by_ending.items() if one.inversion is not None
    }
    if not sweeps:
        return [
            "Not testable here: reply inversion (figure 5): unsteered, the model answers none of the questions well "
            f"enough (best gap between harmless and harmful {result.question.gap:.2f}; 1 is always right)."
        ]
    claims: tuple[tuple[Kind, str, str], ...] = (
        ("harmless", "+harmfulness", "+harmfulness makes harmless prompts look harmful (figure 5a)"),
        ("harmful", "-harmfulness", "-harmfulness makes harmful prompts look harmless (figure 5b)"),
        ("harmful", "+refusal", '+refusal pushes towards the refusing "No", against the content (figure 5b)'),
        (
            "harmless",
            "-refusal",
            '-refusal pushes towards the accepting "Certainly", against the content (figure 5a)',
        ),
    )
    return [_turned(sweeps, kind, arm, claim) for kind, arm, claim in claims]


def _turned(sweeps: Mapping[Ending, InversionSweep], kind: Kind, arm: str, claim: str) -> str:
    """Whether an arm turns more verdicts at its best layer than random directions do at theirs."""
    holds: dict[Ending, bool] = {}
    details = []
    for ending, sweep in sweeps.items():
        best: dict[str, Estimate] = {}
        for name, by_layer in sweep.of(kind).arms.items():
            turned = [t for entry in by_layer if (t := _against_content(entry, kind)).n]
            if turned:
                best[name] = max(turned, key=lambda t: t.value)
        controls = [best[name] for name in RANDOM if name in best]
        holds[ending] = arm in best and all(best[arm].above(control) for control in controls)
        details.append(
            f"{ENDING_TITLES[ending]} "
            + (f"{best[arm].percent}, n = {best[arm].n}" if arm in best else "no valid replies")
            + (f", random {max(controls, key=lambda c: c.value).percent}" if controls else "")
        )
    return _said(holds, claim, "verdicts turned at the best layer: " + "; ".join(details))


def _against_content(verdicts: Verdicts, kind: Kind) -> Estimate:
    """Share of verdicts against the content: "Certainly" on harmless prompts, "No" on harmful ones."""
    no = verdicts.strict.no
    if kind == "harmful" or not no.n:
        return no
    return replace(no, value=1 - no.value, low=1 - no.high, high=1 - no.low)


def _only_t_inst(result: Result) -> str:
    table = result.positions.margins
    claim = "only t_inst puts accepted harmful above 0 and refused harmless below (figure 14)"
    if min(margin.curve.n for margin in table[0].groups.values()) < MIN_IN_GROUP:
        return f"Not testable here: {claim} (fewer than {MIN_IN_GROUP} prompts in a group)."
    both = [
        row.position
        for row in table
        if row.groups["accepted harmful"].middle.value > 0 > row.groups["refused harmless"].middle.value
    ]
    verdict = "Seen" if both == ["0"] else "Not seen"
    return f"{verdict}: {claim} (positions with both signs: {', '.join(both) or 'none'})."
