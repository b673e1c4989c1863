"""The commands of `airflow criteo`; what they do is imported only when one is called."""

from __future__ import annotations

from airflow.cli.cli_config import (
    ARG_OUTPUT,
    ARG_VERBOSE,
    ActionCommand,
    Arg,
    CLICommand,
    GroupCommand,
    lazy_load_command,
    positive_int,
)

_CONN_ID = Arg(
    ("--conn-id",), default="criteo_default", help="Airflow connection of type criteo (default: criteo_default)"
)
_ANY_CONN_ID = Arg(("--conn-id",), help="only this Airflow connection of type criteo (default: all)")
_REDIRECT_URI = Arg(
    ("--redirect-uri",),
    help="one registered with the application at Criteo (default: the callback of this Airflow, from [api] base_url)",
)
_AD_ACCOUNT = Arg(("ad_account",), help="id of the ad account")
_AD_ACCOUNTS = Arg(("ad_accounts",), nargs="+", metavar="ad_account", help="ids of the ad accounts to use")
_CANVAS = Arg(("canvas",), nargs="?", help="only this canvas (the name of its file without .yaml)")
_CANVAS_OF_STEP = Arg(("canvas",), help="the canvas the step was declared in")
_STEP = Arg(("step",), help="the id of the step that is no longer declared")
_NAMED = Arg(("named",), nargs="?", help="user key or identifier; left out, it is asked for")
_OLDER_THAN = Arg(("--older-than",), required=True, help="age at entry from which people become counts, such as 400d")
_CANVAS_TO_RETRY = Arg(("canvas",), nargs="?", help="the canvas whose Errored users are tried again")
_STEP_TO_RETRY = Arg(("step",), nargs="?", help="only this step of it")
_REASON = Arg(("--reason",), required=True, help="why they are tried again; kept beside your name")
_ALL = Arg(("--all",), action="store_true", help="the Errored users of all canvases")
_NAME = Arg(("name",), help="the exact name of the audience")
_MAYBE_NAME = Arg(("name",), nargs="?", help="only audiences of this name")
_OPTION_AD_ACCOUNT = Arg(("--ad-account",), required=True, help="Criteo's number of the ad account")
_PORT = Arg(("--port",), type=positive_int(allow_zero=True), default=8780, help="port (default: 8780; 0: any free)")


def get_cli_commands() -> list[CLICommand]:
    """Return the command group `criteo` for Airflow's command line."""
    return [
        GroupCommand(
            name="criteo",
            help="Criteo Audience Sync",
            subcommands=(
                ActionCommand(
                    name="preflight",
                    help="say what would keep people from being synced; exit code 1 if anything would",
                    func=_lazy("preflight"),
                    args=(_CANVAS, ARG_OUTPUT, ARG_VERBOSE),
                ),
                ActionCommand(
                    name="status",
                    help="the seven metrics of each step",
                    func=_lazy("status"),
                    args=(_CANVAS, ARG_OUTPUT, ARG_VERBOSE),
                ),
                ActionCommand(
                    name="opt-outs",
                    help="how many opt-outs each feed has told of; exit code 1 if a feed's file is wrong",
                    func=_lazy("opt_outs"),
                    args=(ARG_OUTPUT, ARG_VERBOSE),
                ),
                ActionCommand(
                    name="person",
                    help="what happened to one user: every entry, step, upload and answer of Criteo; exit code 1 if "
                    "the ledger knows nobody of that name",
                    description="The user key or identifier (an address, too) is asked for, or read from standard "
                    "input; given as an argument it stays in the history of your shell. It is never logged.",
                    func=lazy_load_command("criteo_provider.cli.records.person"),
                    args=(_NAMED, ARG_OUTPUT, ARG_VERBOSE),
                ),
                GroupCommand(name="audiences", help="Contact lists at Criteo", subcommands=_audiences()),
                GroupCommand(name="accounts", help="Criteo ad accounts of a connection", subcommands=_accounts()),
                GroupCommand(name="db", help="The ledger", subcommands=_ledger()),
                ActionCommand(
                    name="drop",
                    help="give up the people held in a step that no file declares any more (restoring the step "
                    "lets them go on instead)",
                    func=_lazy("drop"),
                    args=(_CANVAS_OF_STEP, _STEP, ARG_VERBOSE),
                ),
                ActionCommand(
                    name="retry",
                    help="have Errored users tried again, for a fresh window of about 13 hours",
                    func=_lazy("retry"),
                    args=(_CANVAS_TO_RETRY, _STEP_TO_RETRY, _REASON, _ALL, ARG_VERBOSE),
                ),
                ActionCommand(
                    name="sandbox",
                    help="run a Criteo on this machine until Ctrl-C",
                    func=_lazy("sandbox"),
                    args=(_PORT,),
                ),
            ),
        )
    ]


def _accounts() -> tuple[ActionCommand, ...]:
    return (
        ActionCommand(
            name="list",
            help="ad accounts with their state, whether canvases may use them, and which steps do",
            func=_lazy("list_", room="accounts"),
            args=(_ANY_CONN_ID, ARG_OUTPUT, ARG_VERBOSE),
        ),
        ActionCommand(
            name="connect",
            help="print the address at which a person consents at Criteo, and take the address they come back with",
            func=_lazy("connect", room="accounts"),
            args=(_CONN_ID, _REDIRECT_URI, ARG_VERBOSE),
        ),
        ActionCommand(
            name="choose",
            help="use these ad accounts of a connection and no others; a new consent is tried on every audience first",
            func=_lazy("choose", room="accounts"),
            args=(_CONN_ID, _AD_ACCOUNTS, ARG_VERBOSE),
        ),
        ActionCommand(
            name="keep-old",
            help="drop a new consent that was not put in force; the old one goes on",
            func=_lazy("keep_old", room="accounts"),
            args=(_CONN_ID, ARG_VERBOSE),
        ),
        ActionCommand(
            name="use-anyway",
            help="use a new consent whose check has failed, where Criteo does not honour the old one any more",
            func=_lazy("use_anyway", room="accounts"),
            args=(_CONN_ID, ARG_VERBOSE),
        ),
        ActionCommand(
            name="disconnect",
            help="stop the steps of one ad account; their people stay pending until it is chosen again",
            func=_lazy("disconnect", room="accounts"),
            args=(_CONN_ID, _AD_ACCOUNT, ARG_VERBOSE),
        ),
        ActionCommand(
            name="check",
            help="say in one sentence whether Criteo lets this connection in; exit code 1 if not",
            func=_lazy("check", room="accounts"),
            args=(_CONN_ID, ARG_VERBOSE),
        ),
    )


def _audiences() -> tuple[ActionCommand, ...]:
    return (
        ActionCommand(
            name="list",
            help="the audiences canvases name: Criteo id, created here or found, who uses them, how they fare",
            func=_lazy("audiences_list", room="audiences"),
            args=(ARG_OUTPUT, ARG_VERBOSE),
        ),
        ActionCommand(
            name="create",
            help="find or create a contact list by hand; a launch does it by itself",
            func=_lazy("audiences_create", room="audiences"),
            args=(_NAME, _OPTION_AD_ACCOUNT, _CONN_ID, ARG_VERBOSE),
        ),
        ActionCommand(
            name="sizes",
            help="identifiers, matches and match rate as Criteo counted them; exit code 1 if one cannot be asked",
            func=_lazy("audiences_sizes", room="audiences"),
            args=(_MAYBE_NAME, ARG_OUTPUT, ARG_VERBOSE),
        ),
    )


def _ledger() -> tuple[ActionCommand, ...]:
    return (
        ActionCommand(
            name="upgrade", help="bring the ledger's tables up to date", func=_lazy("db_upgrade"), args=(ARG_VERBOSE,)
        ),
        ActionCommand(
            name="check",
            help="prove that the numbers add up; exit code 1 if a law is violated",
            func=_lazy("db_check"),
            args=(ARG_VERBOSE,),
        ),
        ActionCommand(
            name="prune",
            help="keep only counts of finished people who entered long ago; they cannot be looked up, and not be "
            "removed from audiences, by this ledger any more",
            func=lazy_load_command("criteo_provider.cli.records.prune"),
            args=(_OLDER_THAN, ARG_VERBOSE),
        ),
        ActionCommand(
            name="rotate-key",
            help="encrypt Criteo's tokens under the first key of [core] fernet_key, after a new one was put before "
            "the old one; exit code 1 if a consent is under neither",
            func=_lazy("db_rotate_key"),
            args=(ARG_VERBOSE,),
        ),
    )


def _lazy(command: str, *, room: str = "commands"):  # type: ignore[no-untyped-def]  # Airflow's own helper is not typed
    return lazy_load_command(f"criteo_provider.cli.{room}.{command}")
