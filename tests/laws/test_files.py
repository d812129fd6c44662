"""What files may be called, hold and weigh."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

MAX_LINES = 500
MAX_PACKAGE_DATA_BYTES = 16_000_000
CODE = {".py", ".ts", ".tsx", ".css", ".html", ".sh"}
VAGUE = {"util", "utils", "utilities", "common", "misc", "helpers", "stuff"}
FOREIGN_FOLDERS = {"node_modules", "vendor", "vendored", "third_party", "thirdparty", "_vendor", "externals"}
FOREIGN_TEXT = re.compile(r"copyright \(c\)|copyright \d{4}|all rights reserved|spdx-license-identifier|@license", re.I)
PERSONAL_PATHS = re.compile(r"(?<![\w.$:/\\-])/(?:work|root|home|Users|opt|mnt|srv)/[\w.-]+")
# Any download host of packages: by its name's shape, so that no such host is named here.
REGISTRIES = re.compile(
    r"\b(?:(?:registry|download|files|index|static)\.[a-z0-9-]+\.(?:org|com|io)|py"
    r"pi\.org|index-url)\b|\"resolved\":"
)
THIS = Path("tests/laws/test_files.py")  # spells out what it forbids


def text_of(root: Path, path: Path) -> str:
    """The file's text; empty for binary files."""
    try:
        return (root / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def hits(pattern: re.Pattern, text: str) -> list[str]:
    return [match[0] for match in pattern.finditer(text)]


def test_no_code_file_is_longer_than_500_lines(root: Path, tracked: list[Path]) -> None:
    lengths = {str(path): text_of(root, path).count("\n") for path in tracked if path.suffix in CODE}
    assert len(lengths) > 20
    assert {path: n for path, n in lengths.items() if n > MAX_LINES} == {}


def test_no_file_has_a_name_that_says_nothing(tracked: list[Path]) -> None:
    assert [str(path) for path in tracked if path.stem.lower() in VAGUE or VAGUE & set(path.parts[:-1])] == []


def test_no_third_party_code(root: Path, tracked: list[Path]) -> None:
    foreign = [str(p) for p in tracked if FOREIGN_FOLDERS & set(p.parts) or ".min." in p.name or p.suffix == ".map"]
    code = [
        path for path in tracked if path.suffix in CODE | {".js", ".mjs", ".c", ".cu", ".cpp", ".h"} and path != THIS
    ]
    assert foreign + [str(path) for path in code if FOREIGN_TEXT.search(text_of(root, path))] == []


def test_no_absolute_path_and_no_registry_host(root: Path, tracked: list[Path]) -> None:
    found = {}
    for path in tracked:
        if path in (THIS, Path("LICENSE")):
            continue
        text = text_of(root, path)
        if wrong := hits(PERSONAL_PATHS, text) + hits(REGISTRIES, text):
            found[str(path)] = wrong[:3]
    assert found == {}


def test_package_data_is_small(root: Path, tracked: list[Path]) -> None:
    data = [path for path in tracked if path.parts[:2] == ("src", "hooke") and path.suffix != ".py"]
    assert sum((root / path).stat().st_size for path in data) < MAX_PACKAGE_DATA_BYTES


def test_no_large_file_outside_the_built_in_model(root: Path, tracked: list[Path]) -> None:
    builtin = Path("src/hooke/model/builtin")
    sizes = {str(path): (root / path).stat().st_size for path in tracked if builtin not in path.parents}
    assert {path: size for path, size in sizes.items() if size > 1_000_000} == {}


def test_weights_are_safetensors_and_no_pickle_is_tracked(root: Path, tracked: list[Path]) -> None:
    pickles = {".pt", ".pth", ".pkl", ".pickle", ".npy", ".npz", ".ckpt"}
    fixtures = [path for path in tracked if path.suffix == ".bin"]  # a few bytes that formats must survive
    assert [str(path) for path in tracked if path.suffix in pickles] == []
    assert [str(path) for path in fixtures if path.parts[0] != "tests" or (root / path).stat().st_size > 1_000] == []


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (PERSONAL_PATHS, "open('/home/me/x.txt')", 1),
        (PERSONAL_PATHS, f"cd /{'work'}/main", 1),
        (PERSONAL_PATHS, "docs/home/page and https://x.org/home/me and runs/root/first", 0),
        (PERSONAL_PATHS, "#!/usr/bin/env bash", 0),
        (REGISTRIES, '"resolved": "somewhere/preact"', 1),
        (REGISTRIES, "see https://registry.example.org/preact", 1),
        (REGISTRIES, "pip install --index-url=x", 1),
        (REGISTRIES, "the package index", 0),
        (FOREIGN_TEXT, "# Copyright (c) 2020 Someone", 1),
        (FOREIGN_TEXT, "/*! @license MIT */", 1),
        (FOREIGN_TEXT, "reserved for copyright questions", 0),
    ],
)
def test_the_patterns_catch_what_they_name(pattern: re.Pattern, text: str, expected: int) -> None:
    assert len(hits(pattern, text)) == expected
