"""The text of `wamtune VERB --help`. This file imports schemas only, so that help needs no torch."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_type_hints

from rl.config import TrainConfig
from rl.deploy.robot_config import RobotConfig
from rl.deploy.stops import KEYS
from rl.stages.config import PretrainConfig, TuneConfig
from rl.verbs.options import (
    CalibrateOptions,
    CollectOptions,
    DatasetOptions,
    DreamOptions,
    EvalOptions,
    ExportOptions,
    FitOptions,
    HubOptions,
    PlayOptions,
    RankOptions,
    ServeOptions,
    SweepOptions,
)
from world_model.data.columns_config import ColumnsConfig
from world_model.extras import pip_line

ESSENTIAL: dict[type, tuple[str, ...]] = {
    TrainConfig: (
        "name",
        "checkpoint",
        "policy",
        "env.tasks",
        "env.kind",
        "rewards",
        "controls",
        "seed",
        "total_timesteps",
        "budget_steps",
        "budget_episodes",
        "n_rounds",
        "eval.n_episodes",
        "threads",
    ),
    PretrainConfig: ("name", "env.tasks", "episodes", "dataset", "stage.n_steps"),
    TuneConfig: ("name", "checkpoint", "env.tasks", "episodes", "n_demos", "stage.n_steps"),
    EvalOptions: ("env.tasks", "instruction", "n_episodes", "place", "world_model", "out"),
    RankOptions: ("env.tasks", "n_starts", "n_real", "world_model", "out"),
    RobotConfig: ("robot", "policy", "task", "n_episodes", "dry_run", "limits.low", "limits.high"),
}
"""Schema -> the keys that most users need, which help shows first; the help of other schemas is short."""


class Key(NamedTuple):
    """A key of a config: its dotted name, its default as typed on the command line, what it means, and its type."""

    name: str
    default: str
    meaning: str
    type: Any


def keys_in(schema: type) -> list[Key]:
    """Return every key of a config schema in the order of the source; the meaning is the comment beside or above it."""
    return list(_keys(schema, ""))


def keys_of(schema: type) -> str:
    """Return a line for every key of a config schema: name, default, and the comment at or above its source line.

    The essential keys come first, the others follow by group.
    """
    rows = {key.name: (f"{key.name}={key.default}", key.meaning) for key in keys_in(schema)}
    width = max(len(shown) for shown, _ in rows.values())
    lines = {name: f"  {shown:<{width}}  {text}".rstrip() for name, (shown, text) in rows.items()}
    essential = ESSENTIAL.get(schema, ())
    if not essential:
        return "\n".join(lines.values())
    groups = {"": [lines.pop(name) for name in essential]}
    for name, line in lines.items():
        groups.setdefault(name.partition(".")[0] if "." in name else "others", []).append(line)
    about = {field.name: _first_line(hint) for field, hint in _groups(schema)}
    made = ["\n".join(groups.pop(""))]
    made += ["\n".join([f" {name}: {about.get(name, '')}".rstrip(": ") + ":", *of]) for name, of in groups.items()]
    return "\n\n".join(made)


def key_names(schema: type) -> list[str]:
    """Return the name of every key of a config schema, the essential ones first."""
    return list(dict.fromkeys([*ESSENTIAL.get(schema, ()), *(key.name for key in keys_in(schema))]))


def _groups(schema: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Return the fields of a schema that are groups of keys, with their classes."""
    hints = get_type_hints(schema)
    fields = dataclasses.fields(schema)
    return [(field, hints[field.name]) for field in fields if dataclasses.is_dataclass(hints[field.name])]


def _first_line(group: type) -> str:
    return (inspect.getdoc(group) or "").partition("\n")[0].rstrip(".")


def _keys(schema: Any, prefix: str, defaults: Any = None) -> Iterator[Key]:
    source = "".join(inspect.getsource(part) for part in reversed(schema.__mro__[:-1]))  # with base classes
    above = re.findall(r"((?:^    # .*\n)+)^    (\w+): ", source, flags=re.MULTILINE)
    comments = {name: " ".join(line.strip("# ") for line in lines.splitlines()) for lines, name in above}
    comments |= re.findall(r"^    (\w+): .*?  # (.*)$", source, flags=re.MULTILINE)
    hints = get_type_hints(schema, include_extras=True)
    for field in dataclasses.fields(schema):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if defaults is not None:  # the parent may set other defaults for this group
            default = getattr(defaults, field.name)
        if dataclasses.is_dataclass(default):
            yield from _keys(hints[field.name], f"{prefix}{field.name}.", default)
            continue
        shown = "" if default in ("???", "") else _as_typed(default)
        yield Key(f"{prefix}{field.name}", shown, comments.get(field.name, ""), hints[field.name])


def _as_typed(value: Any) -> str:
    """Return a default as it is typed on the command line; lists without brackets, which zsh would interpret.

    `rl.compose` writes any value so. It needs OmegaConf, which takes longer to import than help takes to print.
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_as_typed(item)}' for key, item in value.items())}}}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


SCHEMAS: dict[str, tuple[type, ...]] = {
    "cp": (HubOptions, DatasetOptions, ColumnsConfig),
    "collect": (CollectOptions,),
    "pretrain": (PretrainConfig,),
    "tune": (TuneConfig,),
    "train": (TrainConfig,),
    "check": (TrainConfig,),
    "sweep": (SweepOptions,),
    "eval": (EvalOptions,),
    "rank": (RankOptions,),
    "dream": (DreamOptions,),
    "play": (PlayOptions,),
    "deploy": (ExportOptions, RobotConfig, CalibrateOptions),
    "serve": (ServeOptions,),
    "fit": (FitOptions,),
}
"""Verb -> the schemas of its keys; other verbs have no keys."""

HELP = {
    "ls": """wamtune ls [checkpoints | presets | rewards | tasks]

List the built-in checkpoints with their stage, tasks, size and one measured figure, the presets, the built-in reward
terms and the simulators with their tasks. A kind shows that list alone.

Examples:
  wamtune ls
  wamtune ls presets""",
    "cp": f"""wamtune cp NAME DEST [key=value ...]
wamtune cp CHECKPOINT | RUN_FOLDER hf://USER/NAME [key=value ...]

Copy a preset to a file DEST, or a checkpoint to a folder DEST, to change it or to take it elsewhere. Existing files are
never overwritten. A name that is both is copied as a preset if DEST ends with .yaml, otherwise as a checkpoint.

With DEST hf://USER/NAME a checkpoint is uploaded to the Hugging Face Hub, as a new commit. Wherever a checkpoint is
named, hf://USER/NAME or hf://USER/NAME@REVISION downloads it from there. Needs the extra `hub`: {pip_line("hub")}

A folder of episodes is converted to a LeRobot v3.0 dataset, and a LeRobot dataset to a folder of episodes; both need
the extra `data`: {pip_line("data")}. For policies of LeRobot an export separates the state of the robot from the rest
(`state`), and runs the episodes again in their simulator to add images (`cameras`); an episode that does not end
as it was recorded is refused. `env.tasks` chooses the tasks to export, `instructions` their sentences.

With format=lerobot, a checkpoint is written as a policy of LeRobot, for `lerobot-eval` and `lerobot-rollout` with the
plug-in `lerobot_policy_wamtune` (docs/lerobot_plugin.md).

Keys, for an upload:
{keys_of(HubOptions)}

Keys, for a folder of episodes:
{keys_of(DatasetOptions)}

Keys, for a LeRobot dataset, which name its columns:
{keys_of(ColumnsConfig)}

Examples:
  wamtune cp runs/episodes/push datasets/push state=split 'cameras={{front: {{}}}}' image_size=96
  wamtune cp datasets/theirs runs/episodes/theirs success=all images.front=observation.images.front""",
    "collect": f"""wamtune collect FOLDER env.tasks=TASK [key=value ...]

Record episodes of a scripted expert into a new folder, clean (source=expert) or with noise on its actions
(source=noisy), or episodes of random motion (source=random). An episode ends a few steps after its first success.
`wamtune cp` converts the folder to a LeRobot dataset, `pretrain` and `tune` read it as `episodes`.

Keys:
{keys_of(CollectOptions)}

Examples:
  wamtune collect runs/episodes/push env.tasks=push n_episodes=25
  wamtune collect runs/episodes/two env.tasks=push,drawer-open source=noisy env.n_workers=2""",
    "pretrain": f"""wamtune pretrain PRESET | RUN_FOLDER [key=value ...]

Collect episodes of scripted experts (clean and noisy) and of random motion, and train a world-action model to predict
the effects of actions. With env.simulator=recorded nothing is collected: the model learns from the folder `episodes`,
into which `dataset`, a LeRobot v3.0 dataset, is imported first; then one of five episodes of a task is held out. A
policy is learned by `wamtune tune`, not here. Given a run folder, resume that run.

Keys:
{keys_of(PretrainConfig)}

Examples:
  wamtune pretrain metaworld-pretrained name=push env.tasks=push stage.n_steps=3000
  wamtune pretrain own-pretrained dataset=datasets/mine columns.success=all""",
    "tune": f"""wamtune tune PRESET | RUN_FOLDER [key=value ...]

Teach a pretrained checkpoint to act from few demonstrations per task, roll the policy out, refit the world decoder on
these rollouts, and measure success in the simulator. With env.simulator=recorded there is no simulator: nothing is
rolled out, and the policy is measured on held-out demonstrations only. Given a run folder, resume that run.

Keys:
{keys_of(TuneConfig)}

Examples:
  wamtune tune metaworld-tuned
  wamtune tune metaworld-tuned name=push env.tasks=push n_demos=5""",
    "train": f"""wamtune train PRESET | FILE | RUN_FOLDER [key=value ...]

Improve a checkpoint by PPO in the simulator, in its own dream, or in both. After each phase of a round that
`gate.places` names, a gate compares the new policy with the best one so far on fresh episodes and rolls a loss back.
The result is success before and after, on seeds that no gate used; `controls=anchor,filtered_bc` repeats the run
without RL, for comparison. Given a run folder, resume that run, with the same result.

Keys:
{keys_of(TrainConfig)}

Examples:
  wamtune train mix env.tasks=peg-insert-side controls=anchor,filtered_bc
  wamtune train sim env.tasks=push total_timesteps=50_000 rewards.action_jerk.weight=-0.01""",
    "sweep": f"""wamtune sweep PRESET | FILE space.KEY=VALUES ... [key=value ...]
wamtune sweep SWEEP_FOLDER [n_trials=...] [n_workers=...]

Train many times with other values of some keys, and show which were best. `space.KEY` is a range LOW..HIGH, one of even
orders of magnitude log:LOW..HIGH, or values with commas; other keys are those of `wamtune train`, the same in every
trial. Trials are compared by the success of their champion at its gates, on the same episodes, and one that is below
the median of the others ends early; the evaluation after training is not used for this. A worker that dies is replaced,
and its trial continues from the last saved state. Given the folder of a sweep, continue it, also from another machine
(docs/sweeps.md). Needs the extra `sweep`: {pip_line("sweep")}

Keys:
{keys_of(SweepOptions)}

Examples:
  wamtune sweep dream env.tasks=push space.ppo.learning_rate=log:1e-5..1e-3 space.dream.horizon=5..30 n_workers=2
  wamtune sweep sim env.tasks=push space.ppo.batch_size=128,256,512 space.ppo.noise_std=0.1..0.3 n_trials=12""",
    "eval": f"""wamtune eval CHECKPOINT | RUN_FOLDER [key=value ...]

Print the success of a checkpoint on each task and over all, with 95 % intervals: in the simulator, in its own dream
from the first states of the same episodes, and the gap between the two. With place=both a second table estimates the
true success from real and dreamed episodes together, and says how many real episodes the dream was worth
(docs/gates.md). The same command prints the same figures; out=FILE.json writes them with every episode. A run of
policy=gaussian is evaluated in the simulator of its training. `latest` is the newest run, `runs/NAME` the newest of
that name. A policy that reads sentences takes another one, or one for a task that it does not know, with instruction
(docs/instructions.md).

Keys:
{keys_of(EvalOptions)}

Examples:
  wamtune eval metaworld-tuned env.tasks=push,door-open n_episodes=100
  wamtune eval runs/demo/20250101-120000-s0 place=both obs_noise=0.001""",
    "rank": f"""wamtune rank CHECKPOINT CHECKPOINT ... [key=value ...]

Order checkpoints by their success in the dream of one world model, from the same first states with the same noise, and
print the probability that the order is right (bootstrap over starts). All dream in the world model `world_model`,
because figures from different dreams cannot be compared. With n_real=N each also runs N real episodes; the order is
then that of the real success, corrected by the dreams, and the last line names the checkpoint whose next real episode
tells most about which one is best (docs/gates.md).

Keys:
{keys_of(RankOptions)}

Examples:
  wamtune rank metaworld-tuned runs/mix/20250101-120000-s0 env.tasks=push
  wamtune rank runs/a runs/b runs/c env.tasks=push n_real=16 n_starts=200""",
    "dream": f"""wamtune dream CHECKPOINT | RUN_FOLDER [key=value ...]

Replay the actions of one real episode in the dream, from its first state; each dreamed chunk continues the one before.
Draws dreamed and true trajectories of hand and object and the probability of success as a PNG, and prints the error by
step, next to that of "nothing moves" (the first frame repeated). For a model with images it makes a video of simulator,
dream, difference and error by step; with out=FILE.png it writes the last real image only.

With source=joint nothing is replayed: from each real observation the model imagines a chunk of the future together with
the actions that lead to it; these actions are executed, and the imagined future is compared with the real one.

Keys:
{keys_of(DreamOptions)}

Examples:
  wamtune dream metaworld-tuned env.tasks=push
  wamtune dream runs/demo/20250101-120000-s0 env.tasks=peg-insert-side source=policy n_chunks=12 out=peg.png""",
    "play": f"""wamtune play [CHECKPOINT | RUN_FOLDER] [key=value ...]

Print the address of a page on this computer, in which you drive the dream of a checkpoint beside the simulator, with
the keyboard, a gamepad or the buttons of the page. Both begin in the same state and execute the same actions, so every
difference is an error of the dream. A key hands over to the policy and back, another goes back to where the two
diverged. The frame of the dream is green if the model expects its usual error, and red from three times as much on.
The default checkpoint is metaworld-pixels-tuned. Ctrl-C ends it. docs/play.md explains the page.
Needs the extra `serve`: {pip_line("serve")}

Only programs on this computer that know the token in the address can open the page, and one page drives at a time.

Keys:
{keys_of(PlayOptions)}

Examples:
  wamtune play env.tasks=faucet-open,drawer-open open=true
  wamtune play runs/demo-pixels place=dream""",
    "report": """wamtune report RUN_FOLDER

Write report.html into the folder of a training run, and print its verdict. The page begins with the verdict in one
sentence and a film of one episode before training, after it and in the dream; then each section answers one question:
did training help, where did the gain come from, what did the gates decide, can the dream be believed, what did it cost?
The page is one file and needs no network. `wamtune train` writes it at its end; it can also be written during a run.

Examples:
  wamtune report runs/demo/20250101-120000-s0
  wamtune report runs/mix/20250101-120000-s1""",
    "check": f"""wamtune check PRESET | FILE [key=value ...]

Compose a config and call each of its reward terms on simulated steps (random actions), on dreamed steps and on a
recorded demonstration of the checkpoint. Prints a table of the values, or the reason why a term cannot run there. The
exit code is 2 if a term fails in a place that the config trains in. The keys are those of `wamtune train`.

Keys:
{keys_of(TrainConfig)}

Examples:
  wamtune check mix
  wamtune check sim rewards.smooth.func=my_rewards.py:smooth rewards.smooth.weight=-0.1""",
    "deploy": f"""wamtune deploy CHECKPOINT | RUN_FOLDER export [key=value ...]
wamtune deploy CHECKPOINT | RUN_FOLDER run [PRESET] [key=value ...]
wamtune deploy CHECKPOINT | RUN_FOLDER compare CHALLENGER [PRESET] [key=value ...]
wamtune deploy CHECKPOINT | RUN_FOLDER calibrate EPISODES [key=value ...]

`export` writes the policy of a checkpoint as policy.onnx, which contains every step from an observation to bounded
actions, and contract.json: inputs, outputs, units, bounds, tasks, rate, the time that a call may take, and the sha256
of policy.onnx and of the checkpoint. Before anything is written, onnxruntime must give the same actions as torch on
1,000 observations; the largest difference is printed. Needs the extra `export`: {pip_line("export")}
`run` takes the folder of an export as well.

`run` and `compare` also take a policy of LeRobot, by its folder or the run that trained it, and with
policy=FILE.py:Class one of your own. Task, rate, names and bounds of these come from the robot and the keys
(docs/sim_to_real.md).

`run` runs the policy on a robot: anything with the members of LeRobot's Robot (your own class is robot=FILE.py:Class),
one behind rosbridge, or the simulated one of the presets robot-sim and, with cameras, robot-sim-pixels. Nothing is sent
until limits are given and the robot has been checked to be the one that the policy expects. {KEYS}, a file, Ctrl-C or a
signal stop it; the exit code is then 2. A typed f ends the episode as failed, and with success=key an s as solved. With
person=DEVICE a person may take over and give back.
Each episode that ends is recorded; the next run goes on with the next scene.

A url such as ws://gpu-box:8000 in place of the checkpoint runs the policy of `wamtune serve` there (docs/serve.md); its
token is in the environment variable WAMTUNE_TOKEN. The limits stay on this side.

`compare` runs two policies in pairs, in random order, until it is clear which one is better or n_episodes pairs are
done; it prints how many more would be needed, and the same command continues from there.

`calibrate` fits the probability from which on the model calls a task solved (success=read_out) to at least 10 recorded
episodes that a person has labelled, prints the false and the missed successes before and after, and writes the file
for calibration=.

Keys of export:
{keys_of(ExportOptions)}

Keys of run and compare:
{keys_of(RobotConfig)}

Keys of calibrate:
{keys_of(CalibrateOptions)}

Examples:
  wamtune deploy metaworld-tuned run robot-sim dry_run=true
  wamtune deploy metaworld-tuned compare runs/mix/20250101-120000-s0 robot-sim n_episodes=30""",
    "serve": f"""wamtune serve CHECKPOINT | RUN_FOLDER [key=value ...]

Answer with the policy of a checkpoint over a websocket, and with dream=true also with its dream: `reset`, `step_chunk`.
Takes all policies that `wamtune deploy ... run` takes. `rl/deploy/remote_client.py` is a client in one file without
torch; `wamtune deploy ws://HOST:PORT run` runs a robot with it, and clients of openpi work too (docs/serve.md). Ends
with Ctrl-C. Needs the extra `serve`: {pip_line("serve")}

Only programs on this computer can connect, unless `host` names another address. Then clients need a token: that of the
environment variable WAMTUNE_TOKEN, else a new one, which is printed.

Keys:
{keys_of(ServeOptions)}

Examples:
  wamtune serve metaworld-tuned dream=true
  wamtune serve runs/mix/20250101-120000-s0 host=0.0.0.0 certificate=server.pem key=server.key""",
    "fit": f"""wamtune fit EPISODES [key=value ...]

Fit mass, friction, damping, gain, delay and sensor noise of Meta-World to recorded episodes: the actions are replayed,
and the parameters are chosen whose positions stay nearest to the recorded ones. The seed of an episode must name its
scene in the simulator. With checkpoint=NAME, its cameras are fitted to recorded images: position, light, and how old
the images are. Writes a preset that trains in a dream of the recorded episodes, with gates in a simulator that is
randomised around the fitted parameters.

Keys:
{keys_of(FitOptions)}

Examples:
  wamtune fit runs/robot/sim-pixels checkpoint=metaworld-pixels-tuned
  wamtune fit runs/robot/sim env.tasks=push spread=0.2 out=mine.yaml""",
    "doctor": """wamtune doctor [PRESET] [key=value ...]

Check Python, torch, the packages, the simulator, rendering and the built-in checkpoints. Every line says ok, missing or
optional, the last two with the reason and the remedy. The exit code is 2 if something necessary is missing.

With a preset and keys of wamtune pretrain it says, before anything is collected or built, how much memory that training
needs and how long a step takes on this machine.

Examples:
  wamtune doctor
  wamtune doctor size=l stage.n_parts=8""",
    "completion": """wamtune completion bash | zsh

Print a script with which the shell completes verbs, presets, checkpoints, keys and files. To have it in every new
shell, write one of these lines into ~/.bashrc or ~/.zshrc:

Examples:
  wamtune completion bash > ~/.wamtune.bash && source ~/.wamtune.bash
  wamtune completion zsh > ~/.wamtune.zsh && source ~/.wamtune.zsh""",
}
"""Help text by verb: usage, description, keys and two examples."""
