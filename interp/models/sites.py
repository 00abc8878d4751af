"""Sites: the named places of a block that hooks read and write.

resid_pre --+--> attention --> attn_out --+--> mlp --> mlp_out --+--> resid_post
            +----------------------------(+) resid_mid ---------(+)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn

from interp.models.architecture import Block
from interp.models.threads import in_this_thread

Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
SITES: tuple[Site, ...] = get_args(Site)
Sites = Site | Sequence[Site]
"""One site, or several."""

Edit = Callable[[Tensor], Tensor | None]
"""A function of a site's value [batch, pos, d_model] that returns its replacement, or None to leave it unchanged."""


def site_list(sites: Sites) -> tuple[Site, ...]:
    """One site or several as a tuple without repetitions.

    Raises:
        ValueError: no site, or an unknown one.
    """
    if not isinstance(sites, (str, Iterable)):
        raise ValueError(f"sites must be one or several of {', '.join(SITES)}; got {sites!r}")
    named = [sites] if isinstance(sites, str) else list(sites)
    unknown: list[Any] = [site for site in named if not isinstance(site, str) or site not in SITES]
    unique = () if unknown else tuple(dict.fromkeys(map(str, named)))
    if unknown or not unique:
        raise ValueError(
            f"unknown site {unknown[0]!r}; known: {', '.join(SITES)}" if unknown else "give at least one site"
        )
    return unique  # pyright: ignore[reportReturnType]


@contextmanager
def edited(edits: Sequence[tuple[Site, Block, Edit]]) -> Iterator[None]:
    """Call each edit at its site in every forward pass of this thread inside the context, in the order given."""
    with ExitStack() as stack:
        for site, block, edit in edits:
            for handle in _register(site, block, edit):
                stack.callback(handle.remove)
        yield


def _register(site: Site, block: Block, edit: Edit) -> list[Any]:
    if site == "resid_pre":
        return [_before(block.module, partial(_edit_input, edit))]
    if site == "resid_post":
        return [_after(block.module, edit)]
    if site == "attn_out":
        return [_after(block.attn_writer, edit)]
    if site == "mlp_out":
        return [_after(block.mlp_writer, edit)]
    # No module has resid_mid as its input or output in all architectures. It is resid_pre + attn_out, so an edit
    # of it is an edit of attn_out: new attn_out = edit(mid) - resid_pre.
    entering: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering[:] = [args[0] if args else kwargs["hidden_states"]]

    def on_mid(attn_out: Tensor) -> Tensor | None:
        new = edit(entering[0] + attn_out)
        return None if new is None else new - entering[0]

    return [_before(block.module, keep), _after(block.attn_writer, on_mid)]


# The thread is checked before a hook's arguments: torch registers a hook and the fact that it takes keywords in two
# steps, and another thread may call the hook in between.


def _before(module: nn.Module, hook: Callable[..., Any]) -> Any:
    return module.register_forward_pre_hook(in_this_thread(hook, _nothing), with_kwargs=True)


def _after(module: nn.Module, edit: Edit) -> Any:
    return module.register_forward_hook(in_this_thread(partial(_edit_output, edit), _nothing))


def _nothing(*_: Any) -> None:
    return None


def _edit_input(edit: Edit, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        new = edit(args[0])
        return None if new is None else ((new, *args[1:]), kwargs)
    new = edit(kwargs["hidden_states"])
    return None if new is None else (args, {**kwargs, "hidden_states": new})


def _edit_output(edit: Edit, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    value = output[0] if isinstance(output, tuple) else output
    new = edit(value)
    if new is None:
        return None
    return (new, *output[1:]) if isinstance(output, tuple) else new
