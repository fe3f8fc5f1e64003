"""A hub for tests: huggingface_hub's own cache layout in a folder, and servers that give and refuse as the hub does."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub.file_download import repo_folder_name

REFUSALS = {
    "gated": (403, "GatedRepo"),
    "private": (401, "RepoNotFound"),
    "missing": (404, "RepoNotFound"),
    "no-revision": (404, "RevisionNotFound"),
}


def publish(cache: Path, hub_id: str, folder: Path, commit: str, branch: str | None = "main") -> Path:
    """Lay a model's folder into a hub cache as a download would: blobs, a snapshot of links to them, a branch's commit.

    Returns:
        The snapshot's folder.
    """
    repository = cache / repo_folder_name(repo_id=hub_id, repo_type="model")
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        content = file.read_bytes()
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    if branch is not None:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
    return snapshot


class ServingHub(BaseHTTPRequestHandler):
    """Serves one repository out of a folder as far as huggingface_hub asks: its commit, its list of files, files."""

    folder = Path()
    """What the repository holds."""
    commit = "9" * 40
    """What its branches name."""

    def do_GET(self) -> None:
        """Answer with JSON about the repository, or with a file of it."""
        path = urlsplit(self.path).path
        headers = {"X-Repo-Commit": self.commit}
        if path.startswith("/api/models/"):
            files = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in self._files()]
            about = {"id": "org/served", "sha": self.commit, "siblings": [{"rfilename": f["path"]} for f in files]}
            content = json.dumps(files if "/tree/" in path else about).encode()
            headers["Content-Type"] = "application/json"
        else:
            file = self.folder / path.rpartition("/")[2]
            content = file.read_bytes() if file in self._files() else b""
            headers |= (
                {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'} if content else {"X-Error-Code": "EntryNotFound"}
            )
        self.send_response(200 if content else 404)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def _files(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class RefusingHub(BaseHTTPRequestHandler):
    """Answers every request as the hub does that has no access to give; the repository's name says why."""

    def do_GET(self) -> None:
        """Refuse."""
        why = next((why for why in REFUSALS if f"/{why}" in self.path), "missing")
        status, code = REFUSALS[why]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""
