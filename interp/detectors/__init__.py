"""Detectors of harmful prompts: scored, calibrated to a false-positive rate, streamed and saved, all in the same way.

Hands out `detector.Detector`, what each one does; `latent_guard.LatentGuard`; the baselines it is compared with
(`baselines`: logistic probe, refusal direction, words, random direction); and guard models of the Hub (`guard_models`).
Never trains a model, and knows no experiment.
"""
