#!/bin/sh
# gunicorn 27.0.1 (2026-11-27), worker gthread: an application that answers without reading the body of a request (a 401,
# a 413) is answered for with `Connection: keep-alive`. Of the body gunicorn then reads 64 KiB, and closes the connection
# when there is more. A proxy that sent the body whole has taken the answer at its word by then, and loses the next
# request that it sends on this connection. Up to 64 KiB the connection goes on.
# Seen: "after 60000 bytes: keep-alive, then answered; after 300000 bytes: keep-alive, then closed". Fails when that
# changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gunicorn==27.0.1
cat > "$folder/refuse.py" <<'PY'
def app(environ, start_response):
    start_response("401 Unauthorized", [("Content-Length", "2")])
    return [b"no"]
PY
cd "$folder"
venv/bin/python - <<'PY'
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection, RemoteDisconnected

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = subprocess.Popen(
    [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "-k", "gthread", "--threads", "2",
     "--no-control-socket", "--log-level", "critical", "refuse:app"]
)
time.sleep(2)


def two_requests(size):
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/", b"x" * size)
    answer = connection.getresponse()
    answer.read()
    said = answer.getheader("Connection")
    time.sleep(1)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except (RemoteDisconnected, ConnectionError):
        return f"{said}, then closed"
    finally:
        connection.close()
    return f"{said}, then answered"


try:
    seen = [two_requests(60_000), two_requests(300_000)]
finally:
    server.terminate()
    server.wait(60)
print(f"after 60000 bytes: {seen[0]}; after 300000 bytes: {seen[1]}")
assert seen == ["keep-alive, then answered", "keep-alive, then closed"], "gunicorn treats what is unread in another way"
PY
