"""Values that come from files of the operator's and follow them: a bad change keeps what was there before."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tokenwire.errors import ConfigurationError

logger = logging.getLogger("tokenwire.security")

T_co = TypeVar("T_co", covariant=True)


class Refreshable(Protocol):
    """What the server looks after from time to time."""

    @property
    def name(self) -> str:
        """What the files hold."""

    @property
    def num_reloads(self) -> int:
        """Changes that were taken over."""

    @property
    def num_failures(self) -> int:
        """Changes that could not be used."""

    def refresh(self, *, always: bool = False) -> None:
        """Read the files again if they have changed or could not be used, or with ``always``."""


class Watched(Generic[T_co]):
    """What ``load`` makes of ``paths``; ``load`` raises ConfigurationError with one line that names the setting.

    ``refresh`` may run in another thread than the readers of ``value``.
    """

    def __init__(self, name: str, paths: Sequence[Path], load: Callable[[], T_co]) -> None:
        self.name = name
        self.num_reloads = 0
        """Changes that were taken over."""
        self.num_failures = 0
        """Changes that could not be used: the old value stayed. Trying again counts where the reason is another."""
        self._paths = tuple(paths)
        self._load = load
        # Before the files are read: what changes while they are shows at the next look.
        self._seen = self._stamps()
        self._value = load()
        self._failure: str | None = None
        """Why the newest files are not in use, where they are not."""

    @property
    def value(self) -> T_co:
        """The newest good one."""
        return self._value

    def refresh(self, *, always: bool = False) -> None:
        """Take over what has changed; where that cannot be used, keep the old value and say so once for each reason.

        After a failure it is tried again at each look: what mends a file (a folder's rights, a disk) may not show on
        it. ``always``: read also what looks unchanged, and say what comes of it.
        """
        stamps = self._stamps()
        has_changed = stamps != self._seen
        if not (always or has_changed or self._failure is not None):
            return
        self._seen = stamps
        try:
            self._value = self._load()
        except Exception as error:
            before, self._failure = self._failure, str(error)
            is_new = always or before != self._failure
            self.num_failures += is_new or has_changed
            if is_new:
                trace = None if isinstance(error, ConfigurationError) else error
                logger.warning("the old %s stay in use: %s", self.name, error, exc_info=trace)
        else:
            self._failure = None
            self.num_reloads += 1
            logger.info("%s read anew", self.name)

    def _stamps(self) -> list[tuple[int, ...] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes with the file and its rights; also where a link on the way is turned over, as Kubernetes does."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_dev, status.st_ino


def read_setting(setting: str, path: Path) -> bytes:
    """The file that ``setting`` names. Raises ConfigurationError naming both."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{setting} {path}: cannot be read ({error.strerror})") from None
