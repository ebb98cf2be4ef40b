"""Export: what onnxruntime computes is what the policy decides, and the contract says how to use it, or refuses."""

import hashlib
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from rewards.errors import UserError
from rl import cli
from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.deploy import export
from rl.deploy.contract import CONTRACT, ONNX, load_contract
from rl.deploy.export import export_policy
from rl.policies.api import policy_state
from rl.policies.gaussian import GaussianPolicy
from rl.policies.wam import flow_policy, load_exportable
from tests.rl.conftest import Call
from world_model.checkpoint import load_checkpoint, save_checkpoint
from world_model.extras import pip_line
from world_model.flow import seeded_noise
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory, _trained: WorldActionModel) -> Path:
    """Checkpoint of the toy, tuned."""
    folder = tmp_path_factory.mktemp("checkpoints") / "point"
    save_model(folder, _trained, "tune")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, point: Path) -> Path:
    """Its policy, three of four actions executed, as the command writes it; yours to read."""
    folder = tmp_path_factory.mktemp("exports") / "exported"
    assert cli.main(["deploy", str(point), "export", f"out={folder}", "n_action_steps=3"]) == 0
    return folder


@pytest.fixture
def mine(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, yours to change."""
    return shutil.copytree(exported, tmp_path / "mine")


def act(folder: Path, *inputs: torch.Tensor) -> torch.Tensor:
    """Run an exported policy as a robot does: by the names of its contract."""
    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    names = [port["name"] for port in load_contract(folder)["inputs"]]
    assert names == [port.name for port in session.get_inputs()]
    (actions,) = session.run(["actions"], {n: v.numpy() for n, v in zip(names, inputs, strict=True)})
    assert actions.dtype == np.float32
    return torch.from_numpy(actions)


def none_held(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`held` and `n_held` where nothing is."""
    return torch.zeros(n, 4, 2), torch.zeros(n, dtype=torch.int64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 5, 64])
def test_onnxruntime_computes_what_torch_does(point: Path, exported: Path, n: int) -> None:
    policy = load_exportable(point, n_action_steps=3)
    inputs = policy.graph.random_inputs(n, seeded(n))
    with torch.no_grad():
        expected = policy.graph(*inputs)
    actions = act(exported, *inputs)
    assert actions.shape == (n, 4, 2)
    assert (actions - expected).abs().max() <= TOLERANCE
    assert n == 1 or actions.std() > 0.1
    *_, held, n_held = inputs
    is_held = torch.arange(4) < n_held.unsqueeze(1)
    assert torch.equal(actions[is_held], held[is_held])  # they come back to the bit


@torch.no_grad()
def test_actions_are_those_that_the_policy_decides(point: Path, exported: Path, make_point) -> None:
    """In the environment, with the noise of an evaluation: seeded by episode and elapsed steps."""
    env = make_point(5, seed=1)
    policy = flow_policy(load_model(point), env, n_denoising_steps=2, n_action_steps=3)
    obs = env.reset(seed=1)
    for _ in range(3):
        noise = seeded_noise(env.episode_seed, env.elapsed, (2, 4))
        expected = policy.decide(policy.encode(obs), env.episode_seed, env.elapsed)
        actions = act(exported, obs["state"], obs["task"], noise, *none_held(5))[:, :3]
        assert (actions - expected).abs().max() <= TOLERANCE
        obs = env.step_chunk(actions).obs


def test_rows_do_not_see_each_other(point: Path, exported: Path) -> None:
    inputs = load_exportable(point).graph.random_inputs(5, seeded())
    together = act(exported, *inputs)
    alone = torch.cat([act(exported, *(part[i : i + 1] for part in inputs)) for i in range(5)])
    assert (together - alone).abs().max() <= TOLERANCE


def test_actions_stay_within_their_bounds_and_an_unknown_task_acts(point: Path, tmp_path: Path) -> None:
    model = load_model(point)
    model.action_codec.action.std *= 100  # what it decides is far beyond them
    save_model(tmp_path / "wild", model, "tune")
    export_policy(tmp_path / "wild", tmp_path / "exported")
    unknown = load_contract(tmp_path / "exported")["unknown_task"]
    state, task = torch.randn(64, 2, 4, generator=seeded()), torch.full((64,), unknown)
    actions = act(tmp_path / "exported", state, task, torch.randn(64, 2, 4, generator=seeded(1)), *none_held(64))
    assert (actions == 1).any() and (actions == -1).any() and actions.abs().max() == 1


def test_the_same_noise_repeats_and_another_does_not(point: Path, exported: Path) -> None:
    state, task, noise, *_ = load_exportable(point).graph.random_inputs(5, seeded())
    zeros, held = torch.zeros_like(noise), none_held(5)
    assert torch.equal(act(exported, state, task, zeros, *held), act(exported, state, task, zeros, *held))
    assert (act(exported, state, task, zeros, *held) - act(exported, state, task, noise, *held)).abs().max() > 1e-3


def test_the_contract_by_value(point: Path, exported: Path) -> None:
    contract = load_contract(exported)
    state, task, noise, held, n_held = contract.pop("inputs")
    assert "first frame" in state.pop("about") and "Zeros are valid" in noise.pop("about")
    assert state == {
        "name": "state",
        "dtype": "float32",
        "shape": ["batch", 2, 4],
        "axes": ["batch", "frame, oldest first", "feature"],
        "unit": "m",
        "low": None,
        "high": None,
        "slices": [{"name": "point", "start": 0, "stop": 2}, {"name": "goal", "start": 2, "stop": 4}],
    }
    assert (task["name"], task["dtype"], task["shape"], task["low"], task["high"]) == ("task", "int64", ["batch"], 0, 2)
    assert (noise["name"], noise["dtype"], noise["shape"]) == ("noise", "float32", ["batch", 2, 4])
    (actions,) = contract.pop("outputs")
    assert "n_held" in held.pop("about") and held == actions | {"name": "held"}
    assert (n_held["name"], n_held["dtype"], n_held["low"], n_held["high"]) == ("n_held", "int64", 0, 4)
    assert (actions["name"], actions["shape"]) == ("actions", ["batch", 4, 2])
    assert (actions["low"], actions["high"]) == ([-1.0, -1.0], [1.0, 1.0])
    assert 0 <= contract.pop("largest_difference") <= TOLERANCE
    assert contract == {
        "schema_version": 2,
        "spec": json.loads(json.dumps(load_model(point).spec.to_dict())),
        "compared_on": "1000 random observations",
        "checkpoint": str(point),
        "stage": "tune",
        "policy": "flow",
        "tasks": {"reach": 0, "rest": 1},
        "unknown_task": 2,
        "control_hz": 10.0,
        "chunk_size": 4,
        "n_action_steps": 3,
        "latency_budget_s": 0.3,
        "n_context_frames": 2,
        "n_denoising_steps": 2,
        "onnx_sha256": hashlib.sha256((exported / ONNX).read_bytes()).hexdigest(),
        "checkpoint_sha256": hashlib.sha256((point / "model.safetensors").read_bytes()).hexdigest(),
        "command": f"wamtune deploy {point} export out={exported} n_action_steps=3",
        "wamtune_version": version("wamtune"),
        "torch_version": str(torch.__version__),
    }


def test_nothing_else_is_written(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [CONTRACT, ONNX]
    assert [path.name for path in exported.parent.iterdir()] == ["exported"]
    assert b".py" not in (exported / ONNX).read_bytes()  # no folder of the machine that wrote it


def test_an_altered_onnx_is_refused(mine: Path) -> None:
    data = bytearray((mine / ONNX).read_bytes())
    data[len(data) // 2] ^= 1
    (mine / ONNX).write_bytes(data)
    with pytest.raises(UserError) as error:
        load_contract(mine)
    assert str(error.value) == (
        f"{mine}/policy.onnx: its sha256 is not the onnx_sha256 of contract.json; "
        f"the file is altered, export the policy again"
    )
    (mine / ONNX).unlink()
    with pytest.raises(UserError, match=r"policy.onnx: cannot read it \(No such file or directory\)"):
        load_contract(mine)


MISSING = object()


@pytest.mark.parametrize(
    ("keys", "value", "complaint"),
    [
        (("control_hz",), MISSING, "control_hz is missing, expected a number above 0"),
        (("control_hz",), "80", "control_hz='80', expected a number above 0"),
        (("control_hz",), float("nan"), "control_hz=nan, expected a number above 0"),
        (("n_action_steps",), True, "n_action_steps=True, expected a whole number from 1 to 10,000"),
        (("n_action_steps",), 2.0, "n_action_steps=2.0, expected a whole number from 1 to 10,000"),
        (("policy",), "mlp", "policy='mlp', expected 'flow' or 'gaussian'"),
        (("policy",), [], "policy=[], expected 'flow' or 'gaussian'"),
        (("tasks",), ["reach"], "tasks=['reach'], expected an object of names and indices"),
        (("onnx_sha256",), "abc", "onnx_sha256='abc', expected 64 hexadecimal digits"),
        (("inputs",), [], "inputs=[], expected a list of objects"),
        (("inputs", 0, "unit"), MISSING, "inputs[0].unit is missing, expected text"),
        (("outputs", 0, "low"), ["-1"], "outputs[0].low=['-1'], expected null, a number or a list of numbers"),
        (("outputs", 0, "shape"), [3, 2], "outputs[0].shape=[3, 2], expected a list of 'batch' and numbers"),
    ],
)
def test_a_missing_or_mistyped_field_is_named(mine: Path, keys: tuple, value: Any, complaint: str) -> None:
    contract = part = json.loads((mine / CONTRACT).read_text())
    for key in keys[:-1]:
        part = part[key]
    if value is MISSING:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    (mine / CONTRACT).write_text(json.dumps(contract))
    with pytest.raises(UserError) as error:
        load_contract(mine)
    assert str(error.value) == f"{mine / CONTRACT}: {complaint}; export the policy again"


def test_a_contract_that_cannot_be_read(mine: Path) -> None:
    path = mine / CONTRACT
    contract = json.loads(path.read_text())
    for text, complaint in (
        (json.dumps(contract | {"schema_version": 3}), "schema_version=3, expected 2; upgrade wamtune"),
        (json.dumps(contract | {"schema_version": 1}), "schema_version=1, expected 2; export the policy again"),
        ("{", "it is not valid JSON; export the policy again"),
        ("[]", "it does not hold a JSON object; export the policy again"),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as error:
            load_contract(mine)
        assert str(error.value) == f"{path}: {complaint}"
    path.unlink()
    with pytest.raises(UserError, match=r"contract.json: the file is missing; name the folder that `wamtune deploy`"):
        load_contract(mine)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_one_line(
    point: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    with pytest.raises(UserError) as error:
        export_policy(point, tmp_path / "exported")
    assert str(error.value) == f"export needs {package}; install it with {pip_line('export')}"
    assert not any(tmp_path.iterdir())


def test_what_computes_something_else_is_refused_and_leaves_the_old_export(
    point: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, other = (mine / ONNX).read_bytes(), load_exportable(point, n_denoising_steps=1, n_action_steps=3)
    monkeypatch.setattr(export, "to_onnx", lambda policy: right)
    assert export.largest_difference(other, right, other.graph.random_inputs(8, seeded())) > 1e-4
    for folder in (mine, mine.with_name("new")):
        with pytest.raises(UserError, match=r"differ by .*, expected at most 1e-04; nothing was written"):
            export_policy(point, folder, n_denoising_steps=1, n_action_steps=3)
    assert load_contract(mine)["n_denoising_steps"] == 2
    assert [path.name for path in mine.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({"n_action_steps": 5}, "n_action_steps=5: expected 1 to 4, the actions of a chunk"),
        ({"n_action_steps": -1}, "n_action_steps=-1: expected 1 to 4, the actions of a chunk"),
        ({"n_denoising_steps": -1}, "n_denoising_steps=-1: expected at least 1"),
    ],
)
def test_counts_that_mean_nothing(point: Path, counts: dict[str, int], line: str) -> None:
    with pytest.raises(UserError) as error:
        load_exportable(point, **counts)
    assert str(error.value) == line


def test_a_model_without_statistics_is_refused(trained: WorldActionModel, tmp_path: Path) -> None:
    trained.codec.state.fitted.fill_(False)
    save_model(tmp_path / "bare", trained, "tune")
    with pytest.raises(UserError, match="feature 'state' has no statistics"):
        load_exportable(tmp_path / "bare")


def test_only_an_export_is_replaced(point: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(UserError) as error:
        export_policy(point, mine)
    assert str(error.value) == (
        f"{mine}: it holds notes.txt, which is not of an export; nothing was replaced, "
        f"choose another folder with out=..."
    )
    with pytest.raises(UserError, match="it exists and is not an export"):
        export_policy(point, mine / "notes.txt")
    (mine / "notes.txt").unlink()
    onnx = (mine / ONNX).read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda policy: onnx)
    assert export_policy(point, mine, n_action_steps=3, command="again")["command"] == "again"


def gaussian_checkpoint(folder: Path, env: Any) -> GaussianPolicy:
    """Save a policy as `wamtune train policy=gaussian` does."""
    torch.manual_seed(0)
    policy = GaussianPolicy(env, chunk_size=4)
    with torch.no_grad():
        policy.denoiser.actor[-1].weight.mul_(100)  # some actions at their bounds
    config = to_yaml(compose("gaussian", [], TrainConfig))
    about = {"spec": env.spec.to_dict(), "stage": "rl", "policy": "gaussian", "config": config}
    save_checkpoint(folder, about, policy_state(policy.denoiser))
    return policy


@torch.no_grad()
def test_a_gaussian_policy_takes_no_noise(tmp_path: Path, make_point) -> None:
    env = make_point(5, seed=1)
    env.reset()
    env.task[:2] = 1
    obs = env.observe()
    policy = gaussian_checkpoint(tmp_path / "mlp", env)
    contract = export_policy(tmp_path / "mlp", tmp_path / "exported", n_action_steps=3)
    for n in (1, 5):
        actions = act(tmp_path / "exported", obs["state"][:n], obs["task"][:n])
        expected = policy.decide(policy.encode(obs), env.episode_seed, env.elapsed)[:n]
        assert actions.shape == (n, 4, 2) and (actions - expected).abs().max() <= TOLERANCE
    assert (actions.abs() == 1).any() and (actions.abs() < 0.9).any()
    assert [port["name"] for port in contract["inputs"]] == ["state", "task"]
    assert (contract["policy"], contract["n_denoising_steps"], contract["unknown_task"]) == ("gaussian", 0, None)
    assert (contract["chunk_size"], contract["n_context_frames"], contract["inputs"][1]["high"]) == (4, 2, 1)


def test_a_gaussian_policy_that_does_not_fit_is_refused(tmp_path: Path, make_point) -> None:
    gaussian_checkpoint(tmp_path / "mlp", make_point(1))
    config, tensors = load_checkpoint(tmp_path / "mlp")
    save_checkpoint(tmp_path / "less", config, {k: v for k, v in tensors.items() if k != "actor.2.bias"})
    with pytest.raises(UserError, match=r"less: tensor 'actor.2.bias' is missing or unexpected"):
        load_exportable(tmp_path / "less")
    save_checkpoint(tmp_path / "other", config, tensors | {"actor.0.weight": torch.zeros(64, 7)})
    with pytest.raises(UserError, match=r"other: its config and weights do not describe a Gaussian policy"):
        load_exportable(tmp_path / "other")
    with pytest.raises(UserError, match="n_denoising_steps=2: policy=gaussian denoises nothing; leave it out"):
        load_exportable(tmp_path / "mlp", n_denoising_steps=2)


@pytest.fixture
def run(trained: WorldActionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as `wamtune train` leaves it, seen from the folder where it was started."""
    monkeypatch.chdir(tmp_path)
    config = to_yaml(compose("sim", ["n_action_steps=3", "ppo.n_denoising_steps=2"], TrainConfig))
    folder = Path("runs/sim/20250101-120000-s0")
    save_model(folder / "checkpoints" / "last", trained, "rl", "point", {"config": config})
    (folder / "config.yaml").write_text(config)
    return folder


def test_the_command_writes_below_the_run_folder_or_where_out_says(
    run: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    onnx = (exported / ONNX).read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda policy: onnx)  # of the same weights: written once is enough
    for words, folder in (
        ([str(run), "export"], run / "exported"),
        ([str(run), "export", "out=robot/policy"], Path("robot/policy")),
        ([str(run / "checkpoints/last"), "export"], Path("exported")),
    ):
        code, out, err = call("deploy", *words)
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0].startswith(f"policy: {folder}/policy.onnx, 0.") and lines[0].endswith(" MB")
        assert lines[1] == f"contract: {folder}/contract.json, 3 actions a call at 10 Hz: a call may take 0.3 s"
        assert (
            lines[2].startswith("parity: onnxruntime and torch differ by at most ")
            and "1000 random observations" in lines[2]
        )
        contract = load_contract(folder)
        assert (contract["n_action_steps"], contract["stage"]) == (3, "rl")
        assert contract["command"] == " ".join(["wamtune deploy", *words])


def test_counts_are_those_of_the_run_unless_given(point: Path, trained: WorldActionModel, tmp_path: Path) -> None:
    config = to_yaml(compose("sim", ["n_action_steps=1", "ppo.n_denoising_steps=5"], TrainConfig))
    save_model(tmp_path / "run", trained, "rl", "point", {"config": config})
    for checkpoint, given, expected in ((point, (0, 0), (2, 4)), (tmp_path / "run", (0, 0), (5, 1)),
                                        (tmp_path / "run", (3, 2), (3, 2))):  # fmt: skip
        policy = load_exportable(checkpoint, *given)
        assert (policy.n_denoising_steps, policy.n_action_steps) == expected
        assert policy.graph(*policy.graph.random_inputs(1, seeded())).shape == (1, 4, 2)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ppo: 3", "odd: the config in its config.json is not that of a run"),
        ("n_action_steps: .inf", "odd: the config in its config.json is not that of a run"),
        ("[" * 3000, "the YAML that .*odd carries as the config of its run is nested more than 20 deep"),
        ("n_action_steps: 1 #" + "x" * 100_000, "odd carries .* has 100,019 characters"),
        ("a: &a 1\nn_action_steps: *a", "odd carries .* anchors and aliases are not allowed"),
    ],
)
def test_a_config_of_somebody_else(trained: WorldActionModel, tmp_path: Path, text: str, complaint: str) -> None:
    save_model(tmp_path / "odd", trained, "rl", "point", {"config": text})
    with pytest.raises(UserError, match=complaint):
        load_exportable(tmp_path / "odd")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "deploy needs a checkpoint or a run folder: wamtune deploy metaworld-tuned export"),
        (["export"], "deploy needs a checkpoint or a run folder: wamtune deploy metaworld-tuned export"),
        (["x"], "deploy x '': expected export, run, compare, calibrate, as in wamtune deploy x export"),
        (["x", "import"], "deploy x 'import': expected export, run, compare, calibrate, as in wamtune deploy x export"),
        (["x", "export", "n_action_steps=-1"], "n_action_steps=-1: expected at least 0"),
    ],
)
def test_mistakes_are_one_line(call: Call, words: list[str], line: str) -> None:
    assert call("deploy", *words) == (2, "", f"wamtune: {line}\n")


def test_a_missing_checkpoint_leaves_nothing(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call("deploy", "nowhere", "export")
    assert code == 2 and err.count("\n") == 1 and "no checkpoint at nowhere" in err
    assert not any(tmp_path.iterdir())
