"""A server on loopback with the calls of the Hugging Face Hub that up- and downloads of models make, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).parents[2]
Files = dict[str, bytes]


class HubServer:
    """Repositories by name. `calls` are all requests so far, such as "GET /api/models/ann/pole"."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}  # repository -> commit -> files, the newest last
        self.branches: dict[str, dict[str, str]] = {}  # repository -> branch -> commit
        self.private: dict[str, bool] = {}
        self.refuses: dict[str, tuple[int, str]] = {}  # repository -> status and X-Error-Code of every answer
        self.refuses_files: dict[str, tuple[int, str]] = {}  # the same for files only, as with a gated repository
        self.calls: list[str] = []
        self.tokens: set[str] = set()
        hub = self

        class Handler(_Handler):
            server_of = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repo: str, files: Files, branch: str = "main") -> str:
        """Make `files` the whole content of a branch, and return the commit."""
        number = sum(len(commits) for commits in self.commits.values())
        commit = hashlib.sha1(f"{repo} {number}".encode()).hexdigest()
        self.commits.setdefault(repo, {})[commit] = files
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def files(self, repo: str, revision: str = "main") -> Files:
        """Return the files of a revision; raise `KeyError` if there is none."""
        return self.commits[repo][self.branches[repo].get(revision, revision)]

    def python(self, code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `code` in a new process, which has `cwd/hf` as its HF_HOME and asks this server.

        In a new process, because huggingface_hub reads its environment when it is imported.
        """
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(cwd / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        full = {**kept, **ours, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", **env}
        return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=full, capture_output=True, text=True)


class _Handler(BaseHTTPRequestHandler):
    server_of: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, parts = self._begin()
        if parts[:2] == ["api", "models"]:
            repo, rest = "/".join(parts[2:4]), parts[4:]
            if self._is_refused(repo, hub.refuses) or not (commit := self._commit(repo, rest[1] if rest else "main")):
                return
            files = hub.commits[repo][commit]
            if rest[:1] == ["tree"]:
                self._json([_entry(name, data) for name, data in files.items()])
                return
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": repo, "sha": commit, "private": hub.private.get(repo, False), "siblings": siblings})
            return
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])
        if parts[2:3] != ["resolve"]:
            self._answer(404, b"{}", {})
            return
        if self._is_refused(repo, {**hub.refuses, **hub.refuses_files}) or not (commit := self._commit(repo, parts[3])):
            return
        data = hub.commits[repo][commit][name]
        self._answer(200, data, {"ETag": f'"{_blob(data)}"', "X-Repo-Commit": commit})

    def do_POST(self) -> None:
        hub, parts = self._begin()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if self._is_refused(repo, hub.refuses):
                return
            hub.private[repo] = asked.get("visibility") == "private" or asked.get("private") is True
            hub.commit(repo, {".gitattributes": b""})
            self._json({"url": f"{hub.url}/{repo}", "name": repo})
        elif parts == ["api", "validate-yaml"]:
            _, front, _ = json.loads(body)["content"].split("---\n", 2)
            yaml.safe_load(front)
            self._json({"errors": [], "warnings": []})
        elif parts[4] == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]})
        elif parts[4] == "commit":
            repo = "/".join(parts[2:4])
            if self._is_refused(repo, hub.refuses_files):
                return
            parent = json.loads(body.splitlines()[0])["value"].get("parentCommit")
            if parent not in (None, hub.branches[repo]["main"]):
                self._answer(412, b"{}", {})
                return
            commit = hub.commit(repo, _changed(hub.files(repo), body))
            self._json({"commitUrl": f"{hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def _begin(self) -> tuple[HubServer, list[str]]:
        hub, path = self.server_of, urlsplit(self.path).path
        hub.calls.append(f"{self.command} {path}")
        if (token := self.headers.get("Authorization")) is not None:
            hub.tokens.add(token)
        return hub, [unquote(part) for part in path.strip("/").split("/")]

    def _is_refused(self, repo: str, refuses: dict[str, tuple[int, str]]) -> bool:
        if repo not in refuses:
            return False
        status, code = refuses[repo]
        self._answer(status, b"{}", {"X-Error-Code": code} if code else {})
        return True

    def _commit(self, repo: str, revision: str) -> str | None:
        """Return the commit of a branch or commit; if there is none, answer so."""
        hub = self.server_of
        commit = hub.branches.get(repo, {}).get(revision, revision)
        if commit in hub.commits.get(repo, {}):
            return commit
        self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound" if repo in hub.commits else "RepoNotFound"})
        return None

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": _blob(data)}


def _changed(files: Files, body: bytes) -> Files:
    """Return the files after the changes that the lines of a commit list."""
    changed = dict(files)
    for line in map(json.loads, body.splitlines()):
        if line["key"] == "file":
            changed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        elif line["key"] == "deletedFile":
            del changed[line["value"]["path"]]
    return changed
