"""A run that is stopped anywhere and continued ends with the same bits, the same lines and the same table."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from rewards.errors import BadNumbers, UserError
from rl import cli
from rl.compose import compose
from rl.config import TrainConfig
from rl.ppo.distributed import Distributed
from rl.rounds.gate import Verdict
from rl.rounds.guard import TaskPairs
from rl.runs.folder import RunFolder, lock_run
from rl.runs.inputs import inputs_of
from rl.runs.state import VERSION, load_state, save_state
from rl.verbs import train
from rl.verbs.begin import begin
from world_model.checkpoint import load_checkpoint, pack_training_state, save_checkpoint
from world_model.data import episodes
from world_model.data.episodes import EpisodeStore
from world_model.wam.store import load_model, load_model_and_config, save_model

pytestmark = pytest.mark.usefixtures("elsewhere")


def stop_after_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next saved state of a phase be the last thing that a process does."""
    save_state = train.save_state

    def save(folder: Path, state: dict[str, Any]) -> None:
        save_state(folder, state)
        if "post" in state:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_state", save)


def folder_of(name: str) -> Path:
    (folder,) = Path("runs", name).iterdir()
    return folder


def everything(folder: Path) -> dict[str, Any]:
    """What a finished run leaves, but for clocks."""
    config, tensors = load_checkpoint(folder / "checkpoints" / "last")
    curves = {}
    for part in ("", *(f"controls/{path.name}" for path in folder.glob("controls/*"))):
        events = EventAccumulator(str(folder / part))
        events.Reload()
        curves[part] = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {
        "config": config | {"config": ""},
        "weights": tensors,
        "metrics": (folder / "metrics.jsonl").read_text(),
        "eval": (folder / "eval.jsonl").read_text().replace(folder.parent.name, "NAME"),
        "curves": curves,
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name
    for key in one.keys() - {"weights"}:
        assert one[key] == other[key], key


def test_a_run_stopped_at_every_safe_point_ends_as_if_it_had_not_been(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny, "save_minutes=0", "env.max_steps=40", "env.obs_noise=0.001", "eval.n_paired=2"]
    words += ["dream.max_expected_error=0.1", "dream.n_episodes=2", "ppo.critic_warmup_steps=2"]
    words += ["controls=[filtered_bc]"]
    assert cli.main(["train", "mix", *words, "name=whole"]) == 0, capsys.readouterr().err
    first, n_stops = ["train", "mix", *words, "name=pieces"], 0
    with monkeypatch.context() as patch:
        stop_after_a_save(patch)
        while (code := cli.main(first)) == 130:
            n_stops, first = n_stops + 1, ["train", str(folder_of("pieces"))]
    assert code == 0, capsys.readouterr().err
    assert n_stops >= 8
    whole = everything(folder_of("whole"))
    same(whole, everything(folder_of("pieces")))
    assert set(whole["curves"]) == {"", "controls/filtered_bc"}
    for curves in whole["curves"].values():
        updates = [step for step, _ in curves["train/value_loss"]] if "train/value_loss" in curves else []
        assert updates == sorted(set(updates))
        steps = [value for _, value in curves["time/total_timesteps"]]
        assert steps == sorted(steps)

    out = capsys.readouterr().out
    assert f"interrupted; to go on: wamtune train {folder_of('pieces')}" in out
    assert cli.main(["train", str(folder_of("pieces"))]) == 0  # there is nothing left but to show it again
    again = capsys.readouterr().out
    n_head = 3  # run folder, rewards, budget
    assert again.splitlines()[n_head:] == out.splitlines()[n_head - len(again.splitlines()) :]
    same(everything(folder_of("whole")), everything(folder_of("pieces")))


def test_a_run_of_two_tasks_goes_on_with_their_shares(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What steers it, and which task each environment of the simulator has, are part of a saved state."""
    words = [*tiny, "save_minutes=0", "env.tasks=[button-press-topdown,push]", "n_rounds=2", "total_timesteps=256"]
    words += ["env.max_steps=32", "eval.n_paired=0", "steer=1", "ppo.imitation_steps=2", "gate.n_guard=2"]
    assert cli.main(["train", "mix", *words, "name=whole"]) == 0, capsys.readouterr().err
    assert "tasks surely better" in capsys.readouterr().out
    first, n_stops = ["train", "mix", *words, "name=pieces"], 0
    with monkeypatch.context() as patch:
        stop_after_a_save(patch)
        while (code := cli.main(first)) == 130:
            n_stops, first = n_stops + 1, ["train", str(folder_of("pieces"))]
    assert code == 0 and n_stops >= 5, capsys.readouterr().err
    whole = everything(folder_of("whole"))
    same(whole, everything(folder_of("pieces")))
    tags = whole["curves"][""]
    assert {f"rollout/{place}_success/push" for place in ("sim", "dream")} <= set(tags)
    report = (folder_of("whole") / "report.html").read_text()
    assert "Which tasks gained?" in report
    card = (folder_of("whole") / "checkpoints" / "last" / "README.md").read_text()
    assert "| task | episodes | before | after | won / lost |" in card and "| push | 2 |" in card


COUNT = """
import json
from stable_baselines3.common.callbacks import BaseCallback


class Count(BaseCallback):
    def _on_training_start(self):
        self.n_done, self.places = 0, []

    def _on_step(self):
        self.n_done += int(self.locals["dones"].sum())
        self.places.append(self.locals["place"])
        self.logger.record("mine/n_done", self.n_done)
        return self.n_calls < 11

    def _on_training_end(self):
        open("count.json", "w").write(json.dumps([self.n_done, self.n_calls, self.num_timesteps, self.places]))
"""


def renamed(value: Any, kind: str, **names: str) -> Any:
    """Return a dataclass called `kind` with the attributes of `value`, some of them under other names."""
    fields = {names.get(key, key): field for key, field in vars(value).items()}
    return make_dataclass(kind, list(fields))(**fields)


def older_weights(weights: dict[str, Tensor], checkpoint: Path) -> dict[str, Tensor]:
    """Return the weights of a flow policy with the names that they had up to version 2."""
    actor = [name for name, _ in load_model(checkpoint).action.named_parameters()]
    names = {f"reference_weights.{i}": f"reference.{name}" for i, name in enumerate(actor)}
    return {names.get(name, name.removeprefix("denoiser.")): value for name, value in weights.items()}


def as_an_older_version_saved(state: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return `state` with the names of before, when the phases of a round were called parts."""

    def parts(results: list[Any]) -> list[Any]:
        older = [replace(result, champion=older_weights(result.champion, checkpoint)) for result in results]
        return [renamed(result, "Part", phase="place") for result in older]

    runs = []
    for run in state["runs"]:
        outcome = renamed(replace(run.outcome, results=parts(run.outcome.results)), "Outcome", results="parts")
        runs.append(replace(run, outcome=outcome))
    if "post" not in state:
        return {**state, "runs": runs}
    old = {"n_phases": "n_places", "results": "parts", "critic_is_new": "_critic_is_new"}
    post = state["post"]
    reached = {old.get(key, key): value for key, value in post["run"].items()}
    reached |= {"parts": parts(reached["parts"]), "champion": older_weights(reached["champion"], checkpoint)}
    post = post | {"run": reached, "weights": older_weights(post["weights"], checkpoint)}
    return {**state, "runs": runs, "post": post}


@pytest.mark.usefixtures("no_report")
def test_a_run_goes_on_from_states_with_older_names(
    tiny: list[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a finished run with a control left, whose state holds the outcome of the run itself."""
    words = [*tiny, "n_rounds=2", "ppo.imitation_steps=2", "eval.n_paired=0", "controls=[filtered_bc]"]
    words += ["env.max_steps=16", "ppo.critic_warmup_steps=2"]
    assert cli.main(["train", "sim", *words, "name=whole"]) == 0, capsys.readouterr().err
    first, n_stops = ["train", "sim", *words, "name=pieces"], 0
    with monkeypatch.context() as patch:
        stop_after_a_save(patch)
        while (code := cli.main(first)) == 130:
            n_stops, first = n_stops + 1, ["train", str(folder_of("pieces"))]
            state = load_state(folder_of("pieces"))
            assert state is not None
            files = pack_training_state(as_an_older_version_saved(state, checkpoint))
            save_checkpoint(folder_of("pieces") / "checkpoints" / "state", {"state_version": 2}, {}, extra=files)
            tree = (folder_of("pieces") / "checkpoints/state/training_state.json").read_text()
            assert "n_places" in tree and "n_phases" not in tree and "PhaseResult" not in tree
            assert "denoiser." not in tree and "reference_weights" not in tree
    assert code == 0 and n_stops == 8, capsys.readouterr().err  # of both runs: first evaluation and three phases
    same(everything(folder_of("whole")), everything(folder_of("pieces")))


def test_verdicts_of_older_states_have_no_estimate(tmp_path: Path) -> None:
    """Until gates were sequential, a verdict had six fields; `rl.rounds.gate.judge` adds the others."""
    older = make_dataclass("Verdict", ["accepted", "champion", "challenger", "won", "lost", "n_episodes"])
    files = pack_training_state({"runs": [], "verdict": older(True, 0.5, 0.75, 3, 1, 8)})
    save_checkpoint(tmp_path / "checkpoints" / "state", {"state_version": VERSION}, {}, extra=files)
    state = load_state(tmp_path)
    assert state is not None and state["verdict"] == Verdict(True, 0.5, 0.75, 3, 1, 8)
    assert str(state["verdict"]) == "accepted: 50 % -> 75 % on 8 fresh episodes (won 3, lost 1)"


def test_a_state_keeps_the_tasks_that_a_gate_looked_at(tmp_path: Path) -> None:
    pairs = [TaskPairs("push", 16, champion=12, challenger=3, won=0, lost=9)]
    verdict = Verdict(False, 0.5, 0.75, 3, 1, 8, looked_at=pairs, worse=["push"])
    save_state(tmp_path, {"runs": [], "verdict": verdict})
    state = load_state(tmp_path)
    assert state is not None and state["verdict"] == verdict


@pytest.mark.usefixtures("no_report")
def test_callbacks_go_on_counting_where_a_run_was_stopped(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rollouts of 4 chunks in the simulator, ended in the last chunk but one; every state of a phase is saved."""
    Path("count.py").write_text(COUNT)
    words = [*tiny, "save_minutes=0", "total_timesteps=384", "ppo.imitation_steps=0", "env.terminate_on_success=false"]
    words += ["callbacks.count.func=count.py:Count", "gate.enabled=false", "eval.n_paired=0"]
    judge = "{func: EvalCallback, params: {eval_freq: 3, n_eval_episodes: 3, verbose: 0}}"
    words += [f"callbacks.judge={judge}", "ppo.learning_rate={func: linear, params: {start: 1.0e-3, end: 0}}"]
    assert cli.main(["train", "sim", *words, "name=whole"]) == 0, capsys.readouterr().err
    counted = Path("count.json").read_text()
    assert counted == f"[4, 11, {11 * 32}, {['sim'] * 11}]".replace("'", '"')
    Path("count.json").unlink()
    first, n_stops = ["train", "sim", *words, "name=pieces"], 0
    with monkeypatch.context() as patch:
        stop_after_a_save(patch)
        while (code := cli.main(first)) == 130:
            n_stops, first = n_stops + 1, ["train", str(folder_of("pieces"))]
    assert code == 0 and n_stops == 4, capsys.readouterr().err  # first evaluation, two rollouts, the end of the phase
    same(everything(folder_of("whole")), everything(folder_of("pieces")))
    assert Path("count.json").read_text() == counted


def test_a_run_does_not_go_on_with_another_callback(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("count.py").write_text(COUNT)
    run = begun(tiny, monkeypatch, "callbacks.count.func=count.py:Count")
    Path("count.py").write_text(COUNT + "# another\n")
    capsys.readouterr()
    assert cli.main(["train", str(run)]) == 2
    assert f"callbacks.count: {Path('count.py').resolve()} has changed since the run began" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_config(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/x/1").mkdir(parents=True)
    Path("runs/x/1/config.yaml").write_text("name: x\n")
    assert cli.main(["train", "runs/x/1", "seed=3"]) == 2
    line = capsys.readouterr().err
    assert "'seed=3': a run goes on with its own config" in line
    assert line.endswith("begin anew: wamtune train runs/x/1/config.yaml seed=3\n")


TERM = "rewards.mine={func: mine.py:term, weight: 0.5}"


def begun(tiny: list[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> Path:
    """The folder of a run that was stopped after its first evaluation."""
    with monkeypatch.context() as patch:
        stop_after_a_save(patch)
        assert cli.main(["train", "sim", *tiny, "name=stopped", *words]) == 130
    return folder_of("stopped")


@pytest.mark.usefixtures("no_report")
def test_a_run_does_not_go_on_with_another_plug_in(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "def term(t):\n    return t.action[:, 0]\n"
    Path("mine.py").write_text(source)
    run = begun(tiny, monkeypatch, TERM)
    (copy,) = (run / "plugins").iterdir()
    assert copy.name.endswith("-mine.py") and copy.read_text() == source
    Path("mine.py").write_text(source.replace("0]", "1]"))
    capsys.readouterr()
    assert cli.main(["train", str(run)]) == 2
    line = capsys.readouterr().err
    assert f"rewards.mine: {Path('mine.py').resolve()} has changed since the run began; restore it from {copy}" in line
    assert f"or begin a new run: wamtune train {run / 'config.yaml'}" in line and line.count("\n") == 1
    Path("mine.py").write_bytes(copy.read_bytes())
    assert cli.main(["train", str(run)]) == 0, capsys.readouterr().err


def test_a_run_does_not_go_on_with_another_trust_signal(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text("def trust(rollout, world_model, seed):\n    return rollout.weight\n")
    with monkeypatch.context() as patch:
        stop_after_a_save(patch)
        assert cli.main(["train", "dream", *tiny, "name=stopped", "dream.trust={a: {func: own.py:trust}}"]) == 130
    (copy,) = (folder_of("stopped") / "plugins").iterdir()
    assert copy.name.endswith("-own.py") and copy.read_bytes() == Path("own.py").read_bytes()
    Path("own.py").write_text("def trust(rollout, world_model, seed):\n    return rollout.weight / 2\n")
    capsys.readouterr()
    assert cli.main(["train", str(folder_of("stopped"))]) == 2
    assert f"dream.trust.a: {Path('own.py').resolve()} has changed since the run began" in capsys.readouterr().err


def test_without_a_dream_trust_signals_are_not_looked_at(tiny: list[str]) -> None:
    trust = "dream.trust={a: {func: absent.py:trust}}"
    assert "dream.trust.a" not in inputs_of(compose("sim", [*tiny, trust], TrainConfig))
    with pytest.raises(UserError, match=r"trust signal 'a': there is no file absent\.py"):
        inputs_of(compose("dream", [*tiny, trust], TrainConfig))


@pytest.mark.usefixtures("no_report")
def test_a_run_does_not_go_on_with_another_checkpoint(
    tiny: list[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = (
        Path("runs/start", time, "checkpoints/last") for time in ("20250101-000000-s0", "20250102-000000-s0")
    )
    shutil.copytree(checkpoint, older)
    run = begun(tiny, monkeypatch, "checkpoint=runs/start")
    assert compose(run, [], TrainConfig).checkpoint == str(older.parents[1])  # not whatever is the newest later
    model = load_model(checkpoint)
    with torch.no_grad():
        next(model.action.parameters()).add_(1.0)
    save_model(newer, model, "tune", extra=EpisodeStore(checkpoint).files())
    capsys.readouterr()
    shutil.copytree(older, "kept")
    shutil.copytree(newer, older, dirs_exist_ok=True)
    assert cli.main(["train", str(run)]) == 2
    line = capsys.readouterr().err
    assert f"checkpoint={older.parents[1]}: these are not the weights that the run began with; put those back" in line
    assert (run / "checkpoints" / "state").is_dir() and line.count("\n") == 1
    shutil.copytree("kept", older, dirs_exist_ok=True)
    assert cli.main(["train", str(run)]) == 0, capsys.readouterr().err
    assert load_model_and_config(run)[1]["parent"] == str(older.parents[1])


@pytest.mark.usefixtures("no_report")
def test_a_state_without_hashes_goes_on_and_says_so(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tiny, monkeypatch)
    state = load_state(run)
    assert state is not None
    inputs = state.pop("inputs")
    assert list(inputs) == ["checkpoint"]
    save_state(run, state)
    capsys.readouterr()
    assert cli.main(["train", str(run)]) == 0
    assert "nothing says whether checkpoint and plug-ins have changed since" in capsys.readouterr().out


@dataclass
class Episode:
    """An episode with the attributes of version 1; a state holds the name of its class."""

    state: Tensor
    action: Tensor
    success: Tensor
    task: str
    source: str
    seed: int
    task_reward: Tensor | None
    picture_every: int = 1


def older_episode(episode: episodes.Episode) -> Episode:
    kept = {name: value for name, value in vars(episode).items() if name not in ("obs", "every", "control")}
    return Episode(episode.state, **kept)


def make_older(run: Path, checkpoint: Path, **more_weights: Tensor) -> tuple[int, int]:
    """Write the state of a run as version 1 did; return the numbers of finished and unfinished episodes in it."""
    state = load_state(run)
    assert state is not None
    post, n_finished, n_unfinished = state["post"], 0, 0
    reached = post["run"]
    post["weights"] = older_weights(post["weights"], checkpoint) | more_weights
    reached["champion"] = older_weights(reached["champion"], checkpoint)
    for result in reached["results"]:
        result.champion = older_weights(result.champion, checkpoint)
    if reached["real"] is not None:
        reached["real"] = renamed(reached["real"], "Samples", reference="reference_means")
    if sim := post["sim"]:
        sim["context"] = sim["context"]["state"]
    recorder = sim["recorder"] if sim else None
    if recorder:
        n_unfinished = len(recorder["open"])
        for number, chunks in recorder["open"].items():
            recorder["open"][number] = [(frames["state"], actions, success) for actions, success, frames in chunks]
    for part in (recorder, post["dreams"]):
        if part:
            n_finished += len(part["episodes"])
            part["episodes"] = [older_episode(episode) for episode in part["episodes"]]
    save_checkpoint(run / "checkpoints" / "state", {}, {}, extra=pack_training_state(state))
    return n_finished, n_unfinished


@pytest.mark.usefixtures("no_report")
def test_a_state_without_named_features_goes_on_to_the_same_end(
    tiny: list[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny, "save_minutes=0", "eval.n_paired=0", "env.max_steps=48", "ppo.imitation_steps=0"]
    assert cli.main(["train", "mix", *words, "name=whole"]) == 0, capsys.readouterr().err
    first, found, has_samples = ["train", "mix", *words, "name=pieces"], [], False
    with monkeypatch.context() as patch:
        stop_after_a_save(patch)
        while (code := cli.main(first)) == 130:
            found.append(make_older(folder_of("pieces"), checkpoint))
            tree = (folder_of("pieces") / "checkpoints/state/training_state.json").read_text()
            has_samples |= "reference_means" in tree
            assert "denoiser." not in tree and "reference_weights" not in tree
            first = ["train", str(folder_of("pieces"))]
    assert code == 0, capsys.readouterr().err
    assert any(finished for finished, _ in found) and any(unfinished for _, unfinished in found) and has_samples
    same(everything(folder_of("whole")), everything(folder_of("pieces")))


def test_a_state_with_codes_of_images_in_the_state_vector_is_refused(
    tiny: list[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tiny, monkeypatch)
    make_older(run, checkpoint, **{"model.pictures.always": torch.zeros(1, 3, 16, 16)})
    capsys.readouterr()
    assert cli.main(["train", str(run)]) == 2
    line = capsys.readouterr().err
    assert line == (
        f"wamtune: {run}: an older version of wamtune saved the state of this run, whose model reads images; finish "
        f"the run with that version, or begin a new one: wamtune train {run / 'config.yaml'} (the weights in "
        f"checkpoints/ stay usable: checkpoint={run})\n"
    )
    lock_run(run).close()


def test_a_state_of_a_newer_version_is_refused(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tiny, monkeypatch)
    path, files = run / "checkpoints" / "state", pack_training_state({"runs": []})
    save_checkpoint(path, {"state_version": VERSION + 1}, {}, extra=files)
    capsys.readouterr()
    assert cli.main(["train", str(run)]) == 2
    expected = f"wamtune: {path}: state_version {VERSION + 1}, known up to {VERSION}; upgrade wamtune\n"
    assert capsys.readouterr().err == expected


def test_a_state_is_read_when_nobody_else_writes_it(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tiny, monkeypatch)
    read = train.load_state
    monkeypatch.setattr(train, "load_state", lambda folder: pytest.fail("it was read beside its writer"))
    with RunFolder.open(run):
        assert cli.main(["train", str(run)]) == 2
    assert "another process is writing to this run" in capsys.readouterr().err
    monkeypatch.setattr(train, "load_state", read)
    with pytest.raises(UserError):  # and what cannot be read leaves it free
        begin("train", [str(run)], TrainConfig, lambda folder: (_ for _ in ()).throw(UserError("damaged")))
    lock_run(run).close()


def test_bad_numbers_before_a_control_is_saved_have_no_state_to_go_back_to(tmp_path: Path) -> None:
    class Broken:
        distributed, config = Distributed(), TrainConfig(on_bad_numbers="go_back")

        def run(self, before: object) -> None:
            raise BadNumbers("a state is not finite")

    with RunFolder.create(tmp_path, "run", 0) as folder:
        save_state(folder.path, {"runs": []})  # what a finished run leaves before its controls begin
        with pytest.raises(BadNumbers, match="not finite; what led to it is in"):
            train._run(cast(Any, Broken()), folder, None)
