"""How results look: cards in notebooks and terminals, charts, the offline page, progress bars, one-line errors.

Hands out `Card`, `Shown`, chart kinds and pages.
Never imports a model, and knows no experiment.
"""
