"""Provisional."""

from collections.abc import Mapping
from dataclasses import dataclass

import requests


class TransportError(Exception):
    pass


@dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool


class Transport:
    def __init__(self, url: str, headers: Mapping[str, str], timeout: float) -> None:
        self.url, self.headers, self.timeout = url, headers, timeout

    def longest_call(self) -> float:
        return 0

    def send(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, json: object | None = None
    ) -> Answer:
        try:
            r = requests.request(
                method,
                self.url + path,
                params=query,
                json=json,
                headers=dict(self.headers),
                timeout=self.timeout,
                allow_redirects=False,
            )
        except requests.RequestException as e:
            raise TransportError(type(e).__name__) from None
        return Answer(r.status_code, r.reason, r.headers, r.content, True)
