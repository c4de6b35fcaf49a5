"""The pages for people say what the code does, and the code has the shape that ARCHITECTURE.md gives it."""

import ast
import configparser
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import pytest

import commands
from app import cli
from commands.check import MENU_ROLES, OTHER_ROLES, SERVICE_ROLES
from config import SECTIONS, keys_of
from jobs import JOBS
from page.command import page
from support import run
from version import __version__

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks" / "README.md"]
MODULES = sorted(ROOT.glob("*.py"))
FOLDERS = [ROOT / name for name in ("commands", "page", "reconciliation", "system", "sandbox")]
PACKAGED = sorted(path for folder in FOLDERS for path in folder.glob("*.py"))
SERVICE = [*MODULES, *PACKAGED, *sorted(ROOT.glob("deploy/*.py"))]
COMMANDS = (*commands.ALL, page)
MAX_FUNCTION_LINES = 50
LINK = re.compile(r"\]\(([^()\s]+)\)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next one of the same or a higher level."""
    pattern = rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)"
    found = re.search(pattern, text(page), re.MULTILINE | re.DOTALL)
    assert found, f"{name(page)} has no section {heading!r}"
    return found[2]


def table(markdown: str) -> list[list[str]]:
    """The cells of all tables' rows but their heads; a `\\|` does not end a cell."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    rules = [index for index, line in enumerate(lines) if re.fullmatch(r"[|\s:-]+", line)]
    heads = {index - 1 for index in rules} | set(rules)
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for index, line in enumerate(lines) if index not in heads]
    return [[cell.replace("\\|", "|").strip() for cell in row] for row in rows]


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def operators_pages() -> str:
    """The README and the pages of docs/ that it links to."""
    linked = {ROOT / target.partition("#")[0] for target in LINK.findall(text(README))}
    pages = [page for page in sorted(linked) if page.parent == ROOT / "docs" and page.suffix == ".md"]
    return "\n".join(text(page) for page in (README, *pages))


def lines_without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


# What the pages say.


def test_the_readme_begins_with_the_demo_and_the_tests_each_as_one_command() -> None:
    install = "python3 -m venv .venv && .venv/bin/pip install -q -r"
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text(README), re.MULTILINE | re.DOTALL)
    assert blocks[:2] == [
        f"{install} requirements.txt && .venv/bin/python app.py demo\n",
        f"{install} requirements-dev.txt && .venv/bin/pytest\n",
    ]
    introduction = text(README).partition("```")[0]
    assert len(introduction.split("\n\n")) < 5, "a title and a short paragraph, no more"
    assert "`python3-venv`" in introduction  # N2: without it the first command fails on Debian and Ubuntu


@pytest.mark.parametrize(
    ("page", "heading", "command"),
    [
        ("operating.md", "Moving to another VM", "scp OLD-VM:iconik-listener.tar.gz ."),  # N26
        ("operating.md", "Restoring a backup", "sudo ls -l /var/lib/iconik-listener/backups"),  # N19
        ("operating.md", "A company's proxy and CA", "HTTPS_PROXY=http://proxy.example.com:3128"),  # N22
        ("operating.md", "items.db on another disk", "RequiresMountsFor=%s\\n[Service]\\nReadWritePaths=%s"),  # N16
        ("installing-by-hand.md", "Amazon Linux 2023 and Red Hat Enterprise Linux", "git python3.11\nsudo git clone"),
    ],
)
def test_what_newcomers_looked_for_in_vain_is_a_command_on_its_page(page: str, heading: str, command: str) -> None:
    section = text(ROOT / "docs" / page).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\w*\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert any(command in block for block in blocks)


def parameters() -> list[Any]:
    def of(command: click.Command) -> Iterator[Any]:
        yield pytest.param(command.name, "", id=str(command.name))
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield pytest.param(command.name, parameter.opts[0], id=f"{command.name} {parameter.opts[0]}")

    return [parameter for command in COMMANDS for parameter in of(command)]


@pytest.mark.parametrize(("command", "option"), parameters())
def test_each_command_and_each_of_its_options_is_documented(command: str, option: str) -> None:
    pattern = rf"\b{command} [^\n]*(?<=[ `]){option}\b" if option else rf"^\| `iconik-listener {command}\b"
    assert re.search(pattern, operators_pages(), re.MULTILINE), f"the README does not tell of {command} {option}"


def test_the_options_of_the_program_itself_are_documented() -> None:
    options = [option for parameter in cli.params for option in (*parameter.opts, "-h", "--help")]
    assert [option for option in options if not re.search(rf"`{option}\b", operators_pages())] == []


def test_every_command_that_the_pages_name_exists() -> None:
    named = set(
        re.findall(r"^(?:\$ )?iconik-listener ([a-z][a-z-]*)|`iconik-listener ([a-z][a-z-]*)", operators_pages(), re.M)
    )
    assert {first or second for first, second in named} <= {command.name for command in COMMANDS}


def test_every_key_stands_in_the_example_with_its_default_and_in_no_other_form() -> None:
    example = configparser.ConfigParser(interpolation=None, default_section="")
    example.read_string(text(ROOT / "config.example.ini"))
    defaults = {
        section: {key.name: key.metadata["default"] or "" for key in keys_of(section)} for section in (*SECTIONS, *JOBS)
    }
    assert {section: dict(example[section]) for section in example.sections()} == defaults
    assigned = re.findall(r"^[#\s]*(\w+) *=", text(ROOT / "config.example.ini"), re.MULTILINE)
    assert Counter(assigned) == Counter(key for keys in defaults.values() for key in keys)


def test_every_role_stands_in_the_readme_with_what_is_lost_without_it() -> None:
    rows = {code_in(row[0])[0]: row[-1] for row in table(section(README, "The token and its roles"))}
    of_jobs = {job.role: f"no {job.name} job can be started" for job in JOBS.values()}
    assert {role: loss.partition(" (only with")[0] for role, loss in rows.items()} == {
        **of_jobs,
        **SERVICE_ROLES,
        **OTHER_ROLES,
        **MENU_ROLES,
    }


def test_every_status_stands_in_the_readme() -> None:
    [check] = re.findall(r"CHECK \(status IN \((.*?)\n    \)\)", text(ROOT / "schema.sql"), re.DOTALL)
    statuses = re.findall(r"'(\w+)'", check)
    assert len(statuses) == 8
    assert [code_in(row[0])[0] for row in table(section(README, "What items.db holds"))] == statuses


@lru_cache
def printed_by_the_code() -> str:
    """Every text in the service's code, a line each; what is filled in is an ellipsis."""
    texts = []
    for path in SERVICE:
        for node in ast.walk(ast.parse(text(path))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%(?:\.\d)?[sdfg]", "…", node.value))
    return "\n".join(texts)


def messages() -> list[Any]:
    rows = table(section(README, "What you see, what it means, what to do") + text(ROOT / "docs" / "what-you-see.md"))
    return [pytest.param(message, id=message) for row in rows for message in code_in(row[0])]


@pytest.mark.parametrize("message", messages())
def test_each_message_that_the_pages_explain_is_one_that_the_code_prints(message: str) -> None:
    said = printed_by_the_code()
    parts = [part.strip(" .:") for part in message.removeprefix("WRONG  ").removeprefix("note   ").split("…")]
    missing = [part for part in parts if part not in said]
    assert any(parts) and not missing, f"the code does not say {missing}"


def facts_of_check() -> list[Any]:
    """What check may find, as far as its code spells it out; what is filled in is an ellipsis."""
    found = []
    for path in (
        ROOT / "commands" / "check.py",
        ROOT / "commands" / "route.py",
        ROOT / "reconciliation" / "webhooks.py",
    ):
        for node in ast.walk(ast.parse(text(path))):
            if (
                not isinstance(node, ast.Call)
                or not node.args
                or not isinstance(node.args[0], ast.JoinedStr | ast.Constant)
            ):
                continue
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called in ("wrong", "note", "RouteFault") or (called == "append" and path.name != "route.py"):
                said = node.args[0]
                parts = said.values if isinstance(said, ast.JoinedStr) else [said]
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts))
    return [pytest.param(fact, id=fact) for fact in found if len(re.findall("[a-z]+", fact)) > 3]


@pytest.mark.parametrize("fact", facts_of_check())
def test_what_check_finds_is_explained_on_a_page(fact: str) -> None:
    """N28."""
    explained = [message.values[0] for message in messages()]
    parts = [
        [part.strip(" .:(") for part in re.sub("^(WRONG|note) +", "", message).split("…")] for message in explained
    ]
    assert any(all(part in fact for part in row) and len("".join(row)) > 8 for row in parts), fact


@pytest.mark.parametrize(
    "words",
    [
        "TLS failed",
        "the certificate is not accepted",
        "the webhook is FAILING",
        "does not send webhook_secret",
        "cannot be read",
        "is on a read-only file system",
        "The monitor at … cannot be reached",
        "the listener creates it at its first start",
        "is missing",
        "unknown key",
    ],
)
def test_words_that_newcomers_looked_up_are_explained(words: str) -> None:
    """N28."""
    rows = table(section(README, "What you see, what it means, what to do") + text(ROOT / "docs" / "what-you-see.md"))
    assert any(words in row[0] for row in rows)


@pytest.mark.long  # .ci/run runs the demo by the README's command, too
def test_the_demo_prints_what_the_readme_shows() -> None:
    shown = section(README, "The demo").partition("```\n")[2].partition("```")[0]
    printed = run("demo", cwd=ROOT).stdout
    assert sorted(masked(printed)) == sorted(masked(shown))


def masked(output: str) -> list[str]:
    """The lines without what is different each time."""
    patterns = (
        r"\d{4}-\d\d-\d\dT[\d:.]+Z",
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        r"/\S+/items\.db",
        r"(?<=:)\d+",
    )
    for pattern in patterns:
        output = re.sub(pattern, "…", output)
    return [line for line in output.splitlines() if line]


def test_the_changelog_begins_with_this_version() -> None:
    assert re.findall(r"^## (\S+)", text(ROOT / "CHANGELOG.md"), re.MULTILINE)[0] == __version__


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.*)$", lines_without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> list[Any]:
    found = [(page, link) for page in PAGES for link in LINK.findall(lines_without_blocks(page))]
    return [pytest.param(page, link, id=f"{name(page)} {link}") for page, link in found if "://" not in link]


@pytest.mark.parametrize(("page", "link"), links())
def test_each_link_leads_somewhere(page: Path, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), f"{name(page)}: there is no {path}"
    assert not anchor or anchor in anchors(target), f"{name(page)}: there is no heading for #{anchor}"


# The shape of the code.


@lru_cache
def files_table() -> list[str]:
    """The files of ARCHITECTURE.md's table, top to bottom, and left to right within a row."""
    return [file for row in table(section(ROOT / "ARCHITECTURE.md", "Files")) for file in code_in(row[0])]


def place(path: Path) -> tuple[int, int]:
    """Where a module stands in the table. A package's __init__ stands above the package's modules."""
    files, file = files_table(), name(path)
    if path.parent == ROOT:
        assert files.count(file) == 1, f"{file} does not stand in ARCHITECTURE.md's table once"
        return files.index(file), 0
    folder = f"{path.parent.name}/"
    assert folder in files, f"{folder} is not in ARCHITECTURE.md's table"
    return files.index(folder), 0 if path.name == "__init__.py" else 1


def imported(path: Path) -> Iterator[tuple[int, Path]]:
    """The project's modules that a module imports anywhere in its code, with the line."""
    for node in ast.walk(ast.parse(text(path))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: imports name the module in full"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in names:
            base = ROOT.joinpath(*module.split("."))
            for target in (base.with_suffix(".py"), base / "__init__.py"):
                if target.exists():
                    yield getattr(node, "lineno", 0), target


def test_each_file_of_the_table_exists_and_each_module_stands_in_it() -> None:
    assert [file for file in files_table() if not (ROOT / file).exists()] == []
    assert all(place(path) for path in (*MODULES, *PACKAGED))


@pytest.mark.parametrize("path", [*MODULES, *PACKAGED], ids=name)
def test_imports_run_downwards_only(path: Path) -> None:
    """Within a folder, anything may be imported."""
    upwards = [
        f"{name(path)}:{line} imports {name(target)}, which does not stand below it"
        for line, target in imported(path)
        if place(target) <= place(path) and target.parent != path.parent
    ]
    if path.parent == ROOT:
        upwards += [
            f"{name(path)}:{line} imports {name(target)}"
            for line, target in imported(path)
            if target.parent == ROOT and place(target) <= place(path)
        ]
    assert upwards == []


@pytest.mark.parametrize("start", ["resources.py", "submitter.py"])
def test_a_webhooks_way_to_its_job_needs_neither_commands_nor_reconciliation(start: str) -> None:
    reached, waiting = set[Path](), [ROOT / start]
    while waiting:
        path = waiting.pop()
        new = {target for _, target in imported(path)} - reached
        reached |= new
        waiting += new
    assert {name(path).partition("/")[0] for path in reached} & {
        "commands",
        "reconciliation",
        "page",
        "menu.py",
    } == set()


@pytest.mark.parametrize("path", SERVICE, ids=name)
def test_a_function_fits_on_a_screen(path: Path) -> None:
    functions = [
        node for node in ast.walk(ast.parse(text(path))) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {function: lines for function, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}
