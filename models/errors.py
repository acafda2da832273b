"""Errors that a user can act on.

Every message says what was given, what is accepted and what to do. Messages reach the browser, so they
never name absolute paths: `UserError` cuts any that slips in down to its last part.
"""

import errno
import re

# An absolute path: "/" or "C:\" at the start of a word, but not the "//" of a URL or the "/" of "a/b".
_ABSOLUTE_PATH = re.compile(r"(?<![\w:/\\.])(?:[A-Za-z]:)?[\\/](?:[^\s'\"\\/]+[\\/])*([^\s'\"\\/]+)")


class UserError(Exception):
    """Base of all errors whose message is meant for the person at the screen."""

    title = "Please check"

    def __init__(self, message: str) -> None:
        super().__init__(_ABSOLUTE_PATH.sub(r"\1", message))


class BadInput(UserError):
    """An image, a video, a text or a number that cannot be used."""

    title = "This input cannot be used"


class WeightsNotFound(UserError):
    """No place that may be asked has the weights."""

    title = "Weights not found"


class WeightsCorrupt(UserError):
    """A weights file is damaged, or is not the file that was expected."""

    title = "Weights damaged"


class UnsafeCheckpoint(UserError):
    """A checkpoint that could run code when it is opened; it was not opened."""

    title = "Checkpoint refused"


class OfflineError(UserError):
    """Something has to be downloaded and there is no network."""

    title = "No network"


class OutOfMemory(UserError):
    """The model or the input does not fit in memory."""

    title = "Not enough memory"


class DiskFull(UserError):
    """There is no space left to write to."""

    title = "Disk full"


class LoadFailed(UserError):
    """A model could not be loaded, for a reason the user did not cause."""

    title = "Loading failed"


class WorkerLost(UserError):
    """The process or machine that did the work stopped in the middle."""

    title = "Interrupted"


class RayUnavailable(UserError):
    """Ray is not installed, cannot be reached, or has no machine that is large enough."""

    title = "Ray not available"


class ServerUnavailable(UserError):
    """A language model's server is away, refuses, or answers with something else than it should."""

    title = "Model server not available"


class Cancelled(UserError):
    """The user stopped the work."""

    title = "Stopped"


class UnsupportedDevice(UserError):
    """The device asked for is not in this machine."""

    title = "Device not available"


def is_out_of_memory(error: BaseException) -> bool:
    """True for Python's and torch's out-of-memory errors; torch need not be imported.

    On the CPU torch raises a plain RuntimeError that names its allocator.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def is_disk_full(error: BaseException) -> bool:
    """True if a file could not be written for want of space: disk, quota or the process's own limit."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
