"""Prompts and texts: named sets with fixed splits, files and Hub sets, wrappers, corpora, training examples.

Hands out `load_prompts`, `PromptSet` and `Prompts`, corpora, examples; the project's own data is in `assets/`.
Never looks inside a model.
"""
