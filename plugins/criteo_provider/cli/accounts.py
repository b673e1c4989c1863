"""`airflow criteo accounts`: connect at Criteo, choose ad accounts, disconnect and check them on a command line."""

from __future__ import annotations

import getpass
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from criteo_provider.cli.command import command, moment, show
from criteo_provider.core.errors import Misconfigured
from criteo_provider.criteo_api.consent import consent_url, new_request, read_redirect
from criteo_provider.hooks.addresses import redirect_uri
from criteo_provider.hooks.airflow_inside import record_in_audit_log, stored_connections
from criteo_provider.hooks.surroundings import open_house

if TYPE_CHECKING:
    from criteo_provider.wiring import House
    from criteo_provider.wiring.account_rows import AccountRow, ConnectionRow


@command
def list_(args: Namespace) -> bool:
    """List ad accounts with their state, of one connection or of all."""
    with closing(open_house()) as house:
        wanted = [args.conn_id] if args.conn_id else sorted({*stored_connections(), *house.accounts.named()})
        for conn_id in wanted:
            if house.accounts.look(conn_id).checked_us is None:
                house.accounts.check(conn_id)
        rows = [row for row in house.accounts.overview(wanted) if row.connection_id in wanted]
    show([line for row in rows for line in _lines(row)], args.output)
    return True


@command
def check(args: Namespace) -> bool:
    """Say in one sentence whether Criteo lets the connection in."""
    with closing(open_house()) as house:
        verdict = house.accounts.check(args.conn_id)
    print(verdict.sentence)
    return verdict.ok


@command
def connect(args: Namespace) -> bool:
    """Lead a person through Criteo's consent, and show the ad accounts it covers."""
    with closing(open_house()) as house:
        connection = house.around.criteo(args.conn_id)
        if connection.grant_type != "authorization_code":
            raise Misconfigured(
                f"Connection {args.conn_id} uses client credentials, which no person consents to: nothing to connect. "
                "Set its Grant type to authorization_code to speak for a person."
            )
        back, asked = args.redirect_uri or redirect_uri(), new_request()
        print("Open this address in a browser, and consent at Criteo:\n")
        print(consent_url(connection.consent_url, connection.client_id, back, asked))
        print(f"\nCriteo sends you back to {back}. Paste the whole address of the page you land on:", flush=True)
        returned = read_redirect(dict(parse_qsl(urlsplit(sys.stdin.readline().strip()).query)))
        if not returned.answers(asked):
            raise Misconfigured("That address does not answer this request for consent. Nothing was stored; try again.")
        if returned.error:
            what = "You cancelled at Criteo" if returned.is_cancelled else f"Criteo gave no consent ({returned.error})"
            raise Misconfigured(f"{what}. Nothing was stored.")
        house.criteo.exchange(args.conn_id, returned.code, back, asked.verifier, _me())
        _note("consent.give", args.conn_id)
        offer = house.handovers.offer(args.conn_id)
    print("\nThe consent covers these ad accounts:")
    for ad_account, name in sorted(offer.names.items()):
        print(f"  {ad_account}  {name}{'  (in use)' if ad_account in offer.chosen else ''}")
    example = " ".join(sorted(offer.chosen & set(offer.names)) or sorted(offer.names)[:1])
    print(f"Choose with: airflow criteo accounts choose --conn-id {args.conn_id} {example}")
    return True


@command
def choose(args: Namespace) -> bool:
    """Use these ad accounts and no others of the connection; a new consent is tried first."""
    with closing(open_house()) as house:
        before = {one.ad_account for one in house.accounts.look(args.conn_id).accounts if one.usable}
        if not house.handovers.choose(args.conn_id, args.ad_accounts, by=_me()) and not _hand_over(house, args.conn_id):
            return False
        _note("accounts.choose", args.conn_id, *args.ad_accounts)
        verdict = house.accounts.check(args.conn_id)
        let_go = [one for one in house.accounts.look(args.conn_id).accounts if one.ad_account in before]
    for one in let_go:
        if not one.usable:
            print(_stopped(one.ad_account, one.used_by))
    print(f"Connection {args.conn_id} uses {', '.join(args.ad_accounts)}. {verdict.sentence}")
    return verdict.ok


@command
def keep_old(args: Namespace) -> bool:
    """Drop a new consent that was not put in force."""
    with closing(open_house()) as house:
        house.handovers.keep_old(args.conn_id)
        in_force = house.accounts.look(args.conn_id)
    _note("consent.discard", args.conn_id)
    old = f"that of {in_force.by} stays in force" if in_force.by else "nobody has connected it yet"
    print(f"The new consent of connection {args.conn_id} is dropped; {old}.")
    return True


@command
def use_anyway(args: Namespace) -> bool:
    """Use a new consent in place of a dead one, though it reaches less."""
    with closing(open_house()) as house:
        ad_accounts = sorted(house.handovers.use_anyway(args.conn_id, by=_me()))
        _note("consent.replace", args.conn_id, *ad_accounts)
        verdict = house.accounts.check(args.conn_id)
    used = ", ".join(ad_accounts) or "no ad account"
    print(f"The new consent of connection {args.conn_id} is in force, for {used}. {verdict.sentence}")
    return True  # what it does not reach is no news


@command
def disconnect(args: Namespace) -> bool:
    """Disconnect one ad account: its steps stop, others go on."""
    with closing(open_house()) as house:
        steps = house.accounts.disconnect(args.conn_id, args.ad_account, by=_me())
    _note("accounts.disconnect", args.conn_id, args.ad_account)
    print(_stopped(args.ad_account, steps))
    return True


def _stopped(ad_account: str, steps: Sequence[str]) -> str:
    what = f"These steps stop, their people stay pending: {', '.join(steps)}." if steps else "No step uses it."
    return f"Ad account {ad_account} is disconnected. {what}"


def _hand_over(house: House, conn_id: str) -> bool:
    print("Another consent is in force. Trying every audience in use with the new one:")
    failures = house.handovers.run(conn_id, lambda done, total: print(f"  {done} of {total}"))
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        keep, anyway = (f"`airflow criteo accounts {name} --conn-id {conn_id}`" for name in ("keep-old", "use-anyway"))
        way_on = f", use the new one with {anyway}" if house.accounts.look(conn_id).consent_is_dead else ""
        print(
            f"The old consent stays in force. Mend this and choose again{way_on}, or drop the new one with {keep}.",
            file=sys.stderr,
        )
    return not failures


def _lines(row: ConnectionRow) -> list[dict[str, Any]]:
    if not row.accounts:
        return [_line(row, None)]
    return [_line(row, account) for account in row.accounts]


def _line(row: ConnectionRow, account: AccountRow | None) -> dict[str, Any]:
    told = account or row
    return {
        "connection": row.connection_id,
        "ad_account": account.ad_account if account else "",
        "name": account.name if account else "",
        "canvases_may_use_it": "yes" if account and account.usable else "no",
        "state": told.state,
        "what_to_do": "" if told.state == "ok" else told.sentence,
        "used_by": ", ".join(account.used_by) if account else "",
        "connected_by": row.by or "",
        "connected": moment(row.at_us),
        "last_check": moment(row.checked_us),
    }


def _note(event: str, conn_id: str, *ad_accounts: str) -> None:
    extra: dict[str, Any] = {"connection_id": conn_id, "host": "command line"}
    if ad_accounts:
        extra["ad_accounts"] = list(ad_accounts)
    record_in_audit_log(f"criteo.{event}", owner=_me(), display_name=_me(), extra=extra)


def _me() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number that has no name
        return "command line"
