"""RabbitMQ on loopback for tests: its own folder, port and name daemon, no system service.

By hand, until Ctrl-C:

    python -m tests.services.rabbitmq --install
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.services.process import (
    MissingServiceError,
    Process,
    free_port,
    in_ci,
    listening,
    wait_for_the_end,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "rabbitmq-server"
# Debian's /usr/sbin/rabbitmq-server changes to another user, which cannot write our folder.
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_START_SECONDS = 60.0
_INSTALL_SECONDS = 300


def install(*, allowed: bool | None = None) -> None:
    """Make sure that RabbitMQ is installed.

    Args:
        allowed: Whether the package may be installed; None means in CI only.

    Raises:
        MissingServiceError: it is not there, and may not or cannot be installed.
    """
    if _SERVER.exists() and shutil.which("epmd"):
        return
    allowed = in_ci() if allowed is None else allowed
    if not allowed or not shutil.which("apt-get"):
        raise MissingServiceError(f"RabbitMQ is missing: apt-get install {PACKAGE}")
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", PACKAGE],
    ):
        try:
            subprocess.run(
                [*prefix, *command],
                check=True,
                env=env,
                timeout=_INSTALL_SECONDS,
                capture_output=True,
                text=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            words = getattr(error, "stderr", "") or ""
            raise MissingServiceError(f"RabbitMQ cannot be installed: {error} {words}") from error


@contextmanager
def rabbitmq(folder: Path) -> Iterator[str]:
    """Run a broker that keeps everything below `folder`, and yield its amqp:// URL."""
    folder.mkdir(parents=True, exist_ok=True)
    port, names, peers = free_port(), free_port(), free_port()
    env = _environment(folder, names, peers)
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\n"
        "loopback_users = none\n"
        "vm_memory_high_watermark.relative = 0.4\n"
        "disk_free_limit.absolute = 50MB\n"
    )
    (folder / "enabled_plugins").write_text("[].\n")
    cookie = folder / ".erlang.cookie"
    cookie.write_text(secrets.token_hex(20))
    cookie.chmod(0o400)
    # Erlang would start a name daemon that outlives the broker; this one is ours to stop.
    epmd = Process(
        ["epmd", "-address", "127.0.0.1", "-port", str(names)],
        log=folder / "epmd.log",
        env=env,
        name="epmd",
    )
    broker = None
    try:
        epmd.wait_until(lambda: listening(names), 10)
        broker = Process([str(_SERVER)], log=folder / "server.log", env=env, name="RabbitMQ")
        broker.wait_until(lambda: listening(port), _START_SECONDS)
        yield f"amqp://guest:guest@127.0.0.1:{port}/"
    finally:
        if broker is not None:
            broker.stop()
        epmd.stop()


def _environment(folder: Path, names: int, peers: int) -> dict[str, str]:
    return os.environ | {
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"scaleinfer-{os.getpid()}@localhost",
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "broker.pid"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_DIST_PORT": str(peers),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(names),
    }


def main() -> None:
    """Run a broker until Ctrl-C."""
    install(allowed="--install" in sys.argv or None)
    with tempfile.TemporaryDirectory() as folder, rabbitmq(Path(folder)) as url:
        print(url, flush=True)
        wait_for_the_end()


if __name__ == "__main__":
    main()
