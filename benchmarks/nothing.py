"""A Flask-RESTful resource that does nothing, on waitress as the listener sets it: `python nothing.py PORT`."""

import sys
from typing import Any

import waitress
from flask import Flask
from flask_restful import Api, Resource


class Nothing(Resource):  # type: ignore[misc]
    def post(self) -> Any:
        return {"object_id": "2b45a8ca-f0b4-11e7-a36b-0a580a00054a", "item": "nothing"}


def main(port: int) -> None:
    app = Flask(__name__, static_folder=None)
    Api(app).add_resource(Nothing, "/create", "/proxy")
    waitress.serve(
        app,
        listen=f"127.0.0.1:{port}",
        threads=4,
        max_request_body_size=1024 * 1024 + 1,
        connection_limit=1000,
        asyncore_use_poll=True,
        channel_timeout=30,
        cleanup_interval=10,
        log_socket_errors=False,
        ident=None,
        clear_untrusted_proxy_headers=False,
        _quiet=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
