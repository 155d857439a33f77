"""Ctrl-C is noticed, also where the exception was dropped."""

import os
import signal
import subprocess
import sys
import time
import weakref

import pytest

from pdssm_compiler.cli.interruption import Interruption


class Thing:
    pass


def interrupt(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)  # in which Python calls the handler


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_in_a_finaliser() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        interruption.check()
        thing = Thing()
        watched = weakref.ref(thing, interrupt)
        del thing  # Python drops what its callback raises
        assert watched() is None
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interruption_while_torch_is_imported() -> None:
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from pdssm_compiler.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "log", "ls"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "pdssm-compiler: interrupted\n")


def test_an_interruption_elsewhere() -> None:
    with pytest.raises(KeyboardInterrupt), Interruption():
        interrupt()
