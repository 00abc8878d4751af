"""One file an experiment; this table is how the command and the notebooks find them."""

EXPERIMENTS = {
    "demo": "interp.experiments.demo.run",
    "refusal-direction": "interp.experiments.refusal_direction.run",
    "harmfulness": "interp.experiments.harmfulness.run",
    "jailbreaks": "interp.experiments.jailbreaks.run",
    "categories": "interp.experiments.categories.run",
    "guard": "interp.experiments.guard.run",
    "adversarial-finetune": "interp.experiments.adversarial_finetune.run",
    "elasticity-theory": "interp.experiments.elasticity_theory.run",
    "trajectory": "interp.experiments.trajectory.run",
    "rebound": "interp.experiments.rebound.run",
    "resistance": "interp.experiments.resistance.run",
}
"""Name → module with `Config`, `run`, `figures`, `rate_table`, `verdicts`, `report`, `SUMMARY`;
`DEFAULT_MODEL` where it is not smollm2-safe: None where neither a model nor prompts are needed."""

REPORTS = {"track": "interp.tracking.report"}
"""Stored runs that are no experiments: name → module with `figures` and `report`."""
