"""A PostgreSQL server of a test's own: on a Unix socket in a folder of its own, gone when the test is."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER, PASSWORD, DATABASE = "shop", "s3cret/@:%?pass", "postgres"
"""A password with every sign that means something in a URL."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    host: str

    def connect(self) -> Any:
        """Return a connection that may write, each statement its own transaction."""
        import psycopg

        return psycopg.connect(host=self.host, user=USER, password=PASSWORD, dbname=DATABASE, autocommit=True)


def programs() -> Path | None:
    """Return the folder of ``initdb`` and ``postgres``; Debian keeps them off the path."""
    on_path = shutil.which("initdb")
    found = [Path(on_path)] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def postgres_server(binaries: Path) -> Iterator[Server]:
    """Run a server that nobody else can reach, and remove it with its data."""
    folder = tempfile.mkdtemp(prefix="pg-")  # the path of a socket has at most 107 characters
    owner: dict[str, Any] = {"cwd": folder}
    if os.getuid() == 0:  # the server refuses to be root
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        owner |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data, log = f"{folder}/data", Path(folder) / "log"
    (Path(folder) / "password").write_text(PASSWORD)
    initdb = [binaries / "initdb", "-D", data, "-U", USER, "--auth=scram-sha-256", f"--pwfile={folder}/password"]
    try:
        subprocess.run(
            [*initdb, "--no-sync", "--encoding=UTF8", "--locale=C"], check=True, capture_output=True, **owner
        )
        # The server's own zone and wording are not the client's, as in life.
        options = ["-h", "", "-k", folder, "-F", "-c", "timezone=America/New_York", "-c", "datestyle=SQL, DMY"]
        with log.open("w") as lines:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, *options], stdout=lines, stderr=subprocess.STDOUT, **owner
            )
        try:
            server = Server(folder)
            _wait(server, process, log)
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # does not wait for clients
            process.wait(30)
    finally:
        shutil.rmtree(folder)


def _wait(server: Server, process: subprocess.Popen, log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 30
    while True:
        try:
            return server.connect().close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {log.read_text()}") from None
            time.sleep(0.02)
