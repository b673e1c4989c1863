"""The data of the page Accounts and what people do there; who may write Airflow connections may do it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, SecretStr

from criteo_provider.hooks.addresses import start_path
from criteo_provider.ui.clerk import Book, Clerk, OfferedAccount
from criteo_provider.ui.doorkeeper import MAY_CHANGE, MAY_CREATE, User, may_write, name_of, note

router = APIRouter(prefix="/api")


def _clerk(request: Request) -> Clerk:
    clerk: Clerk = request.app.state.clerk
    return clerk


ClerkDep = Annotated[Clerk, Depends(_clerk)]


class NewConnection(BaseModel):
    """An Airflow connection to be made; the secret is shown by nothing that prints this."""

    connection_id: str
    client_id: str
    client_secret: SecretStr
    base_url: str = ""


class Choice(BaseModel):
    """The ad accounts to use: those and no others of the ones offered."""

    ad_accounts: list[str]


@dataclass(frozen=True, slots=True)
class Begun:
    """Where to go on: the address at which the way to Criteo begins."""

    start: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a connection fares, in one sentence."""

    ok: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class OfferLine:
    """The ad accounts to choose from; ``replaces`` when a check follows before anything is changed."""

    ad_accounts: list[OfferedAccount]
    replaces: bool


@dataclass(frozen=True, slots=True)
class Done:
    """Whether it is done, or a check goes on first."""

    done: bool


@router.get("/accounts")
def book(clerk: ClerkDep, user: User) -> Book:
    """All connections with their ad accounts."""
    return clerk.book(may_write=may_write(user, "POST"))


@router.post("/connections", status_code=201, dependencies=[MAY_CREATE])
def create(new: NewConnection, clerk: ClerkDep, user: User) -> Begun:
    """Make an Airflow connection, to be connected at Criteo next."""
    clerk.create(new.connection_id, new.client_id, new.client_secret.get_secret_value(), new.base_url)
    note(user, "connection.create", new.connection_id)
    return Begun(start_path(new.connection_id))


@router.post("/connections/{conn_id}/check", dependencies=[MAY_CHANGE])
def check(conn_id: str, clerk: ClerkDep) -> Verdict:
    """Ask Criteo how a connection fares."""
    return Verdict(*clerk.check(conn_id))


@router.get("/connections/{conn_id}/offer", dependencies=[MAY_CHANGE])
def offer(conn_id: str, clerk: ClerkDep) -> OfferLine:
    """Ask Criteo which ad accounts there are to choose from."""
    found, ad_accounts = clerk.offer(conn_id)
    return OfferLine(ad_accounts, found.replaces)


@router.post("/connections/{conn_id}/choice", dependencies=[MAY_CHANGE])
def choose(conn_id: str, choice: Choice, clerk: ClerkDep, user: User) -> Done:
    """Choose ad accounts; a new consent is checked first where there is another in force."""
    done = partial(note, user, "accounts.choose", conn_id, *choice.ad_accounts)
    return Done(clerk.choose(conn_id, choice.ad_accounts, by=name_of(user), done=done))


@router.post("/connections/{conn_id}/handover", status_code=202, dependencies=[MAY_CHANGE])
def try_again(conn_id: str, clerk: ClerkDep, user: User) -> Done:
    """Check a new consent again."""
    clerk.try_again(conn_id, by=name_of(user), done=partial(note, user, "consent.replace", conn_id))
    return Done(False)


@router.post("/connections/{conn_id}/handover/anyway", dependencies=[MAY_CHANGE])
def use_anyway(conn_id: str, clerk: ClerkDep, user: User) -> Done:
    """Use a new consent in place of a dead one, though it reaches less."""
    note(user, "consent.replace", conn_id, *clerk.use_anyway(conn_id, by=name_of(user)))
    return Done(True)


@router.delete("/connections/{conn_id}/handover", dependencies=[MAY_CHANGE])
def keep_old(conn_id: str, clerk: ClerkDep, user: User) -> Done:
    """Drop a new consent; the one in force goes on."""
    clerk.keep_old(conn_id)
    note(user, "consent.discard", conn_id)
    return Done(True)


@router.put("/connections/{conn_id}/accounts/{ad_account}", dependencies=[MAY_CHANGE])
def reconnect(conn_id: str, ad_account: str, clerk: ClerkDep, user: User) -> Done:
    """Use an ad account (again)."""
    clerk.reconnect(conn_id, ad_account, by=name_of(user))
    note(user, "accounts.choose", conn_id, ad_account)
    return Done(True)


@router.delete("/connections/{conn_id}/accounts/{ad_account}", dependencies=[MAY_CHANGE])
def disconnect(conn_id: str, ad_account: str, clerk: ClerkDep, user: User) -> Done:
    """Disconnect an ad account: its steps stop, others go on."""
    clerk.disconnect(conn_id, ad_account, by=name_of(user))
    note(user, "accounts.disconnect", conn_id, ad_account)
    return Done(True)
