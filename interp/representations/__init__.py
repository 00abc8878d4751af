"""Reading and using activations: beliefs, confounds, selecting a refusal direction, steering, token traces.

Methods that more than one paper uses.
Never trains a model.

Hands out:
`Centres`, `belief`, `both_beliefs`, `cosine_margin`, `fit_both_centres`, `fit_centres`, `states`, `leak_check`,
`choose`, `pick_stability`, `scored_candidates`, `HarmAndRefusal`, `LeakCheck`, `Candidate`, `NothingSurvives`,
`PickShare`, `Rule`, `RuleUsed`, `ScoredCandidate`, `pick`, `find_directions`, `steer`, `steer_with`,
`FittedDirection`, `fit_directions`, `heads`, `Head`, `HeadAttribution`, `AttentionByRole`, `LogitLens`, `Patching`,
`Sweep`, `Answer`, `Setting`, `TracedToken`, `likely_tokens`, `trace`, `LayerPlane`, `PlaneCosines`, `SafetySpace`,
`Shift`, `anchor`, `plane_by_layer`, `plane_cosines`, `shift_table`, `RefusalTargets`, `SafetyStates`,
`refusal_targets`, `safety_representations`, `safety_representations_by_layer`, `answer_states`, `conversation`,
`LatentJudge`, `fit_latent_judge`, `OrdinalFit`, `fit_ordinal`, `category_directions`, `harm_directions`,
`severity_readings`, `contrast_cosines`, `shuffled_cosines`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
