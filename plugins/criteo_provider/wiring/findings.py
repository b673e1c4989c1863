"""Findings: what a preflight may find, each kind with why it matters and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from criteo_provider.core import errors
from criteo_provider.core.quota import MOST_AUDIENCES, WARN_FROM


class Severity(StrEnum):
    """Whether something does not work, or should soon be seen to."""

    FAILURE = "failure"
    WARNING = "warning"


class Scope(StrEnum):
    """How far a finding reaches."""

    DEPLOYMENT = "deployment"
    CANVAS = "canvas"
    CONNECTION = "connection"
    AD_ACCOUNT = "ad account"
    AUDIENCE = "audience"
    SOURCE = "source"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding; ``what`` and ``mend`` have places in braces for what was found."""

    severity: Severity
    scope: Scope
    what: str
    why: str
    mend: str


class Finding(msgspec.Struct, frozen=True):
    """One thing to mend before a canvas can be launched, or soon; ``code`` is stable."""

    code: str
    severity: Severity
    scope: Scope
    where: str
    what: str
    why: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what} {self.mend}".strip()

    @property
    def is_failure(self) -> bool:
        """Whether it keeps a canvas from being launched."""
        return self.severity is Severity.FAILURE


_F, _W = Severity.FAILURE, Severity.WARNING
_NOT_READ = "Nothing is read while people could not be sent; the cursor stays, so nobody is lost."
_OPT_OUTS = "While nobody can read who opts out, people who did are sent all the same; launches do not wait for it."
_ONE_TARGET = "People may only be put into one contact list that takes them."
KINDS: Mapping[str, Kind] = {
    # what a canvas file says
    "no-canvas": Kind(_F, Scope.CANVAS, "There is no canvas {name}.", "Only a file declares a canvas.",
        "Write {file} in {folder}, or correct the name; [criteo] include_folder says which folder is read."),
    "no-audience-name": Kind(_F, Scope.CANVAS, "No audience is named: {what}",
        "An audience is found or created by its name.", "{mend}"),
    "no-fields": Kind(_F, Scope.CANVAS, "No fields to match are chosen: {what}",
        "Criteo matches people by the fields you choose, and gets no others.", "{mend}"),
    "no-ad-account": Kind(_F, Scope.CANVAS, "No ad account is selected: {what}",
        "Each audience belongs to one ad account.", "{mend}"),
    "canvas-file": Kind(_F, Scope.CANVAS, "{what}", "A file that is not understood is not run.", "{mend}"),
    # this deployment
    "no-encryption": Kind(_F, Scope.DEPLOYMENT, "Airflow's Fernet key does not encrypt.",
        "Criteo's access tokens are shared through the ledger and must not lie there in plain text.",
        "Set [core] fernet_key (AIRFLOW__CORE__FERNET_KEY) to a key of your own."),
    "ledger-unusable": Kind(_F, Scope.DEPLOYMENT, "The ledger cannot be used: {sentence}",
        "Everything that is known of people is kept there.",
        "Check the connection criteo_ledger, or [criteo] ledger_path; then `airflow criteo db upgrade`."),
    "opt-out-file": Kind(_F, Scope.DEPLOYMENT, "{what}", _OPT_OUTS, "{mend}"),
    "opt-outs-unreadable": Kind(_F, Scope.SOURCE, "Opt-outs cannot be read: {sentence}", _OPT_OUTS,
        "Correct the feed, or what it reads from."),
    # the connection
    "not-connected": Kind(_F, Scope.CONNECTION, "Criteo is not connected: {sentence}", _NOT_READ,
        "Press Connect Criteo on the Accounts page, or set up the connection {conn_id} under Admin > Connections."),
    "access-lost": Kind(_F, Scope.CONNECTION, "Criteo does not let connection {conn_id} in: {sentence}", _NOT_READ,
        "If that does not help, disconnect and connect again; ask your Criteo admin whether the permission still "
        "exists."),
    "not-consented": Kind(_F, Scope.CONNECTION, "Nobody has connected {conn_id} to Criteo yet.", _NOT_READ,
        "Press Connect Criteo on the Accounts page, or run `airflow criteo accounts connect --conn-id {conn_id}`; "
        "then choose ad accounts."),
    "criteo-unavailable": Kind(_F, Scope.CONNECTION, "Criteo could not be asked: {sentence}",
        "What was not seen cannot be promised.", "Nothing to do if it passes: it is tried again by itself."),
    "guidelines": Kind(_F, Scope.CONNECTION,
        "Nobody has acknowledged Criteo's advertising and brand-safety guidelines for connection {conn_id}.",
        "This deployment asks for it ([criteo] guidelines_acknowledged is `required`).",
        "Read them, then tick Guidelines acknowledged in the connection {conn_id}."),
    # the ad account
    "ad-account-not-chosen": Kind(_F, Scope.AD_ACCOUNT, "{sentence}",
        "A connection serves only the ad accounts chosen for it.",
        "Or give the step an ad account that is chosen."),
    "ad-account-not-consented": Kind(_F, Scope.AD_ACCOUNT,
        "Ad account {ad_account} has not consented to the application of connection {conn_id}.",
        "Criteo lets an application only into ad accounts whose admin consented.",
        "Have its Criteo admin consent; consented now: {consented}."),
    "no-permission": Kind(_F, Scope.AD_ACCOUNT,
        "Connection {conn_id} may not see audiences of ad account {ad_account}.",
        "Audiences are found, created and filled with the Audiences permission.",
        "Ask your Criteo admin to set the Audiences permission to Manage, and to consent again."),
    "read-only-permission": Kind(_F, Scope.AD_ACCOUNT,
        "Connection {conn_id} may see the audiences of ad account {ad_account}, but not change them.",
        "People are put into audiences with the Audiences permission set to Manage; Read is not enough.",
        "Ask your Criteo admin to set the Audiences permission to Manage, and to consent again."),
    "quota-near": Kind(_W, Scope.AD_ACCOUNT,
        f"Ad account {{ad_account}} has {{audiences:,}} of at most {MOST_AUDIENCES:,} audiences.",
        f"From {WARN_FROM} on it is time to make room: a full ad account takes no new audience.",
        "Delete audiences nobody uses at Criteo; existing ones go on."),
    "quota-reached": Kind(_F, Scope.AD_ACCOUNT, "{sentence}", "A new audience is needed, and there is no room for it.",
        "Or give the step the name of an existing contact list."),
    # the audience
    "audience-gone": Kind(_F, Scope.AUDIENCE,
        "Audience “{name}” in ad account {ad_account} (Criteo id {criteo_id}) is not at Criteo any more; {fate}.",
        _ONE_TARGET,
        "Restore it at Criteo, make a contact list of that name there, or set `when_deleted: recreate` in its step."),
    "audience-ambiguous": Kind(_F, Scope.AUDIENCE, "{sentence}", _ONE_TARGET,
        "Rename or delete all but one at Criteo, or give the step another audience name."),
    "audience-unsuitable": Kind(_F, Scope.AUDIENCE, "{sentence}", _ONE_TARGET, "Give the step another audience name."),
    "audience-nobody-creates": Kind(_F, Scope.AUDIENCE,
        "There is no audience “{name}” in ad account {ad_account}, and step {step} only removes people from it.",
        "A step that removes people never creates an audience.",
        "Correct its name, or add a step that adds people to it."),
    "audience-refused": Kind(_F, Scope.AUDIENCE, "{sentence}", _ONE_TARGET, "Give the step another audience name."),
    # the source
    "source-unreadable": Kind(_F, Scope.SOURCE, "The source cannot be read: {sentence}",
        "People enter from there; all its columns have to be there.", "Correct the source, or the canvas."),
    "column-empty": Kind(_W, Scope.SOURCE, "The first records have no value in: {columns}.",
        "In JSON a column that is not there reads as empty; people without it are left out or not matched.",
        "Check how the canvas names its columns."),
}  # fmt: skip


def found(code: str, where: str, **words: object) -> Finding:
    """Make the finding of a kind."""
    kind = KINDS[code]
    mend = kind.mend.format(**words)
    what = kind.what.format(**words).removesuffix(mend).strip()  # some errors bring the mend along
    return Finding(code, kind.severity, kind.scope, where, what, kind.why, mend)


def of_error(error: errors.CriteoSyncError, where: str, conn_id: str, ad_account: str = "") -> Finding:
    """Say what an error means for a launch."""
    match error:
        case errors.Misconfigured():
            return found("not-connected", where, sentence=error, conn_id=conn_id)
        case errors.AccessLost(scope="ad_account"):
            return found("no-permission", where, conn_id=conn_id, ad_account=ad_account)
        case errors.AccessLost(code="not-connected"):
            return found("not-consented", where, conn_id=conn_id)
        case errors.AccessLost():
            return found("access-lost", where, sentence=error, conn_id=conn_id)
        case errors.QuotaReached():
            return found("quota-reached", where, sentence=error)
        case errors.AmbiguousAudience():
            return found("audience-ambiguous", where, sentence=error)
        case errors.UnsuitableAudience():
            return found("audience-unsuitable", where, sentence=error)
        case errors.Refused() | errors.AudienceGone():
            return found("audience-refused", where, sentence=error)
        case _:
            return found("criteo-unavailable", where, sentence=error)


def to_json(findings: Sequence[Finding]) -> str:
    """Write findings as the ledger keeps them."""
    return msgspec.json.encode(findings).decode()


def from_json(text: str) -> tuple[Finding, ...]:
    """Read findings back; those of another release that are not understood are left out."""
    try:
        return msgspec.json.decode(text, type=tuple[Finding, ...])
    except msgspec.MsgspecError:
        return ()
