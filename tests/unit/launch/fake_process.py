"""A process of a mesh without a model: parses the same flags, joins by making a file, obeys signals.

Faults come by the environment, `FAKE_FAULTS="d0=exit:3 p0=deaf"`:
exit:N ends at once with code N; exit-once:N does so the first time only; deaf ignores SIGTERM; child leaves a
grandchild in its group; chatty writes a line without end.
"""

import argparse
import http.server
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import yaml

from services.launch.lifeline import end_with_parent


class Ready(http.server.BaseHTTPRequestHandler):
    """Ready when every instance has made its file."""

    joined: Path
    wanted: tuple[str, ...]

    def do_GET(self) -> None:
        missing = [name for name in self.wanted if not (self.joined / name).exists()]
        self.send_response(503 if missing else 200)
        self.end_headers()
        self.wfile.write(b'{"status": "x", "reason": "waiting for %s"}' % ",".join(missing).encode())

    def log_message(self, *_: object) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["gateway", "prefill", "decode"])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--model-folder", type=Path, required=True)
    parser.add_argument("--parent-fd", type=int, required=True)
    parser.add_argument("--instance", default="gateway")
    flags = parser.parse_args()
    end_with_parent(flags.parent_fd, grace_s=0.5)
    config = yaml.safe_load(flags.config.read_text())
    faults = dict(item.split("=") for item in os.environ.get("FAKE_FAULTS", "").split())
    fault, _, argument = faults.get(flags.instance, "").partition(":")
    name, folder = flags.instance, flags.model_folder
    first_time = not (folder / f"{name}.was-here").exists()
    (folder / f"{name}.was-here").touch()
    if fault == "exit" or (fault == "exit-once" and first_time):
        print("about to fail", flush=True)
        return int(argument)
    if fault == "child":
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "grandchild").write_text(str(sleeper.pid))
    if fault == "chatty":
        sys.stdout.write("x" * 200_000 + "\n")
    print(f"threads={os.environ['OMP_NUM_THREADS']} secret={os.environ.get('PDMESH_MODEL')}", flush=True)
    return serve(flags.role, name, folder, config) if fault != "deaf" else stay(folder, name)


def stay(folder: Path, name: str) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / name).touch()
    threading.Event().wait()
    return 0


def serve(role: str, name: str, folder: Path, config: dict) -> int:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    server = None
    if role == "gateway":
        Ready.joined = folder
        Ready.wanted = tuple(instance["id"] for instance in config["instances"])
        host, _, port = config["gateway"]["http"].rpartition(":")
        server = http.server.ThreadingHTTPServer((host, int(port)), Ready)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    else:
        (folder / name).touch()
    while not ended.wait(0.05):
        pass  # a signal that comes just before a wait without end would be handled only after it
    (folder / name).unlink(missing_ok=True)
    print("drained", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
