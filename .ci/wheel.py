"""What the files of a release must hold: ``python .ci/wheel.py dist``."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tracked(*folders: str) -> set[str]:
    """The files under git."""
    out = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(out.stdout.splitlines())


def same(what: str, found: set[str], wanted: set[str]) -> None:
    """Complain by name of what is missing and of what is too much."""
    if found != wanted:
        sys.exit(f"{what}: missing {sorted(wanted - found)}, too much {sorted(found - wanted)}")


def check_wheel(wheel: Path) -> None:
    """The package, whole and alone, with its metadata."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        info = next(n.split("/")[0] for n in names if n.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(file.read(f"{info}/METADATA").decode())
    package = {name.removeprefix("src/") for name in tracked("src")}
    extra = {f"{info}/{n}" for n in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    same("wheel", names, package | extra)
    version = re.search(r'__version__ = "(.+)"', (ROOT / "src/isthmus/version.py").read_text())
    assert version is not None
    assert "isthmus/py.typed" in names
    assert about["Version"] == version[1], "the version has one home"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    same("extras", set(about.get_all("Provides-Extra", [])), set(project["optional-dependencies"]))


def check_sdist(sdist: Path) -> None:
    """All that is needed to build, read and test it."""
    with tarfile.open(sdist) as file:
        names = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
    wanted = tracked("src", "tests", "docs", "examples", "benchmarks", "*.md", "CITATION.cff", "LICENSE", "Makefile")
    wanted -= {name for name in tracked("*.md") if "/" not in name} - {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"}
    wanted |= {"pyproject.toml", "constraints.txt", ".gitignore", "PKG-INFO"}
    wanted = {name for name in wanted if not name.startswith((".github/", ".ci/"))}
    same("sdist", names, wanted)


def check_same_bytes(wheel: Path) -> None:
    """The wheel in ``dist`` was built from the sdist; one from the tree is the same."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        (again,) = Path(folder).glob("*.whl")
        assert again.read_bytes() == wheel.read_bytes(), "a second wheel has other bytes"


def main() -> None:
    """Check the one wheel and the one sdist of a folder."""
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    check_wheel(wheel)
    check_sdist(sdist)
    check_same_bytes(wheel)
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes; {sdist.name}: {sdist.stat().st_size:,} bytes; all there")


if __name__ == "__main__":
    main()
