"""Fresh Python processes, free of the settings of this one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    return run_command(sys.executable, *arguments)


def run_command(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{Path(command[0]).name} ended with code {done.returncode}: {last}")
    return done.stdout


def clean_environment() -> dict[str, str]:
    """The environment without what would change how JAX starts or whether it compiles."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "PYTHON"))}
