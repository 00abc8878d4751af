"""What the playground shows, as HTML and as sentences: answers, token strips, first-token probabilities, status.

The same functions draw the live panels and the static picture that a stored notebook shows where no kernel runs.
"""

from collections.abc import Mapping, Sequence
from html import escape

from interp.display.token_strips import StripToken, strip_html
from interp.engine.interventions import new_token_limit
from interp.models.prompt_inputs import Message
from interp.models.tokens import Positions
from interp.representations.token_traces import Answer, Setting, TracedToken

POSITIVE, NEGATIVE, UNKNOWN = (213, 94, 0), (0, 114, 178), "#EEEEEE"
_BARS = {"plain": "#0072B2", "steered": "#D55E00", "kept": "#009E73"}
_PLACES = {
    "prefix": "the tokens before the instruction",
    "instruction": "the instruction",
    "template": "the template's tokens",
    "post_inst": "the template's tokens after the instruction",
    "prefill": "the prefilled answer",
    "thinking": "the thinking block",
}


def count(n: int, noun: str = "token") -> str:
    """A number with its noun: "1 token", "12 tokens"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def addition_sentence(setting: Setting, name: str) -> str:
    """What is added, how much of it and where: "3 × the norm of refusal added at layer 17, at all tokens"."""
    relative = setting.relative_norm is not None
    amount = setting.relative_norm if setting.relative_norm is not None else setting.coefficient
    if amount == 0:
        return "nothing added: the amount is 0"
    done = "added" if amount > 0 else "subtracted"
    if relative:
        along = "along" if amount > 0 else "against"
        what = f"{abs(amount):g} × the mean activation norm added {along} {name}"
    else:
        what = f"{abs(amount):g} × the norm of {name} {done}"
    layer = setting.direction.layer if setting.layer is None else setting.layer
    return f"{what} at layer {layer}, at {_reach(setting)}"


def safety_sentence(setting: Setting) -> str:
    """What stands in the system slot: "safety prompt on: 23 trained embeddings in place of '...'"; empty without."""
    prompt = setting.safety_prompt
    if prompt is None:
        return ""
    words = prompt.text if len(prompt.text) <= 40 else f"{prompt.text[:40]}…"
    return f"safety prompt on: {len(prompt.embeddings)} trained embeddings in place of {words!r}"


def _reach(setting: Setting) -> str:
    """The tokens of prompt and answer that are acted on."""
    n = new_token_limit(setting.intervention())
    if setting.positions == "all":
        if n is None:
            return "all tokens"
        where = "all tokens of the prompt"
    else:
        where = _places(setting.positions)
    if n == 0:
        return where
    return f"{where} and {'all tokens' if n is None else f'the first {count(n)}'} of the answer"


def _places(positions: Positions) -> str:
    listed = [positions] if isinstance(positions, (str, int)) else list(positions)
    names = [_PLACES.get(str(p), f"token {p}" if isinstance(p, int) else str(p)) for p in listed]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def answer_html(
    arm: str, answer: Answer | None, *, note: str = "", earlier: Sequence[Message] = (), message: str = ""
) -> str:
    """Render one answer with its name and a note.

    Args:
        earlier: turns of the conversation before this one.
        message: the message that is answered, shown where there are earlier turns.
    """
    body = "" if answer is None else escape(answer.text)
    end = "" if answer is None or answer.finished else " …"
    turns = [*earlier, {"role": "user", "content": message}] if earlier else []
    said = "".join(
        f'<div style="white-space:pre-wrap;opacity:.75;margin:.2em 0">'
        f"<i>{'you' if turn['role'] == 'user' else arm}:</i> {escape(str(turn['content']))}</div>"
        for turn in turns
    )
    return (
        f'<div style="padding-right:1em"><b>{arm}</b> <span style="opacity:.7">{escape(note)}</span>{said}'
        f'<p style="white-space:pre-wrap;line-height:1.4;min-height:6em">{body}{end}</p></div>'
    )


def picture_html(columns: Sequence[str], strips: str, probabilities: str, *, prompt: str, status: str) -> str:
    """Render a static picture of answers, strips and table, for readers without a kernel."""
    if not columns:
        return "<p><i>A playground: run this cell, and press Run in it.</i></p>"
    cells = "".join(f'<td style="vertical-align:top;text-align:left">{column}</td>' for column in columns)
    return (
        f'<p style="white-space:pre-wrap"><b>prompt</b> {escape(prompt)}</p>'
        f'<table style="width:100%;table-layout:fixed"><tr>{cells}</tr></table>{strips}{probabilities}'
        f'<p style="opacity:.7">{escape(status)}</p>'
    )


def strips_html(answers: Mapping[str, Answer], directions: Sequence[str]) -> str:
    """Render for each direction the tokens of every prompt and answer, coloured by their projection."""
    rows = []
    for name in directions:
        largest = _scale(answers, name)
        rows.append(f'<p style="margin:.6em 0 0"><b>projection on {escape(name)}</b> {_legend(largest)}</p>')
        for arm, answer in answers.items():
            tokens = [*answer.prompt, *answer.tokens]
            strip = strip_html([_strip_token(token, name, largest) for token in tokens])
            rows.append(f'<div style="display:flex"><span style="min-width:5em">{arm}</span>{strip}</div>')
    return "".join(rows)


def probabilities_html(probabilities: Mapping[str, Mapping[str, float]], arms: Sequence[str]) -> str:
    """Render the likeliest first tokens, with a bar for each answer; a token that is 0.000 in all is left out."""
    head = "".join(f'<th style="text-align:left">{arm}</th>' for arm in arms)
    rows = []
    for token, by in probabilities.items():
        if all(f"{by[arm]:.3f}" == "0.000" for arm in arms):
            continue
        cells = "".join(
            '<td style="min-width:14em;text-align:left"><span style="display:inline-block;height:.8em;'
            f'background:{_BARS[arm]};width:{9 * by[arm]:.2f}em"></span> {by[arm]:.3f}</td>'
            for arm in arms
        )
        shown = escape(token.replace("\n", "↵"))
        rows.append(
            f'<tr><td style="font-family:monospace;white-space:pre;text-align:left">{shown}</td>{cells}</tr>'
        )
    if not rows:
        return ""
    return (
        '<p style="margin:.6em 0 0"><b>probability of the first token</b></p>'
        f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
    )


def colour(value: float, largest: float) -> str:
    """A colour from white at zero to orange at `largest` and blue at its negative, clipped beyond."""
    share = max(-1.0, min(1.0, value / largest if largest else 0.0))
    end = POSITIVE if share > 0 else NEGATIVE
    red, green, blue = (round(255 + (part - 255) * 0.75 * abs(share)) for part in end)
    return f"#{red:02X}{green:02X}{blue:02X}"


def _strip_token(token: TracedToken, name: str, largest: float) -> StripToken:
    if name not in token.projections:
        return StripToken(text=token.text, colour=UNKNOWN, hover=f"{token.role}: not run through the model")
    along, cosine = token.projections[name], token.cosines[name]
    return StripToken(
        text=token.text,
        colour=colour(along, largest),
        hover=f"{token.role}: projection {along:.2f}, cosine {cosine:.3f}",
        marked=token.role == "t_inst" or token.role.endswith("t_post_inst"),
    )


def _scale(answers: Mapping[str, Answer], name: str) -> float:
    """Largest projection, without the template's first tokens, whose activations can have a far larger norm."""
    tokens = [
        t for answer in answers.values() for t in (*answer.prompt, *answer.tokens) if t.role != "prefix"
    ]
    return max((abs(t.projections[name]) for t in tokens if name in t.projections), default=1.0)


def _legend(largest: float) -> str:
    stops = ", ".join(colour(share * largest, largest) for share in (-1, 0, 1))
    return (
        f'<span style="opacity:.7">{-largest:.0f} <span style="display:inline-block;width:6em;height:.7em;'
        f'background:linear-gradient(90deg, {stops})"></span> {largest:.0f}; framed: t_inst and t_post_inst</span>'
    )
