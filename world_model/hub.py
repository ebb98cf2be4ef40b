"""Checkpoints on the Hugging Face Hub: names such as `hf://USER/NAME@REVISION`, download and upload.

Only files of the kinds in `PATTERNS` are transferred: a repository may also hold pickled weights or code, which wamtune
never loads. The server, the cache and the login are those of huggingface_hub: HF_ENDPOINT, HF_HOME, HF_TOKEN and
HF_HUB_OFFLINE have their usual effect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from world_model.extras import import_extra
from world_model.files import TENSOR_BYTES, cannot_write, open_file

PREFIX = "hf://"

PATTERNS = ("*.json", "*.safetensors", "*.md")
"""The kinds of files that are downloaded and uploaded; `*` also matches `/`, as in huggingface_hub."""

RUNS = "runs"
"""First folder of a run's name: `runs/demo` is a run even where no run has been made yet."""

LOGIN = "log in with `hf auth login` or set HF_TOKEN"

Say = Callable[[str], None]


@dataclass(frozen=True)
class HubName:
    """A model repository on the Hub, and a revision of it: a branch, a tag or a commit."""

    repo: str  # USER/NAME
    revision: str | None = None  # None: the branch `main`

    def __str__(self) -> str:
        return PREFIX + self.repo + (f"@{self.revision}" if self.revision else "")


def is_hub_name(name: str | Path) -> bool:
    """Whether `name` means a checkpoint on the Hub: `hf://...`, or `USER/NAME` with an optional `@REVISION`.

    A name without `hf://` is a local path if it exists here, or the folder that it begins with does: `runs/dmeo` is a
    typing error and not a repository of a user called runs. A `Path` is always local.
    """
    if not isinstance(name, str):
        return False
    if name.startswith(PREFIX):
        return True
    first = Path(name.partition("/")[0])
    return is_repository_name(name) and not first.exists()


def is_repository_name(name: str) -> bool:
    """Whether `name` could be that of a repository, written without `hf://`, whatever files there are here."""
    return _NAME.fullmatch(name) is not None and ".." not in name and not name.startswith(f"{RUNS}/")


def parse_hub_name(name: str) -> HubName:
    """Return the parts of a name for which `is_hub_name` is true.

    Raises:
        UserError: it is not `hf://USER/NAME` or `hf://USER/NAME@REVISION`.
    """
    found = _NAME.fullmatch(name.removeprefix(PREFIX))
    if found is None or ".." in name:
        raise UserError(f"{name}: expected hf://USER/NAME or hf://USER/NAME@REVISION; correct the name")
    return HubName(found["repo"], found["revision"])


def download(name: str, say: Say = print) -> Path:
    """Download a model repository into the cache of huggingface_hub, as far as it is not there; return its folder.

    Within one process a name always means the same commit: later calls return the same folder, without network access.

    Args:
        name: see `is_hub_name`.
        say: receives a line with the commit of each new download.

    Raises:
        UserError: the name, package, repository, revision, permission or network is missing; one line with the remedy.
    """
    hub = parse_hub_name(name)
    if (known := _FOLDERS.get(hub)) is not None and known.is_dir():
        return known
    try:
        return _download(hub, say)
    except UserError as error:
        if name.startswith(PREFIX):
            raise
        raise UserError(f"there is no folder {name} here; taken as a name on the Hub, {error}") from error


def is_shared(file: str) -> bool:
    """Whether a file of this name is downloaded and uploaded."""
    return any(fnmatch(file, pattern) for pattern in PATTERNS)


def storage_of(folder: Path) -> Path:
    """Return the cache folder of one repository, from a folder that `download` returned.

    The files of a download are links to `blobs` in there: CACHE/models--USER--NAME/{blobs, refs, snapshots/COMMIT}.
    """
    return folder.parents[1]


def upload(folder: str | Path, name: str, say: Say = print, private: bool = True) -> str:
    """Upload the files of the kinds in `PATTERNS` as one commit; return the address of the repository.

    Everything is in a single commit, so that nobody can download the weights of one checkpoint with the manifest of
    another. Files of these kinds that the repository has and `folder` lacks are deleted in it, such as old episodes.

    Args:
        folder: a checkpoint folder.
        name: `hf://USER/NAME`; the prefix is required, so that a mistyped local path never publishes anything.
        say: receives a line before the upload.
        private: visibility of a repository that is created; an existing one must fit, and is never changed.

    Raises:
        UserError: the name or folder is wrong, the repository holds something else or is public although `private` is
            set, or the package, permission or network is missing.
    """
    hub = _destination(name)
    paths = _shared_files(Path(folder))
    package = _huggingface_hub(hub)
    try:
        api = package.HfApi()
        found = _checked_repository(api, hub, private)
        if found is None:
            api.create_repo(hub.repo, private=private)
        # Not `upload_folder`, which may make several commits, and show a mixture of two checkpoints in between.
        changes = [package.CommitOperationAdd(file, str(path)) for file, path in paths.items()]
        old = {sibling.rfilename for sibling in (found.siblings if found else None) or ()}
        gone = sorted(file for file in old - paths.keys() if is_shared(file))
        changes += [package.CommitOperationDelete(file) for file in gone]
        kind = "private" if (private if found is None else found.private) else "public"
        say(f"uploading {len(paths)} files to {hub} ({kind})")
        api.create_commit(
            hub.repo,
            changes,
            commit_message="Upload a checkpoint of wamtune",
            parent_commit=found.sha if found else None,  # fail if somebody else has committed in between
        )
    except UserError:
        raise
    except Exception as error:
        raise _upload_error(hub, error) from error
    _FOLDERS.pop(hub, None)
    return f"{api.endpoint}/{hub.repo}"


_FOLDERS: dict[HubName, Path] = {}
"""Folders of the repositories that this process has downloaded. A branch may move while a run reads its checkpoint: its
weights and its demonstrations must be of the same commit."""

_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII)


def _download(hub: HubName, say: Say) -> Path:
    """Download a repository, see `download`."""
    package = _huggingface_hub(hub)
    # Catch everything: huggingface_hub and its HTTP libraries raise many unrelated types, which differ by version.
    try:
        found = package.snapshot_download(hub.repo, revision=hub.revision, allow_patterns=list(PATTERNS))
    except Exception as error:
        raise _download_error(hub, error) from error
    folder = Path(found)
    if not folder.is_dir():  # no file of the repository matches the patterns
        raise UserError(f"{hub}: it holds no {', '.join(PATTERNS)} files; is it the right repository?")
    say(f"{hub}: commit {folder.name}")
    _FOLDERS[hub] = folder
    return folder


def _huggingface_hub(hub: HubName) -> Any:
    return import_extra("huggingface_hub", "hub", f"{hub}: the Hub needs huggingface_hub")


def _destination(name: str) -> HubName:
    if not name.startswith(PREFIX):
        raise UserError(f"{name}: expected hf://USER/NAME to upload; write the hf:// to publish there")
    hub = parse_hub_name(name)
    if hub.revision:
        raise UserError(f"{hub}: an upload becomes the newest commit of main; leave @{hub.revision} out")
    return hub


def _shared_files(folder: Path) -> dict[str, Path]:
    """Return the files to upload by their path in the repository; a link to a file elsewhere is refused."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hidden = [file for file in files if any(part.startswith(".") for part in file.parts)]
    shared = {file.as_posix(): files[file] for file in files if file not in hidden and is_shared(file.as_posix())}
    if "manifest.json" not in shared:
        raise UserError(f"{folder}: no manifest.json in it; expected a checkpoint folder to upload")
    for path in shared.values():
        open_file(path, 8 * TENSOR_BYTES, within=folder).close()
    return shared


def _checked_repository(api: Any, hub: HubName, private: bool) -> Any | None:
    """Return what the Hub says about the repository, None if there is none.

    Raises:
        UserError: it holds something else than a checkpoint of wamtune, or is public and `private` is set.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(hub.repo)
    except RepositoryNotFoundError:
        return None
    files = {sibling.rfilename for sibling in found.siblings or ()}
    if files - {".gitattributes", "README.md"} and "manifest.json" not in files:
        raise UserError(
            f"{hub}: it exists and is not a checkpoint of wamtune; nothing was uploaded, choose another name"
        )
    if private and not found.private:
        raise UserError(f"{hub}: it is public; nothing was uploaded, add private=false or choose another name")
    return found


def _download_error(hub: HubName, error: Exception) -> UserError:
    """Return one line about an error of `snapshot_download`, with its remedy."""
    from huggingface_hub import constants, errors

    where, causes = constants.ENDPOINT, list(_causes(error))
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return UserError(f"{hub}: access is restricted; ask for it at {where}/{hub.repo}, then {LOGIN}")
    if any(isinstance(cause, errors.RevisionNotFoundError) for cause in causes):
        return UserError(f"{hub}: the repository has no such revision; expected a branch, a tag or a commit")
    if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes):
        return UserError(f"{hub}: no such repository at {where}, or a private one; check the name, or {LOGIN}")
    if (status := _status(causes)) in (401, 403):
        return UserError(f"{hub}: {where} refuses access (HTTP {status}); {LOGIN}")
    if status is not None:
        return UserError(f"{hub}: {where} answered with HTTP {status}; try again later, or name a local folder")
    if isinstance(error, OSError) and error.errno is not None:  # of the cache, such as a full disk
        return cannot_write(Path(error.filename or constants.HF_HUB_CACHE), error)
    missing = f"it is not complete in the cache {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        return UserError(f"{hub}: HF_HUB_OFFLINE is set and {missing}; unset it, or name a local folder")
    return UserError(f"{hub}: cannot reach {where} ({_reason(causes)}) and {missing}; connect, or name a local folder")


def _upload_error(hub: HubName, error: Exception) -> UserError:
    """Return one line about an error of an upload, with its remedy."""
    from huggingface_hub import constants

    where, causes = constants.ENDPOINT, list(_causes(error))
    if (status := _status(causes)) in (401, 403, 404):
        return UserError(f"{hub}: {where} refuses the upload (HTTP {status}); {LOGIN}, with a token that may write")
    if status == 412:
        return UserError(f"{hub}: somebody else has just committed to it; nothing was uploaded, try again")
    if status is not None:
        return UserError(f"{hub}: {where} answered with HTTP {status} ({_reason(causes)}); nothing was uploaded")
    if constants.HF_HUB_OFFLINE:
        return UserError(f"{hub}: HF_HUB_OFFLINE is set; unset it to upload")
    return UserError(f"{hub}: cannot upload to {where} ({_reason(causes)}); nothing was uploaded, try again")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then what it was raised from or while handling, down to the first one."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(causes: list[BaseException]) -> int | None:
    """Return the HTTP status of the first error that has an answer of the server."""
    answers = (getattr(cause, "response", None) for cause in causes)
    return next((answer.status_code for answer in answers if answer is not None), None)


def _reason(causes: list[BaseException]) -> str:
    """Return what the operating system said, such as `Connection refused`, or the first line of the error."""
    said = (cause.strerror for cause in causes if isinstance(cause, OSError) and isinstance(cause.strerror, str))
    first = next((line for line in str(causes[0]).splitlines() if line.strip()), type(causes[0]).__name__)
    return next(said, None) or first.strip()
