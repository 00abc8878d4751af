"""The tables, verdicts and page of the dataset-reset experiment, from a stored result alone."""

import math

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.dataset_reset import Result
from interp.experiments.dataset_reset.figures import arm_estimates, figures, share_name
from interp.stats import Estimate, fitted_slope

CAVEAT = (
    "Small models and computed rewards: what is seen here is the mechanism of resets, not the paper's win rates on "
    "summaries."
)


def rate_table(result: Result) -> Table:
    """Reward, KL and tokens of every arm."""
    rows = [
        [
            f"tabular, {share_name(curve.beta)}",
            curve.reward[-1].rounded(3),
            curve.kl[-1].rounded(2),
            "" if curve.beta < 0 else curve.covered[-1].percent,
        ]
        for curve in result.tabular
    ]
    if result.toy:
        rewards, kls, motifs = (arm_estimates(result.toy, name) for name in ("reward", "kl", "motif"))
        rows += [
            [f"toy, {arm}", rewards[arm].rounded(3), kls[arm].rounded(2), motifs[arm].percent]
            for arm in rewards
        ]
    header = ["arm", "reward", "KL, nats", "states passed, or answers with the motif"]
    return Table(header=header, rows=rows, title="reward by arm")


def alignment_table(result: Result) -> Table:
    """The given model before and after."""
    rows = [
        [
            _policy(row.beta),
            row.tokens,
            f"{row.held_out:.3f}",
            "" if not row.kl else f"{row.kl[-1]:.2f}",
            row.refuses_harmful.percent,
            row.refuses_harmless.percent,
        ]
        for row in result.alignment
    ]
    header = ["policy", "tokens", "held-out reward", "last KL, nats", "refuses harmful", "refuses harmless"]
    return Table(header=header, rows=rows)


def _policy(beta: float) -> str:
    return "before training" if beta < 0 else f"with {share_name(beta)}"


def verdicts(result: Result) -> list[str]:
    """Verdicts on the claims, in words that follow from the numbers."""
    steps = len(result.tabular[0].reward) - 1
    sentences = [
        f"The KL bound (t - 1) r_max / lambda {'holds' if result.bound_kept else 'is broken'} in every state of all "
        f"{steps} updates."
    ]
    by_beta = {curve.beta: curve.reward[-1] for curve in result.tabular}
    sentences += _resets("Tabular", by_beta)
    if result.toy:
        rows = [row for row in result.toy if row.arm == "PPO" or row.arm.startswith("DR-PO")]
        names = dict.fromkeys((row.beta, row.arm) for row in rows)
        rewards = arm_estimates(rows, "reward")
        sentences += _resets("Toy", {beta: rewards[arm] for beta, arm in names})
        slope = fitted_slope([row.beta for row in rows], [row.reward for row in rows])
        sentences.append(f"Toy: slope of the reward in beta {slope.rounded(3)}: {_sign(slope)}.")
    sentences += [
        f"{row.collapsed} ({row.arm}, seed {row.seed})." for row in result.toy if row.collapsed is not None
    ]
    if result.alignment:
        sentences.append(
            "Given model, one run each and so no interval: held-out reward "
            + ", ".join(f"{row.held_out:.2f} {_policy(row.beta)}" for row in result.alignment)
            + "; it refuses "
            + ", ".join(f"{row.refuses_harmful.percent} {_policy(row.beta)}" for row in result.alignment)
            + " of harmful prompts."
        )
    sentences += [
        f"Given model, {share_name(row.beta)}: {row.collapsed}."
        for row in result.alignment
        if row.collapsed is not None
    ]
    return sentences


def _resets(scale: str, rewards: dict[float | int, Estimate]) -> list[str]:
    """Whether full resets are above none."""
    if 0 not in rewards or 1 not in rewards:
        return []
    ppo, resets = rewards[0], rewards[1]
    if not math.isfinite(ppo.low) or not math.isfinite(resets.low):
        reading = "one seed, so no verdict"
    elif resets.above(ppo):
        reading = "resets are ahead, as the paper says"
    elif resets.below(ppo):
        reading = "resets are behind, against the paper"
    else:
        reading = "not resolved"
    return [f"{scale}: reward {resets.rounded(3)} at beta 1, {ppo.rounded(3)} at beta 0: {reading}."]


def _sign(slope: Estimate) -> str:
    if not math.isfinite(slope.low):
        return "no interval"
    return "above 0" if slope.positive else "below 0" if slope.negative else "not resolved"


def report(result: Result) -> str:
    """The page."""
    charts = figures(result)
    sections = [
        Section(title="What was found", text=verdicts(result), notes=[CAVEAT], tables=[rate_table(result)]),
        Section(
            title="Where it can be computed",
            text=[
                "All answers of a few symbols form a prefix tree, so the natural policy gradient has a closed form and "
                "rewards, KL and coverage are sums. Rewards to go come from rollouts, at the prompt or from cuts of "
                "reference answers; the control has exact values.",
                f"log C_TR, the coverage of the optimum by the reference, is {result.coverage.rounded()}.",
            ],
            figures=[charts["tabular"], charts["tabular_frontier"]],
        ),
    ]
    if result.toy:
        sections.append(
            Section(
                title="A toy transformer",
                text=[
                    "Two layers over eight letters, a reward that is computed, and every arm at equal tokens. Arms "
                    "with rollouts sample through the engine; GRPO is TRL's.",
                ],
                figures=[
                    charts[name] for name in ("toy_arms", "toy_frontier", "toy_learning", "toy_clipping")
                ],
            )
        )
    if result.alignment:
        accuracy = (
            "" if result.reward_accuracy is None else f" ({result.reward_accuracy.percent} on held-out pairs)"
        )
        sections.append(
            Section(
                title="The given model",
                text=[
                    f"A head on the model itself is the reward{accuracy}; references are the preferred replies."
                ],
                figures=[charts["alignment"]] if "alignment" in charts else [],
                tables=[alignment_table(result)],
            )
        )
    return html_report(
        "Do rollouts that start inside good answers help?",
        "Chang et al. 2024, arXiv:2404.08495: dataset resets against PPO, at three scales.",
        sections,
        result.provenance,
        paper="2404.08495",
        next_steps=[
            ("Compare shapes of preference data", "interp run reward-topology --out runs/reward-topology")
        ],
    )
