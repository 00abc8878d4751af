"""Fine-tuning with checkpoints at counts of examples: one run that resumes, supervised and preference losses.

The recipe of the bundled safety adapter; examples that weaken refusal; what puts it back: recovery, other repairs of
weights, and optimised safety prompts.
Never imports detectors.

Hands out:
`TrainConfig`, `one_pass`, `fine_tune`, `preference_tune`, `steps_of`, `best_alpha`, `calibrate`, `calibration_split`,
`opened_answers`, `own_answers`, `safety_examples`, `train_safety_adapter`, `write_model_card`, `recover`,
`RecoveryConfig`, `Recovered`, `RecoveryStep`, `pick_step`, `restored_share`, `downstream_examples`, `stub_examples`,
`block_weights`, `full_restore`, `interpolate`, `random_restore`, `random_restore_of_norm`, `safe_lora`,
`task_arithmetic`, `weights_of`, `weights_with_adapter`, `SafetyPromptConfig`, `TrainedPrompt`, `fit_safety_space`,
`optimise_prompt`, `safety_prompt`, `tune_prompt`, `BreakingConfig`, `breaking_settings`, `load_reward_model`,
`RewardModel`, `RewardModelConfig`, `train_reward_model`, `reward_by_layer`, `reward_cosines`, `OptimisedPolicy`,
`PolicyConfig`, `optimise_policy`, `optimise_groups`, `grow_trees`, `sample_chains`, `Planted`, `plant`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
