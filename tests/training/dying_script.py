"""Run by torchrun from test_torchrun.py: the arguments of propkit; rank 1 is killed in its fifth step."""

import os
import signal
import sys

from propkit.__main__ import main
from propkit.recording.recorder import Recorder

log = Recorder.log


def log_or_die(self, *, step, **scalars):
    if step == 4 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    log(self, step=step, **scalars)


if __name__ == "__main__":
    Recorder.log = log_or_die
    sys.exit(main(sys.argv[1:]))
