"""Panels for a notebook cell: plain and steered answers side by side, token by token.

Never fits, selects or scores anything: what it shows comes from the rooms above.

Hands out:
`Playground`, `named_directions`, `playground`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
