"""The page as a Flask app: who gets in, what each address shows, and what its forms change."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, g, make_response, redirect, render_template, request, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from commands.changes import RETRYABLE, SKIPPABLE
from config import Config
from page import views
from page.access import Access, cookie_name
from page.actions import VERBS, Actions, Chosen
from store import Store
from system.errors import ListenerError
from system.text import format_local, one_line, pluralize

Answer = str | BaseResponse
GROUP_STATUSES = {"retry": RETRYABLE, "skip": SKIPPABLE}


def create_page(config: Config, access: Access, open_store: Callable[[], Store], actions: Actions | None) -> Flask:
    """The WSGI application.

    :param open_store: opens items.db, as a command does. It is opened anew for each request, so the page is never in
        the way of a restart, a backup that is restored, or an upgrade
    :param actions: what people do; None for a page that only shows
    """
    app = Flask("iconik_listener_page", template_folder=str(Path(__file__).parent / "templates"), static_folder=None)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.globals.update(pluralize=pluralize, one_line=one_line, local=format_local)
    guard = Guard(access)
    app.before_request(guard.check)
    app.after_request(_add_headers)
    app.register_error_handler(HTTPException, _error)
    app.register_error_handler(ListenerError, _out_of_order)

    @app.context_processor
    def for_all_templates() -> dict[str, Any]:
        return {
            "can_change": actions is not None,
            "latest": actions.latest() if actions else [],
            "nonce": _nonce(),
        }

    Pages(config, open_store).add_to(app)
    if actions:
        Forms(open_store, actions).add_to(app)
    return app


class Guard:
    """Lets in who may see the page, and only forms of the page's own."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def check(self) -> BaseResponse | None:
        """Look at a request before anything is done for it. Returns the answer to it, if that is not the page."""
        host = request.headers.get("Host", "")
        if not self._access.is_our_host(host):
            abort(403, "This page is not at that name.")
        token = request.args.get("token")
        if token is not None and request.path == "/" and request.method == "GET":
            return self._log_in(token)
        g.user = self._access.user(request)
        if g.user is None:
            abort(403, self._access.hint())
        if request.method not in ("GET", "HEAD") and request.headers.get("Origin") != self._access.origin(host):
            abort(403, "This form was not sent by this page, so nothing was changed.")
        return None

    def _log_in(self, token: str) -> BaseResponse:
        cookie = self._access.log_in(token)
        if cookie is None:
            abort(403, f"This link does not work, or was used before. {self._access.hint()}")
        # A redirect would not do: where the link was clicked on another site, a browser that follows it leaves the
        # cookie out.
        answer = make_response(render_template("entered.html"))
        answer.set_cookie(cookie_name(request), cookie, httponly=True, samesite="Strict", path="/")
        return answer


class Pages:
    """What the page shows."""

    def __init__(self, config: Config, open_store: Callable[[], Store]) -> None:
        self._config = config
        self._open_store = open_store

    def add_to(self, app: Flask) -> None:
        """Add the addresses."""
        app.add_url_rule("/", "overview", self.overview)
        app.add_url_rule("/search", "search", self.search)
        app.add_url_rule("/asset/<path:object_id>", "asset", self.asset)
        app.add_url_rule("/items/<status>", "items", self.items)

    @contextmanager
    def _store(self) -> Iterator[Store]:
        with closing(self._open_store()) as store:
            yield store

    def overview(self) -> Answer:
        """How the listener and its items are."""
        with self._store() as store:
            return render_template("overview.html", view=views.overview(store, self._config), now=_now(store))

    def search(self) -> Answer:
        """The assets that the text may mean. If it is one, its story."""
        text = request.args.get("q", "")[:1000]
        with self._store() as store:
            found = views.search(store, text)
            if len(found.assets) == 1:
                return redirect(url_for("asset", object_id=found.assets[0].object_id), 303)
            return render_template("search.html", text=one_line(text), found=found, now=_now(store))

    def asset(self, object_id: str) -> Answer:
        """An asset's whole story."""
        with self._store() as store:
            view = views.asset(store, self._config, object_id)
            if view is None:
                abort(404, "This asset is not in items.db.")
            return render_template("asset.html", view=view, now=_now(store))

    def items(self, status: str) -> Answer:
        """The items of a status and, perhaps, a reason."""
        if status not in views.SORTED_BY:
            abort(404, "There is no such status.")
        reason, job = request.args.get("reason"), request.args.get("job", "")
        number = max(1, request.args.get("page", 1, type=int))
        with self._store() as store:
            view = views.items(store, status, job, reason, min(number, 1_000_000))
            return render_template(
                "items.html",
                view=view,
                status=status,
                job=job,
                reason=reason,
                meaning=views.MEANINGS[status],
                now=_now(store),
            )


class Forms:
    """What the page's forms change."""

    def __init__(self, open_store: Callable[[], Store], actions: Actions) -> None:
        self._open_store = open_store
        self._actions = actions

    def add_to(self, app: Flask) -> None:
        """Add the addresses."""
        app.add_url_rule("/<any(retry, skip):verb>/group", "change_group", self.change_group, methods=["POST"])
        app.add_url_rule("/<any(retry, skip):verb>/asset", "change_asset", self.change_asset, methods=["POST"])

    def change_group(self, verb: str) -> Answer:
        """Retry or skip all items that wait or failed for the same reason."""
        status, group = request.form.get("status", ""), request.form.get("group")
        if verb not in VERBS or status not in GROUP_STATUSES[verb] or group is None:
            abort(400, "This form is not complete.")
        chosen = Chosen(status, request.form.get("job", ""), group)
        self._actions.change_group(verb, chosen, g.user, request.form.get("reason", ""))
        return redirect(url_for("overview"), 303)

    def change_asset(self, verb: str) -> Answer:
        """Retry or skip an asset's items."""
        object_id, job = request.form.get("object_id"), request.form.get("job")
        if not object_id:
            abort(400, "This form is not complete.")
        with closing(self._open_store()) as store:
            self._actions.change_asset(store, verb, object_id, job or None, g.user, request.form.get("reason", ""))
        return redirect(url_for("asset", object_id=object_id), 303)


def _now(store: Store) -> str:
    return format_local(store.now())


def _nonce() -> str:
    if "nonce" not in g:
        g.nonce = secrets.token_urlsafe(16)
    return str(g.nonce)


def _add_headers(answer: Response) -> Response:
    """Nothing is loaded from elsewhere, run, framed or kept."""
    policy = f"default-src 'none'; style-src 'nonce-{_nonce()}'; form-action 'self'; frame-ancestors 'none'"
    answer.headers["Content-Security-Policy"] = f"{policy}; base-uri 'none'"
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["X-Content-Type-Options"] = "nosniff"
    # Without any referrer, a browser would not say in `Origin` where a form of ours comes from.
    answer.headers["Referrer-Policy"] = "same-origin"
    answer.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    answer.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    return answer


def _error(error: HTTPException) -> tuple[str, int]:
    is_ours = error.description != type(error).description
    text = error.description if is_ours else None
    return render_template("message.html", title=error.name, text=text), error.code or 500


def _out_of_order(error: ListenerError) -> tuple[str, int]:
    return render_template("message.html", title="items.db cannot be read", text=one_line(error, 1000)), 503
