"""Running a model: activations, completions, log-probabilities and gradients, under interventions.

Every fast path has a plain path that it is compared with.
Never judges what comes out.

Hands out:
`Activations`, `collect`, `collect_means`, `fast_path_agrees`, `apply`, `bridge_hooks`, `plan_batches`, `run_batches`,
`PassBudget`, `pass_budget`, `PackedWeights`, `fused_forwards`, `stop_ids`, `Completions`, `generate`,
`generate_each`, `stream`, `Readings`, `SoftPrefix`, `differentiable`, `Ablate`, `Add`, `Intervention`, `PassLayout`,
`completion_log_probs`, `map_completions`, `map_next_token`, `next_token_log_probs`, `packed_next_tokens`,
`PackedPasses`, `can_pack`, `packed_passes`, `pack`, `plan_trees`, `PackedAttention`, `edited_weights`,
`read_activations`, `store_activations`, `Exported`, `SavedModel`, `save_ablated_model`, `save_ablation_adapter`,
`save_model`, `summed_gradients`, `NearestToken`, `SafetyPrompt`, `SlotPasses`, `soft_tokens`, `final_states`,
`pad_left`, `map_positions`, `scored_windows`, `Pool`, `Workers`, `open_workers`, `Filled`, `fill_store`,
`active_store`, `using_store`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
