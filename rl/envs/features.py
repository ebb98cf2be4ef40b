"""The features that an environment gives: those that a policy reads, of those that the simulator has.

A simulator has one state vector. An environment gives it in one of three layouts: the whole vector as `state`; the
robot's own slices as `state` and everything else as `environment_state`, as policies of LeRobot read it; or for a
policy with images those slices that the policy knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rewards.errors import UserError
from world_model.spec import ENVIRONMENT_STATE, IMAGES, STATE, Feature, Spec


def given_spec(
    simulated: Spec,
    wanted: Mapping[str, Feature] | None,
    renders: bool = True,
    robot_slices: Sequence[str] = (),
) -> Spec:
    """Return the spec of an environment for a policy that reads the features `wanted`; None: all that there are.

    The images are those that the policy reads; if the simulator cannot render others than its own (`renders`), those
    that it lacks are left out, and `Spec.check_fits` names them. A policy that reads images gets those slices of the
    state that it knows, because the others, such as the position of an object, are to be seen in the images.

    A policy that reads `environment_state` gets the slices of the robot as its `state`, and all others as
    `environment_state`. So does, without `environment_state`, a policy whose state has no named slices, only the size
    of the robot's: policies of other projects store nothing but sizes.

    Args:
        simulated: what the simulator has.
        wanted: what the policy reads.
        renders: whether the simulator renders any image that is asked for.
        robot_slices: `Simulator.robot_slices`; names that the state lacks are ignored.

    Raises:
        UserError: the simulator's state has no slice of that name or none of the robot, or an image has a shape that no
            image has.
    """
    if wanted is None:
        return simulated
    images = {name: _checked_image(name, feature) for name, feature in wanted.items() if name.startswith(IMAGES)}
    if not renders:
        own = {name: feature.shape for name, feature in simulated.features.items()}
        images = {name: feature for name, feature in images.items() if own.get(name) == feature.shape}
    state = simulated.features[STATE]
    robot = [name for name in robot_slices if name in state.slices]
    if ENVIRONMENT_STATE in wanted:
        return replace(simulated, features=_split(state, robot) | images)
    if _reads_robot_alone(wanted.get(STATE), state, robot):
        state = _kept(state, robot)
    elif images and wanted[STATE].shape != state.shape:
        state = _kept(state, list(wanted[STATE].slices))
    return replace(simulated, features={STATE: state, **images})


def state_columns(simulated: Spec, given: Spec) -> Tensor | None:
    """Return the columns of the simulator's state that `given`, made by `given_spec`, keeps as state; None: all."""
    if given.state_dim == simulated.state_dim:
        return None
    columns = torch.arange(simulated.state_dim)
    # The empty tensor is for a policy that reads images alone: then there is nothing else to concatenate.
    return torch.cat([columns[:0], *(columns[simulated.slices[name]] for name in given.slices)])


def vector_columns(simulated: Spec, given: Spec) -> dict[str, Tensor | None]:
    """Return for each vector of `given`, made by `given_spec`, its columns of the simulator's state; None: all."""
    columns = state_columns(simulated, given)
    found = {STATE: columns}
    if ENVIRONMENT_STATE in given.features:
        # What is not the robot's: the other columns, in their order.
        is_other = torch.ones(simulated.state_dim, dtype=torch.bool)
        is_other[columns if columns is not None else slice(None)] = False
        found[ENVIRONMENT_STATE] = is_other.nonzero()[:, 0]
    return found


def _split(state: Feature, robot: Sequence[str]) -> dict[str, Feature]:
    """Return the slices of the robot as `state`, and all other numbers as `environment_state`, with their slices."""
    if not robot:
        raise UserError(
            f"the policy reads {ENVIRONMENT_STATE!r} beside the state of the robot, and the simulator does not say "
            "which part of its state is the robot's; choose another simulator, or a policy that reads the whole state"
        )
    own = _kept(state, robot)
    taken = [state.slices[name] for name in robot]

    def moved(column: int) -> int:
        """Return a column of the state as a column of the rest, from which the robot's columns are gone."""
        return column - sum(min(last, column) - first for first, last in taken if first < column)

    others = {name: (moved(a), moved(b)) for name, (a, b) in state.slices.items() if name not in robot}
    rest = replace(state, shape=(state.shape[0] - own.shape[0],), slices=others)
    return {STATE: own, ENVIRONMENT_STATE: rest}


def _reads_robot_alone(wanted: Feature | None, state: Feature, robot: Sequence[str]) -> bool:
    """Whether a policy that names no slices reads a state of the size of the robot's, and not the whole state."""
    if wanted is None or wanted.slices or not robot or wanted.shape == state.shape:
        return False
    return wanted.shape == _kept(state, robot).shape


def _kept(state: Feature, names: Sequence[str]) -> Feature:
    """Return a state with the slices `names` alone, in this order."""
    slices, dim = {}, 0
    for name in names:
        if name not in state.slices:
            raise UserError(f"the checkpoint reads {name!r}, which the simulator does not have; choose another task")
        first, last = state.slices[name]
        slices[name] = (dim, dim + last - first)
        dim += last - first
    return replace(state, shape=(dim,), slices=slices)


def _checked_image(name: str, feature: Feature) -> Feature:
    shape = feature.shape
    if feature.dtype != "uint8" or len(shape) != 3 or shape[2] != 3 or min(shape) < 1 or feature.every < 1:
        raise UserError(
            f"the policy reads {name!r} as {feature.dtype} of shape {list(shape)}, every {feature.every} steps; "
            "expected uint8 of [height, width, 3], every 1 or more"
        )
    return feature
