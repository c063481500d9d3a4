"""The server's start: where it listens, what keeps it from there, what it takes from its surroundings."""

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from commandline import error_line
from conftest import ServerProcess, server_process
from facenet_server import addresses
from facenet_server.addresses import HostPort, UnixSocket, check, parse, target, told
from facenet_server.config import Config, settings, unknown_variables
from facenet_server.errors import StartError
from facenet_server.telemetry import cgroups, process_memory
from facenet_server.telemetry.cgroups import usable_cores
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nets import fake_server

from chaos.children import environment

pytestmark = pytest.mark.timeout(60)

UNIX = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")
HANGUPS = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
NOT_BY_ALL = pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="this user may write everywhere")
NAME = UnixSocket(b"/run/facenet/socket")


def has_ipv6() -> bool:
    """Whether this machine has IPv6's loopback."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def serves(address: str) -> bool:
    """Whether a server there says that it is ready."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="s") as path:
        yield Path(path)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def refused(listen: str, **given: Any) -> str:
    with pytest.raises(StartError) as error:
        check(listen, **given)
    assert f"cannot listen on {listen}: " in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:0", HostPort("127.0.0.1", 0)),
        ("[::1]:50051", HostPort("::1", 50051)),
        ("[fe80::1%eth0]:1", HostPort("fe80::1%eth0", 1)),
        ("faces.example:65535", HostPort("faces.example", 65535)),
        ("unix:/run/facenet/socket", NAME),
        ("unix:///run/facenet/socket", NAME),
        ("unix:/run/facenet/./sock%65t", NAME),
        ("unix-abstract:facenet", UnixSocket(b"\0facenet")),
    ],
)
def test_an_address_is_a_host_and_port_or_a_unix_socket(listen: str, address: object) -> None:
    assert parse(listen) == address


@pytest.mark.parametrize(
    "listen",
    [
        "",
        "nowhere",
        "127.0.0.1",
        "127.0.0.1:",
        ":50051",
        "50051",
        "::1:50051",
        "[]:50051",
        "[::1]",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:٣",
        "http://127.0.0.1:50051",
        "unix:",
        "unix-abstract:",
        "unix://relative/socket",
        "unix:/run/a%00b",
    ],
)
def test_what_is_no_address_is_refused_by_a_line_that_shows_the_forms(listen: str) -> None:
    with pytest.raises(StartError, match=r"takes HOST:PORT.*or unix:PATH, not ") as error:
        Config(listen=listen).with_streams_for(None).check()
    assert repr(listen) in str(error.value)


@pytest.mark.parametrize(
    ("listen", "is_near"),
    [
        ("unix:/run/facenet/socket", True),
        ("unix-abstract:facenet", True),
        ("127.8.8.8:50051", True),
        ("[::1]:50051", True),
        ("localhost:50051", True),
        ("[::]:50051", False),
        ("0.0.0.0:50051", False),
        ("localhost.example:50051", False),
    ],
)
def test_unix_sockets_and_loopback_are_near(listen: str, is_near: bool) -> None:
    assert Config(listen=listen).is_near == is_near


def test_the_path_of_a_socket_is_told_in_full_and_without_spaces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert target("unix:so cket?") == f"unix:{Path.cwd()}/so%20cket%3F"
    assert target("unix-abstract:facenet") == "unix-abstract:facenet"


def test_the_port_that_was_bound_is_told() -> None:
    assert target("[::1]:0", 50051) == "[::1]:50051"


@UNIX
def test_a_server_on_a_unix_socket_replaces_a_dead_ones_file_and_leaves_none(tiny: Path, folder: Path) -> None:
    path = folder / "a socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    flags = ("--models", str(tiny), "--listen", f"unix:{path}")
    with server_process(*flags) as (address, server):
        assert address == f"unix:{folder}/a%20socket"
        assert serves(address)
        assert "plain text" not in server.log()
        assert "another program listens there" in error_line(*flags)
        assert serves(address)
        server.process.terminate()
        assert server.process.wait(20) == 0
    assert not os.path.lexists(path)


@LINUX
def test_a_server_listens_on_an_abstract_socket(tiny: Path) -> None:
    name = f"unix-abstract:facenet-test-{os.getpid()}"
    with server_process("--models", str(tiny), "--listen", name) as (address, _):
        assert address == name
        assert serves(address)
        assert "another program listens there" in refused(name)


@IPV6
def test_a_server_on_all_addresses_serves_ipv4_and_ipv6(tiny: Path) -> None:
    with server_process("--models", str(tiny), "--listen", "[::]:0") as (address, server):
        port = address.rpartition(":")[2]
        assert serves(f"127.0.0.1:{port}")
        assert serves(f"[::1]:{port}")
        assert "plain text" in server.log()


def test_a_port_in_use_is_told_before_models_load(tmp_path: Path, taken: int) -> None:
    line = error_line("--models", str(tmp_path / "none"), "--listen", f"127.0.0.1:{taken}")
    assert "another program listens there: stop it, or choose another address" in line
    assert f"127.0.0.1:{taken}" in line


@pytest.mark.parametrize("kind", ["port", pytest.param("socket", marks=UNIX)])
async def test_an_address_that_was_taken_while_models_loaded_is_told_alike(kind: str, folder: Path) -> None:
    with socket.socket(socket.AF_INET if kind == "port" else socket.AF_UNIX) as listener:
        listener.bind(("127.0.0.1", 0) if kind == "port" else str(folder / "socket"))
        listener.listen()
        listen = f"127.0.0.1:{listener.getsockname()[1]}" if kind == "port" else f"unix:{folder}/socket"
        with pytest.raises(StartError, match="another program listens there"):
            async with fake_server(listen=listen):
                pass


def test_connections_that_have_ended_do_not_keep_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        with socket.create_connection((host, port)) as caller:
            served, _ = listener.accept()
            served.close()  # who closes first has the port in TIME_WAIT
            assert caller.recv(1) == b""
    check(f"{host}:{port}")


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0", "[::]:0", "localhost:0"])
def test_a_free_address_may_be_checked_again_and_again(listen: str) -> None:
    check(listen)
    check(listen)


@IPV6
def test_a_port_that_ipv4_uses_is_not_free_for_all_addresses(taken: int) -> None:
    assert "another program" in refused(f"[::]:{taken}")
    assert "another program" in refused(f"0.0.0.0:{taken}")


def resolves_to(*hosts: str) -> addresses.Resolve:
    """A name server that answers with these addresses."""

    def resolve(_: str, port: int, **details: Any) -> list[Any]:
        return [found for host in hosts for found in socket.getaddrinfo(host, port, **details)]

    return resolve


def test_a_name_of_which_one_address_is_in_use_is_refused(taken: int) -> None:
    assert "another program" in refused(f"faces.example:{taken}", resolve=resolves_to("127.0.0.2", "127.0.0.1"))


def test_a_name_of_which_one_address_is_this_machines_may_be_listened_on() -> None:
    check("faces.example:0", resolves_to("203.0.113.7", "127.0.0.1"))


def test_an_address_of_another_machine_is_told() -> None:
    assert "none of this machine's" in refused("203.0.113.7:50051")


def test_a_name_that_does_not_resolve_is_told() -> None:
    def resolve(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    line = refused("nowhere.example:50051", resolve=resolve)
    assert "the host name nowhere.example does not resolve (Name or service not known)" in line
    assert "does not resolve" in refused(f"{'x' * 64}.example:50051")  # no name at all


@pytest.mark.parametrize(
    ("code", "address", "what"),
    [
        (errno.EACCES, HostPort("127.0.0.1", 80), "a port below 1024"),
        (errno.EACCES, HostPort("127.0.0.1", 8080), "may not take the port"),
        (errno.EACCES, NAME, "may not make a socket in /run/facenet"),
        (errno.EPERM, NAME, "may not make a socket in /run/facenet"),
        (errno.EROFS, NAME, os.strerror(errno.EROFS)),
        (errno.EAFNOSUPPORT, HostPort("::1", 8080), "no addresses of this kind"),
    ],
)
def test_what_the_system_says_is_told_by_what_it_means(code: int, address: addresses.Address, what: str) -> None:
    assert what in told(OSError(code, os.strerror(code)), address)


@UNIX
@NOT_BY_ALL
def test_a_folder_in_which_nobody_may_write_is_told(folder: Path) -> None:
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert f"may not make a socket in {folder}" in refused(f"unix:{folder}/socket")


@UNIX
def test_a_folder_that_is_missing_is_told(folder: Path) -> None:
    assert f"there is no folder {folder}/none: make it" in refused(f"unix:{folder}/none/socket")


@UNIX
def test_a_path_that_is_too_long_is_told() -> None:
    assert "has 108 bytes, more than 107" in refused(f"unix:/{'x' * 107}")


@UNIX
def test_a_file_that_is_no_socket_is_told_and_left_alone(folder: Path) -> None:
    (folder / "notes").write_text("mine")
    assert "is there and no socket" in refused(f"unix:{folder}/notes")
    assert (folder / "notes").read_text() == "mine"


@UNIX
def test_a_free_path_is_left_free(folder: Path) -> None:
    check(f"unix:{folder}/socket")
    assert not list(folder.iterdir())


@HANGUPS
def test_a_hangup_is_logged_and_ignored(tiny: Path) -> None:
    with server_process("--models", str(tiny)) as (address, server):
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("SIGHUP is ignored")
        assert serves(address)
        server.process.terminate()
        assert server.process.wait(20) == 0


LOADING = """
import asyncio, logging, sys
from facenet_server.build import Parts
from facenet_server.server import serve
from facenet_server.config import Config
from facenet_server.errors import StartError

def load(config):
    print("loading", file=sys.stderr, flush=True)
    sys.stdin.read()
    raise StartError("loaded")

logging.basicConfig(level="INFO")
asyncio.run(serve(Config(listen="127.0.0.1:0"), Parts(open_networks=load)))
"""


@HANGUPS
def test_a_hangup_is_logged_and_ignored_while_models_load() -> None:
    command = [sys.executable, "-c", LOADING]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert "loading" in next(line for line in process.stderr if "loading" in line)
        process.send_signal(signal.SIGHUP)
        assert next(line for line in process.stderr if "SIGHUP is ignored" in line)
        process.stdin.close()
        assert "StartError: loaded" in process.stderr.read()
        assert process.wait(20) == 1


@HANGUPS
def test_a_hangup_is_ignored_before_the_first_package_is_imported(tmp_path: Path) -> None:
    hangs_up = "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\nraise ImportError(name='click')\n"
    (tmp_path / "click.py").write_text(hangs_up)
    command = [sys.executable, "-m", "facenet_server"]
    ended = subprocess.run(command, env=environment(str(tmp_path)), capture_output=True, text=True, timeout=20)
    assert (ended.returncode, "needs its extra packages (click)" in ended.stderr) == (1, True)


def test_a_variable_that_is_no_setting_is_told_with_the_nearest_one_and_without_its_value(tiny: Path) -> None:
    server = ServerProcess("--models", str(tiny), FACENET_TOKENZ="s3cret")
    try:
        server.wait_for("listening on")
        assert "FACENET_TOKENZ is no setting: is FACENET_TOKENS meant?" in server.log()
        assert "s3cret" not in server.log()
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("LISTN", ": is FACENET_LISTEN meant?"), ("SERVR", ": is FACENET_SERVER meant?"), ("QQQ", "; see --help")],
)
def test_the_nearest_of_the_servers_settings_or_else_of_the_clients_is_told(name: str, hint: str) -> None:
    assert unknown_variables([f"FACENET_{name}"]) == [f"the environment variable FACENET_{name} is no setting{hint}"]


def test_settings_and_variables_of_the_clients_and_of_others_are_not_told() -> None:
    of_server = [f"FACENET_{each.name.upper()}" for each in settings()]
    of_clients = [f"FACENET_{name}" for name in ("SERVER", "TIMEOUT_S", "TLS", "CA", "CERTIFICATE", "KEY", "TOKEN")]
    assert not unknown_variables([*of_server, *of_clients, "FACENET_TEST_DATA", "PATH", "MY_FACENET_X", "facenet_x"])


@pytest.mark.parametrize("service", ["FACENET", "FACENET_SERVER", "FACENET_V2"])
def test_what_kubernetes_sets_for_a_service_is_not_told(service: str) -> None:
    kinds = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_50051_TCP", "PORT_50051_TCP_ADDR")
    of_service = [f"{service}_{kind}" for kind in kinds]
    assert not unknown_variables(of_service)
    assert len(unknown_variables(["FACENET_PORT"])) == 1  # somebody means --listen


def group(mounted: Path, path: str, **files: str) -> None:
    """A control group with these files; in a file's name, two underscores are a dot."""
    folder = mounted / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def own(tmp_path: Path, *lines: str) -> Path:
    (tmp_path / "own").write_text("".join(f"{line}\n" for line in lines))
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", None), ("odd", None)],
)
def test_a_containers_quota_counts_as_cores_rounded_up(tmp_path: Path, quota: str, cores: int | None) -> None:
    group(tmp_path, "", cpu__max=quota)
    groups = cgroups.folders("cpu", tmp_path, own(tmp_path, "0::/"))
    assert cgroups.quota_cores(groups) == cores


def test_the_least_quota_of_a_unit_and_its_parents_holds(tmp_path: Path) -> None:
    group(tmp_path, "system.slice", cpu__max="300000 100000")
    group(tmp_path, "system.slice/facenet.service", cpu__max="800000 100000")
    group(tmp_path, "other.slice", cpu__max="100000 100000")
    groups = cgroups.folders("cpu", tmp_path, own(tmp_path, "0::/system.slice/facenet.service"))
    assert cgroups.quota_cores(groups) == 3


@pytest.mark.parametrize(("quota_us", "cores"), [("250000", 3), ("-1", None)])
def test_quotas_of_version_1_count(tmp_path: Path, quota_us: str, cores: int | None) -> None:
    group(tmp_path, "cpu,cpuacct/docker/1", cpu__cfs_quota_us=quota_us, cpu__cfs_period_us="100000")
    groups = cgroups.folders("cpu", tmp_path, own(tmp_path, "4:memory:/", "2:cpu,cpuacct:/docker/1", "0::/"))
    assert cgroups.quota_cores(groups) == cores


def test_a_container_that_sees_its_own_group_as_the_root_has_its_quota(tmp_path: Path) -> None:
    group(tmp_path, "cpu", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    groups = cgroups.folders("cpu", tmp_path, own(tmp_path, "2:cpu:/docker/known-to-the-host-alone"))
    assert cgroups.quota_cores(groups) == 1


def test_a_quota_never_makes_more_cores_than_there_are(tmp_path: Path) -> None:
    group(tmp_path, "small", cpu__max="50000 100000")
    group(tmp_path, "large", cpu__max="100000000 100000")
    assert usable_cores([tmp_path / "small"]) == 1
    assert usable_cores([tmp_path / "large"]) == usable_cores([])


def test_a_unit_may_use_less_memory_than_its_machine_has(tmp_path: Path) -> None:
    group(tmp_path, "system.slice", memory__max="3000000")
    group(tmp_path, "system.slice/facenet.service", memory__max="max")
    group(tmp_path, "memory/docker/1", memory__limit_in_bytes="2000000")
    unit = cgroups.folders("memory", tmp_path, own(tmp_path, "0::/system.slice/facenet.service"))
    container = cgroups.folders("memory", tmp_path, own(tmp_path, "4:memory:/docker/1"))
    assert process_memory.usable_bytes(cgroups.memory_limits(unit)) == 3_000_000
    assert process_memory.usable_bytes(cgroups.memory_limits(container)) == 2_000_000


def test_where_no_groups_are_there_are_no_limits(tmp_path: Path) -> None:
    assert cgroups.folders("cpu", tmp_path, tmp_path / "none") == []
    assert cgroups.quota_cores([]) is None


@pytest.mark.parametrize(("flag", "says"), [("--version", "facenet-server, version "), ("-h", "Usage: ")])
def test_the_command_tells_its_version_and_its_usage(flag: str, says: str) -> None:
    command = [sys.executable, "-m", "facenet_server", flag]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, timeout=20)
    assert ended.stdout.startswith(says)
