"""The small part of iconik's search language that the stand-in understands.

`field:value`, `field:"some words"`, `_exists_:field`, AND, OR, NOT and parentheses. Words without a field are looked
for in the title. Lucene's other syntax is an error here.
"""

import re
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Predicate = Callable[[Json], bool]
TOKEN = re.compile(
    r'\s*(?:(\(|\))|(AND|OR|NOT)(?=[\s()]|$)|([\w.\-]+):(?:"([^"]*)"|([^\s()":]+))|"([^"]*)"|([^\s()":]+))'
)


class BadQuery(ValueError):
    """The query is no query."""


def predicate(query: str) -> Predicate:
    """What tells whether a document matches.

    :raises BadQuery: it cannot be parsed
    """
    tokens = _tokens(query)
    matches, rest = _any_of(tokens)
    if rest:
        raise BadQuery(f"Cannot parse the query at {rest[0]}")
    return matches


def _tokens(query: str) -> list[Any]:
    tokens: list[Any] = []
    position = 0
    query = query.rstrip()
    while position < len(query):
        found = TOKEN.match(query, position)
        if not found:
            raise BadQuery(f"Cannot parse the query at character {position}")
        position = found.end()
        bracket, word, name, quoted, plain, title, bare = found.groups()
        if name:
            tokens.append((name, quoted if quoted is not None else plain))
        elif title is not None or bare is not None:
            tokens.append(("title", title if title is not None else bare))
        else:
            tokens.append(bracket or word)
    if not tokens:
        raise BadQuery("The query is empty")
    return tokens


def _any_of(tokens: list[Any]) -> tuple[Predicate, list[Any]]:
    first, rest = _all_of(tokens)
    alternatives = [first]
    while rest and rest[0] == "OR":
        following, rest = _all_of(rest[1:])
        alternatives.append(following)
    return lambda document: any(matches(document) for matches in alternatives), rest


def _all_of(tokens: list[Any]) -> tuple[Predicate, list[Any]]:
    first, rest = _one(tokens)
    parts = [first]
    while rest and rest[0] not in ("OR", ")"):
        following, rest = _one(rest[1:] if rest[0] == "AND" else rest)
        parts.append(following)
    return lambda document: all(matches(document) for matches in parts), rest


def _one(tokens: list[Any]) -> tuple[Predicate, list[Any]]:
    if not tokens or tokens[0] in ("AND", "OR", ")"):
        raise BadQuery("The query ends too early")
    if tokens[0] == "NOT":
        matches, rest = _one(tokens[1:])
        return lambda document: not matches(document), rest
    if tokens[0] == "(":
        matches, rest = _any_of(tokens[1:])
        if not rest or rest[0] != ")":
            raise BadQuery("A parenthesis is not closed")
        return matches, rest[1:]
    name, value = tokens[0]
    return lambda document: _has(document, name, value), tokens[1:]


def _has(document: Json, name: str, value: str) -> bool:
    if name == "_exists_":
        return _field(document, value) not in (None, [], "")
    found = _field(document, name)
    values = found if isinstance(found, list) else [found]
    if name == "title":
        return any(value.casefold() in str(one).casefold() for one in values)
    return any(str(one).casefold() == value.casefold() for one in values)


def _field(document: Json, name: str) -> Any:
    value: Any = document
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return document.get(name) if value is None else value
