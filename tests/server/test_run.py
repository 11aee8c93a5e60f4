from __future__ import annotations

import asyncio
import io
import signal
import socket
import sys
import urllib.request

import pytest
import uvicorn

from app.cli.main import main
from app.errors import SettingsError, StartupError
from app.server.listener import bind, url
from app.server.run import Server, print_address
from app.server.serve import check_exposure, is_loopback
from app.settings import Settings
from tests.fake_classifier import load
from tests.running import FAKE, REAL, ROOT, serving, wait_until_ready

SHIPPED = ROOT / "models/wbc-resnet18/config.json"


class FakeLifecycle:
    def __init__(self, *, ready: bool = True) -> None:
        self.ready = ready
        self.drains = 0

    def drain(self) -> None:
        self.drains += 1
        self.ready = False


class ServerUnderTest:
    """A server, and what it did. ready: number of calls of on_ready; ends: statuses it ended with."""

    def __init__(self, lifecycle: FakeLifecycle, *, grace_s: float = 0, failed: bool = False) -> None:
        self.ready = 0
        self.ends: list[int] = []
        self.server = Server(
            uvicorn.Config(app=lambda: None),
            lifecycle,
            grace_s=grace_s,
            failed=lambda: failed,
            on_ready=self._count,
            end=self.ends.append,
        )

    def _count(self) -> None:
        self.ready += 1

    def tick(self) -> bool:
        return asyncio.run(self.server.on_tick(1))


class Unread:
    """A connection with bytes that its client does not read: it stays after `shutdown`."""

    def __init__(self) -> None:
        self.aborts = 0
        self.transport = self

    def shutdown(self) -> None:
        pass

    def abort(self) -> None:
        self.aborts += 1


def test_connections_that_are_left_at_the_end_are_aborted() -> None:
    async def no_app(_: object, __: object, ___: object) -> None: ...

    server = ServerUnderTest(FakeLifecycle()).server
    server.config = uvicorn.Config(no_app, lifespan="off", log_config=None, timeout_graceful_shutdown=0)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    server.servers = []
    left = Unread()
    server.server_state.connections.add(left)  # type: ignore[arg-type]
    asyncio.run(server.shutdown())
    assert left.aborts == 1


def test_what_a_terminal_is_told_holds_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    print_address("wbc\x1b[2J 1", "http://127.0.0.1")
    assert terminal.getvalue().startswith("Leuko serves wbc�[2J 1 at http://127.0.0.1\n")


def test_the_server_calls_on_ready_once() -> None:
    lifecycle = FakeLifecycle(ready=False)
    under_test = ServerUnderTest(lifecycle)
    assert [under_test.tick(), under_test.ready] == [False, 0]
    lifecycle.ready = True
    assert [under_test.tick(), under_test.tick(), under_test.ready] == [False, False, 1]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_and_the_server_stops_after_grace_s(sig: int) -> None:
    lifecycle = FakeLifecycle()
    under_test = ServerUnderTest(lifecycle)
    under_test.tick()
    under_test.server.handle_exit(sig, None)
    assert under_test.tick()
    assert (lifecycle.drains, under_test.ends) == (1, [])


def test_the_server_still_serves_during_grace_s() -> None:
    lifecycle = FakeLifecycle()
    under_test = ServerUnderTest(lifecycle, grace_s=3600)
    under_test.tick()
    under_test.server.handle_exit(signal.SIGTERM, None)
    assert [under_test.tick(), under_test.tick()] == [False, False]
    assert lifecycle.drains == 1


def test_a_second_signal_ends_the_process_at_once() -> None:
    under_test = ServerUnderTest(FakeLifecycle(), grace_s=3600)
    under_test.tick()
    under_test.server.handle_exit(signal.SIGTERM, None)
    under_test.server.handle_exit(signal.SIGTERM, None)
    assert under_test.ends == [128 + signal.SIGTERM]


def test_a_signal_while_the_model_loads_ends_the_process_at_once() -> None:
    under_test = ServerUnderTest(FakeLifecycle(ready=False))
    under_test.tick()
    under_test.server.handle_exit(signal.SIGTERM, None)
    assert under_test.ends == [0]


def test_a_failed_application_stops_the_server() -> None:
    assert ServerUnderTest(FakeLifecycle(ready=False), failed=True).tick()


def test_a_taken_port_is_an_error_that_names_it() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(StartupError, match=str(taken.getsockname()[1])):
        bind("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "url_host"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("localhost", "127.0.0.1")]
)
def test_the_url_is_one_that_a_browser_here_can_open(host: str, url_host: str) -> None:
    with bind(host, 0) as listener:
        assert url(listener) == f"http://{url_host}:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *(
            (host, True)
            for host in ("127.0.0.1", "127.0.0.2", "127.255.0.1", "::1", "[::1]", "[::ffff:127.0.0.1]")
        ),
        *((host, True) for host in ("localhost", "LocalHost", "localhost.")),
        *((host, False) for host in ("0.0.0.0", "::", "[::]", "10.0.0.1", "[::ffff:10.0.0.1]", "[fe80::1]")),
        *(
            (host, False)
            for host in ("", "leuko", "localhost.example", "127.0.0.1.example", "[localhost", "1")
        ),
    ],
)
def test_addresses_of_this_machine_need_no_keys(host: str, local: bool) -> None:
    assert is_loopback(host) == local
    if local:
        check_exposure(Settings(host=host))
    else:
        with pytest.raises(SettingsError, match="other machines can reach"):
            check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["ü..b", "ü" * 70 + ".example"])
def test_an_impossible_name_is_an_error(host: str) -> None:
    with pytest.raises(StartupError, match="it is not the name of a machine"):
        bind(host, 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
@pytest.mark.parametrize("host", ["::", "::1", "[::1]"])
def test_the_url_of_an_ipv6_address_is_bracketed(host: str) -> None:
    try:
        listener = bind(host, 0)
    except StartupError as error:
        pytest.skip(f"no IPv6 here: {error.detail}")
    with listener:
        assert url(listener) == f"http://[::1]:{listener.getsockname()[1]}"


# leuko serve


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_until_a_signal_and_exits_with_0(sig: int) -> None:
    with serving(FAKE) as process:
        address = wait_until_ready(process)
        with urllib.request.urlopen(f"{address}/readyz") as response:
            assert response.status == 200
            assert "server" not in response.headers
        process.send_signal(sig)
        _, log = process.communicate()
        assert process.returncode == 0
        assert "Traceback" not in log, log


def test_serve_with_a_bundle_that_does_not_load_logs_the_error_and_exits_with_1() -> None:
    with serving(FAKE, "--bundle", "broken") as process:
        _, log = process.communicate()
        assert process.returncode == 1
        assert "model.safetensors was changed" in log
        assert "Traceback" not in log, log


@pytest.mark.usefixtures("root_logger")
def test_serve_on_a_taken_port_prints_the_error_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)], load=load) == 1
    assert (
        capsys.readouterr().err == f"leuko: cannot listen on 127.0.0.1 port {port}: Address already in use\n"
    )


@pytest.mark.skipif(not SHIPPED.exists(), reason="the shipped bundle is absent: models/wbc-resnet18")
def test_serve_with_the_shipped_bundle_is_ready_and_ends_on_ctrl_c() -> None:
    with serving(REAL) as process:
        address = wait_until_ready(process)
        with urllib.request.urlopen(f"{address}/readyz") as response:
            assert response.status == 200
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 0


def test_a_variable_that_is_no_setting_is_logged_before_the_service_is_ready() -> None:
    with serving(FAKE, environ={"LEUKO_MAX_BODY": "secret"}) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
    assert "LEUKO_MAX_BODY is not a setting and has no effect: did you mean LEUKO_MAX_BODY_MIB?" in first
    assert "secret" not in first
