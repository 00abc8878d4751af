"""Activations and their means as values: what each axis counts, and which prompts they are of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.display.cards import Card, Shown
from interp.models.chat_model import Site
from interp.models.prompt_inputs import PromptIdentity


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Activations(Shown):
    """Activations of every prompt at chosen sites, layers and token roles."""

    values: dict[Site, Float[Tensor, "prompt layer role d_model"]]
    """By site, in the model's dtype, on the CPU."""
    layers: tuple[int, ...]
    """What the layer axis counts."""
    roles: tuple[str, ...]
    """What the role axis counts, e.g. `t_inst`, `post_inst[0]`."""
    identity: PromptIdentity | None = None
    """What the prompt axis counts: ids, categories and hash."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Model, prompts and library versions, where they were read from a file; empty otherwise."""

    def __getitem__(self, site: Site) -> Float[Tensor, "prompt layer role d_model"]:
        return self.values[site]

    def _card(self) -> Card:
        shape = "[prompt, layer, role, d_model]"
        return _card(
            "Activations", {f'["{site}"]': (shape, value) for site, value in self.values.items()}, self
        )

    def at(self, site: Site, role: str) -> Float[Tensor, "prompt layer d_model"]:
        """Activations at one role.

        Raises:
            ValueError: the role was not collected.
        """
        if role not in self.roles:
            raise ValueError(f"role {role!r} was not collected; there are {', '.join(self.roles)}")
        return self.values[site][:, :, self.roles.index(role)]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ActivationMeans(Shown):
    """Mean activations over prompts at chosen sites, layers and token roles."""

    means: dict[Site, Float[Tensor, "layer role d_model"]]
    """By site, accumulated and kept in float64."""
    norms: dict[Site, Float[Tensor, "layer role"]]
    """Mean norm of the activations, by site; the unit of `relative_norm`."""
    n: int
    """Number of prompts."""
    layers: tuple[int, ...]
    """What the layer axis counts."""
    roles: tuple[str, ...]
    """What the role axis counts."""
    identity: PromptIdentity | None = None
    """The prompts: ids, categories and hash."""

    def __getitem__(self, site: Site) -> Float[Tensor, "layer role d_model"]:
        return self.means[site]

    def _card(self) -> Card:
        sites = {f'["{site}"]': ("[layer, role, d_model]", value) for site, value in self.means.items()}
        return _card(f"Mean activations of {self.n} prompts", sites, self)


def _card(title: str, sites: dict[str, tuple[str, Tensor]], of: Activations | ActivationMeans) -> Card:
    layers = [str(layer) for layer in of.layers]
    return Card(
        title=title,
        facts={
            **{
                name: f"{shape} = {list(value.shape)}, {value.dtype}"
                for name, (shape, value) in sites.items()
            },
            "layers": ", ".join(layers if len(layers) < 8 else [*layers[:3], "…", layers[-1]]),
            "roles": ", ".join(of.roles),
        },
    )
