"""The newest sentence of one client of a server, for a policy that reads any."""

from __future__ import annotations

from torch import Tensor

from rewards.errors import UserError
from rl.policies.wam import ModelPilot

MOST_LETTERS = 1000
"""Most letters of a sentence that is encoded: far more than the words that a text encoder reads."""


class NewestSentence:
    """Encodes sentences; only the newest one is kept, so a client that sends others all the time takes no memory.

    Args:
        pilot: a policy that reads sentences, see `rl.deploy.pilots.reads_sentences`.
    """

    def __init__(self, pilot: ModelPilot) -> None:
        self.pilot = pilot
        self._newest: tuple[str, Tensor] | None = None  # and its vector

    def read(self, sentence: str, name: str) -> Tensor:
        """Return the vector (1, dim) of a sentence; `name` is that of its field, for errors.

        Raises:
            UserError: it is too long, or see `ModelPilot.read`.
        """
        if len(sentence) > MOST_LETTERS:
            raise UserError(f"{name}: it has {len(sentence):,} letters, expected {MOST_LETTERS:,} at most")
        if self._newest is None or self._newest[0] != sentence:
            self._newest = sentence, self.pilot.read(sentence)
        return self._newest[1]
