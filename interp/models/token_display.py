"""Display of tokens in a notebook: coloured by role, with indices in the hover text."""

from collections.abc import Sequence

from interp.display.token_strips import StripToken, strip_html

SHOWN_ROWS = 4
"""Maximum number of prompts shown."""
_MARKED = ("t_inst", "t_post_inst", "t_prefill")
_COLOURS = {
    "prefix": "#E6E6E6",
    "instruction": "#CFE6F7",
    "t_post_inst": "#F5B48A",
    "t_inst": "#7FBCE6",
    "post_inst": "#F8DFC9",
    "thinking": "#E4DCF1",
    "prefill": "#D5EBD8",
    "t_prefill": "#8FCB9B",
}


def roles_html(rows: Sequence[Sequence[tuple[int, str, str]]], *, n_prompts: int) -> str:
    """The tokens of each row under a legend of the roles.

    Args:
        rows: (id, text, role) of every token of the displayed prompts.
        n_prompts: total number of prompts.
    """
    legend = [
        StripToken(text=role, colour=colour, hover=role, marked=role in _MARKED)
        for role, colour in _COLOURS.items()
    ]
    strips = [
        strip_html(
            [
                StripToken(
                    text=text,
                    colour=_COLOURS[role.split(" = ")[-1].partition("[")[0]],
                    hover=f"{role}, index {i} ({i - len(row)} from the end), id {token}",
                    marked=role.endswith(_MARKED),
                )
                for i, (token, text, role) in enumerate(row)
            ]
        )
        for row in rows
    ]
    more = f"<p>and {n_prompts - len(rows)} more</p>" if n_prompts > len(rows) else ""
    return f"<div><b>{n_prompts} tokenised prompts</b>{strip_html(legend)}{'<hr>'.join(strips)}{more}</div>"
