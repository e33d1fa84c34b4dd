"""A hub on this machine that takes repositories, files and commits, as the hub's own client sends
them; reading is what ``hub_server`` does.

Content that a hub keeps apart goes to ``objects`` by its hash, and is shown by a commit alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from testing.hub_server import Fault, Hub, Seen, _Handler

LARGE = 10_000  # bytes from which a file is kept apart
PARTS_FROM = 50_000  # bytes from which one is sent in parts
PART = 20_000
START = {".gitattributes": b"*.gguf filter=lfs\n"}


@dataclass
class Repo:
    """Branches and commits; the first commit is what the hub makes itself."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[name], self.heads[branch] = files, name
        return name

    def at(self, revision: str) -> str | None:
        found = self.heads.get(revision, revision)
        return found if found in self.commits else None


class WritableHub(Hub):
    """``repos``: by OWNER/NAME. Whoever has another token than ``token`` is nobody; with
    ``read_only`` the token may not write."""

    TOKEN = "hf_rather-secret-token-0815"

    def __init__(self) -> None:
        super().__init__({}, handler=_Writing)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.token = self.TOKEN
        self.read_only = False
        self.calls: list[tuple[str, str]] = []  # method and path of what changes something
        self.received = 0  # bytes of content that was kept apart
        self.loses_answer = 0  # so many commits are made, and the answer never comes
        self.drops = ""  # a file that a commit silently leaves out
        self.changes = ""  # a file of which a commit shows other bytes
        self.public_url: str | None = None  # where clients reach it, behind a proxy

    def shown(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """What the branch shows, without the hub's own files."""
        one = self.repos.get(repo)
        if one is None or branch not in one.heads:
            return {}
        return {k: v for k, v in one.commits[one.heads[branch]].items() if k not in START}

    def make(self, repo: str, files: dict[str, bytes] | None = None) -> Repo:
        """A repository of somebody else's."""
        made = self.repos[repo] = Repo(private=False)
        made.commit("main", dict(START))
        if files:
            made.commit("main", {**START, **files})
        return made


class _Writing(_Handler):
    server_hub: WritableHub

    def base(self) -> str:
        return self.server_hub.public_url or self.server_hub.url

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            whole = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole
        length = int(self.headers.get("Content-Length", 0))
        data = self.rfile.read(length)
        if len(data) < length:
            raise ConnectionError("the client went away")
        return data

    def tell(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def repo(self, name: str) -> Repo | None:
        """The repository, or None where a refusal went out."""
        hub = self.server_hub
        hub.seen.append(Seen("", self.path, 0, self.key))
        found = hub.repos.get(name)
        if self.key is not None and self.key != hub.token:
            self.answer(401, b"{}", X_Error_Message="Invalid credentials in Authorization header")
        elif found is None or (found.private and self.key is None):
            self.refuse(401 if self.key is None else 404, "RepoNotFound")
        else:
            return found
        return None

    def may_write(self) -> bool:
        hub = self.server_hub
        if self.key != hub.token:
            self.answer(401, b"{}", X_Error_Message="Invalid credentials in Authorization header")
        elif hub.read_only:
            self.answer(403, b"{}", X_Error_Message="You don't have the rights to write")
        else:
            return True
        return False

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            found = self.repo("/".join(parts[2:4]))
            if found is None:
                return
            if parts[4] == "commits":
                names = list(found.commits)[::-1]
                date = "2026-01-01T00:00:00.000Z"
                rows = [
                    {"id": n, "title": "t", "message": "", "authors": [], "date": date}
                    for n in names
                ]
                self.tell(rows)
            else:
                self.show(found, "/".join(parts[2:4]), "/".join(parts[5:]))
            return
        found = self.repo("/".join(parts[:2]))
        if found is None:
            return
        commit, name = found.at(parts[3]), "/".join(parts[4:])
        if commit is None:
            self.refuse(404, "RevisionNotFound")
        elif name not in found.commits[commit]:
            self.refuse(404, "EntryNotFound")
        else:
            seen = Seen(name, self.path, 0, self.key)
            self.server_hub.seen.append(seen)
            self.send_file(seen, found.commits[commit][name], Fault(""))

    def show(self, found: Repo, name: str, revision: str) -> None:
        commit = found.at(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound")
            return
        siblings = []
        for path, data in found.commits[commit].items():
            row: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": blob(data)}
            if len(data) >= LARGE:
                sha = hashlib.sha256(data).hexdigest()
                row["lfs"] = {"sha256": sha, "oid": sha, "size": len(data), "pointerSize": 130}
            siblings.append(row)
        self.tell({"id": name, "sha": commit, "siblings": siblings, "private": found.private})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        parts, raw = path.strip("/").split("/"), self.body()
        self.server_hub.calls.append(("POST", path))
        if parts == ["api", "validate-yaml"]:
            self.tell({"errors": [], "warnings": []})
        elif parts[0] == "lfs":
            self.lfs_after(parts[1:], json.loads(raw))
        elif not self.may_write():
            return
        elif parts == ["api", "repos", "create"]:
            self.create(json.loads(raw))
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            self.batch(json.loads(raw))
        elif (found := self.repo("/".join(parts[2:4]))) is not None:
            action, name = parts[4], "/".join(parts[5:])
            if action == "preupload":
                self.preupload(found, name, json.loads(raw))
            elif action == "branch":
                start = found.at(json.loads(raw).get("startingPoint", "main"))
                assert start is not None
                found.heads[name] = start
                self.tell({})
            elif action == "commit":
                self.commit(found, "/".join(parts[2:4]), name, raw)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server_hub.repos:
            self.tell({"error": "You already created this model repo"}, 409)
            return
        made = self.server_hub.make(name)
        made.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.tell({"url": f"{self.base()}/{name}", "name": name})

    def preupload(self, found: Repo, revision: str, asked: dict[str, Any]) -> None:
        commit = found.at(revision)
        there = found.commits[commit] if commit else {}
        rows = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["size"] >= LARGE else "regular",
                "shouldIgnore": False,
                "oid": blob(there[one["path"]]) if one["path"] in there else None,
            }
            for one in asked["files"]
        ]
        self.tell({"files": rows})

    def batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            row: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server_hub.objects:
                put: dict[str, Any] = {"href": f"{self.base()}/lfs/put/{one['oid']}"}
                if one["size"] >= PARTS_FROM:
                    count = -(-one["size"] // PART)
                    urls = {
                        str(i + 1): f"{self.base()}/lfs/part/{one['oid']}/{i}" for i in range(count)
                    }
                    put = {
                        "href": f"{self.base()}/lfs/done/{one['oid']}",
                        "header": {"chunk_size": str(PART), **urls},
                    }
                verify = {"href": f"{self.base()}/lfs/verify"}
                row["actions"] = {"upload": put, "verify": verify}
            objects.append(row)
        self.tell({"transfer": "basic", "objects": objects})

    def do_PUT(self) -> None:
        path = urlsplit(self.path).path
        parts, data, hub = path.strip("/").split("/"), self.body(), self.server_hub
        hub.calls.append(("PUT", path))
        hub.received += len(data)
        if parts[1] == "part":
            hub.parts.setdefault(parts[2], {})[int(parts[3])] = data
            self.answer(200, b"", ETag=f'"{parts[3]}"')
        elif hashlib.sha256(data).hexdigest() == parts[2]:
            hub.objects[parts[2]] = data
            self.answer(200)
        else:
            self.answer(400, b"another hash")

    def lfs_after(self, parts: list[str], asked: dict[str, Any]) -> None:
        hub, oid = self.server_hub, asked["oid"]
        if parts[0] == "done":
            whole = b"".join(data for _, data in sorted(hub.parts.pop(oid).items()))
            assert hashlib.sha256(whole).hexdigest() == oid
            hub.objects[oid] = whole
        self.answer(200 if oid in hub.objects else 404, b"{}")

    def commit(self, found: Repo, repo: str, branch: str, raw: bytes) -> None:
        hub = self.server_hub
        lines = [json.loads(line) for line in raw.splitlines() if line.strip()]
        head = next(line["value"] for line in lines if line["key"] == "header")
        if head.get("parentCommit") not in (None, found.heads[branch]):
            self.answer(412, b"{}", X_Error_Message="A commit has happened since.")
            return
        files = dict(found.commits[found.heads[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in hub.objects:
                    self.answer(422, b"{}", X_Error_Message="LFS pointer to nothing")
                    return
                files[value["path"]] = hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        files.pop(hub.drops, None)
        if hub.changes in files:
            files[hub.changes] += b"\n"
        name = found.commit(branch, files)
        if hub.loses_answer:
            hub.loses_answer -= 1
            self.close_connection = True
            return
        self.tell({"commitUrl": f"{self.base()}/{repo}/commit/{name}", "commitOid": name})


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
