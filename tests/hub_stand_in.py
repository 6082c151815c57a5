"""A small server that answers as the hub does, for what its clients ask of models and data sets.

In a folder: models/ORG/NAME/REVISION/... and datasets/ORG/NAME/REVISION/...; a repository's newest revision is "main",
a link to one of the others, whose names are commits.
"""

import contextlib
import functools
import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def __init__(self, root: pathlib.Path, asked: list[str], *arguments):
    self._root, self._asked = root, asked
    super().__init__(*arguments)

  def do_GET(self):
    self._asked.append(self.path)
    parts = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")
    if parts[0] == "api":
      self._api(parts[1], parts[2:])
    else:
      kind = parts.pop(0) if parts[0] == "datasets" else "models"
      self._file(kind, parts)

  do_HEAD = do_GET

  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"])).decode()
    self._asked.append(f"{self.path} {body}")
    _, kind, *parts = urllib.parse.urlsplit(self.path).path.strip("/").split("/")
    folder = self._folder(kind, parts[:2], urllib.parse.unquote(parts[3]))
    paths = json.loads(body)["paths"] if body.startswith("{") else urllib.parse.parse_qs(body)["paths"]
    self._json([_entry(folder, folder / path) for path in paths if (folder / path).exists()])

  def _api(self, kind, parts):
    repo, verb, rest = parts[:2], (parts[2:3] or ["revision"])[0], parts[3:]
    folder = self._folder(kind, repo, rest[0] if rest else "main")
    if not (self._root / kind / "/".join(repo)).exists():
      self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
    elif not folder.exists():
      self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
    elif verb == "revision":
      names = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
      self._json({"id": "/".join(repo), "sha": folder.resolve().name, "siblings": names, "private": False, "tags": []})
    elif verb == "tree":
      below = folder.joinpath(*rest[1:])
      recursive = "recursive=true" in self.path.lower()
      if below.is_dir():
        self._json([_entry(folder, path) for path in sorted(below.rglob("*") if recursive else below.iterdir())])
      else:
        self._json({"error": "no such entry"}, 404, {"X-Error-Code": "EntryNotFound"})
    else:
      self._json({"error": verb}, 404)

  def _file(self, kind, parts):
    repo, _, revision, *rest = parts[:2], *parts[2:]
    folder = self._folder(kind, repo, revision)
    path = folder.joinpath(*rest)
    if not path.is_file():
      self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
      return
    data, status, headers = path.read_bytes(), 200, {}
    if asked := self.headers.get("Range"):
      start, _, end = asked.removeprefix("bytes=").partition("-")
      last = min(int(end) if end else len(data) - 1, len(data) - 1)
      headers["Content-Range"], status = f"bytes {start}-{last}/{len(data)}", 206
      data = data[int(start):last + 1]
    self._send(data, status, {"ETag": f'"{_hash(path)}"', "X-Repo-Commit": folder.resolve().name,
                              "Accept-Ranges": "bytes", **headers})

  def _folder(self, kind, repo, revision):
    return self._root / kind / "/".join(repo) / revision

  def _json(self, value, status=200, headers=None):
    self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

  def _send(self, data, status, headers):
    self.send_response(status)
    for name, value in {**headers, "Content-Length": len(data)}.items():
      self.send_header(name, str(value))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  def log_message(self, *_):
    pass


def _files(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def _hash(path):
  return hashlib.sha1(path.read_bytes()).hexdigest()


def _entry(folder, path):
  name = path.relative_to(folder).as_posix()
  if path.is_dir():
    return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
  return {"type": "file", "oid": _hash(path), "size": path.stat().st_size, "path": name}


@contextlib.contextmanager
def serving(root: pathlib.Path):
  """(address of a server over `root`, list of what it is asked)."""
  asked: list[str] = []
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, root, asked))
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f"http://127.0.0.1:{server.server_port}", asked
  finally:
    server.shutdown()
