"""Measures along a series of checkpoints, stored or live.

Hands out `track`, `Trajectory`, `ElasticityCallback`, decay curves and the test for rebound.
Never trains: it measures what `training` or another trainer made.
"""
