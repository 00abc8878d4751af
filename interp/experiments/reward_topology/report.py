"""The tables, verdicts and page of the reward-topology experiment, from a stored result alone."""

from itertools import pairwise

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.reward_topology import ARMS, Arm, GeneratedRow, Result
from interp.experiments.reward_topology.figures import figures

CAVEAT = (
    "S1 to S4 are simulations of a Gaussian model whose trees keep one feature of prefix-tree data, reuse of answers. "
    "Preferences of the generated pairs come from a score that can be computed, not from people."
)


def rate_table(result: Result) -> Table:
    """Best path and posterior variance side by side, and the reward models of generated pairs."""
    rows = [
        [
            f"S3, variance {row.noise:g}",
            f"{row.best_chain.rounded(3)} / {row.best_tree.rounded(3)}",
            f"{row.posterior_chain.rounded(3)} / {row.posterior_tree.rounded(3)}",
            row.best_ratio.rounded(),
            row.posterior_ratio.rounded(),
        ]
        for row in result.regimes
    ]
    header = ["", "best path, chain / tree", "posterior variance, chain / tree", "ratio of the first"]
    return Table(header=[*header, "ratio of the second"], rows=rows, title="two measures of uncertainty")


def generated_table(result: Result) -> Table:
    """Accuracy by arm and labels."""
    found = result.generated
    rows = (
        []
        if found is None
        else [
            [
                row.arm,
                row.labels,
                row.used.rounded(0),
                found.tokens[row.arm].rounded(0),
                row.accuracy.percent,
                row.near_accuracy.percent,
                f"{row.variance:.3f}",
            ]
            for row in found.rows
        ]
    )
    header = ["arm", "labels asked", "labels used", "tokens generated", "accuracy", "accuracy on near leaves"]
    return Table(header=[*header, "variance over seeds"], rows=rows)


def verdicts(result: Result) -> list[str]:
    """Verdicts on the claims, in words that follow from the numbers."""
    slope, predicted = result.hop_slope.value, result.predicted_slope
    close = slope > 0 and abs(slope / predicted - 1) <= 0.2
    sentences = [
        f"S1: hops grow by {slope:.2f} per unit of log n / log log n, predicted {predicted:.2f}: "
        f"{'within' if close else 'not within'} 20%."
    ]
    for alpha in sorted({row.alpha for row in result.distances}):
        rows = sorted((r for r in result.distances if r.alpha == alpha), key=lambda r: r.n)
        ratios = [row.ratio.value for row in rows]
        steps = sum(b > a for a, b in pairwise(ratios))
        sentences.append(
            f"S2, alpha {alpha:g}: by the best path trees lead by a factor of {ratios[0]:.2f} at n = {rows[0].n} and "
            f"{ratios[-1]:.2f} at n = {rows[-1].n} ({steps} of {len(ratios) - 1} steps up)."
        )
    sentences += [_regime_verdict(result)]
    if result.generated is not None:
        sentences += _generated_verdicts(result)
    return sentences


def _regime_verdict(result: Result) -> str:
    best = max(abs(row.best_ratio.value - 1) for row in result.regimes)
    exact = max(abs(row.posterior_ratio.value - 1) for row in result.regimes)
    disagree = best > 0.05 >= exact
    return (
        f"S3: the two measures {'disagree' if disagree else 'do not disagree'}: by the best path designs differ by up "
        f"to {best:.0%}, with all paths combined by at most {exact:.0%}. "
        + (
            "The lead of trees is a property of the best-path proxy; a claim about the variance of a reward model "
            "needs the second."
            if disagree
            else "Read them side by side."
        )
    )


def _generated_verdicts(result: Result) -> list[str]:
    assert result.generated is not None
    by_arm: dict[Arm, dict[int, GeneratedRow]] = {
        arm: {row.labels: row for row in result.generated.rows if row.arm == arm} for arm in ARMS
    }
    trees, sentences = by_arm["trees"], []
    for arm in ARMS[1:]:
        shared = [n for n in trees if n in by_arm[arm]]
        ahead = sum(trees[n].accuracy.above(by_arm[arm][n].accuracy) for n in shared)
        behind = sum(trees[n].accuracy.below(by_arm[arm][n].accuracy) for n in shared)
        sentences.append(
            f"Generated pairs: against {arm}, the reward model from trees is more accurate at {ahead} and less at "
            f"{behind} of {len(shared)} numbers of labels (intervals apart)."
        )
    return sentences


def report(result: Result) -> str:
    """The page."""
    charts = figures(result)
    sections = [
        Section(title="What was found", text=verdicts(result), notes=[CAVEAT], tables=[rate_table(result)]),
        Section(
            title="The induced Bayesian network",
            text=[
                "Answers are leaves of a tree, similar ones are tied by inductive bias, and each comparison adds an "
                "edge with a variance. The paper measures uncertainty along the best path between two answers; the "
                "exact posterior variance combines all paths and is the effective resistance of the same network.",
            ],
            figures=[charts["hops"], charts["distances"], charts["regimes"]],
        ),
        Section(
            title="Rewards fitted on synthetic comparisons",
            text=["Bradley-Terry with the tree's prior, one true reward, seeds of the comparisons."],
            figures=[charts["fitted"]],
        ),
    ]
    if result.generated is not None:
        sections.append(
            Section(
                title="Pairs generated by the model",
                text=[
                    "Trees against chains of as many generated tokens, and against chains in which no answer is used "
                    "twice. Each reward model is a head on the frozen model, so that only the pairs differ.",
                ],
                figures=[charts[name] for name in ("accuracy", "variance", "best_of")],
                tables=[generated_table(result)],
            )
        )
    return html_report(
        "Does the shape of preference data matter?",
        "Qiu et al. 2025, arXiv:2402.10184: prefix trees against independent chains.",
        sections,
        result.provenance,
        paper="2402.10184",
        next_steps=[("Train policies on rewards", "interp run dataset-reset --out runs/dataset-reset")],
    )
