"""The route from a webhook's URL to this listener: through DNS, firewall, TLS and a proxy."""

import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import urlsplit

from events import SECRET_HEADER
from system.text import in_container, one_line
from system.transport import Answer, Transport, TransportError

TIMEOUT = 10.0  # seconds, for the connection and then for the request
# An event of a kind that the listener ignores. It takes the same route as iconik's events, and has no effect.
TEST_EVENT: dict[str, object] = {
    "event_type": "iconik-listener",
    "operation": "check",
    "realm": "check",
    "object_id": None,
    "data": {},
}


class Cause(Enum):
    """What is in the way, where what to do depends on who asks."""

    NAME = auto()  # the host is not in DNS
    SECRET = auto()  # the listener there does not accept the secret
    OTHER = auto()


@dataclass(frozen=True)
class RouteFault:
    """Why events that are sent to a URL do not arrive here.

    :ivar text: what is wrong, and what to do
    :ivar is_certain: whether iconik's events are lost; if not, only this machine may be unable to reach the URL
    """

    text: str
    cause: Cause = Cause.OTHER
    is_certain: bool = True


def route_fault(url: str, headers: Mapping[str, str]) -> RouteFault | None:
    """Send an event to a webhook's URL, as iconik does. Returns what keeps it from this listener; None if nothing does.

    :param headers: what iconik sends with each event: the secret, and what a gateway on the way may want
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return RouteFault(f"{url} is not a URL")
    base = f"{parts.scheme}://{parts.netloc}"
    try:
        host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (socket.gaierror, ValueError) as error:  # UnicodeError is a ValueError
        return _no_address(base, error)
    try:
        socket.create_connection((host, port), TIMEOUT).close()
    except OSError as error:
        return _no_connection(base, port, addresses, error)
    try:
        transport = Transport(base, {**headers, "Content-Type": "application/json"}, TIMEOUT)
        answer = transport.send("POST", url.removeprefix(base), json=TEST_EVENT)
    except TransportError as error:
        return _no_answer(base, host, str(error)) if parts.scheme == "https" else RouteFault(f"{base}: {error}")
    return _of_answer(url, base, answer)


def _no_address(url: str, error: Exception) -> RouteFault:
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return RouteFault(f"{url} cannot be tried: this machine cannot look up names just now", is_certain=False)
    return RouteFault(f"{urlsplit(url).hostname} is not in DNS: create its DNS entry", Cause.NAME)


def _no_connection(url: str, port: int, addresses: set[str], error: OSError) -> RouteFault:
    reason = one_line(error.strerror or str(error))
    if isinstance(error, ConnectionRefusedError) and (addresses & _addresses_here() or _is_caddy_stopped(port)):
        return RouteFault(f"{url}: nothing listens on port {port} of this machine: {_remedy_for(port)}")
    text = f"{url} cannot be reached from this machine ({reason}): try it from another one"
    return RouteFault(text, is_certain=False)


def _remedy_for(port: int) -> str:
    if port not in (80, 443) or in_container():
        return "start what listens there"
    if shutil.which("caddy"):
        return "start Caddy: sudo systemctl start caddy"
    return 'install Caddy, as the README has it under "TLS", or what else is to listen there'


def _addresses_here() -> set[str]:
    """The addresses of this machine, as far as it knows them."""
    found = {"127.0.0.1", "127.0.1.1", "::1"}
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))  # sends nothing: the system only chooses the address to send from
                found.add(str(probe.getsockname()[0]))
        except OSError:
            continue
    return found


def _is_caddy_stopped(port: int) -> bool:
    """Whether Caddy is installed here, and nothing listens on its port: a VM may not know its public address."""
    if shutil.which("caddy") is None or port not in (80, 443):
        return False
    try:
        socket.create_connection(("127.0.0.1", port), TIMEOUT).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _no_answer(url: str, host: str, reason: str) -> RouteFault:
    if "not speak TLS" in reason:
        return RouteFault(f"{url}: {reason}: let Caddy listen there, with {host} in its Caddyfile")
    if "certificate" in reason or "TLS" in reason:
        condition = "the name is in its Caddyfile and points to this VM, and ports 80 and 443 are open"
        cause = f"Caddy requests one if {condition}"
        remedy = "docker compose logs -n 20 caddy" if in_container() else "sudo journalctl -u caddy -n 20"
        return RouteFault(f"{url}: {reason}. {host} may have no valid certificate yet. {cause}: {remedy}")
    return RouteFault(f"{url}: {reason}")


def _of_answer(url: str, base: str, answer: Answer) -> RouteFault | None:
    if answer.status == 200 and b'"ignored"' in answer.body:
        return None
    if answer.status == 401 and SECRET_HEADER.encode() in answer.body:
        return RouteFault(f"{url}: the listener there does not accept the secret", Cause.SECRET)
    if answer.status in (502, 503, 504):
        remedy = "start the listener, or correct its address in the proxy's configuration"
        return RouteFault(f"{base}: the proxy there does not reach the listener ({answer.status}): {remedy}")
    hint = ". If it is Caddy, its Caddyfile has to pass this path on" if answer.status == 404 else ""
    return RouteFault(f"{url}: something other than this listener answers there ({answer.status}){hint}")
