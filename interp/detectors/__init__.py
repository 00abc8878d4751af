"""Detectors of harmful prompts and of machine-written text behind one protocol: fit, calibrate, score, stream, save.

Latent Guard, guard models from the Hub, and baselines; machine-written text in the package `machine_text`.
Never imports training.

Hands out:
`LogisticProbe`, `RandomDirection`, `RefusalDirection`, `WordsDetector`, `Detector`, `calibrated_threshold`,
`check_calibration`, `json_lines`, `FitData`, `FittedDetector`, `Readings`, `LoadedGuard`, `TextGuard`,
`load_text_guard`, `LatentGuard`, `Moderation`, `SeverityModerator`, `moderation_scores`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
