"""LeRobot v3.0 datasets: export and import of states, images, actions and instructions. Needs the extra `data`.

A LeRobot frame pairs observation `t` with action `t`, so an episode of `T` steps becomes `T` frames, and its last
observation has no frame. Export stores that observation, source, seed, the name of the task and the periods of slow
features in additional columns of `meta/episodes`, and the `Spec` in `meta/wamtune.json`. LeRobot ignores both;
`import_lerobot` restores every episode exactly. Other datasets have neither: the last frame of an episode then gives
its last observation, and the action of that frame is dropped.
"""

from world_model.data.lerobot.layout import INFO, OURS, cameras_of, episode_videos, fill_template, read_info
from world_model.data.lerobot.reading import import_lerobot
from world_model.data.lerobot.recording import Recording
from world_model.data.lerobot.writing import export_lerobot

__all__ = [
    "INFO",
    "OURS",
    "Recording",
    "cameras_of",
    "episode_videos",
    "export_lerobot",
    "fill_template",
    "import_lerobot",
    "read_info",
]
