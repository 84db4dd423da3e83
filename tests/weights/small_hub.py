"""The hub without a network: its cache as huggingface_hub lays it out, and a small server of our own."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_into_cache(cache: Path, repo: str, folder: Path, branch: str = "main") -> None:
    """Lay a folder out as huggingface_hub does: blobs, a snapshot of links, a reference."""
    place = cache / f"models--{repo.replace('/', '--')}"
    for name in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (place / name).mkdir(parents=True)
    (place / "refs" / branch).write_text(COMMIT)
    for path in folder.iterdir():
        blob = place / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (place / "snapshots" / COMMIT / path.name).symlink_to(f"../../blobs/{blob.name}")


class Server(BaseHTTPRequestHandler):
    """As much of the hub as fetching and pushing small models ask for; it takes every file by the regular way."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_):
        pass

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        name, commit = self.path.rpartition("/")[2], COMMIT[::-1] if "/v2/" in self.path else COMMIT
        if "/lab/cells/resolve/" in self.path and name in self.files:
            etag = hashlib.sha256(self.files[name]).hexdigest()
            self.answer(self.files[name], X_Repo_Commit=commit, ETag=f'"{etag}"')
        elif "/lab/cells/" in self.path:
            self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        elif self.path.endswith("/models/lab/new"):
            self.answer(json.dumps({"id": "lab/new", "sha": COMMIT, "siblings": []}).encode())
        else:
            self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(f"{self.path} {self.headers.get('Authorization')}")
        address = f"http://{self.headers['Host']}/lab/new"
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(content)["files"]
            ]
            self.answer(json.dumps({"files": files}).encode())
        elif "/commit/" in self.path:
            for row in map(json.loads, content.splitlines()):
                if row["key"] == "file":
                    self.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            self.answer(json.dumps({"commitUrl": f"{address}/commit/{COMMIT}", "commitOid": COMMIT}).encode())
        else:
            self.answer(json.dumps({"url": address, "name": "lab/new"}).encode())
