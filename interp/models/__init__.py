"""From a name to a loaded chat model with named sites, and from prompts to tokens with roles.

Hands out `load`, `ChatModel`, `tokenize`, `ChatTokens`.
Never runs more than the few tokens that prove a model's sites.
"""
