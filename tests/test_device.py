"""Everything on a pretended device, in a process of its own: to register a device changes all of torch."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_everything_runs_on_a_pretended_device():
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"ISTHMUS_PRETENDED_DEVICE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "tests/on_a_device.py"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10_000:]
    assert "passed" in done.stdout or "[100%]" in done.stdout
