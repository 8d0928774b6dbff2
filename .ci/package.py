"""Build the wheel and the sdist, look at what is in them, and run the main job from a clean environment.

uv builds the wheel from the sdist, so what works from the wheel works from the sdist too. The environment is new, has
the versions that were tested together, and sees neither this repository nor what PYTHONPATH names.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = PROJECT["project"]["name"]
SETTINGS = ROOT / "configs" / "old_faithful.toml"
NEVER = ("results", "site", "uv.lock", "__pycache__", "build", "dist", "node_modules")


def uv(*words: str, cwd: Path = ROOT) -> None:
    subprocess.run([sys.executable, "-m", "uv", *words], check=True, cwd=cwd)


def check_contents(sdist: Path, wheel: Path) -> None:
    """What must be there is, in the wheel the package and no more, and nothing that was made on the way."""
    with tarfile.open(sdist) as archive:
        of_sdist = {PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        of_wheel = {PurePosixPath(name) for name in archive.namelist()}
    tracked = subprocess.run(["git", "ls-files"], check=True, cwd=ROOT, capture_output=True, text=True)
    package = {PurePosixPath(name) for name in tracked.stdout.splitlines() if name.startswith(f"{PACKAGE}/")}
    missing = sorted(map(str, (package - of_sdist) | (package - of_wheel)))
    made = sorted(str(path) for path in of_sdist | of_wheel if any(_is_made(part) for part in path.parts))
    foreign = sorted(str(path) for path in of_wheel if path.parts[0] != PACKAGE and ".dist-info" not in path.parts[0])
    if missing or made or foreign:
        raise SystemExit(f"missing: {missing}\nmade on the way: {made}\nnot of the package: {foreign}")
    print(f"{sdist.name}: {len(of_sdist)} entries; {wheel.name}: {len(of_wheel)}, all of the package", flush=True)


def _is_made(part: str) -> bool:
    hidden = part.startswith(".") and part not in (".gitignore",)  # which hatchling needs to build again
    return part in NEVER or hidden or part.endswith(".pyc")


def main() -> None:
    """Build, look, install, run."""
    with tempfile.TemporaryDirectory() as scratch:
        made, elsewhere = Path(scratch, "dist"), Path(scratch, "elsewhere")
        elsewhere.mkdir()
        uv("build", "--quiet", "--out-dir", str(made))
        (sdist,), (wheel,) = made.glob("*.tar.gz"), made.glob("*.whl")
        check_contents(sdist, wheel)
        tested = Path(scratch, "tested.txt")
        tested.write_text("\n".join(PROJECT["tool"]["uv"]["constraint-dependencies"]), encoding="utf-8")
        environment = Path(scratch, "environment")
        uv("venv", "--quiet", "--python", sys.executable, str(environment))
        folder = environment / ("Scripts" if os.name == "nt" else "bin")
        uv("pip", "install", "--quiet", "--python", str(folder / "python"), "--constraints", str(tested), str(wheel))
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        out = elsewhere / "results"
        command = [str(folder / PACKAGE), "compare", str(SETTINGS), "--out", str(out)]
        subprocess.run(command, check=True, cwd=elsewhere, env=clean)
        where = [str(folder / "python"), "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
        used = subprocess.run(where, check=True, cwd=elsewhere, env=clean, capture_output=True, text=True).stdout
        if not Path(used.strip()).is_relative_to(environment):
            raise SystemExit(f"{PACKAGE} was taken from {used.strip()}, not from the wheel")
        if not (out / "report.html").exists():
            raise SystemExit("the main job wrote no report")


if __name__ == "__main__":
    main()
