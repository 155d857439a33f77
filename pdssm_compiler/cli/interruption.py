"""Ctrl-C in a command that runs long, or the end of its time: :class:`Interruption`."""

import signal
from types import FrameType

# What a terminal sends, and what ``timeout`` and schedulers of jobs do.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Notices Ctrl-C, also where Python drops the exception, as it does of a finaliser, and takes
    SIGTERM for the same.

    In the main thread; the handlers that were there before are put back in the end.

    Attributes:
        status: what a shell says of a command that was ended so.
    """

    def __init__(self) -> None:
        self._noticed = False
        self.status = 128 + signal.SIGINT

    def __enter__(self) -> "Interruption":
        self._before = {each: signal.signal(each, self._notice) for each in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, before in self._before.items():
            signal.signal(each, before)

    def check(self) -> None:
        """To be called now and then.

        Raises:
            KeyboardInterrupt: there was one, and nobody ended for it.
        """
        if self._noticed:
            raise KeyboardInterrupt

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True
        self.status = 128 + number
        raise KeyboardInterrupt
