"""Detectors of harmful prompts: Latent Guard, and what it is compared with.

Hands out `LatentGuard` and guard models of the Hub, which fit, calibrate, score, stream and save.
Never trains a language model, and never imports `training`.
"""
