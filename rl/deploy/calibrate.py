"""Calibrate the read-out of success against labels: fit the probability from which on an episode counts as solved.

1. Each episode gets a score: the largest probability that two frames in a row reach, as a session judges it.
2. Logistic regression of the labels on the logit of the score, with Platt's smoothed targets, which keep it finite when
   one number separates solved from failed (Platt 1999). The threshold is the score at which solved and failed are as
   likely.
3. The errors of the threshold are counted with each episode left out of the fit that judges it: on the episodes of the
   fit itself they would be too few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from rewards.errors import UserError
from world_model.api import WorldModel
from world_model.data.episodes import Episode
from world_model.dream_env import SURE

N_EPISODES, N_OF_EACH = 10, 2
"""Fewest labelled episodes, and fewest of them that are solved, or failed."""

CLIP = 1e-6
"""Probabilities are kept this far from 0 and 1, where the logit is infinite."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Errors:
    """How many episodes are judged otherwise than labelled."""

    false: int  # failed, judged as solved
    missed: int  # solved, judged as failed

    @property
    def total(self) -> int:
        """Number of both."""
        return self.false + self.missed


@dataclass(frozen=True)
class Calibrated:
    """The result of `calibrate`."""

    fitted: float  # threshold of all episodes
    before: Errors  # with the threshold `SURE`
    after: Errors  # with the fitted one, each episode left out of the fit that judges it
    n_solved: int  # by label
    n_failed: int
    tells: bool  # whether some episodes reach the fitted threshold and others do not

    @property
    def is_better(self) -> bool:
        """Whether the fitted threshold is worth using: it errs less often, and does not judge all episodes alike."""
        return self.tells and self.after.total < self.before.total

    @property
    def threshold(self) -> float:
        """The threshold to use: the fitted one, or `SURE` if that is as good."""
        return self.fitted if self.is_better else SURE


def calibrate(scores: Sequence[float], solved: Sequence[bool], where: str) -> Calibrated:
    """Fit a threshold to labelled episodes.

    Args:
        scores: of the episodes (n,), see `score_of`.
        solved: their labels (n,).
        where: named in errors.

    Raises:
        UserError: there are too few episodes, or too few with one of the labels.
    """
    labels = np.array(solved, dtype=bool)
    n_solved, n_failed = int(labels.sum()), int((~labels).sum())
    if len(labels) < N_EPISODES or min(n_solved, n_failed) < N_OF_EACH:
        raise UserError(
            f"{where}: {n_solved} solved and {n_failed} failed by label; a calibration needs {N_EPISODES} episodes, at "
            f"least {N_OF_EACH} of each label; record more with success=key. Nothing was changed"
        )
    p = np.array(scores, dtype=np.float64)
    x: Floats = logit(p.clip(CLIP, 1 - CLIP))
    threshold = float(expit(_threshold(x, labels)))
    return Calibrated(
        fitted=threshold,
        before=_errors(p >= SURE, labels),
        after=_errors(_left_out(x, labels), labels),
        n_solved=n_solved,
        n_failed=n_failed,
        tells=bool(p.min() < threshold <= p.max() and CLIP < threshold < 1 - CLIP),
    )


@torch.inference_mode()
def score_of(episode: Episode, model: WorldModel) -> float:
    """Return the largest success probability that two frames in a row both reach.

    A session with this threshold, or a lower one, judges the episode as solved. `model` must have a `frame_read_out`.
    """
    assert model.frame_read_out is not None
    (encoded,) = model.encode_episodes([episode])
    frames = {name: values[encoded.rows_of(name)].unsqueeze(0) for name, values in encoded.obs.items()}
    p = model.frame_read_out(frames, torch.tensor([model.spec.tasks.index(episode.task)]))[0][0]
    return float(torch.minimum(p[:-1], p[1:]).max())


def platt(x: Floats, solved: Bools) -> tuple[float, float]:
    """Return slope and offset of P(solved) = 1 / (1 + exp(-(slope * x + offset))), by maximum likelihood.

    Args:
        x: logits of scores (n,).
        solved: labels (n,), both of them.
    """
    n_solved, n_failed = solved.sum(), (~solved).sum()
    target = np.where(solved, (n_solved + 1) / (n_solved + 2), 1 / (n_failed + 2))  # Platt's, in place of 1 and 0

    def loss(line: Floats) -> tuple[float, Floats]:
        """Return the negative log-likelihood and its gradient."""
        z = line[0] * x + line[1]
        residual = expit(z) - target
        return float((np.logaddexp(0, z) - target * z).sum()), np.array([residual @ x, residual.sum()])

    slope, offset = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    return float(slope), float(offset)


def _left_out(x: Floats, solved: Bools) -> Bools:
    """Return for each episode (n,) whether the fit to all others judges it as solved."""
    judged = np.zeros(len(x), dtype=bool)
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        judged[i] = x[i] >= _threshold(x[others], solved[others])
    return judged


def _threshold(x: Floats, solved: Bools) -> float:
    """Return the logit at which solved and failed are as likely; infinite if solved episodes have no higher ones."""
    slope, offset = platt(x, solved)
    return -offset / slope if slope > 0 else np.inf


def _errors(judged: Bools, solved: Bools) -> Errors:
    return Errors(false=int((judged & ~solved).sum()), missed=int((~judged & solved).sum()))
