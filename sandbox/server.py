"""The stand-in's HTTP server."""

import json
import threading
import time
from datetime import datetime, timezone
from email.utils import format_datetime
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox.state import Fault, Sandbox


class Server:
    """Answers on a port of this machine."""

    def __init__(self, sandbox: "Sandbox", port: int) -> None:
        """Take the port, or for 0 any that is free. Raises OSError if it is taken."""
        self._server = HttpServer(("127.0.0.1", port), RequestHandler)
        self._server.sandbox = sandbox
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Answer requests from now on."""
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Answer nothing any more."""
        self._server.shutdown()
        self._server.server_close()

    def close(self) -> None:
        """Give the port back, if it was never started."""
        self._server.server_close()

    def handle_with(self, handler: type["RequestHandler"]) -> None:
        """Answer with another handler."""
        self._server.RequestHandlerClass = handler


class HttpServer(ThreadingHTTPServer):
    """A thread for each connection."""

    sandbox: "Sandbox"
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error here: the tests kill some."""


class RequestHandler(BaseHTTPRequestHandler):
    """Answers one request after the other."""

    server: HttpServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer a request, whatever its method."""
        sandbox = self.server.sandbox
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(sandbox.latency)
        with sandbox.changed:
            sandbox.requests.append(f"{self.command} {self.path}")
            fault = sandbox.take_fault(sandbox.requests[-1], body)
            status, content = 0, b""
            if fault is None or fault.status is None or fault.after_work:
                status, content = self.work(self.command, self.path, body)
            sandbox.changed.notify_all()
        self.reply(fault, status, content)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 the names are http.server's

    def work(self, method: str, url: str, body: bytes) -> tuple[int, bytes]:
        """Do what a request asks for. Returns the status and the body of the answer."""
        sandbox = self.server.sandbox
        with sandbox.changed:
            credentials = self.headers["App-ID"], self.headers["Auth-Token"]
            status, content = sandbox.answer(method, url, credentials, body)
            sandbox.changed.notify_all()
            return status, b"" if content is None else json.dumps(content).encode()

    def reply(self, fault: "Fault | None", status: int, content: bytes) -> None:
        """Send the answer, or what a fault makes of it."""
        headers: dict[str, str] = {}
        if fault:
            headers = fault.headers
            if fault.status is not None:
                status, content = fault.status, fault.body
        self.wfile.write(self.head(status, content, headers, {"Content-Length": str(len(content))}) + content)

    def head(self, status: int, content: bytes, headers: dict[str, str], more: dict[str, str]) -> bytes:
        """The status line and the headers of an answer."""
        kind = "text/html" if content.startswith(b"<") else "application/json"
        date = format_datetime(datetime.fromtimestamp(self.server.sandbox.clock(), timezone.utc), usegmt=True)
        lines = {"Date": date, "Content-Type": kind, **more, **headers}
        if self.server.sandbox.verbose:
            print(f"{self.requestline} -> {status}", flush=True)
        head = f"HTTP/1.1 {status} {responses.get(status, '')}\r\n"
        return (head + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n").encode("latin-1")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the name is http.server's
        """It is silent: what is worth a line was printed."""
