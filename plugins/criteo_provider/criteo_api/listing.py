"""Listing: all audiences of one ad account as one search has found them, and the one that has a name."""

from __future__ import annotations

from dataclasses import dataclass

from criteo_provider.core.errors import AmbiguousAudience, UnsuitableAudience
from criteo_provider.criteo_api import wire


@dataclass(frozen=True, slots=True)
class Listing:
    """Every audience of an ad account, whatever its type."""

    ad_account: str
    audiences: tuple[wire.AudienceInfo, ...]

    def __len__(self) -> int:
        return len(self.audiences)

    def named(self, name: str) -> wire.AudienceInfo | None:
        """Return the contact list of exactly this name, or None.

        Raises AmbiguousAudience when several audiences have the name, UnsuitableAudience when people cannot
        be put into the one that has it.
        """
        found = [audience for audience in self.audiences if audience.name == name]
        if len(found) > 1:
            raise AmbiguousAudience(
                f"Ad account {self.ad_account} has {len(found)} audiences named “{name}”. "
                "Rename or delete all but one at Criteo, or give the step another audience name.",
                code="ambiguous-audience",
            )
        if not found:
            return None
        audience = found[0]
        if audience.kind != wire.CONTACT_LIST:
            raise UnsuitableAudience(
                f"Audience “{name}” of ad account {self.ad_account} is no contact list but {audience.kind}. "
                "Give the step another audience name.",
                code="not-a-contact-list",
            )
        if audience.read_only:
            raise UnsuitableAudience(
                f"Audience “{name}” of ad account {self.ad_account} is read-only: it is filled by another tool. "
                "Give the step another audience name.",
                code="read-only-audience",
            )
        return audience
