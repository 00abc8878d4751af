"""The elasticity theory's tables, verdicts and page, from a stored result alone."""

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.elasticity_theory import Result
from interp.experiments.elasticity_theory.analysis import all_exponents, exponent_dose, transformer_ratios
from interp.experiments.elasticity_theory.figures import PREDICTIONS, figures
from interp.experiments.elasticity_theory.results import SizeExponents

CAVEAT = (
    "The largest model here has 100 thousand parameters and learns artificial grammars. What holds or fails here is "
    "about the argument, not about language models."
)


def rate_table(result: Result) -> Table:
    """The slopes and exponents that the theory is judged by."""
    mixture, tree, joint = result.mixture, result.token_tree, result.log_linear
    rows = [
        ["E1 mixture", "slope of log|R| in log k", "1", mixture.slope.rounded(4)],
        ["E1 mixture", "largest error of R against the closed form", "0", f"{mixture.largest_error:.1e}"],
        ["E3 log-linear", "slope of log|R| in log k", "1", joint.slope.rounded(4)],
        ["E3 log-linear", "largest error of R against -k, l = 0.0001", "0", f"{joint.largest_error:.1e}"],
        ["E2 token tree", "largest error of R against -k, expected counts", "0", f"{tree.largest_error:.1e}"],
    ]
    for depth, slopes in tree.slopes.items():
        rows += [
            [f"E2 token tree, depth {depth}", f"slope of {what} in log k", expected, slope.rounded()]
            for what, expected, slope in (
                ("log|R|, sampled, on the counts", "1", slopes.ratio),
                ("log|R|, sampled, on the sources", "1", slopes.held_out_ratio),
                ("log change of gamma_a", "-1", slopes.change_a),
                ("log change of gamma_p", "-2", slopes.change_p),
            )
        ]
    for name, sizes in all_exponents(result).items():
        rows += [
            [
                f"E{6 if 'transformer' in name else 4} {name}",
                f"d log|R| / d log {label}",
                f"{PREDICTIONS[size]['theorem']:g} theorem, {PREDICTIONS[size]['curvature']:g} curvature",
                exponent.rounded(),
            ]
            for size, label, exponent in (("n_p", "N_p", sizes.n_p), ("n_a", "N_a", sizes.n_a))
        ]
    header = ["experiment", "quantity", "expected", "measured"]
    return Table(header=header, rows=rows, title="exponents and errors")


def rebound_table(result: Result) -> Table:
    """Start, slopes, time constant and return of every curve."""
    rows = [
        [
            name,
            n_plus,
            group.start.rounded(3),
            group.initial_slope.rounded(factor=1000),
            group.late_slope.rounded(factor=1000),
            group.half_life.rounded(0),
            group.tau.rounded(0),
            group.tau_fitted_floor.rounded(0),
            group.return_by_score.rounded(0),
            "none" if group.return_by_kl is None else group.return_by_kl.rounded(0),
        ]
        for name, statistics in result.rebound_statistics.items()
        for n_plus, group in statistics.groups.items()
    ]
    header = ["model", "N+", "S(0)", "initial slope, 1/1000", "late slope, 1/1000", "half-life"]
    header += ["tau (floor at base)", "tau (fitted floor)", "N- to base score", "N- to KL 0.01"]
    return Table(header=header, rows=rows)


def verdicts(result: Result) -> list[str]:
    """Verdicts on the claims, in words that follow from the intervals."""
    errors = [part.largest_error for part in (result.mixture, result.token_tree, result.log_linear)]
    sentences = [
        f"At a joint optimum R = -k: {'holds' if max(errors) < 0.01 else 'fails'} to "
        f"{100 * max(errors):.2g}% (E1 closed form, E2 expected counts, E3 fitted)."
    ]
    sentences += [_exponent_verdict(name, sizes) for name, sizes in all_exponents(result).items()]
    sentences += [f"{name}: {s.verdict}; {s.why}." for name, s in result.rebound_statistics.items()]
    if ratios := transformer_ratios(result.transformer):
        unresolved = sum(not row.ratio.measurable for row in ratios)
        dose = exponent_dose(result.transformer)
        sentences.append(
            f"E6: {unresolved} of {len(ratios)} slope ratios are not resolved (the interval of the change of gamma_p "
            "covers 0); "
            + (
                "at no N- are most of them, so no exponents are given."
                if dose is None
                else f"exponents are taken at the smallest N- where most of them are, {dose}."
            )
        )
    return sentences


def _exponent_verdict(name: str, sizes: SizeExponents) -> str:
    """Which account the exponents agree with."""
    p, a = sizes.n_p, sizes.n_a
    if not (p.interval and a.interval):
        return f"{name}: too few points for exponents with intervals."
    theorem, curvature = (
        # A computed control has next to no interval; 0.02 is far from either account.
        p.low - 0.02 <= PREDICTIONS["n_p"][account] <= p.high + 0.02
        for account in ("theorem", "curvature")
    )
    reading = {
        (True, False): "N_p matters as the theorem says, against the curvature account",
        (False, True): "no dependence on N_p, as the curvature account says and against the theorem",
        (True, True): "not resolved between the theorem and the curvature account",
        (False, False): "N_p's exponent is neither the theorem's nor the curvature account's",
    }[theorem, curvature]
    both_say = a.low - 0.02 <= -1 <= a.high + 0.02
    return (
        f"{name}: |R| ~ N_p^{p.rounded()} N_a^{a.rounded()}; {reading}; N_a's exponent "
        f"{'is' if both_say else 'is not'} the -1 of both (of curvature only to first order in the dose)."
    )


def report(result: Result) -> str:
    """The page."""
    charts, seconds = figures(result), result.seconds
    sections = [
        Section(
            title="What was found", text=verdicts(result), notes=[CAVEAT], tables=[rate_table(result)]
        ),
        Section(
            title="Joint optima: where the -k comes from (E1 to E3)",
            text=[
                "Theorem 4.2 of Ji et al. 2025: as perturbation data grows by l |D_a|, the compression rate of "
                "the alignment data rises k = |D_p| / |D_a| times as fast as that of the pre-training data falls. "
                "At any joint optimum the gradients balance, so this holds for every model class at l = 0; |D| "
                "times the change of rate is then equal for both sets, which is the Hooke's-law reading.",
                "For the mixture with disjoint supports the ratio grows with l and diverges at l* = s / (1 - s); "
                "beyond it both rates rise and the theorem's signs fail. 'l << 1' means l << l*.",
            ],
            figures=[charts["slope_ratio"], charts["pole"], charts["hookes_law"]],
        ),
        Section(
            title="Training in stages: theorem or curvature (E4, E6)",
            text=[
                "Real pipelines train in stages and end at no joint optimum. If the ratio came from the theorem, it "
                "would grow as N_p and fall as N_a; if from curvature around a converged model, it would not know N_p. "
                "The joint optimum at the same sizes is the control.",
                "Points where the change of gamma_p is not resolved say nothing of a ratio and are not drawn.",
            ],
            figures=[charts[n] for n in ("exponents", "transformer_slope_ratio") if n in charts],
            tables=[_converged_table(result)],
        ),
        Section(
            title="Does more alignment return sooner? (E5, E6)",
            text=[
                "Rebound means: with more positive examples the score falls faster at first and slower later. A "
                "higher start falls faster at an equal time constant, so tau is fitted, with the floor at the "
                "score before alignment and with a fitted one. 'Returned' needs KL to the model before alignment, "
                "not only the score. Shaded: SD over seeds. Intervals: Student's t over seeds; a curve without "
                "such a number is counted as missing.",
            ],
            figures=[charts[n] for n in ("rebound_log_linear", "rebound_transformer") if n in charts],
            tables=[rebound_table(result)],
        ),
    ]  # fmt: skip
    fast = sum(v for k, v in seconds.items() if k not in ("total", "transformer"))
    lead = (
        f"Ji et al. 2025, arXiv:2406.06144, where it can be computed. E1 to E5 took {fast:.0f} s, the transformer "
        f"{seconds.get('transformer', 0):.0f} s."
    )
    return html_report(
        "Alignment elasticity: the theorem and its limits",
        lead,
        sections,
        result.provenance,
        paper="2406.06144",
        next_steps=[
            ("See whether a language model rebounds", "interp run rebound --out runs/rebound"),
        ],
    )


def _converged_table(result: Result) -> Table:
    rows = [[r.steps, r.ratio, r.ratio * r.steps, r.first_order] for r in result.sequential.converged]
    return Table(
        header=["alignment steps T_a", "R", "R x T_a", "R to first order in T_a (curvature)"], rows=rows
    )
