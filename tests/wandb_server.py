"""A W&B server as far as a run needs one: what wandb sends to it is kept in memory, for tests to read.

The queries and the shapes of their answers are those that wandb 0.31's service holds and accepts.
"""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Run:
    """What the server knows about one run.

    Attributes:
        fields: The variables of all `UpsertBucket` calls, later ones over earlier ones.
        lines: The lines of each streamed file, each in the place that its offset gives it.
        exit_codes: One a process that ended properly.
        preempting: Whether a process said that it is being preempted.
        starts: How many processes began or resumed the run.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    preempting: bool = False
    starts: int = 0

    @property
    def history(self) -> list[dict[str, Any]]:
        """The curves, without wall-clock columns."""
        rows = [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]
        return [{key: value for key, value in row.items() if key not in {"_runtime", "_timestamp"}} for row in rows]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.lines.get("wandb-summary.json")
        return json.loads(lines[-1]) if lines else {}

    @property
    def config(self) -> dict[str, Any]:
        config = json.loads(self.fields["config"])
        return {name: entry["value"] for name, entry in config.items() if name != "_wandb"}


@dataclass
class State:
    """Everything that was sent, and how the server behaves from now on.

    Attributes:
        fails_with: None, or the status that everything is answered with.
        silent: While it is set, nothing is answered.
        closed: The test is over.
        uploads: What was PUT, by path.
        authorizations: The `Authorization` headers seen.
    """

    url: str = ""
    fails_with: int | None = None
    silent: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    runs: dict[str, Run] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    authorizations: set[str] = field(default_factory=set)
    queries: list[str] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GraphQL, the file stream and uploads."""

    protocol_version = "HTTP/1.1"
    state: State

    def do_POST(self) -> None:
        body = self._body()
        if self.state.fails_with is not None:
            self._answer({"errors": []}, self.state.fails_with)
        elif self.path.endswith("/file_stream"):
            self._answer(self._stream(self.path.split("/")[-2], json.loads(body)))
        else:
            call = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)|\{", call["query"])[1] or "anonymous"
            self.state.queries.append(name)
            variables = call.get("variables") or {}
            self._answer({"data": getattr(self, f"_{name}", lambda _: {})(variables)})

    def do_GET(self) -> None:
        self._answer({}, self.state.fails_with or 404)

    def do_PUT(self) -> None:
        self.state.uploads[self.path] = self._body()
        self._answer({}, self.state.fails_with or 200)

    def log_message(self, *arguments: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    def _answer(self, value: Any, status: int = 200) -> None:
        self.state.authorizations.add(self.headers.get("authorization", ""))
        while self.state.silent.is_set() and not self.state.closed.wait(0.05):
            pass
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        run = self.state.runs[name]
        for file, part in (body.get("files") or {}).items():
            lines = run.lines.setdefault(file, [])
            lines[part["offset"] : part["offset"] + len(part["content"])] = part["content"]
        run.preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])
        return {}

    def _Viewer(self, variables: Any) -> Any:
        return {"viewer": {"id": "u", "entity": "lab", "username": "u", "flags": "{}", "teams": {"edges": []}}}

    def _ServerFeaturesQuery(self, variables: Any) -> Any:
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, variables: Any) -> Any:
        run = self.state.runs.get(variables["name"])
        bucket = run and {
            "id": variables["name"], "name": variables["name"], "displayName": variables["name"],
            "summaryMetrics": json.dumps(run.summary), "config": run.fields["config"], "tags": [], "notes": None,
            "logLineCount": 0, "historyLineCount": len(run.lines.get("wandb-history.jsonl", [])),
            "eventsLineCount": len(run.lines.get("wandb-events.jsonl", [])), "wandbConfig": '{"t": 1}',
            "historyTail": json.dumps(run.lines.get("wandb-history.jsonl", [])[-1:]),
            "eventsTail": json.dumps(run.lines.get("wandb-events.jsonl", [])[-1:]),
        }  # fmt: skip
        entity = {"id": "e", "name": "lab"}
        return {"model": {"id": "p", "name": variables["project"], "entity": entity, "bucket": bucket}}

    def _UpsertBucket(self, variables: Any) -> Any:
        name = variables["name"]
        known = name in self.state.runs
        run = self.state.runs.setdefault(name, Run())
        run.starts += "displayName" in variables and variables["displayName"] is not None
        run.fields |= {key: value for key, value in variables.items() if value is not None}
        project = {"id": "p", "name": variables.get("project") or "p", "entity": {"id": "e", "name": "lab"}}
        bucket = {
            "id": name, "name": name, "displayName": name, "config": run.fields.get("config", "{}"),
            "project": project, "historyLineCount": len(run.lines.get("wandb-history.jsonl", [])),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": not known}}

    def _CreateRunFiles(self, variables: Any) -> Any:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.state.url}/put/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, variables: Any) -> Any:
        made = variables["input"]
        self.state.artifacts.append(made)
        number = str(len(self.state.artifacts) - 1)
        artifact = {"id": number, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, variables: Any) -> Any:
        url = f"{self.state.url}/put/manifest/{variables['artifactID']}"
        manifest = {"id": "m", "file": {"id": "f", "uploadUrl": url, "uploadHeaders": []}}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _UpdateArtifactManifest(self, variables: Any) -> Any:
        url = f"{self.state.url}/put/manifest/update"
        manifest = {"id": "m", "file": {"id": "f", "uploadUrl": url, "uploadHeaders": []}}
        return {"updateArtifactManifest": {"artifactManifest": manifest}}

    def _CreateArtifactFiles(self, variables: Any) -> Any:
        edges = [
            {
                "node": {
                    "storagePath": file["name"], "uploadUrl": f"{self.state.url}/put/artifact/{file['name']}",
                    "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]},
                }
            }
            for file in variables["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _ArtifactType(self, variables: Any) -> Any:
        return {"project": {"artifact": None}}

    def _CommitArtifact(self, variables: Any) -> Any:
        self.state.artifacts[int(variables["artifactID"])]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}


@contextmanager
def serve() -> Iterator[tuple[State, http.server.ThreadingHTTPServer]]:
    """Listen on the loopback interface until the end of the block."""
    state = State()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # the service leaves connections behind when it ends
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield state, server
    finally:
        state.closed.set()
        server.shutdown()
        server.server_close()
