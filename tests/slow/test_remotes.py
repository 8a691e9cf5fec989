"""DVC remotes of the documented kinds: a folder, sshd and a WebDAV server on loopback."""

import gc
import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from cheroot.wsgi import Server
from wsgidav.wsgidav_app import WsgiDAVApp

from stages.lib.stage import StageError
from tests.helpers import ROOT, Clone
from tools.lib import experiment
from tools.lib.experiment import references, run_and_push

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),  # by dvc-webdav
]
NAME = "large"
CHANGE = "size=7"
RUN_AND_PUSH = ["python", "-m", "tools.lib.experiment", "origin"]
SSHD_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
AuthenticationMethods publickey
PidFile none
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def new_key(path: Path) -> str:
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return str(path)


class Remote:
    """A folder as DVC remote, and the base of those that a server shares."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"  # has the objects, whatever the kind
        self.url = str(self.store)
        self.credentials: dict[str, str] = {}
        self.wrong_credentials: dict[str, str] = {}

    def start(self) -> None:
        """Make the remote reachable."""

    def stop(self) -> None:
        """Make the remote unreachable."""


class Ssh(Remote):
    """An sshd with SFTP, run by the user of the tests."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            pytest.skip("needs sshd, on Debian the package openssh-server")
        self.port = free_port()
        self.url = f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.store}"
        self.host_key = folder / "host_key"
        new_key(self.host_key)
        self.credentials = {"keyfile": new_key(folder / "user_key")}
        self.wrong_credentials = {"keyfile": new_key(folder / "other_key")}
        config = folder / "sshd_config"
        config.write_text(SSHD_CONFIG.format(port=self.port, folder=folder))
        self.command = [program, "-D", "-e", "-f", str(config)]
        check = subprocess.run([program, "-t", "-f", config], capture_output=True, text=True)
        if "rivilege separation" in check.stderr:  # a user and a folder that root's sshd needs
            pytest.skip(f"sshd: {check.stderr.strip()}")
        assert check.returncode == 0, check.stderr

    def start(self) -> None:
        self.process = psutil.Popen(self.command, stderr=subprocess.DEVNULL)
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.1)
        pytest.fail("sshd does not listen")

    def stop(self) -> None:
        connections = self.process.children(recursive=True)
        for process in (self.process, *connections):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


class WebDav(Remote):
    """A WebDAV server with passwords, in a thread of the tests."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"webdav://127.0.0.1:{self.port}/share"
        self.credentials = {"user": "ada", "password": "right"}
        self.wrong_credentials = {"password": "wrong"}

    def start(self) -> None:
        app = WsgiDAVApp(
            {
                "provider_mapping": {"/share": str(self.store)},
                "simple_dc": {"user_mapping": {"*": {"ada": {"password": "right"}}}},
                "dir_browser": {"enable": False},
                "logging": {"enable": False},
                "verbose": 0,
            }
        )
        self.server = Server(("127.0.0.1", self.port), app)
        self.server.prepare()
        self.thread = threading.Thread(target=self.server.serve)
        self.thread.start()

    def stop(self) -> None:
        self.server.stop()
        self.thread.join()


KINDS = {"folder": Remote, "ssh": Ssh, "webdav": WebDav}


@pytest.fixture(params=KINDS)
def remote(
    request: pytest.FixtureRequest,
    one_stage: Clone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Remote]:
    """The DVC remote of the working directory, with credentials in DVC's global configuration."""
    monkeypatch.setattr(experiment, "RETRY_DELAYS", ())
    settings = {"HOME": str(tmp_path), "PYTHONPATH": f"{one_stage.env['PYTHONPATH']}:{ROOT}"}
    one_stage.env |= settings  # SSH uses only the keys and the configuration of the test
    one_stage.env.pop("SSH_AUTH_SOCK", None)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    remote = KINDS[request.param](tmp_path)
    config = one_stage.path / ".dvc/config"
    config.write_text(config.read_text().replace(str(remote.store), remote.url))
    one_stage.call("git", "commit", "--quiet", "--all", "--allow-empty", "--message", "Remote")
    one_stage.call("git", "push", "--quiet", "origin", "main")
    configure(one_stage, remote, remote.credentials)
    remote.start()
    yield remote
    gc.collect()  # while the warnings of its sockets are ignored
    remote.stop()


def configure(clone: Clone, remote: Remote, credentials: dict[str, str]) -> None:
    """Write DVC's global configuration, which also holds in temporary folders and new clones."""
    folder = Path(clone.env["DVC_GLOBAL_CONFIG_DIR"])
    folder.mkdir(exist_ok=True)
    options = {"url": remote.url, **credentials}
    lines = [f"{name} = {value}\n" for name, value in options.items()]
    (folder / "config").write_text("".join(["['remote \"store\"']\n", *lines]))


def other_clone(clone: Clone, folder: Path) -> Clone:
    clone.call("git", "clone", "--quiet", str(folder / "origin"), str(folder / "other"))
    return Clone(folder / "other", clone.env)


def head(clone: Clone) -> str:
    return clone.call("git", "rev-parse", "HEAD").strip()


def runs(folder: Path) -> int:
    return len((folder / "ran").read_text().splitlines())


def objects(remote: Remote) -> dict[Path, int]:
    """Files on the remote and their sizes."""
    files = (remote.store / "files/md5").rglob("*")
    return {path: path.stat().st_size for path in files if path.is_file()}


def test_pull_restores_pushed_data(remote: Remote, one_stage: Clone, tmp_path: Path) -> None:
    configure(one_stage, remote, {})
    for name, value in remote.credentials.items():
        one_stage.call("dvc", "remote", "modify", "--local", "store", name, value)
    one_stage.call("dvc", "repro")
    one_stage.call("git", "add", "--all")
    one_stage.call("git", "commit", "--quiet", "--message", "Run")
    one_stage.call("git", "push", "--quiet", "origin", "main")
    one_stage.call("dvc", "push")
    other = other_clone(one_stage, tmp_path)
    for name, value in remote.credentials.items():
        other.call("dvc", "remote", "modify", "--local", "store", name, value)
    other.call("dvc", "pull")
    assert (other.path / "out/a").read_text() == "size: 1\n"
    assert (other.path / "out/b").read_text() == "b\n"


def test_run_cache_avoids_another_run(remote: Remote, one_stage: Clone, tmp_path: Path) -> None:
    one_stage.call("dvc", "repro")  # not committed
    one_stage.call("dvc", "push", "--run-cache")
    other = other_clone(one_stage, tmp_path)
    other.call("dvc", "pull", "--run-cache", "--allow-missing")
    other.call("dvc", "repro", "--pull")
    assert (other.path / "out/a").read_text() == "size: 1\n"
    assert runs(tmp_path) == 1


def test_experiment_is_pulled_and_applied(remote: Remote, one_stage: Clone, tmp_path: Path) -> None:
    one_stage.call("dvc", "exp", "run", "--temp", "--name", NAME, "-S", CHANGE)
    one_stage.call("dvc", "exp", "push", "origin", NAME)
    other = other_clone(one_stage, tmp_path)
    other.call("dvc", "exp", "pull", "origin", NAME)
    other.call("dvc", "exp", "apply", NAME)
    other.call("dvc", "checkout")
    assert (other.path / "out/a").read_text() == "size: 7\n"


def test_lost_and_truncated_objects_are_pushed_again(
    remote: Remote, one_stage: Clone, tmp_path: Path
) -> None:
    command = [*RUN_AND_PUSH, head(one_stage), NAME, CHANGE]
    commit = one_stage.call(*command).split()[0]
    whole = objects(remote)
    assert len(whole) == 3
    first, second, _ = whole
    first.chmod(0o600)
    first.write_bytes(first.read_bytes()[:1])
    second.unlink()
    assert one_stage.call(*command).split()[0] == commit
    assert objects(remote) == whole
    other = other_clone(one_stage, tmp_path)
    assert other.call(*command).split()[0] == commit  # found without a run
    assert runs(tmp_path) == 1


SERVERS = pytest.mark.parametrize("remote", ["ssh", "webdav"], indirect=True)


def run_failing(clone: Clone, *command: str, code: int) -> str:
    """Run a command that fails, and return its output without a traceback."""
    output = clone.call(*command, code=code)
    assert "Traceback" not in output
    return output


@SERVERS
def test_rejected_login_is_one_line(remote: Remote, one_stage: Clone) -> None:
    configure(one_stage, remote, remote.wrong_credentials)
    with pytest.raises(StageError, match=r"^DVC remote: .*(Permission denied|401)") as error:
        run_and_push("origin", head(one_stage), NAME, [CHANGE])
    assert "\n" not in str(error.value)
    line = run_failing(one_stage, *RUN_AND_PUSH, head(one_stage), code=1)  # as a worker checks it
    assert line.startswith("experiment: DVC remote: ")
    assert line.count("\n") == 1
    assert references("origin", "refs/exps/*") == {}
    one_stage.call("dvc", "repro")
    output = run_failing(one_stage, "dvc", "push", code=255)
    assert "Permission denied" in output or "401" in output


@SERVERS
def test_unreachable_server_is_one_line(remote: Remote, one_stage: Clone) -> None:
    remote.stop()
    try:
        with pytest.raises(
            StageError, match=r"^DVC remote: .*(refused|Connect call failed)"
        ) as error:
            run_and_push("origin", head(one_stage), NAME, [CHANGE])
        assert "\n" not in str(error.value)
        line = run_failing(one_stage, *RUN_AND_PUSH, head(one_stage), code=1)
        assert line.startswith("experiment: DVC remote: ")
        assert line.count("\n") == 1
        assert references("origin", "refs/exps/*") == {}
    finally:
        remote.start()


@SERVERS
@pytest.mark.parametrize("connected", [False, True], ids=["new", "lost"])
def test_restarting_server_is_awaited(
    remote: Remote, one_stage: Clone, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    """The connection is new, or was open before the restart."""
    if connected:
        assert run_and_push("origin", head(one_stage), "small", ["size=2"])
    remote.stop()
    waited = []

    def restart(seconds: float) -> None:
        waited.append(seconds)
        remote.start()

    monkeypatch.setattr(experiment, "RETRY_DELAYS", (5,))
    monkeypatch.setattr(experiment, "time", SimpleNamespace(sleep=restart))
    commit = run_and_push("origin", head(one_stage), NAME, [CHANGE])
    assert waited == [5]
    assert [*references("origin", f"refs/exps/*/{NAME}").values()] == [commit]


@pytest.mark.parametrize("remote", ["ssh"], indirect=True)
def test_dvc_does_not_verify_host_keys(remote: Ssh, one_stage: Clone, tmp_path: Path) -> None:
    """This is a limitation of dvc-ssh; see docs/remotes.md."""
    one_stage.call("dvc", "repro")
    one_stage.call("dvc", "push")
    known = tmp_path / ".ssh/known_hosts"
    known.parent.mkdir()
    known.write_text(f"[127.0.0.1]:{remote.port} {remote.host_key.with_suffix('.pub').read_text()}")
    remote.stop()
    new_key(remote.host_key)
    remote.start()
    one_stage.call("dvc", "status", "--cloud")
