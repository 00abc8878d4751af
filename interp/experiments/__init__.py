"""One file an experiment; this table is how the command and the notebooks find them."""

EXPERIMENTS = {
    "demo": "interp.experiments.demo",
    "refusal-direction": "interp.experiments.refusal_direction",
    "harmfulness": "interp.experiments.harmfulness",
    "jailbreaks": "interp.experiments.jailbreaks",
    "categories": "interp.experiments.categories",
}
"""Name → module with `Config`, `run`, `figures`, `rate_table`, `verdicts`, `report`, `SUMMARY`."""
