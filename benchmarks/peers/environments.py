"""An environment for each peer, under build/peers: made once, made anew when its list changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PLACE = ROOT / "build" / "peers"
LONG_S = 300


class NotThere(Exception):
    """What a peer needs is not to be had here; the message says what."""


def prepare(name: str, packages: Sequence[str], npm: Sequence[str] = ()) -> Path:
    """Make a virtual environment with these packages, and a folder `server` with those of npm.

    Returns:
        its folder.

    Raises:
        NotThere: they cannot be installed.
    """
    folder = PLACE / name
    stamp, wanted = folder / ".ready", "\n".join([*packages, *npm])
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "bin" / "python").exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "install", "--quiet", *packages])
    if npm:
        if shutil.which("npm") is None:
            raise NotThere("npm is not installed")
        server = str(folder / "server")
        _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", server, *npm])
    stamp.write_text(wanted)
    return folder


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=LONG_S, cwd=PLACE
        )
    except subprocess.TimeoutExpired:
        raise NotThere(f"{command[0]} has not ended within {LONG_S} s") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise NotThere(f"{Path(command[0]).name} failed: {' '.join(last)[:200]}")


def find(program: str, *folders: str) -> str:
    """Where a program is.

    Raises:
        NotThere: it is not installed.
    """
    path = shutil.which(program, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    if path is None:
        raise NotThere(f"{program} is not installed")
    return path
