"""Fine-tuning in stages, supervised or by preferences, and the bundled safety adapter.

Hands out `fine_tune`, `preference_tune`, `TrainConfig`.
Never imports `detectors`, and measures nothing but its own loss.
"""
