"""The route from a webhook's URL to the listener, as register and check try it."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from commands.route import Cause, RouteFault, route_fault
from support import SECRET, ListenerHere, needs

OURS = {"X-Webhook-Secret": SECRET}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def fault_at(url: str, secret: str = SECRET) -> RouteFault:
    fault = route_fault(url, {"X-Webhook-Secret": secret})
    assert fault
    assert SECRET not in fault.text
    return fault


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """Starts HTTP servers that answer every request with a status. Gives each one's port."""
    servers = []

    def start(status: int, context: ssl.SSLContext | None = None) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # a refused handshake
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        servers.append(server)
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_listener_that_answers_is_no_fault(listener_here: ListenerHere) -> None:
    assert route_fault(f"{listener_here.url}/create", OURS) is None
    assert listener_here.rows() == []


def test_another_secret_is_a_fault_of_its_own(listener_here: ListenerHere) -> None:
    assert fault_at(f"{listener_here.url}/proxy", "another").cause is Cause.SECRET


@pytest.mark.parametrize("status", [200, 404, 405, 502])
def test_something_else_that_answers_is_named_with_its_answer(serve: Callable[..., int], status: int) -> None:
    assert f"({status})" in fault_at(f"http://127.0.0.1:{serve(status)}/create").text


def test_a_name_that_is_not_in_dns_is_told_with_what_to_create() -> None:
    fault = fault_at("https://listner.invalid/create")
    if "just now" in fault.text:
        pytest.skip("no resolver can be asked here")
    assert fault == RouteFault("listner.invalid is not in DNS: create its DNS entry", Cause.NAME)


def test_a_closed_port_of_this_machine_is_certain() -> None:
    """N5: of another machine's, ours cannot tell."""
    port = free_port()
    fault = fault_at(f"http://127.0.0.1:{port}/create")
    assert fault.is_certain
    assert f"nothing listens on port {port} of this machine: start what listens there" in fault.text


@pytest.mark.parametrize("has_caddy", [True, False])
def test_a_stopped_caddy_behind_a_public_address_is_certain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_caddy: bool
) -> None:
    """A VM in a cloud does not know the address at which the name leads to it."""
    if has_caddy:
        (tmp_path / "caddy").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    public = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.7", 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: public)
    monkeypatch.setattr(socket, "create_connection", refuse)
    fault = fault_at("https://listener.example.com/create")
    assert fault.is_certain == has_caddy
    assert fault.text.endswith("sudo systemctl start caddy" if has_caddy else "try it from another one")


def test_plain_http_where_tls_is_expected_says_what_to_do(serve: Callable[..., int]) -> None:
    """N6."""
    fault = fault_at(f"https://127.0.0.1:{serve(200)}/create")
    assert "that port does not speak TLS: let Caddy listen there, with 127.0.0.1 in its Caddyfile" in fault.text
    assert "_ssl.c" not in fault.text


@pytest.mark.parametrize(
    ("has_none", "words"), [(True, "may have no valid certificate yet"), (False, "the certificate is not accepted: ")]
)
def test_a_certificate_that_is_missing_says_what_to_do(
    serve: Callable[..., int], tmp_path: Path, has_none: bool, words: str
) -> None:
    """N6: Caddy without a certificate ends the handshake with an alert, "internal error"."""
    needs("openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=iconik-listener"]
    subprocess.run([*make, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if has_none:
        context.sni_callback = lambda *_: ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
    text = fault_at(f"https://127.0.0.1:{serve(200, context)}/create").text
    assert words in text
    assert "Caddy requests one if the name is in its Caddyfile and points to this VM, and ports 80" in text
    assert text.endswith(": sudo journalctl -u caddy -n 20")
    assert "_ssl.c" not in text
