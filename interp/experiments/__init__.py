"""Experiments: the method of a paper section by section, its typed result, its figures and report.

Hands out `EXPERIMENTS`, a table of import paths, and `SUMMARIES`; `interp.experiments.running` opens and computes runs.
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
    "safe-rlhf": "interp.experiments.safe_rlhf",
    "planted": "interp.experiments.planted",
    "recovery": "interp.experiments.recovery",
    "safety-prompts": "interp.experiments.safety_prompts",
    "repair": "interp.experiments.repair",
    "endings": "interp.experiments.endings",
    "safelawbench": "interp.experiments.safelawbench",
    "machine-text": "interp.experiments.machine_text",
    "elasticity-theory": "interp.experiments.elasticity_theory",
    "dataset-reset": "interp.experiments.dataset_reset",
    "reward-topology": "interp.experiments.reward_topology",
    "method-elasticity": "interp.experiments.method_elasticity",
    "trajectory": "interp.experiments.trajectory",
    "rebound": "interp.experiments.rebound",
    "resistance": "interp.experiments.resistance",
    "track": "interp.experiments.track",
}
"""Name → package with an `EXPERIMENT`; importing one costs no torch."""

SUMMARIES = {
    "demo": "where refusal and harmfulness live in a model, and what happens when they are steered",
    "refusal-direction": (
        "the refusal direction: selection, ablation, addition, weight edit, mechanism (Arditi et al. 2024)"
    ),
    "harmfulness": (
        "harmfulness and refusal apart: clusters, beliefs, geometry, steering, inversion (Zhao et al. 2025)"
    ),
    "jailbreaks": (
        "what jailbreaks move: the belief that a request is harmful, or that it is refused (Zhao et al. 2025)"
    ),
    "categories": (
        "one harmfulness and one refusal direction per harm category, and how alike they are (Zhao et "
        "al. 2025)"
    ),
    "guard": (
        "Latent Guard against a probe, the refusal direction, words alone and guard models (Zhao et al. 2025)"
    ),
    "adversarial-finetune": (
        "a model fine-tuned to comply: do the harm belief and the guard survive? (Zhao et al. 2025)"
    ),
    "safe-rlhf": (
        "harm, categories, severity and preferences in the states of answers; moderation (Ji et al. 2025)"
    ),
    "planted": "do methods find what was planted in an organism of `interp plant`, and nothing else?",
    "recovery": (
        "restore a few weights of a fine-tuned model until it refuses again, and keep its task (Yang et al. 2025)"
    ),
    "safety-prompts": (
        "a safety prompt optimised in representation space, and what system prompts move (Zheng et al. 2024)"
    ),
    "repair": "one scoreboard of everything that puts alignment back, with random controls",
    "endings": "how prompts end: what it leaks, and what it does to directions and guards, over sets and models",
    "safelawbench": "does refusing cost knowledge of the law on safety? accuracy under steering (Cao et al. 2025)",
    "machine-text": (
        "the model's own text: detectors, attacks, depth, a direction, refusal, a watermark (Wu et al. 2025)"
    ),
    "elasticity-theory": (
        "the theorem of alignment elasticity in models that can be computed and a tiny transformer; no "
        "chat model"
    ),
    "dataset-reset": (
        "PPO whose rollouts start from cuts of reference answers, exact, in a toy and on a model (Chang et al. 2024)"
    ),
    "reward-topology": (
        "preference data as prefix trees or chains: reward uncertainty simulated, fitted, generated (Qiu et al. 2025)"
    ),
    "method-elasticity": (
        "one model aligned by eight methods to the same refusal rate, unlearned alike, aligned again: which lasts?"
    ),
    "trajectory": "fine-tune in stages (align, un-align, align again) and track every checkpoint",
    "rebound": (
        "align on N+ examples, reverse with N-: slopes, time constants, return, and the directions inside"
    ),
    "resistance": (
        "train checkpoints forward and back on each other's answers: loss, excess loss and KL change "
        "over seeds"
    ),
    "track": "behaviour, beliefs, directions, compression and KL along a series of checkpoints",
}
"""Name → one line on what it does, for lists that import no experiment."""
