"""Whether Criteo holds exactly whom the ledger says it accepted: the fold of all intents, list by list."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, select

from criteo_provider.core.identifiers import Form, to_wire
from criteo_provider.core.model import Operation, PartState
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.store.engine import reading
from criteo_provider.store.intents import values_of
from criteo_provider.store.schema import audience, part


@dataclass(frozen=True)
class ComparedList:
    """One contact list: how many identifiers it has here and there, and whether they are the same ones."""

    name: str
    ad_account: str
    by_ledger: int
    at_sandbox: int
    same: bool


def compare_lists(ledger: Engine, sandbox: Sandbox) -> list[ComparedList]:
    """Compare every audience of the ledger with its list at the sandbox, identifier by identifier."""
    with reading(ledger) as connection:
        audiences = list(connection.execute(select(audience).order_by(audience.c.ad_account, audience.c.name)))
    compared = []
    for each in audiences:
        expected = _members(ledger, each.id)
        size = sandbox.size(each.criteo_id)
        there = all(_are_members(sandbox, each.criteo_id, expected))
        compared.append(ComparedList(each.name, each.ad_account, len(expected), size, there and size == len(expected)))
    return compared


def _members(ledger: Engine, audience_id: int) -> set[tuple[Form, bytes]]:
    """Fold what Criteo accepted, in the order of people's intents."""
    members: set[tuple[Form, bytes]] = set()
    with reading(ledger) as connection:
        accepted = select(part).where(part.c.audience_id == audience_id, part.c.state == PartState.ACCEPTED)
        for row in list(connection.execute(accepted.order_by(part.c.intent_us, part.c.upload_id))):
            touched = {(Form(row.form), value) for value in values_of(connection, row)}
            members = members | touched if row.operation == Operation.ADD else members - touched
    return members


def _are_members(sandbox: Sandbox, criteo_id: str, expected: set[tuple[Form, bytes]]) -> list[bool]:
    found: list[bool] = []
    for form in {form for form, _ in expected}:
        texts = [to_wire(value, form) for each, value in expected if each is form]
        found += sandbox.is_member(criteo_id, texts, form.identifier_type)
    return found
