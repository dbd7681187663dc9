# SPDX-License-Identifier: MIT
"""The documentation holds what it says: links, paths, commands and code are those that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from test_build import ROOT

from groupedmixer import cli

FOLDERS = ("docs", "csrc", "groupedmixer_ext", "python", "benchmarks", "tests", "examples")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
)

FENCE = re.compile(r"^( *)(```+)[^\n]*\n.*?^\1\2 *$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^(?: {4}|\t).*$", re.MULTILINE)
INLINE_CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Without code."""
    text = FENCE.sub("", page.read_text())
    return INLINE_CODE.sub("", INDENTED.sub("", text))


def links(page: Path) -> list[str]:
    # Not prose(): the text of a link may be code, and lists may be indented.
    return LINK.findall(FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Those that forges make of headings."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.*?) *#*$", FENCE.sub("", page.read_text()), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while (unique := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(unique)
    return found


def is_external(link: str) -> bool:
    return bool(urlsplit(link).scheme)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if is_external(link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert target.exists(), f"{link}: there is no {target.relative_to(ROOT)}"
        if anchor:
            assert anchor in anchors(target), f"{link}: {name_of(target)} has no such heading"


def test_external_links_are_addresses() -> None:
    """They are not fetched: a test must not depend on other people's machines."""
    external = {link for page in PAGES for link in links(page) if is_external(link)}
    assert external
    for link in sorted(external):
        parts = urlsplit(link)
        assert parts.scheme == "https" and "." in parts.netloc, link


def test_the_checks_find_what_is_broken(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `title`, twice\n\n## A title, twice\n\n```\n# no heading, [no](link.md)\n```\n"
        "[`code`](one.md#a) ![picture](two.svg)\n- [over\n  lines](three.md 'title')\n"
    )
    assert links(page) == ["one.md#a", "two.svg", "three.md"]
    assert anchors(page) == {"a-title-twice", "a-title-twice-1"}


def test_the_index_lists_every_page() -> None:
    listed = {link for link in links(ROOT / "docs" / "README.md") if not is_external(link)}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


# --- paths ----------------------------------------------------------------------------------------

PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]+")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_of_the_repository_exist(page: Path) -> None:
    for _, code in INLINE_CODE.findall(FENCE.sub("", page.read_text())):
        if PATH.fullmatch(code):
            assert list(ROOT.glob(code.rstrip("/"))), f"`{code}` does not exist"


def test_the_map_of_the_architecture_is_whole() -> None:
    """Every module of the model layer is in its table, or the folder that it is in."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text[text.index("\n## Map") : text.index("\n## The way of the data")]
    named = set(re.findall(r"^\|.*?\|(.*)\|$", section, re.MULTILINE))
    listed = {name for row in named for name in re.findall(r"`(\w+(?:\.py|/))`", row)}
    package = ROOT / "python" / "groupedmixer"
    folders = {f"{path.parent.name}/" for path in package.glob("*/*") if path.suffix != ".pyc"}
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert listed == modules | folders


# --- commands -------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[str]:
    """Lines of code that call us, those with a backslash at their end joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    yield from re.findall(r"^(?: {4,}|\t)?(?:\$ )?(groupedmixer [a-z-].*)$", joined, re.MULTILINE)
    for _, code in INLINE_CODE.findall(FENCE.sub("", joined)):
        words = code.split()
        if words[0] == "groupedmixer" and len(words) > 2 and "|" not in words:
            yield " ".join(words)


COMMANDS = sorted({(name_of(page), one) for page in PAGES for one in commands(page.read_text())})


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_are_understood(
    page: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = shlex.split(command, comments=True)[1:]
    try:
        cli._parser().parse_args(arguments)
    except SystemExit as error:
        assert error.code in (0, None), f"{page}: {command}\n{capsys.readouterr().err}"


def test_commands_are_found() -> None:
    text = """
    groupedmixer compress a.png \\
        b.gmx  # a comment
    $ groupedmixer info b.gmx
`groupedmixer eval
pictures/`, `groupedmixer train`, `groupedmixer compress IN | decompress IN`
"""
    assert list(commands(text)) == [
        "groupedmixer compress a.png b.gmx  # a comment",
        "groupedmixer info b.gmx",
        "groupedmixer eval pictures/",
    ]
    assert {"README.md", "docs/training.md", "docs/evaluation.md"} <= {page for page, _ in COMMANDS}


# --- code -----------------------------------------------------------------------------------------


def python_blocks() -> list[tuple[str, str]]:
    fenced = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(name_of(page), code) for page in PAGES for code in fenced.findall(page.read_text())]


@pytest.mark.parametrize(("page", "code"), python_blocks())
def test_python_code_compiles(page: str, code: str) -> None:
    compile(code, page, "exec")


def test_the_readme_has_python_code() -> None:
    assert sum(page == "README.md" for page, _ in python_blocks()) >= 2


# --- project files --------------------------------------------------------------------------------


def makefile() -> str:
    return (ROOT / "Makefile").read_text()


def checks_of_make() -> list[str]:
    (recipe,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", makefile(), re.MULTILINE)
    return re.findall(r"^\t\$\(BIN\)/(.*)$", recipe, re.MULTILINE)


def test_hooks_are_the_checks_of_make() -> None:
    yaml = pytest.importorskip("yaml", reason="pre-commit, which brings PyYAML, is not installed")
    check = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
    subprocess.run(check, cwd=ROOT, check=True)
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = settings["repos"]
    assert repository["repo"] == "local"
    hooks = repository["hooks"]
    called = [
        hook["entry"] + (" $(CXX_FILES)" if hook.get("pass_filenames", True) else "")
        for hook in hooks
    ]
    assert called == checks_of_make()

    pinned = dict(re.findall(r'"([\w-]+)==([\w.]+)"', (ROOT / "pyproject.toml").read_text()))
    assert {hook["entry"].split()[0] for hook in hooks} == set(pinned)
    assert {hook["language"] for hook in hooks} == {"system"}

    (find,) = re.findall(r"^CXX_FILES := \$\(shell (find .*)\)$", makefile(), re.MULTILINE)
    listed = subprocess.run(
        shlex.split(find), cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    (pattern,) = [hook["files"] for hook in hooks if hook["id"] == "clang-format"]
    files = [
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    ]
    assert sorted(name for name in files if re.search(pattern, name)) == sorted(listed)


def test_ci_runs_the_checks() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^test:.*\bcheck\b", makefile(), re.MULTILINE)


def test_the_changelog_knows_the_version() -> None:
    from groupedmixer import __version__

    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    newest = headings[0] if "dev" in __version__ else headings[1]
    assert newest.startswith("Unreleased") if "dev" in __version__ else __version__ in newest
