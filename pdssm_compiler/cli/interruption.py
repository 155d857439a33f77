"""Ctrl-C in a command that runs long: :class:`Interruption`."""

import signal
from types import FrameType


class Interruption:
    """Notices Ctrl-C, also where Python drops the exception, as it does of a finaliser.

    In the main thread; the handler that was there before is put back in the end.
    """

    def __init__(self) -> None:
        self._noticed = False

    def __enter__(self) -> "Interruption":
        self._before = signal.signal(signal.SIGINT, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """To be called now and then.

        Raises:
            KeyboardInterrupt: there was one, and nobody ended for it.
        """
        if self._noticed:
            raise KeyboardInterrupt

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True
        raise KeyboardInterrupt
