"""Everything ppinfer raises on purpose.

    PPInferError
    ├── ConfigError (ValueError)        a setting is unknown, out of range, or contradicts another
    ├── RequestError (ValueError)       a prompt or its sampling parameters cannot be served
    ├── CheckpointError                 a model's files are missing, damaged, or not as configured
    │   └── UnknownArchitectureError    no policy is registered for the model's architecture
    ├── CapacityError                   the model or one request does not fit in the memory given
    ├── StageError                      a stage process failed, died, or did not answer in time
    ├── ServerError                     an HTTP server cannot be reached, or answers as none should
    ├── BatchError                      a batch's files cannot be used, or do not belong together
    ├── TraceError                      a trace cannot be made or written, or a file is none
    └── EngineClosedError               the engine was used after ``close()``

A message names what was wrong, what was expected, and what to do; it never needs the traceback.
"""

from __future__ import annotations


class PPInferError(Exception):
    """Base of every exception that ppinfer raises on purpose."""


class ConfigError(PPInferError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class RequestError(PPInferError, ValueError):
    """A prompt or its sampling parameters cannot be served.

    ``param`` is the field to blame, where it is a single one.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class CheckpointError(PPInferError):
    """A model's files are missing, damaged, or disagree with its config."""


class UnknownArchitectureError(CheckpointError):
    """No policy is registered for the model's architecture."""


class CapacityError(PPInferError):
    """The model or one request does not fit in the memory given."""


class StageError(PPInferError):
    """A stage process failed, died, or did not answer in time.

    ``stage`` is the stage's number from 0, or ``None`` where no single stage is to blame.
    """

    def __init__(self, message: str, stage: int | None = None) -> None:
        super().__init__(message)
        self.stage = stage


class ServerError(PPInferError):
    """An HTTP server, ours or another, cannot be reached, or does not answer as one should."""


class BatchError(PPInferError):
    """The files of a batch cannot be read or written, or do not belong together."""


class TraceError(PPInferError):
    """A trace cannot be made or written, or a file is no trace."""


class EngineClosedError(PPInferError):
    """The engine was used after ``close()``."""


def from_name(kind: str, message: str, stage: int | None) -> PPInferError:
    """An error that another process raised; one of no known name is a ``StageError``."""
    found = globals().get(kind, StageError)
    if issubclass(found, StageError):
        return StageError(message, stage=stage)
    assert issubclass(found, PPInferError)
    error: PPInferError = found(message)
    return error
