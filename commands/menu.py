"""Our entries in iconik's menu, as `register` creates, repairs and removes them, and as `check` judges them."""

import click

from events import ACTIONS, CONTEXTS
from iconik_client import IconikForbidden
from reconciliation.actions import REGISTERED_ACTIONS, ActionDefinition, at
from reconciliation.catalog import IconikCatalog
from store import Store


def find_actions(catalog: IconikCatalog, store: Store | None, url: str, *, is_needed: bool) -> list[ActionDefinition]:
    """Our entries that lead to that URL.

    Few listeners have any, so the role that this needs may be missing, unless they are wanted or were registered.

    :raises IconikError: they cannot be read
    """
    try:
        return at(url, catalog.actions())
    except IconikForbidden:
        if is_needed or (store and store.state(REGISTERED_ACTIONS) == url):
            raise
        return []


def save_actions(
    catalog: IconikCatalog,
    store: Store | None,
    url: str,
    secrets: tuple[str, ...],
    found: list[ActionDefinition],
    *,
    may_create: bool,
) -> None:
    """Repair the entries that were found or, if those that are missing may be created, all of them."""
    if not secrets:  # the listener would refuse whoever chose one
        return
    for action in ACTIONS:
        for context in CONTEXTS:
            existing = [one.fields for one in found if (one.action, one.context) == (action, context)]
            for fields in existing or ([{}] if may_create else []):
                desired = ActionDefinition.desired(action, context, url, secrets[0], fields)
                is_changed = not fields or desired.differs_from(fields)
                if is_changed:
                    catalog.save_action(desired.fields, fields.get("id"))
                was = "updated" if fields else "created"
                click.echo(f"{desired.url} for {context}: {was if is_changed else 'as it should be'}")
    if store and (found or may_create):
        store.set_state(REGISTERED_ACTIONS, url)


def remove_actions(catalog: IconikCatalog, found: list[ActionDefinition]) -> None:
    """Delete the entries."""
    for one in found:
        catalog.delete_action(one.context, one.id)
        click.echo(f"{one.url} for {one.context}: deleted")
