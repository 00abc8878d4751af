"""Appendix I.1: subtracting the direction moves activations off their distribution.

Source: Arditi et al. 2024, arXiv:2406.11717, figure 22. The paper does not name its axes; here they are the first two
principal components of the unmodified activations.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import PCA

from interp.directions import Direction
from interp.engine.activations import collect
from interp.engine.interventions import Add
from interp.experiments.refusal_direction.results import Scatter
from interp.models.chat_model import ChatModel


def scatter(
    model: ChatModel, direction: Direction, *, refused: Sequence[str], answered: Sequence[str]
) -> Scatter:
    """Last-token activations, each kind with and without -r, in the plane of the unmodified ones.

    Read at the input of the block in the middle between the direction's layer and the end, so that what the blocks make
    of the shift is seen and not the shift alone.
    """
    layer = (direction.layer + model.n_layers) // 2
    minus = [Add(direction=direction.vector, layers=[direction.layer], coefficient=-1.0)]
    points = {
        f"{kind}{label}": collect(
            model, list(texts), layers=layer, positions="t_post_inst", interventions=changes
        )["resid_pre"][:, 0, 0]
        .double()
        .numpy()
        for kind, texts in (("harmful", refused), ("harmless", answered))
        for label, changes in (("", []), (" - r", minus))
    }
    plane = PCA(n_components=2, random_state=0).fit(np.concatenate([points["harmful"], points["harmless"]]))
    return Scatter(
        layer=layer,
        explained_variance=tuple(plane.explained_variance_ratio_.tolist()),
        points={name: tuple(map(tuple, plane.transform(values).tolist())) for name, values in points.items()},
    )
