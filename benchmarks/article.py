"""The listener as the article describes it, to be compared with: `python article.py PORT ICONIK_URL`.

Flask's development server, a connection to items.db for each request, the list of what is pending read at each
/proxy, and the analyze job submitted inside the request.
"""

import sqlite3
import sys
from contextlib import closing
from typing import Any

import requests
from flask import Flask, request
from flask_restful import Api, Resource

ICONIK = sys.argv[2]
HEADERS = {"App-ID": "benchmark", "Auth-Token": "benchmark", "Accept": "application/json"}


class Create(Resource):  # type: ignore[misc]
    def post(self) -> Any:
        object_id = request.json["object_id"] if request.json else ""
        print(f"Creating new queue item for object_id {object_id}")
        with closing(sqlite3.connect("items.db")) as db, db:
            db.execute("INSERT INTO items VALUES (?, 'False')", [object_id])
        return {}


class Proxy(Resource):  # type: ignore[misc]
    def post(self) -> Any:
        event = request.json or {}
        object_id = event["object_id"]
        with closing(sqlite3.connect("items.db")) as db, db:
            pending = [row[0] for row in db.execute("SELECT object_id FROM items WHERE finished = 'False'")]
            if event["data"]["status"] == "CLOSED" and object_id in pending:
                print(f"Found object {object_id} in finished proxy queue")
                print(f"Submitting Analyze Job for {object_id}")
                url = f"{ICONIK}/API/transcode/v1/analyze/assets/{object_id}/"
                if requests.post(url, json={}, headers=HEADERS, timeout=30).ok:
                    db.execute("UPDATE items SET finished = 'True' WHERE object_id = ?", [object_id])
        return {}


def main() -> None:
    with closing(sqlite3.connect("items.db")) as db:
        db.execute("CREATE TABLE IF NOT EXISTS items (object_id,finished)")
    app = Flask(__name__)
    api = Api(app)
    api.add_resource(Create, "/create")
    api.add_resource(Proxy, "/proxy")
    app.run(port=int(sys.argv[1]))


if __name__ == "__main__":
    main()
