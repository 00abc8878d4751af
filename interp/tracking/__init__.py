"""The same measurements along a series of checkpoints, offline or live in a trainer.

Decay curves, rebound statistics, figures and report of a trajectory.
Never trains: it measures the checkpoints that training saved.

Hands out:
`live_spec`, `untouched`, `contrasts`, `crossing`, `fit_decay`, `half_life`, `knee`, `slope_within`, `DecayPanel`,
`SlopeRatio`, `decay_panels`, `heat_map`, `hookes_law`, `slope_ratios`, `with_ends`, `along`, `measure`,
`measurement`, `read_states`, `GroupStatistics`, `ReboundStatistics`, `Trends`, `initial_range`, `judge`,
`late_range`, `summarise`, `CheckpointRecord`, `Measurement`, `ModelShape`, `ReferenceFacts`, `ReferenceRecord`,
`TrackRecord`, `TrackingSettings`, `best_layer`, `fit_reference`, `keep_reference`, `rate_table`, `verdicts`,
`CheckpointLoader`, `find_checkpoints`, `find_series`, `step_unit`, `Reference`, `TrackingSpec`, `block_weights`,
`measure_series`, `track`, `weight_change`, `Trajectory`, `as_csv`, `assemble`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
