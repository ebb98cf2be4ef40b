"""The interface of a reward term: a function `term(t: Transition, **params) -> Tensor (num_envs,)`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, overload

from torch import Tensor

from rewards.errors import UserError, closest_or_known

AnyTerm = TypeVar("AnyTerm", bound=Callable[..., Any])

ALWAYS_PROVIDED = frozenset(
    {"state", "next_state", "action", "action_history", "success", "terminated", "elapsed", "task"}
)
"""Fields of a `Transition` that are set in every place (sim, dream, real). Others, and slices, depend on the place."""


class ImageModel(Protocol):
    """What reward terms may use of a world model that reads images: its latents, the codes of the images."""

    @property
    def n_cameras(self) -> int:
        """Number of cameras; the latents of one are as many numbers as those of another, one camera after the other."""

    def with_features(self, frames: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Return frames, each (n, k, *shape), with the features `names`: images are decoded from latents, or encoded.

        What is there already is not computed again.
        """

    def encode_file(self, path: str) -> Tensor:
        """Encode the image in a file once for each camera. Shape: (n_cameras, length of the latents of one)."""


@dataclass
class Transition:
    """One step of N environments.

    `t["object_pos"]` is the named slice of `next_state`, `t["images.front"]` the image of a camera after the action.
    """

    state: Tensor  # (N, state_dim), before the action; with `environment_state` joined to it, where that is apart
    next_state: Tensor  # (N, state_dim), after the action
    action: Tensor  # (N, action_dim), within the action bounds
    action_history: Tensor  # (N, 3, action_dim), oldest first, the current action last
    success: Tensor  # (N,) bool, the task is solved in next_state
    terminated: Tensor  # (N,) bool, the episode ends here; false for a time limit
    elapsed: Tensor  # (N,) int64, steps since the episode began, 1 after its first action
    task: Tensor  # (N,) int64, index of the task
    slices: dict[str, slice]  # named parts of the state
    progress: Tensor | None = None  # (N,), the model's estimate for state; set if a term requires "progress"
    next_progress: Tensor | None = None  # (N,), the model's estimate for next_state
    task_reward: Tensor | None = None  # (N,), the simulator's own reward; None in a dream
    own_rewards: dict[str, Tensor] = field(default_factory=dict)  # term -> (N,), terms that the simulator computes
    features: dict[str, Tensor] = field(default_factory=dict)  # after the action: images (N, height, width, 3), latents
    images: ImageModel | None = None  # encodes images, for a model that reads them

    def __getitem__(self, name: str) -> Tensor:
        """Return a slice of `next_state`, shape (N, d), or another feature after the action, shape (N, *shape).

        A term that reads one must declare it, as in `requires=("images.front",)`; then it exists in every place.

        Raises:
            UserError: there is no such slice or feature.
        """
        if name in self.slices:
            return self.next_state[:, self.slices[name]]
        if name in self.features:
            return self.features[name]
        hint = closest_or_known(name, [*self.slices, *self.features])
        raise UserError(f"the state has no slice {name!r}; {hint}")


@overload
def reward(term: AnyTerm, /) -> AnyTerm: ...
@overload
def reward(*, requires: Collection[str] = ()) -> Callable[[AnyTerm], AnyTerm]: ...
def reward(term: AnyTerm | None = None, /, *, requires: Collection[str] = ()) -> Any:
    """Declare which fields of a `Transition`, or slices of the state, a term reads; the term itself is unchanged.

    A term that needs what a place cannot provide is then refused before the run starts, not in the middle of it.

    A term is a function, or a class that is built with its params and called with the transition. A class may keep
    state between steps if it has a method `reset(mask)`, mask (num_envs,) bool, which is called when episodes begin.
    """

    def mark(marked: AnyTerm) -> AnyTerm:
        marked.requires = requires  # type: ignore[attr-defined]
        return marked

    return mark if term is None else mark(term)
