"""What a completion or a model is worth: refusal metrics, losses, compression, scorers.

Hands out refusal rates with intervals, KL and cross-entropy, bits per byte, scorers.
Never changes a model.
"""
