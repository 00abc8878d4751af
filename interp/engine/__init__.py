"""Forward passes, fast and exact: activations, interventions, completions, log-probabilities.

Hands out `collect`, `collect_means`, `Ablate`, `Add`, `apply`, `generate`, `stream`, each equal to a plain path.
Never decides what a completion means, and never trains.
"""
