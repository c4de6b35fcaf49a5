"""iconik's stand-in: `python stand_in.py PORT LATENCY SHARE`, a process of its own that costs as little as it can.

It answers after LATENCY seconds, and refuses SHARE (0 to 1) of the analyze calls with 503. An asset whose UUID ends
in one of `TROUBLE` is always answered that status, or never. `GET /report` says what it was asked.
"""

import asyncio
import json
import random
import re
import sys
import time
from typing import Any

TROUBLE = {"000000000403": 403, "000000000500": 500, "000000000504": 504, "00000000dead": 0}
REASONS = {200: "OK", 201: "Created"}

ANALYZE = re.compile(r"POST /API/transcode/v1/analyze/assets/([0-9a-f-]{36})/")
ASSET = re.compile(r"GET /API/assets/v1/assets/([0-9a-f-]{36})/")

# When (monotonic, which is one clock for the whole machine), the call ("analyze", "asset", "other"), asset, status.
Answer = tuple[float, str, str, int]


class StandIn:
    """What it is to answer, and what it has answered."""

    def __init__(self, latency: float, share: float) -> None:
        self.latency, self.share = latency, share
        self.first_request_at: float | None = None
        self.answers: list[Answer] = []
        self.jobs = 0
        self._chance = random.Random(1)  # noqa: S311

    def answer(self, line: str) -> tuple[int, Any]:
        """The answer to "METHOD /path": its status, 0 for none at all, and its body."""
        body: dict[str, Any] = {"errors": ["Not found"]}
        call, asset_id, status = "other", "", 404
        if match := ANALYZE.match(line):
            call, asset_id = "analyze", match[1]
            status, body = 201, {"id": f"00000000-0000-4000-8000-{self.jobs:012x}", "status": "READY"}
            if self._chance.random() < self.share:
                status, body = 503, {"errors": ["Out of order"]}
        elif match := ASSET.match(line):
            call, asset_id = "asset", match[1]
            status, body = 200, {"id": asset_id, "type": "ASSET", "status": "ACTIVE", "analyze_status": "N/A"}
        elif line.startswith("GET /API/notifications/v1/webhooks/"):
            status, body = 200, {"objects": []}
        if asset_id[-12:] in TROUBLE:
            status, body = TROUBLE[asset_id[-12:]], {"errors": ["Out of order"]}
        self.jobs += status == 201
        self.answers.append((time.monotonic(), call, asset_id, status))
        return status, body


class Connection(asyncio.Protocol):
    """One connection: requests that come one after the other."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        _, found, length = head.lower().partition(b"content-length:")
        if not end or (found and len(body) < int(length.split(b"\r\n")[0])):
            return
        self._received = b""
        line = head.split(b" HTTP/1.1")[0].decode()
        stand_in = self._stand_in
        if line == "GET /report":
            self._send(200, {"first_request_at": stand_in.first_request_at, "answers": stand_in.answers})
        elif line == "GET /jobs":
            self._send(200, stand_in.jobs)
        else:
            stand_in.first_request_at = stand_in.first_request_at or time.monotonic()
            asyncio.get_running_loop().call_later(stand_in.latency, self._answer, line)

    def _answer(self, line: str) -> None:
        status, body = self._stand_in.answer(line)
        if status:
            self._send(status, body)

    def _send(self, status: int, body: Any) -> None:
        text = json.dumps(body)
        head = f"HTTP/1.1 {status} {REASONS.get(status, 'Wrong')}\r\nContent-Type: application/json\r\n"
        self._transport.write(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())


async def main(port: int, latency: float, share: float) -> None:
    stand_in = StandIn(latency, share)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(stand_in), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
