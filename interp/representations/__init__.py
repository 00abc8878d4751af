"""What activations say: beliefs, the leak check, the choice of a refusal direction, steering, token projections.

Hands out `find_directions`, `steer`, centres and beliefs, the selection rule and its sweep.
Never judges completions by rules of its own: that is `evaluation`.
"""
