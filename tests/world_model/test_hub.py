"""Names on the Hub, and what is downloaded and uploaded: spoken with a small server, each time in a new process."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.errors import UserError
from tests.world_model.hub_server import HubServer
from world_model import hub
from world_model.checkpoint import find_checkpoint
from world_model.extras import pip_line
from world_model.hub import HubName, is_hub_name, parse_hub_name

pytest.importorskip("huggingface_hub")

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "sub/more.json": b"[]",
    "README.md": b"# Card\n",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"raise SystemExit",
    "config.yaml": b"rewards: {}",
}


@pytest.fixture
def server() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


def download(server: HubServer, cwd: Path, *names: str, **env: str) -> list[str]:
    """Return the lines that `download` prints, and for each name its folder, or the line of its error."""
    code = f"""
from rewards.errors import UserError
from world_model.hub import download
for name in {names!r}:
    try:
        print(download(name))
    except UserError as error:
        print(error)
"""
    done = server.python(code, cwd, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("hf://ann/pole", "ann/pole", None),
        ("hf://ann/pole@v1.0", "ann/pole", "v1.0"),
        ("ann/pole", "ann/pole", None),
        ("ann-b_c/pole.2@refs/pr/1", "ann-b_c/pole.2", "refs/pr/1"),
    ],
)
def test_names(name: str, repo: str, revision: str | None) -> None:
    assert is_hub_name(name) and parse_hub_name(name) == HubName(repo, revision)
    assert str(parse_hub_name(name)) == "hf://" + name.removeprefix("hf://")


@pytest.mark.parametrize(
    "name",
    ["metaworld-tuned", "latest", "runs/demo", "a/b/c", "/ann/pole", "./pole", "../pole", "ann/", "ann/pole@", "a b/c"],
)
def test_names_that_are_local(name: str) -> None:
    assert not is_hub_name(name)


def test_a_local_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("ann/pole") and not is_hub_name(Path("ann/pole"))
    (tmp_path / "ann").mkdir()
    assert not is_hub_name("ann/pole") and is_hub_name("hf://ann/pole")
    with pytest.raises(UserError, match=r"^no checkpoint at ann/pole; .*, or hf://ann/pole on the Hub$"):
        find_checkpoint("ann/pole")


@pytest.mark.parametrize(
    "name", ["hf://pole", "hf://", "hf://a/b/c", "hf://a/b@", "hf://a/../b", "hf://a/b@../c", "hf://a /b"]
)
def test_malformed_names(name: str) -> None:
    assert is_hub_name(name)
    with pytest.raises(UserError) as error:
        parse_hub_name(name)
    assert str(error.value) == f"{name}: expected hf://USER/NAME or hf://USER/NAME@REVISION; correct the name"


def test_only_files_of_three_kinds_are_downloaded(server: HubServer, tmp_path: Path) -> None:
    commit = server.commit("ann/pole", FILES)
    line, folder = download(server, tmp_path, "hf://ann/pole")
    assert line == f"hf://ann/pole: commit {commit}"
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    assert found == {name: FILES[name] for name in ("config.json", "model.safetensors", "sub/more.json", "README.md")}
    assert folder == str(tmp_path / "hf" / "hub" / "models--ann--pole" / "snapshots" / commit)


def test_a_revision(server: HubServer, tmp_path: Path) -> None:
    old = server.commit("ann/pole", {"config.json": b"1"})
    server.commit("ann/pole", {"config.json": b"2"}, branch="v2")
    server.commit("ann/pole", {"config.json": b"3"})
    folders = download(server, tmp_path, "ann/pole", "hf://ann/pole@v2", f"ann/pole@{old}")[1::2]
    assert [Path(folder, "config.json").read_text() for folder in folders] == ["3", "2", "1"]


def test_a_name_means_one_commit_in_one_process(server: HubServer, tmp_path: Path) -> None:
    server.commit("ann/pole", {"config.json": b"1"})
    line, *folders = download(server, tmp_path, "hf://ann/pole", "ann/pole", "hf://ann/pole")
    assert line.startswith("hf://ann/pole: commit ") and len(folders) == 3 and len(set(folders)) == 1
    assert sum(call.startswith("GET /api/models/ann/pole/revision") for call in server.calls) == 1


def test_what_is_in_the_cache_needs_no_network(server: HubServer, tmp_path: Path) -> None:
    server.commit("ann/pole", FILES)
    found = download(server, tmp_path, "ann/pole")
    server.calls.clear()
    assert download(server, tmp_path, "ann/pole", HF_HUB_OFFLINE="1") == found and not server.calls


def test_a_token_is_sent(server: HubServer, tmp_path: Path) -> None:
    server.commit("ann/pole", FILES)
    download(server, tmp_path, "ann/pole", HF_TOKEN="hf_mine")
    assert server.tokens == {"Bearer hf_mine"}


LOGIN = "log in with `hf auth login` or set HF_TOKEN"


REFUSALS = {
    (404, "RepoNotFound"): f"no such repository at URL, or a private one; check the name, or {LOGIN}",
    (401, "RepoNotFound"): f"no such repository at URL, or a private one; check the name, or {LOGIN}",
    (401, ""): f"URL refuses access (HTTP 401); {LOGIN}",
    (404, "RevisionNotFound"): "the repository has no such revision; expected a branch, a tag or a commit",
    (403, "GatedRepo"): f"access is restricted; ask for it at URL/NAME, then {LOGIN}",
    (403, ""): f"URL refuses access (HTTP 403); {LOGIN}",
    (418, ""): "URL answered with HTTP 418; try again later, or name a local folder",
}


def test_a_refused_download(server: HubServer, tmp_path: Path) -> None:
    server.refuses = {f"ann/pole{i}": refusal for i, refusal in enumerate(REFUSALS)}
    lines = zip(server.refuses, REFUSALS.values(), strict=True)
    expected = [f"hf://{name}: {line.replace('URL', server.url).replace('NAME', name)}" for name, line in lines]
    assert download(server, tmp_path, *(f"hf://{name}" for name in server.refuses)) == expected


def test_a_gated_repository_that_shows_its_list_of_files(server: HubServer, tmp_path: Path) -> None:
    server.commit("ann/pole", FILES)
    server.refuses_files["ann/pole"] = (403, "GatedRepo")
    line = f"hf://ann/pole: access is restricted; ask for it at {server.url}/ann/pole, then {LOGIN}"
    assert download(server, tmp_path, "hf://ann/pole") == [line]


def test_a_missing_revision(server: HubServer, tmp_path: Path) -> None:
    server.commit("ann/pole", FILES)
    line = "hf://ann/pole@v9: the repository has no such revision; expected a branch, a tag or a commit"
    assert download(server, tmp_path, "hf://ann/pole@v9") == [line]


def test_no_network(server: HubServer, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    (line,) = download(server, tmp_path, "ann/pole", HF_ENDPOINT=url)
    missing = f"it is not complete in the cache {tmp_path / 'hf' / 'hub'}"
    refused = f"cannot reach {url} (Connection refused) and {missing}"
    no_folder = "there is no folder ann/pole here; taken as a name on the Hub, "
    assert line == f"{no_folder}hf://ann/pole: {refused}; connect, or name a local folder"
    (line,) = download(server, tmp_path, "hf://ann/pole", HF_HUB_OFFLINE="1")
    assert line == f"hf://ann/pole: HF_HUB_OFFLINE is set and {missing}; unset it, or name a local folder"


def test_a_repository_without_files_of_ours(server: HubServer, tmp_path: Path) -> None:
    server.commit("ann/pole", {"model.bin": b"pickle"})
    line = "hf://ann/pole: it holds no *.json, *.safetensors, *.md files; is it the right repository?"
    assert download(server, tmp_path, "hf://ann/pole") == [line]


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError) as error:
        hub.download("hf://ann/pole")
    assert str(error.value) == f"hf://ann/pole: the Hub needs huggingface_hub; install it with {pip_line('hub')}"


def upload(server: HubServer, cwd: Path, name: str = "hf://ann/pole", private: bool = True, **env: str) -> list[str]:
    """Return the lines that an upload of `cwd/folder` prints, the last one its address or its error."""
    code = f"""
from rewards.errors import UserError
from world_model.hub import upload
try:
    print(upload("folder", {name!r}, private={private}))
except UserError as error:
    print(error)
"""
    done = server.python(code, cwd, **{"HF_TOKEN": "hf_mine", **env})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files of all kinds, two of them hidden."""
    names = ["manifest.json", "model.safetensors", "sub/a.md", "notes.txt", "model.bin", ".a.json", ".cache/b.json"]
    for name in names:
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "folder"


def test_an_upload_creates_a_private_repository(server: HubServer, tmp_path: Path, folder: Path) -> None:
    lines = upload(server, tmp_path)
    assert lines == ["uploading 3 files to hf://ann/pole (private)", f"{server.url}/ann/pole"]
    assert server.private == {"ann/pole": True} and len(server.commits["ann/pole"]) == 2
    uploaded = {name: name.encode() for name in ("manifest.json", "model.safetensors", "sub/a.md")}
    assert server.files("ann/pole") == {".gitattributes": b"", **uploaded}


def test_an_upload_replaces_what_was_there_in_one_commit(server: HubServer, tmp_path: Path, folder: Path) -> None:
    before = {"manifest.json": b"{}", "old.safetensors": b"", "photo.png": b""}
    server.commit("ann/pole", before)
    assert upload(server, tmp_path, private=False)[0] == "uploading 3 files to hf://ann/pole (public)"
    names = {"manifest.json", "model.safetensors", "sub/a.md", "photo.png"}
    assert server.files("ann/pole").keys() == names and len(server.commits["ann/pole"]) == 2


def test_a_public_repository_needs_a_word(server: HubServer, tmp_path: Path, folder: Path) -> None:
    server.commit("ann/pole", {"manifest.json": b"{}"})
    line = "hf://ann/pole: it is public; nothing was uploaded, add private=false or choose another name"
    assert upload(server, tmp_path) == [line] and len(server.commits["ann/pole"]) == 1


def test_what_is_not_a_checkpoint_is_not_replaced(server: HubServer, tmp_path: Path, folder: Path) -> None:
    server.commit("ann/pole", {"config.json": b"{}", "README.md": b""})
    line = "hf://ann/pole: it exists and is not a checkpoint of wamtune; nothing was uploaded, choose another name"
    assert upload(server, tmp_path, private=False) == [line] and len(server.commits["ann/pole"]) == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("ann/pole", "ann/pole: expected hf://USER/NAME to upload; write the hf:// to publish there"),
        ("hf://ann/pole@v1", "hf://ann/pole@v1: an upload becomes the newest commit of main; leave @v1 out"),
    ],
)
def test_a_wrong_destination(server: HubServer, tmp_path: Path, folder: Path, name: str, line: str) -> None:
    assert upload(server, tmp_path, name) == [line] and not server.calls


def test_an_upload_that_is_refused(server: HubServer, tmp_path: Path, folder: Path) -> None:
    server.refuses["ann/pole"] = (401, "")
    write = f"{LOGIN}, with a token that may write"
    line = f"hf://ann/pole: {server.url} refuses the upload (HTTP 401); {write}"
    assert upload(server, tmp_path)[-1] == line
    del server.refuses["ann/pole"]
    server.refuses_files["ann/pole"] = (403, "")
    assert upload(server, tmp_path)[-1] == line.replace("HTTP 401", "HTTP 403")
    server.refuses_files["ann/pole"] = (412, "")
    line = "hf://ann/pole: somebody else has just committed to it; nothing was uploaded, try again"
    assert upload(server, tmp_path)[-1] == line
    assert upload(server, tmp_path, HF_HUB_OFFLINE="1") == ["hf://ann/pole: HF_HUB_OFFLINE is set; unset it to upload"]


def test_a_link_to_a_file_elsewhere_is_not_uploaded(server: HubServer, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "secret.json").write_text(json.dumps("mine"))
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    line = "folder/link.json: it is a link to a file outside folder; put a copy of the file in its place"
    assert upload(server, tmp_path) == [line] and not server.calls
