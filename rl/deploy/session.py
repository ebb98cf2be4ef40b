"""A session on a robot: connect, check that the robot fits the policy, run episodes, record them, disconnect."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.checks import named_or_only
from rewards.errors import UserError
from rl.deploy.calibration import Calibration, load_calibration
from rl.deploy.calls import Calls
from rl.deploy.frames import Frame, tensors_of
from rl.deploy.freshness import Freshness
from rl.deploy.loop import Judge, Lived, Loop, robot_says
from rl.deploy.pilots import Decider, Pilot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Guard
from rl.deploy.stops import Stops
from rl.deploy.takeover import Takeover
from rl.deploy.viewer import Viewer
from rl.policies.wam import ModelPilot
from rl.robots.api import Interface, Robot, differences, make_robot
from rl.robots.errors import Stop
from rl.robots.images import is_image
from rl.robots.teleoperators import Teleoperator, channel_of, check_names, make_teleoperator
from world_model.data.episodes import PERSON, Episode, EpisodeStore
from world_model.data.lerobot import Recording
from world_model.dream_env import SURE
from world_model.spec import STATE, Spec

LET_GO_S = 30.0
"""Seconds that a robot may take to disconnect; Ctrl-C ends the wait at once."""


def run_session(
    pilot: Pilot,
    config: RobotConfig,
    say: Callable[[str], None] = print,
    keys: bool = False,
    robot: Robot | None = None,
) -> list[Lived]:
    """Run the episodes of `config`; each finished episode is on disk before the next one begins.

    For the arguments see `Session`.

    Returns:
        The result of each episode. A stop ends the session. An episode that the person discards begins again.

    Raises:
        UserError: see `Session`.
    """
    lived: list[Lived] = []
    with Session(pilot.spec, config, say, keys, robot) as session:
        i = session.n_recorded  # recorded episodes used these scenes, so continue with new ones
        last = i + config.n_episodes
        while i < last:
            lived.append(session.run(pilot, i, f"episode {i + 1}"))
            if lived[-1].stopped:
                break
            i += lived[-1].ended  # else the person discarded it
    return lived


class Session:
    """A context in which a robot is connected; entering it checks that the robot fits the policy.

    Args:
        spec: of the policy.
        config: robot, limits and counts.
        say: called with each line of output.
        keys: whether a line on standard input stops the robot.
        robot: not connected yet; None: the one that `config` names.

    Raises:
        UserError: the robot or task does not exist, limits are missing, episodes cannot be recorded to the folder,
            there is no calibration of the task in the file of the config, or the robot differs from what the policy
            expects.
    """

    def __init__(
        self,
        spec: Spec,
        config: RobotConfig,
        say: Callable[[str], None] = print,
        keys: bool = False,
        robot: Robot | None = None,
    ) -> None:
        self.spec, self.config, self.say = spec, config, say
        self.task, self.hz = named_or_only("task", config.task, spec.tasks), config.hz or spec.control_hz
        # Episodes say the rate at which they really ran; a model of another rate refuses to learn from them.
        self.recorded = replace(spec, control_hz=self.hz)
        self.calibration = load_calibration(config.calibration, self.task) if config.calibration else None
        self.stops = Stops(Path(config.stop_file), keys, takes_over=bool(config.person))
        if (reason := self.stops()) is not None:
            remedy = "delete it first" if self.stops.file.exists() else "it was typed too early, start again"
            raise UserError(f"no start: {reason}; {remedy}")
        self.guard = Guard(config.limits, spec.action_dim, spec.state_dim, spec.parts)
        self.store = EpisodeStore(config.episodes or f"runs/robot/{config.robot.rpartition(':')[2]}")
        self.robot = make_robot(config.robot, config.params, self.task) if robot is None else robot
        self.dataset: Recording | None = None
        self.viewer: Viewer | None = None
        self.takeover: Takeover | None = None
        self.calls = Calls()
        self.n_recorded = 0  # episodes that were in the folder before this session

    def __enter__(self) -> Session:
        robot, config = self.robot, self.config
        with ExitStack() as stack:  # disconnects if an error follows
            # Check the folder before connecting: an episode that cannot be recorded should not run.
            if not config.dry_run:
                stack.enter_context(self.store.writer(self.recorded))
                if config.dataset:
                    stack.enter_context(self._open_dataset())
            self.n_recorded = len(self.store)
            if self.calibration is not None:
                of = self.calibration
                n = of.n_solved + of.n_failed
                self.say(f"success from a probability of {of.threshold:.3g} on, calibrated on {n} labelled episodes")
            stack.callback(self.calls.close)
            self._connect(stack, "the robot", robot)
            for what, expected, found in differences(robot, self.spec, config.map, self.hz):
                self.say(f"  {what:<24} the policy expects {expected:<20} the robot has {found}")
            self.interface = Interface(robot, self.spec, config.map, self.hz)
            if config.person:
                self._connect_person(stack)
            if config.rerun:
                self.viewer = Viewer(config.rerun, self.interface.state_names, self.interface.action_names)
                stack.callback(self.viewer.close)
            stack.enter_context(self.stops.signals())
            self._exit = stack.pop_all()  # no error: disconnect in `__exit__` instead
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _open_dataset(self) -> AbstractContextManager[None]:
        """Return the context in which the session records to a dataset of LeRobot."""
        offered = self.robot.observation_features
        cameras = {name: tuple(shape) for name, shape in offered.items() if is_image(shape)}
        self.dataset = Recording(self.config.dataset, self.recorded, cameras, self.config.robot)
        return self.dataset.writer()

    def _connect_person(self, stack: ExitStack) -> None:
        """Connect the device of a person who may take over; `stack` disconnects it."""
        device = make_teleoperator(self.config.person, self.config.person_params, self.task)
        channels = {name: channel_of(name, self.config.person_names) for name in self.interface.action_names}
        check_names(device, {name: of.name for name, of in channels.items()}, f"person={self.config.person}")

        def convert(given: Mapping[str, Any]) -> list[Any]:
            return self.interface.action_of({name: of.read(given) for name, of in channels.items()})

        self._connect(stack, "the person's device", device)
        self.takeover = Takeover(device, lambda: self.stops.person_drives, convert, self.hz)

    def _connect(self, stack: ExitStack, what: str, device: Robot | Teleoperator) -> None:
        """Connect a robot or a person's device; `stack` disconnects it."""
        try:
            device.connect()
        except BaseException:
            # A part of it may be connected already, such as the motors but not a camera. Many devices refuse to
            # disconnect then; the error of `connect` is the one to report.
            with suppress(Exception):
                self._let_go(what, device)
            raise
        stack.callback(self._let_go, what, device)

    def _let_go(self, what: str, device: Robot | Teleoperator) -> None:
        try:
            self.calls("disconnect", device.disconnect, lambda: None, LET_GO_S)
        except Stop as stop:
            self.say(f"{what} was not let go of: {stop}")

    def run(self, pilot: Pilot, scene: int, name: str) -> Lived:
        """Run one episode, and record it if it ended by itself; after a stop, run none.

        Args:
            pilot: the policy.
            scene: number of the start, for robots that can repeat one; it also seeds the policy's noise.
            name: of the episode, for messages.

        Raises:
            UserError: the robot's reset failed, or the episode could not be recorded.
        """
        config = self.config
        if (reason := self.stops()) is not None:
            self.say(f"{name}: not begun, {reason}")
            return Lived(reason=reason, stopped=True)
        self.guard.begin()
        self.stops.failed = self.stops.person_drives = False  # typed in the episode before
        if self.takeover is not None:
            self.takeover.begin()
        lived = self._loop(pilot, scene).run()
        if not config.dry_run and lived.ended:  # not discarded; the success of a stopped episode is unknown
            source = f"robot, success by {config.success}"
            if (episode := lived.to_episode(self.recorded, self.task, source, config.seed + scene)) is not None:
                self._record(episode, name, lived.views)
        # After recording, so that this line means that the episode is on disk.
        also = f"; {lived.old_image}" if lived.old_image else ""
        also += f"; {lived.control.count(PERSON)} from the person" if config.person else ""
        self.say(f"{name}: {len(lived.sent)} commands, {lived.reason}, {lived.n_late} without a plan in time{also}")
        return lived

    def _loop(self, pilot: Pilot, scene: int) -> Loop:
        config, robot = self.config, self.robot

        def reset() -> None:
            try:
                robot.reset(scene)  # type: ignore[attr-defined]
            except ConnectionError as error:
                raise UserError(f"robot={config.robot}: {error}") from error

        real_time = bool(getattr(robot, "real_time", True))
        return Loop(
            interface=self.interface,
            guard=self.guard,
            decide=Decider(pilot, self.task, config.seed + scene),
            n_context_frames=pilot.n_context_frames,
            n_action_steps=config.n_action_steps,
            hz=self.hz,
            max_steps=config.max_steps,
            watch=self.stops,
            max_late=config.max_late,
            send=(lambda c: self.say(f"would send {np.round(c, 4).tolist()}")) if config.dry_run else None,
            judge=make_judge(config.success, pilot, self.task, self.stops, self.calibration),
            gives_up=lambda: self.stops.failed,
            real_time=real_time,
            reset=reset if hasattr(robot, "reset") and not config.dry_run else lambda: None,
            calls=self.calls,
            freshness=Freshness(config.limits, self.interface.camera_names) if real_time else None,
            takeover=self.takeover,
            show=self._show,
            records_cameras=self.dataset is not None,
            trouble=lambda: str(getattr(pilot, "trouble", "")),
        )

    def _show(self, lived: Lived) -> None:
        """Show the newest step in the viewer, if there is one."""
        if self.viewer is None:
            return
        frame = lived.frames[-1]
        images = lived.views[-1] if lived.views else {name: frame[name] for name in self.spec.images}
        sent = lived.sent[-1] if lived.sent else np.full(self.spec.action_dim, np.nan)
        self.viewer.show(images, frame[STATE], sent)

    def _record(self, episode: Episode, name: str, views: Sequence[Frame]) -> None:
        """Write an episode to the store; if that fails, to a new folder in the home or temporary directory.

        Then also write it to the dataset, if there is one, with the images `views` of all cameras.

        Raises:
            UserError: the episode is not in the store or not in the dataset; the message says where it is instead.
        """
        try:
            self.store.append([episode], self.recorded)
            self._record_videos(episode, name, views)
            return
        except _NotInDataset:
            raise
        except Exception as error:  # any error: an episode on a robot is too costly to lose
            why = error
        for parent in (Path("~").expanduser(), Path(tempfile.gettempdir())):
            try:
                second = EpisodeStore(tempfile.mkdtemp(prefix="wamtune-episodes-", dir=parent))
                second.append([episode], self.recorded)
            except Exception as error:
                why = error
                continue
            raise UserError(f"{why}; {name} was written to {second.folder} instead") from why
        raise UserError(f"{name} is lost, it could be written nowhere: {why}") from why

    def _record_videos(self, episode: Episode, name: str, views: Sequence[Frame]) -> None:
        if self.dataset is None:
            return
        try:
            self.dataset.append(episode, views)
        except Exception as error:  # any error, also one of the encoder
            raise _NotInDataset(
                f"{name} is in {self.store.folder}, but not in dataset={self.dataset.folder}: {error}"
            ) from error


class _NotInDataset(UserError):
    """An episode was recorded, but not its videos."""


def make_judge(who: str, pilot: Pilot, task: str, stops: Stops, calibration: Calibration | None = None) -> Judge:
    """Return the judge of one episode, which decides whether the task is solved.

    Args:
        who: `robot`, `key` or `read_out`, see `RobotConfig.success`.
        pilot: the policy; for `read_out` its model judges.
        task: name of the task.
        stops: where a typed s is noted.
        calibration: of the read-out; None: a success from the probability `SURE` on.

    Raises:
        UserError: `read_out` with another policy than a world-action model, which has no read-out, or with the
            calibration of another read-out.
    """
    if who == "key":
        stops.solved = False
        return lambda frame, observation: stops.solved
    if who == "robot":
        return robot_says
    if not isinstance(pilot, ModelPilot):
        raise UserError(
            "success=read_out: only the checkpoint of a world-action model has a read-out, no export and no policy "
            "that you bring; choose robot or key"
        )
    if calibration is not None and calibration.read_out != pilot.read_out_id(task):
        raise UserError(
            f"calibration: it is of another read-out of {task}, or of another sentence; calibrate again, with wamtune "
            "deploy CHECKPOINT calibrate EPISODES"
        )
    model, threshold = pilot.model, SURE if calibration is None else calibration.threshold
    index, before = torch.tensor([model.spec.tasks.index(task)]), [False]

    @torch.inference_mode()
    def read_out(frame: Frame, observation: Mapping[str, Any]) -> bool:
        # One row of one frame.
        p, _ = model.success_and_progress(tensors_of({name: value[None] for name, value in frame.items()}), index)
        sure, was_sure = bool(p >= threshold), before[0]
        before[0] = sure
        return sure and was_sure  # two frames in a row, as in a dream

    return read_out
