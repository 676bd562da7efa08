"""The benchmarks that are fast enough run and say whether their targets are met."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_recording_runs() -> None:
    command = [sys.executable, str(BENCHMARKS / "recording.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    verdicts = [line for line in done.stdout.splitlines() if line.endswith("MET")]
    assert len(verdicts) == 5, done.stdout
