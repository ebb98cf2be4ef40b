"""The features that an environment gives: those that a policy reads, of those that the simulator has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rewards.errors import UserError
from world_model.spec import IMAGES, STATE, Feature, Spec


def given_spec(simulated: Spec, wanted: Mapping[str, Feature] | None, renders: bool = True) -> Spec:
    """Return the spec of an environment for a policy that reads the features `wanted`; None: all that there are.

    The images are those that the policy reads; if the simulator cannot render others than its own (`renders`), those
    that it lacks are left out, and `Spec.check_fits` names them. A policy that reads images gets those slices of the
    state that it knows, because the others, such as the position of an object, are to be seen in the images.

    Raises:
        UserError: the simulator's state has no slice of that name.
    """
    if wanted is None:
        return simulated
    images = {name: feature for name, feature in wanted.items() if name.startswith(IMAGES)}
    if not renders:
        own = {name: feature.shape for name, feature in simulated.features.items()}
        images = {name: feature for name, feature in images.items() if own.get(name) == feature.shape}
    state = simulated.features[STATE]
    if images and wanted[STATE].shape != state.shape:
        slices, dim = {}, 0
        for name in wanted[STATE].slices:
            if name not in state.slices:
                raise UserError(
                    f"the checkpoint reads {name!r}, which the simulator does not have; choose another task"
                )
            first, last = state.slices[name]
            slices[name] = (dim, dim + last - first)
            dim += last - first
        state = replace(state, shape=(dim,), slices=slices)
    return replace(simulated, features={STATE: state, **images})


def state_columns(simulated: Spec, given: Spec) -> Tensor | None:
    """Return the columns of the simulator's state that `given`, made by `given_spec`, keeps; None: all."""
    if given.state_dim == simulated.state_dim:
        return None
    columns = torch.arange(simulated.state_dim)
    # The empty tensor is for a policy that reads images alone: then there is nothing else to concatenate.
    return torch.cat([columns[:0], *(columns[simulated.slices[name]] for name in given.slices)])
