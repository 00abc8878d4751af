"""One file an experiment; this table is how the command and the notebooks find them."""

EXPERIMENTS = {
    "demo": "interp.experiments.demo",
    "refusal-direction": "interp.experiments.refusal_direction",
    "harmfulness": "interp.experiments.harmfulness",
    "jailbreaks": "interp.experiments.jailbreaks",
    "categories": "interp.experiments.categories",
    "guard": "interp.experiments.guard_comparison",
    "adversarial-finetune": "interp.experiments.adversarial_finetune",
    "elasticity-theory": "interp.experiments.elasticity_theory",
    "trajectory": "interp.experiments.trajectory",
    "rebound": "interp.experiments.rebound",
    "resistance": "interp.experiments.resistance",
}
"""Name → module with `Config`, `run`, `figures`, `rate_table`, `verdicts`, `report`, `SUMMARY`;
`DEFAULT_MODEL` where it is not smollm2-safe: None where neither a model nor prompts are needed."""

REPORTS = {"track": "interp.trajectory_report"}
"""Stored runs that are no experiments: name → module with `figures` and `report`."""
