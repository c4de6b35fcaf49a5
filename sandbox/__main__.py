"""`python -m sandbox [PORT]`: the stand-in for iconik by itself."""

import re
import sys
from contextlib import suppress

import requests

from sandbox import Sandbox

DEFAULT_PORT = 9000
MENU_SIGN = ">"


def main(arguments: list[str]) -> int:
    """Run the stand-in until Ctrl-C or the end of stdin, with a line of it for each asset. Returns the exit code."""
    port = arguments[0] if arguments else str(DEFAULT_PORT)
    if len(arguments) > 1 or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        print("Usage: python -m sandbox [PORT]", file=sys.stderr)
        return 2
    try:
        sandbox = Sandbox(int(port), verbose=True)
    except OSError as error:
        print(f"Error: port {port} of 127.0.0.1: {error.strerror}. Use python -m sandbox PORT", file=sys.stderr)
        return 1
    with suppress(KeyboardInterrupt, BrokenPipeError), sandbox:
        sandbox.makes_up_assets = True
        print(f"A stand-in for iconik, on this machine only. For config.ini:\n\n[iconik]\nurl = {sandbox.url}")
        print(f"app_id = {sandbox.app_id}\nauth_token = {sandbox.auth_token}\n")
        print("Each line typed here is the title of an asset to upload, such as holiday.mov. Ctrl-C ends it.")
        print(f"A line such as {MENU_SIGN} Analyze again: holiday.mov chooses that in iconik's menu.", flush=True)
        for line in sys.stdin.buffer:
            text = line.decode(errors="replace").strip()
            if text.startswith(MENU_SIGN):
                print(choose(sandbox, text.removeprefix(MENU_SIGN)), flush=True)
            elif text:
                upload(sandbox, text)
    return 0


def upload(sandbox: Sandbox, title: str) -> None:
    """Upload an asset, and print what became of its webhooks."""
    delivered = len(sandbox.deliveries)
    asset_id = sandbox.create_asset(title)
    sandbox.set_proxy(asset_id)
    print(f"Uploaded {asset_id}", flush=True)
    if len(sandbox.deliveries) == delivered:
        print("No webhook is enabled for it. To define them: python app.py register URL", flush=True)


def choose(sandbox: Sandbox, line: str) -> str:
    """Choose an entry of iconik's menu for the assets of a title. Returns what a person is told."""
    entry, _, title = (part.strip() for part in line.partition(":"))
    found = [asset["id"] for asset in sandbox.assets.values() if asset["title"] == title]
    menu = sandbox.menu("ASSET" if len(found) == 1 else "BULK")
    if entry not in menu:
        return f"The menu has: {', '.join(menu) or 'nothing. To define it: python app.py register --actions URL'}"
    if not found:
        return f"There is no asset {title}"
    try:
        answer = sandbox.run_action(menu[entry], found)
    except requests.RequestException as error:
        return type(error).__name__
    return f"{answer.status_code} {answer.text.strip()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
