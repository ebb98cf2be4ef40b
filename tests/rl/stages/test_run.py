"""Pre-training and tuning from nothing to a checkpoint, on one easy task, in seconds; stopping them loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.errors import UserError
from rl import cli
from rl.compose import compose
from rl.config import SimulatorConfig
from rl.report.card import figures, finite, success_metrics
from rl.rounds.evaluate import EpisodeResult
from rl.runs.folder import read_rows
from rl.stages import episodes as stage_episodes
from rl.stages import run as stages
from rl.stages.config import PretrainConfig, TuneConfig
from rl.stages.recorded import heldout_store, load_split
from rl.verbs.begin import begin
from world_model.data.episodes import EpisodeStore
from world_model.wam.store import load_model, load_model_and_config, save_model

torch.set_num_threads(1)
TASK = "drawer-open"

PRETRAIN = f"""# Tiny.
name: tiny
tasks: [{TASK}]
threads: 1
episodes: episodes
n_expert: 3
n_noisy: 2
n_random: 1
n_heldout: 6
trust_steps: 20
model: {{width: 32, world_width: 48, action_width: 32, n_layers: 1, n_heads: 2}}
stage: {{n_steps: 20, batch_size: 16, log_every: 5, save_every: 10}}
"""
TUNE = f"""# Tiny.
name: tiny-tuned
checkpoint: pretrained
episodes: episodes
threads: 1
demos: {{{TASK}: 2}}
n_policy: 2
n_policy_heldout: 1
n_eval: 2
trust_steps: 20
stage: {{n_steps: 20, batch_size: 16, log_every: 5, save_every: 10}}
refit: {{n_steps: 20, batch_size: 16, log_every: 5, save_every: 10}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with presets, episodes and a pretrained checkpoint."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "pretrain.yaml").write_text(PRETRAIN)
    (folder / "tune.yaml").write_text(TUNE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["pretrain", "pretrain.yaml"]) == 0
        (folder / "pretrained").symlink_to(next((folder / "runs" / "tiny").iterdir()))
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def last(run: Path, name: str = "model.safetensors") -> bytes:
    return (run / "checkpoints" / "last" / name).read_bytes()


def interrupt_at_save(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Let the `n`-th save of a checkpoint be as if Ctrl-C had come before it."""
    calls = []

    def save(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == n:
            raise KeyboardInterrupt
        save_model(*args, **kwargs)

    monkeypatch.setattr(stages, "save_model", save)


def interrupted_run(monkeypatch: pytest.MonkeyPatch, verb: str, preset: str, *saves: int) -> Path:
    """Begin a run and stop it at one save after the other, counted since it was last continued; let it finish then."""
    before, first = set(Path("runs").glob("*/*")), preset
    for n in saves:
        with monkeypatch.context() as patch:
            interrupt_at_save(patch, n)
            assert cli.main([verb, first]) == 130
        (run,) = set(Path("runs").glob("*/*")) - before
        first = str(run)
    assert cli.main([verb, first]) == 0
    return run


def test_pretrained_checkpoint_tells_what_it_is(place: Path) -> None:
    model, config = load_model_and_config("pretrained")
    assert (config["stage"], config["step"], config["command"]) == ("pretrain", 20, "wamtune pretrain pretrain.yaml")
    assert config["episodes"] == {"expert": 3, "noisy": 2, "random": 1}
    assert set(config["metrics"]) >= {"prediction", "inverse_error", "progress_error", "trust"}
    ranks = config["metrics"]["trust"]
    assert set(ranks) == {TASK, "median"} and ranks[TASK]["n"] > 6  # dreams, several of each held-out episode
    assert -1 <= ranks[TASK]["rho"] <= 1 and ranks["median"]["rho"] == pytest.approx(ranks[TASK]["rho"])
    assert model.trust.given.fitted
    card = last(Path("pretrained"), "README.md").decode()
    assert "stage `pretrain`" in card and f"| {TASK} " in card and "made by `wamtune pretrain pretrain.yaml`" in card
    assert model.spec.tasks == (TASK,)


def test_weights_are_stored_in_half_the_space_and_load_exactly() -> None:
    from safetensors.torch import load

    stored, model = load(last(Path("pretrained"))), load_model("pretrained")
    parameters = {name for name, _ in model.named_parameters()}
    assert all((stored[name].dtype == torch.float16) == (name in parameters) for name in stored)
    assert all(torch.equal(value, stored[name].float()) for name, value in model.state_dict().items())


def test_metrics_are_logged_and_held_out_is_measured_on_the_way() -> None:
    rows = read_rows("pretrained/metrics.jsonl")
    assert [row["step"] for row in rows if "pretrain/video" in row] == [5, 10, 15, 20]
    assert [row["step"] for row in rows if "heldout/inverse_error" in row] == [10, 20, 20]


def test_held_out_episodes_are_apart() -> None:
    store = EpisodeStore("episodes")
    heldout = heldout_store(store).load()
    assert [e.source for e in heldout] == ["expert"] * 2 + ["noisy"] * 4
    assert not {e.seed for e in heldout} & {e.seed for e in store.load()}


def test_scripted_episodes_are_chosen_as_they_were_collected() -> None:
    store = EpisodeStore("episodes")
    learned, heldout = load_split(store, (TASK,), 8)
    for part, found in ((learned, store.load()), (heldout, heldout_store(store).load())):
        assert [(e.source, e.seed, e.length) for e in part] == [(e.source, e.seed, e.length) for e in found]
    demos = stage_episodes.demonstrations(compose("tune.yaml", [], TuneConfig), learned, [TASK])
    assert [(e.source, e.seed, e.is_success) for e in demos] == [("expert", 0, True), ("expert", 1, True)]


def test_interrupted_pretraining_ends_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupted_run(monkeypatch, "pretrain", "pretrain.yaml", 2)
    assert last(run) == last(Path("pretrained"))
    assert [r["step"] for r in read_rows(run / "metrics.jsonl") if "pretrain/video" in r] == [5, 10, 15, 20]


def test_finished_run_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = last(Path("pretrained"))
    assert cli.main(["pretrain", "pretrained"]) == 0
    assert last(Path("pretrained")) == before and "| task " in capsys.readouterr().out
    assert cli.main(["pretrain", "pretrained", "seed=1"]) == 2


def test_collecting_completes_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage_episodes, "BATCH", 2)
    store = EpisodeStore(tmp_path)
    values = {"n_noisy": 0, "n_random": 0, "n_heldout": 1}
    small = PretrainConfig(name="x", env=SimulatorConfig(tasks=(TASK,)), n_expert=1, **values)
    stage_episodes.collect(small, store)
    first = store.load()[0]
    stage_episodes.collect(PretrainConfig(name="x", env=SimulatorConfig(tasks=(TASK,)), n_expert=3, **values), store)
    assert [e.seed for e in store.load()] == [0, 1, 2]
    assert torch.equal(store.load()[0].state, first.state)
    n_shards = len(store.shards)
    stage_episodes.collect(small, store)
    assert len(store.shards) == n_shards


def test_a_wrong_name_of_a_text_encoder_is_refused_before_episodes_are_collected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = ["model.task_conditioning=text", "model.text.encoder=absent.py:encode"]
    assert cli.main(["pretrain", "pretrain.yaml", "name=other", "episodes=fresh", *text]) == 2
    assert "model.text.encoder=absent.py:encode: there is no file absent.py" in capsys.readouterr().err
    assert not Path("fresh").exists()


def test_a_stage_closes_its_simulator_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Env:
        closed = 0

        def close(self) -> None:
            self.closed += 1

    env = Env()

    def broken(*_: Any) -> None:
        raise UserError("no more")

    monkeypatch.setattr(stage_episodes, "_policy", lambda *_, **options: (env, None))
    for name in ("run_pairs", "evaluate_sim", "collect_policy"):
        monkeypatch.setattr(stage_episodes, name, broken)
    config, model = TuneConfig(name="x", episodes="e", eval_noise=(0.1,)), Any
    calls = (
        lambda: stage_episodes.evaluate(config, model, [TASK]),
        lambda: stage_episodes.evaluate_noisy(config, model, [TASK]),
        lambda: stage_episodes._policy_episodes(config, model, TASK, 1, True, 0),
    )
    for i, stage in enumerate(calls, start=1):
        with pytest.raises(UserError, match="no more"):
            stage()
        assert env.closed == i  # or its workers would outlive it


def test_tuning_keeps_its_promises_however_often_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["tune", "tune.yaml"]) == 0
    (run,) = Path("runs", "tiny-tuned").iterdir()
    config = load_model_and_config(run)[1]
    assert (config["stage"], config["parent"], config["step"]) == ("tune", "pretrained", 40)
    assert config["demonstrations"] == {TASK: 2} and config["episodes"]["policy"] == 2
    assert config["metrics"]["success"][TASK]["n"] == 2 and set(config["metrics"]["error_and_success"]) == {TASK}
    demos = EpisodeStore(run / "checkpoints" / "last").load(tasks=[TASK])
    assert [(e.source, e.is_success) for e in demos] == [("expert", True)] * 2
    assert len(heldout_store(EpisodeStore(run / "episodes")).load()) == 1
    assert [(r["task"], r["seed"]) for r in read_rows(run / "eval.jsonl")] == [(TASK, 700_000), (TASK, 700_001)]

    # While imitating; after the rollouts, before anything of the refit was saved; in the refit.
    again = interrupted_run(monkeypatch, "tune", "tune.yaml", 2, 2, 2)
    assert last(again) == last(run) and last(again, "config.json") == last(run, "config.json")
    assert len(EpisodeStore(again / "episodes")) == 2 and len(read_rows(again / "eval.jsonl")) == 2


def test_tune_refuses_what_it_cannot_do() -> None:
    def refuse(*overrides: str) -> str:
        with pytest.raises(UserError) as error:
            config, folder, _ = begin("tune", ["tune.yaml", "name=refused", *overrides], TuneConfig, stages.load_state)
            with folder:
                stages.tune(config, folder)
        return str(error.value)

    assert "has 3 successful episodes of source expert" in refuse(f"demos.{TASK}=99")
    assert "there are none" in refuse("episodes=nowhere")
    assert "'fly' is not one of the checkpoint's" in refuse("tasks=[fly]")
    assert "'fly' is not one of the checkpoint's" in refuse("demos.fly=1")
    assert "n_demos=0" in refuse("n_demos=0")


@pytest.mark.parametrize(
    ("preset", "schema"), [("metaworld-pretrained", PretrainConfig), ("metaworld-tuned", TuneConfig)]
)
def test_presets_compose(preset: str, schema: type) -> None:
    assert compose(preset, [], schema).name == preset


def test_no_refit_is_possible() -> None:
    assert compose("metaworld-tuned", ["refit.n_steps=0"], TuneConfig).refit.n_steps == 0


def test_figures() -> None:
    results = [EpisodeResult("push", seed, seed < 3, 10, 0.0) for seed in range(4)]
    ranks = {"push": {"rho": 0.8, "movement": 0.6, "n": 9.0}, "median": {"rho": 0.75, "movement": 0.5, "n": 9.0}}
    told = {"push": {"rho": -0.5, "low": -0.7, "high": -0.2}, "reach": {"rho": float("nan"), "low": 0.0, "high": 0.0}}
    nothing = {"rho": float("nan"), "movement": float("nan"), "n": 2.0}  # too few dreams to rank
    unmoved = {"mean": {"error_ratio": float("nan"), "shuffle_ratio": float("nan"), "n": 0}}
    more = {"prediction": unmoved, "success_precision": float("nan"), "trust": {**ranks, "reach": nothing}}
    more |= {"error_and_success": told, "images": {"mean": {}}}
    metrics = finite({**success_metrics(results), **more})
    assert metrics["success_precision"] is None
    assert metrics["success"]["push"]["rate"] == metrics["success"]["mean"]["rate"] == 0.75
    table = figures(metrics)
    assert "30 to 95 %" in table and "nan" not in table
    assert "0.80 |     0.60 | -0.50 [-0.70, -0.20] |" in table and "0.75 |     0.50 |" in table
    assert [cell.strip() for cell in table.splitlines()[3].split("|")[1:-1]] == ["reach", *[""] * 15]
    assert len({len(line) for line in table.splitlines() if line.startswith("|")}) == 1
