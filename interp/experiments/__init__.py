"""Experiments: the method of a paper section by section, its typed result, its figures and report.

Hands out `EXPERIMENTS`, a table of import paths; `interp.experiments.running` opens and computes runs.
Never holds a method that a second paper needs: that moves to a room above.
"""

EXPERIMENTS = {
    "demo": "interp.experiments.demo",
    "refusal-direction": "interp.experiments.refusal_direction",
    "harmfulness": "interp.experiments.harmfulness",
    "jailbreaks": "interp.experiments.jailbreaks",
    "categories": "interp.experiments.categories",
    "guard": "interp.experiments.guard",
    "adversarial-finetune": "interp.experiments.adversarial_finetune",
    "elasticity-theory": "interp.experiments.elasticity_theory",
    "trajectory": "interp.experiments.trajectory",
    "rebound": "interp.experiments.rebound",
    "resistance": "interp.experiments.resistance",
    "track": "interp.experiments.track",
}
"""Name → package with an `EXPERIMENT`; importing one costs no torch."""
