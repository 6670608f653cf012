"""Every failure that a user or a plugin can cause.

Each error is one line that names the subject and the cause, plus a remedy that says what to do next.
Refusals (a device that cannot run an op) are values, see `hetrun.device.Unsupported`; asserts are for our own bugs.
The command line prints `error: <message>` and `hint: <remedy>`, and exits with `exit_code`.
"""

from __future__ import annotations

from typing import ClassVar


class HetrunError(Exception):
    """Base of all failures. `message` is one line; `remedy` is the next step, or None where there is none."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message} ({self.remedy})"


class UsageError(HetrunError):
    """A value given on the command line or to the Python API that cannot be meant."""

    exit_code = 2


class ModelNotFoundError(HetrunError):
    """No file at that path and no catalogue entry of that name."""

    exit_code = 3


class ModelFileError(HetrunError):
    """A file that is not a valid GGUF file. Names the byte offset and the field being read."""

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        offset: int | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        where = "" if offset is None else f" at byte {offset}"
        what = "" if field is None else f" ({field})"
        subject = "" if path is None else f"{path}: "
        super().__init__(f"{subject}{message}{where}{what}", remedy=remedy)
        self.path = path
        self.offset = offset
        self.field = field


class UnsupportedModelError(HetrunError):
    """A valid GGUF file whose architecture, tensor type or tokenizer hetrun cannot run; names what is supported."""

    exit_code = 3


class TokenizerError(HetrunError):
    """Tokenizer metadata that is missing or contradicts itself."""

    exit_code = 3


class ChatTemplateError(HetrunError):
    """A chat template that fails, or exceeds its limit on time or output."""

    exit_code = 3


class DownloadError(HetrunError):
    """A model could not be fetched or did not match its size and digest."""

    exit_code = 4


class ContextError(HetrunError):
    """A prompt or context longer than what the model or the session can hold."""

    exit_code = 5


class GraphError(HetrunError):
    """A graph whose ops and values do not fit together."""

    exit_code = 6


class PlanError(HetrunError):
    """No valid placement, or a plan that does not fit the model or the devices at hand."""

    exit_code = 6


class PlacementError(PlanError):
    """No placement keeps to the memory, the rules and the rate asked for."""


class ConfigError(HetrunError):
    """A configuration file that does not parse or holds unknown keys or bad values. Names file and key."""

    exit_code = 6


class DeviceError(HetrunError):
    """A device that is unknown, unavailable, or failed while it ran."""

    exit_code = 7


class AllocationError(DeviceError):
    """A device or the host has no memory left for a buffer or KV state."""


class PluginError(DeviceError):
    """A plugin that breaks the device contract."""

    @classmethod
    def broken_contract(cls, device: str, plugin: str, fault: str) -> PluginError:
        return cls(
            f"{device}: {fault}",
            remedy=f"plugin {plugin} breaks the contract: leave it out, or run the conformance kit on it",
        )
