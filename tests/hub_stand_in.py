"""A hub for tests: huggingface_hub's own cache layout in a folder, and a server that says no as the hub does."""

from __future__ import annotations

import hashlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path

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
