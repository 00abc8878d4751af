"""Display: cards and tables, the theme of figures and shared charts, the report page, progress, one-line errors.

It takes plain values, estimates and Plotly figures.
Never computes a result, loads a model or reads a run.

Hands out:
`Card`, `Shown`, `Table`, `shortened`, `distributions`, `head_map`, `layer_lines`, `rate_bars`, `error_line`,
`is_users_mistake`, `finish`, `mark`, `panels`, `reference_line`, `selector`, `Section`, `html_report`, `StripToken`,
`strip_html`, `Style`, `named`, `ordered`, `style`, `area`, `band`, `bar_marker`, `bars`, `counted`, `estimates_line`,
`intervals`, `line`, `points`, `with_ends`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
