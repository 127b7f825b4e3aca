"""A small Hub in this process: as much of its HTTP API as huggingface_hub, transformers, diffusers, peft and datasets
use to publish and to load.

Repositories live in memory: branches point to commits, a commit is a whole tree. Large files go through git-LFS, as
with a Hub without Xet: no answer names Xet, and `HF_HUB_DISABLE_XET` has the client upload without it (it doesn't
ask the server). Loaded files come with the Hub's headers: commit, ETag, size, and a redirect for large ones.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_tests"
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".mp4")


class Refused(Exception):
    """An error's answer: status, `X-Error-Code`, `X-Error-Message`."""

    def __init__(self, status: int, code: str, message: str):
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


@dataclass
class Repo:
    """commits: id -> path -> content."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: dict[str, bytes]) -> str:
        text = f"{len(self.commits)} {branch} {sorted((path, oid(content)) for path, content in tree.items())}"
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = tree
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str:
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit


def oid(content: bytes) -> str:
    """git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def file_entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid(content)}
    if is_lfs(path):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


class Hub:
    """The server. `address` is what `HF_ENDPOINT` should be.

    log: every request, "METHOD path". fail: beginnings of "METHOD path" that are answered with status 400 (which
    clients don't try again). reachable: False closes every connection without an answer.
    """

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}  # (models or datasets, id)
        self.large_files: dict[str, bytes] = {}  # SHA-256 -> content
        self.log: list[str] = []
        self.fail: tuple[str, ...] = ()
        self.reachable = True
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.large_files_address = f"http://localhost:{self._server.server_port}/large-files"  # another host's name
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def files(self, repo_id: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[kind, repo_id]
        return repo.commits[repo.resolve(revision)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do(self):
        body = self._body()
        self.path = unquote(self.path)
        if not self.hub.reachable:
            self.close_connection = True
            return
        self.hub.log.append(f"{self.command} {self.path}")
        try:
            if self.hub.log[-1].startswith(self.hub.fail):
                raise Refused(400, "Failed", "the tests want it so")
            status, headers, content = self._answer(urlsplit(self.path), body)
        except Refused as refused:
            status, headers = refused.status, refused.headers
            content = json.dumps({"error": headers["X-Error-Message"]}).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do

    def log_message(self, *_):
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while length := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, url, body: bytes) -> tuple[int, dict[str, str], bytes]:
        parts = url.path.strip("/").split("/")
        if parts[0] == "large-files":
            return self._large_file(parts[1], body)
        if parts[0] != "api":
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if kind == "datasets" else parts
            if url.path.endswith(".git/info/lfs/objects/batch"):
                return self._lfs_batch(kind, "/".join(parts[:2]).removesuffix(".git"), json.loads(body))
            if len(parts) > 4 and parts[2] == "resolve":
                return self._resolve(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        elif parts[1:] == ["validate-yaml"]:
            return _json({"errors": [], "warnings": []})
        elif parts[1:] == ["repos", "create"]:
            return self._create(json.loads(body))
        elif parts[1] in ("models", "datasets") and len(parts) >= 4:
            return self._api(parts[1], "/".join(parts[2:4]), parts[4:], parse_qs(url.query), body)
        raise Refused(404, "EntryNotFound", f"nothing is at {url.path}")

    def _repo(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        """A private repository is hidden from who may not read it, as on the Hub."""
        signed_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (not signed_in and (repo.private or write)):
            if signed_in:
                raise Refused(404, "RepoNotFound", "Repository not found")
            raise Refused(401, "RepoNotFound", "Invalid username or password.")
        return repo

    def _create(self, wanted: dict):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Unauthorized", "Invalid username or password.")
        kind = wanted.get("type", "model") + "s"
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        address = f"{self.hub.address}/{'datasets/' if kind == 'datasets' else ''}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            return _json({"error": "You already created this repo", "url": address}, 409)
        repo = self.hub.repos[kind, repo_id] = Repo(private=wanted.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b""})
        return _json({"url": address, "name": repo_id, "id": repo_id})

    def _api(self, kind: str, repo_id: str, what: list[str], query: dict, body: bytes):
        action, rest = (what[0], what[1:]) if what else ("revision", ["main"])
        repo = self._repo(kind, repo_id, write=action in ("preupload", "commit", "branch"))
        if action == "revision":
            commit = repo.resolve("/".join(rest))
            siblings = [{"rfilename": path} for path in repo.commits[commit]]
            return _json({"id": repo_id, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []})
        if action == "refs":
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.branches.items()]
            return _json({"branches": branches, "tags": [], "converts": []})
        if action == "tree":
            return self._tree(
                repo.commits[repo.resolve(rest[0])], "/".join(rest[1:]), "true" in query["recursive"][0].lower()
            )
        if action == "paths-info":
            tree = repo.commits[repo.resolve(rest[0])]
            wanted = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
            entries = []
            for path in wanted["paths"]:
                if path in tree:
                    entries.append(file_entry(path, tree[path]))
                elif any(name.startswith(f"{path}/") for name in tree):
                    entries.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
            return _json(entries)
        if action == "preupload":
            repo.resolve(rest[0])
            files = [
                {"path": f["path"], "uploadMode": "lfs" if is_lfs(f["path"]) else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return _json({"files": files})
        if action == "branch":
            if rest[0] in repo.branches:
                return _json({"error": "Reference already exists"}, 409)
            repo.branches[rest[0]] = repo.branches["main"]
            return _json({})
        if action == "commit":
            return self._commit(kind, repo_id, repo, rest[0], [json.loads(line) for line in body.splitlines()])
        raise Refused(404, "EntryNotFound", f"no {action}")

    def _tree(self, tree: dict[str, bytes], folder: str, recursive: bool):
        prefix = f"{folder}/" if folder else ""
        inside = {path: content for path, content in tree.items() if path.startswith(prefix)}
        if not inside:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist")
        folders = set()
        for path in inside:
            parents = path.removeprefix(prefix).split("/")[:-1]
            folders |= {prefix + "/".join(parents[: n + 1]) for n in range(len(parents))}
        if not recursive:
            inside = {path: content for path, content in inside.items() if "/" not in path.removeprefix(prefix)}
            folders = {path for path in folders if "/" not in path.removeprefix(prefix)}
        entries = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        return _json(entries + [file_entry(path, content) for path, content in inside.items()])

    def _lfs_batch(self, kind: str, repo_id: str, wanted: dict):
        self._repo(kind, repo_id, write=True)
        objects = []
        for item in wanted["objects"]:
            action = {"upload": {"href": f"{self.hub.large_files_address}/{item['oid']}"}}
            is_here = item["oid"] in self.hub.large_files
            objects.append(item if is_here else item | {"actions": action})
        return _json({"transfer": "basic", "objects": objects})

    def _large_file(self, sha256: str, body: bytes):
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != sha256:
                raise Refused(400, "Corrupt", "the content has another SHA-256")
            self.hub.large_files[sha256] = body
            return _json({})
        content, span = self.hub.large_files[sha256], self.headers.get("Range")
        if span is None:
            return 200, {"ETag": f'"{sha256}"'}, content
        first, last = span.removeprefix("bytes=").split("-")
        last = min(int(last or len(content)), len(content) - 1)
        where = {"Content-Range": f"bytes {first}-{last}/{len(content)}", "ETag": f'"{sha256}"'}
        return 206, where, content[int(first) : last + 1]

    def _commit(self, kind: str, repo_id: str, repo: Repo, branch: str, lines: list[dict]):
        head = repo.resolve(branch)
        tree = dict(repo.commits[head])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", head) != head:
                raise Refused(412, "PreconditionFailed", "A commit has happened since.")
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.hub.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        commit = repo.commit(branch, tree)
        prefix = "datasets/" if kind == "datasets" else ""
        return _json({"commitUrl": f"{self.hub.address}/{prefix}{repo_id}/commit/{commit}", "commitOid": commit})

    def _resolve(self, kind: str, repo_id: str, revision: str, path: str):
        repo = self._repo(kind, repo_id)
        commit = repo.resolve(revision)
        if path not in repo.commits[commit]:
            refused = Refused(404, "EntryNotFound", "Entry not found")
            refused.headers["X-Repo-Commit"] = commit
            raise refused
        content = repo.commits[commit][path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid(content)}"', "Accept-Ranges": "bytes"}
        if not is_lfs(path):
            return 200, headers, content
        sha256 = hashlib.sha256(content).hexdigest()
        self.hub.large_files[sha256] = content
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256}"'}
        return 302, headers | {"Location": f"{self.hub.large_files_address}/{sha256}"}, b""


def _json(content, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()
