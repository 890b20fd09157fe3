"""Steering, readings, tokens and bounds of the gateway."""

import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from llmcluster.deploy.gateway.app import make_app
from llmcluster.deploy.gateway.client import HttpGatewayClient
from llmcluster.deploy.gateway.config import GatewayConfig, load_gateway_config
from llmcluster.deploy.gateway.tokens import TokenFile
from llmcluster.deploy.readings import ReadingError
from llmcluster.errors import InputError
from llmcluster.tests.backends import (
    ADMIN,
    CHAT,
    CLIENT,
    MODEL,
    Server,
    admin_tokens,
    bearer,
    call,
    client_tokens,
    gateway_over,
    servers,
    until,
)

__all__ = ["admin_tokens", "client_tokens"]


def counts(made: list[Server]) -> list[int]:
    return [len(server.seen) for server in made]


def ask(url: str, times: int, **more: Any) -> list[int]:
    return [call(url, "/v1/chat/completions", {**CHAT, **more})[0] for _ in range(times)]


def test_a_reading_tells_what_went_through(admin_tokens: Path) -> None:
    with servers("a", "b") as made, gateway_over(made, admin_tokens=admin_tokens) as url:
        client = HttpGatewayClient(url, ADMIN)
        before = client.read()
        ask(url, 3)
        ask(url, 1, stream=True)
        assert call(url, "/v1/completions", {"model": MODEL, "prompt": [1, 2, 3, 4, 5]})[0] == 200
        now = client.read()
    assert now.time_s > before.time_s
    assert (before.arrivals, now.arrivals, now.left, now.met_slo, now.held) == (0, 5, 5, 5, 0)
    # Eight bytes make two tokens at first; the answers then say that they make ten. Ids are counted.
    assert 4 * 2 + 5 < now.arriving_tokens < 4 * 10 + 5
    assert now.router == "least-outstanding"
    assert now.weights == {"a": 1.0, "b": 1.0}
    assert now.limits == now.in_flight == {"a": 0, "b": 0}
    assert now.healthy == {"a": True, "b": True}


def test_weights_steer(admin_tokens: Path) -> None:
    with servers("a", "b") as made, gateway_over(made, admin_tokens=admin_tokens) as url:
        client = HttpGatewayClient(url, ADMIN)
        client.steer("round-robin", {"a": 3.0, "b": 1.0}, {})
        ask(url, 8)
        assert counts(made) == [6, 2]
        client.steer(None, {"a": 0.0}, {})
        assert client.read().router == "round-robin"
        ask(url, 3)
        assert counts(made) == [6, 5]


def test_who_is_closed_takes_nothing_and_who_has_no_weight_takes_what_is_over(admin_tokens: Path) -> None:
    with servers("a", "b") as made, gateway_over(made, admin_tokens=admin_tokens) as url:
        client = HttpGatewayClient(url, ADMIN)
        for server in made:
            server.hold.clear()
        client.steer(None, {"a": 1.0, "b": 0.0}, {"a": 1})
        threads = [threading.Thread(target=ask, args=(url, 1)) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: client.read().held == 2)
        assert client.read().in_flight == {"a": 1, "b": 0}
        client.steer(None, {}, {"b": 1}, closed=[])
        until(lambda: client.read().in_flight == {"a": 1, "b": 1})
        assert client.read().held == 1
        client.steer(None, {}, {"a": 1, "b": 1}, closed=["b"])
        for server in made:
            server.hold.set()
        for thread in threads:
            thread.join(10)
        assert counts(made) == [2, 1]


def test_a_steer_lapses(admin_tokens: Path) -> None:
    with servers("a", "b") as made, gateway_over(made, admin_tokens=admin_tokens, lease_s=0.3) as url:
        client = HttpGatewayClient(url, ADMIN)
        client.steer("power-of-two", {"a": 0.0, "b": 0.5}, {"b": 7})
        steered = client.read()
        assert (steered.router, steered.weights, steered.limits) == (
            "power-of-two",
            {"a": 0.0, "b": 0.5},
            {"a": 0, "b": 7},
        )
        until(lambda: client.read().router == "least-outstanding")
        lapsed = client.read()
        assert (lapsed.weights, lapsed.limits) == ({"a": 1.0, "b": 1.0}, {"a": 0, "b": 0})
        ask(url, 4)
        assert counts(made) == [4, 0]  # one after the other, the first of equals


def test_prefix_affinity_goes_where_the_beginning_is(admin_tokens: Path) -> None:
    with servers("a", "b") as made, gateway_over(made, admin_tokens=admin_tokens, prefix_tokens=4) as url:
        client = HttpGatewayClient(url, ADMIN)
        client.steer("prefix-affinity", {}, {})
        prompts = [[n] * 8 for n in range(2)]
        made[0].hold.clear()
        held = threading.Thread(target=call, args=(url, "/v1/completions", {"model": MODEL, "prompt": prompts[0]}))
        held.start()
        until(lambda: client.read().in_flight["a"] == 1)
        assert call(url, "/v1/completions", {"model": MODEL, "prompt": prompts[1]})[0] == 200
        made[0].hold.set()
        held.join(10)
        for prompt in (prompts[1], prompts[0], prompts[1], [*prompts[1], 9]):
            call(url, "/v1/completions", {"model": MODEL, "prompt": prompt})
        assert [seen["prompt"][0] for seen in made[0].seen] == [0, 0]
        assert [seen["prompt"][0] for seen in made[1].seen] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("steer", "code"),
    [
        ({"router": "magic"}, "invalid_steer"),
        ({"weights": {"a": -1}}, "invalid_steer"),
        ({"weights": {"a": "1e999"}}, "invalid_steer"),
        ({"weights": {"a": 1e308}}, "invalid_steer"),
        ({"limits": {"a": 0.5}}, "invalid_steer"),
        ({"limits": {"a": 10**400}}, "invalid_steer"),
        ({"weights": {"c": 1}}, "unknown_backend"),
        ({"closed": ["c"]}, "unknown_backend"),
        ({"what": 1}, "invalid_steer"),
        ([], "invalid_steer"),
        (b"\xff", "invalid_steer"),
    ],
)
def test_a_steer_that_does_not_hold_changes_nothing(admin_tokens: Path, steer: Any, code: str) -> None:
    with servers("a") as made, gateway_over(made, admin_tokens=admin_tokens) as url:
        status, _, body = call(url, "/admin/steer", steer, bearer(ADMIN))
        assert (status, body["error"]["code"]) == (400, code)
        assert HttpGatewayClient(url, ADMIN).read().weights == {"a": 1.0}


def test_classes_are_judged_by_their_own_slo(admin_tokens: Path) -> None:
    slo = {"easy": {"ttft_s": 60, "tpot_s": 60}, "hard": {"ttft_s": 1e-6, "tpot_s": 1e-6}}
    with servers("a") as made, gateway_over(made, admin_tokens=admin_tokens, slo=slo) as url:
        for stream in (False, True):
            for name in ("hard", "easy", ""):
                headers = {"x-slo-class": name} if name else {}
                assert call(url, "/v1/chat/completions", {**CHAT, "stream": stream}, headers)[0] == 200
        assert call(url, "/v1/chat/completions", CHAT, {"x-slo-class": "none"})[0] == 400
        reading, page = HttpGatewayClient(url, ADMIN).read(), call(url, "/metrics")[2].decode()
    assert (reading.arrivals, reading.left, reading.met_slo) == (6, 6, 4)
    assert 'llmcluster_gateway_slo_total{met="false",slo_class="hard"} 2.0' in page
    assert f'llmcluster_gateway_ttft_seconds_count{{model="{MODEL}"}} 3.0' in page
    assert f'llmcluster_gateway_requests_total{{model="{MODEL}",status="200"}} 6.0' in page
    assert f'llmcluster_gateway_output_tokens_total{{model="{MODEL}"}} 24.0' in page


# ---------------------------------------------------------------------------------------------------------- tokens


def test_clients_and_administrators_have_tokens_of_their_own(admin_tokens: Path, client_tokens: Path) -> None:
    with servers("a") as made, gateway_over(made, admin_tokens=admin_tokens, client_tokens=client_tokens) as url:
        for path, content in (("/v1/chat/completions", CHAT), ("/v1/models", None), ("/metrics", None)):
            admitted = [CLIENT] if path != "/metrics" else [CLIENT, ADMIN]
            for token in (CLIENT, ADMIN, "", "x", CLIENT[:-1], CLIENT + "0"):
                status, headers, _ = call(url, path, content, bearer(token))
                assert status == (200 if token in admitted else 401)
                assert token in admitted or headers["www-authenticate"] == "Bearer"
            assert call(url, path, content)[0] == 401
            assert call(url, path, content, {"authorization": f"Basic {CLIENT}"})[0] == 401
        for path, content in (("/admin/reading", None), ("/admin/steer", {})):
            assert call(url, path, content, bearer(ADMIN))[0] == 200
            assert call(url, path, content, bearer(CLIENT))[0] == 401
            assert call(url, path, content)[0] == 401
        assert call(url, "/health")[0] == 200
        assert counts(made) == [1]
        assert "authorization" not in made[0].headers[0]


def test_a_token_of_a_client_is_none_of_an_administrator(tmp_path: Path) -> None:
    """However the two files are named: by other paths, or as a copy."""
    (tmp_path / "clients").write_text(f"{CLIENT}\n")
    (tmp_path / "admin").write_text(f"{ADMIN}\n{CLIENT}\n")
    config = GatewayConfig.model_validate(settings(client_tokens=tmp_path / "clients", admin_tokens=tmp_path / "admin"))
    with pytest.raises(InputError, match=r"admin: has a token that clients have too\. Make one"):
        make_app(config)


def test_tokens_are_read_again_when_they_change(tmp_path: Path) -> None:
    now, path = [0.0], tmp_path / "tokens"
    path.write_text(f"{CLIENT}\n")
    tokens = TokenFile(path, lambda: now[0])

    def admits(token: str) -> bool:
        return tokens.admits(f"Bearer {token}".encode())

    path.write_text(f"{ADMIN}\nshort\n")
    assert admits(CLIENT)  # it has just been looked at
    now[0] += 1.5
    assert (admits(CLIENT), admits(ADMIN), admits("short")) == (False, True, False)
    path.unlink()
    now[0] += 1.5
    assert not admits(ADMIN)
    path.write_text(f"{ADMIN}\n")
    now[0] += 1.5
    assert admits(ADMIN)


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n", f"{CLIENT}\nshort\n"])
def test_a_file_of_poor_tokens_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(InputError, match="16 characters"):
        TokenFile(path)
    with pytest.raises(InputError, match="cannot be read"):
        TokenFile(tmp_path / "none")


# ---------------------------------------------------------------------------------------------------------- bounds


def settings(**more: Any) -> dict[str, Any]:
    return {"backends": [{"name": "a", "url": "http://127.0.0.1:1", "model": MODEL}], **more}


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"host": "0.0.0.0"}, "open to others"),
        ({"host": "example.org"}, "open to others"),
        ({"client_tokens": "x", "admin_tokens": "x"}, "tokens of its own"),
        ({"backends": []}, "backends"),
        ({"backends": [{"name": "a", "url": "ftp://x", "model": "m"}]}, "no address"),
        ({"backends": [{"name": "a", "url": "http://x:99999", "model": "m"}]}, "no address"),
        ({"backends": [{"name": "a", "url": "http://ä..b", "model": "m"}]}, "no address"),
        ({"backends": [{"name": "a", "url": "http://x", "model": "m"}] * 2}, "names that differ"),
        ({"router": "magic"}, "router"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_settings_that_do_not_hold_are_refused(more: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        GatewayConfig.model_validate(settings(**more))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_tokens(host: str) -> None:
    GatewayConfig.model_validate(settings(host=host))


def test_settings_are_read_from_a_file_and_its_table(tmp_path: Path) -> None:
    text = 'admin_tokens = "tokens"\n[[{}backends]]\nname = "a"\nurl = "http://127.0.0.1:1/"\nmodel = "m"\n'
    for name, content in (("plain", text.format("")), ("table", "[gateway]\n" + text.format("gateway."))):
        (tmp_path / name).write_text(content)
        config = load_gateway_config(tmp_path / name)
        assert config.admin_tokens == tmp_path / "tokens"
        assert config.backends[0].url == "http://127.0.0.1:1"
    (tmp_path / "bad").write_text("port = 70000\n")
    with pytest.raises(InputError, match="port"):
        load_gateway_config(tmp_path / "bad")


def test_it_runs_as_a_process_of_its_own(tmp_path: Path, admin_tokens: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with servers("a") as made:
        path = tmp_path / "gateway.toml"
        backend = f'[[gateway.backends]]\nname = "a"\nurl = "{made[0].url}"\nmodel = "{MODEL}"\n'
        path.write_text(f'[gateway]\nport = {port}\nadmin_tokens = "{admin_tokens}"\n{backend}')
        command = [sys.executable, "-m", "llmcluster.deploy.gateway", "--config", str(path)]
        process = subprocess.Popen(["sh", "-c", 'ulimit -S -n 200; exec "$@"', "sh", *command])
        try:
            client = HttpGatewayClient(f"http://127.0.0.1:{port}", ADMIN)

            def answers() -> bool:
                try:
                    return client.read().healthy["a"]
                except ReadingError:
                    return False

            until(answers, 60)
            assert ask(f"http://127.0.0.1:{port}", 1) == [200]
            with ExitStack() as many:  # more clients than a shell lets open files
                for _ in range(300):
                    many.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                assert ask(f"http://127.0.0.1:{port}", 1) == [200]
            process.terminate()
            assert process.wait(30) == -signal.SIGTERM  # it ends in order, and then says by what it was ended
        finally:
            process.kill()
            process.wait()
        with pytest.raises(ReadingError, match="does not answer"):
            client.read()


def test_the_client_says_what_is_wrong(admin_tokens: Path) -> None:
    with servers("a") as made, gateway_over(made, admin_tokens=admin_tokens) as url:
        with pytest.raises(ReadingError, match="401"):
            HttpGatewayClient(url, "wrong").read()
        with pytest.raises(ReadingError, match="no backend"):
            HttpGatewayClient(url, ADMIN).steer(None, {"c": 1.0}, {})
        with pytest.raises(ReadingError, match="404"):
            HttpGatewayClient(url + "/elsewhere", ADMIN).read()
        with pytest.raises(ReadingError, match="answers 404, and not in JSON"):
            HttpGatewayClient(made[0].url, ADMIN).read()
    with pytest.raises(InputError, match="no address"):
        HttpGatewayClient("127.0.0.1:80", ADMIN)
    with pytest.raises(ReadingError, match="header"):
        HttpGatewayClient(url, "two\ntokens").read()
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ReadingError, match=r"within 0\.1 s"):
        HttpGatewayClient(f"http://127.0.0.1:{silent.getsockname()[1]}", ADMIN, timeout_s=0.1).read()


def test_the_client_waits_no_longer_than_it_is_told_for_an_answer_that_trickles_in() -> None:
    """The control loop waits for it while limits are in force."""
    ended = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n")
            while not ended.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        caller = threading.Thread(target=_read_quietly, args=(f"http://127.0.0.1:{listener.getsockname()[1]}",))
        caller.start()
        caller.join(3.0)
        assert not caller.is_alive()
        ended.set()
        thread.join(10)


def _read_quietly(url: str) -> None:
    with pytest.raises(ReadingError, match="within"):
        HttpGatewayClient(url, ADMIN, timeout_s=0.2).read()
