"""Failures: from outcomes to the errors that small calls raise, and back."""

from __future__ import annotations

from typing import Literal

from criteo_provider.core import errors, outcome


def as_error(failure: outcome.Failure) -> errors.CriteoSyncError:
    """Make the error that says what this failure says."""
    match failure:
        case outcome.Busy():
            return errors.Busy(failure.wait_s)
        case outcome.Unavailable():
            return errors.Unavailable(failure.sentence, code=failure.code, maybe_applied=failure.maybe_applied)
        case outcome.AccessLost():
            return errors.AccessLost(failure.sentence, scope=failure.scope, code=failure.code)
        case outcome.AudienceGone():
            return errors.AudienceGone(failure.sentence, code=failure.code)
        case outcome.Refused():
            return errors.Refused(failure.sentence, code=failure.code)


def as_failure(error: errors.Busy | errors.Unavailable | errors.AccessLost) -> outcome.Failure:
    """Make the outcome of an upload whose access token could not be had: nothing was sent."""
    if isinstance(error, errors.Busy):
        return outcome.Busy(error.wait_s)
    if isinstance(error, errors.Unavailable):
        return outcome.Unavailable(error.code, str(error), maybe_applied=False)
    scope: Literal["connection", "ad_account"] = "ad_account" if error.scope == "ad_account" else "connection"
    return outcome.AccessLost(scope, error.code, str(error))
