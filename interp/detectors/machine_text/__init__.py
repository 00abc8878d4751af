"""Machine-written text: zero-shot scores from one forward pass, perturbation methods, a watermark, and the GLTR view.

A score says how well a model predicts a text, which is evidence about its origin only against texts of known origin, of
the same length, kind and language. It is no proof of authorship.
"""
