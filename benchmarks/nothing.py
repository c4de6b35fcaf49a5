"""A Flask-RESTful resource that does nothing, on the listener's own server: `python nothing.py PORT`."""

import sys
from pathlib import Path
from typing import Any

from flask import Flask
from flask_restful import Api, Resource

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from system.server import Server


class Nothing(Resource):  # type: ignore[misc]
    def post(self) -> Any:
        return {"object_id": "2b45a8ca-f0b4-11e7-a36b-0a580a00054a", "item": "nothing"}


def main(port: int) -> None:
    app = Flask(__name__, static_folder=None)
    Api(app).add_resource(Nothing, "/create", "/proxy")
    Server(app, "127.0.0.1", port).run(lambda: None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
