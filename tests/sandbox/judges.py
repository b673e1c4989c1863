"""Judges that are not ours: Criteo's SDKs, and its OpenAPI file where there is one; and a clerk who writes all down."""

from __future__ import annotations

import copy
import importlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import jsonschema
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ORACLES = {"2026-07": None, "2027-01": Path(sys.prefix) / "oracle-2027.1"}
"""The SDK of each API version, and the folder it is in where that is not site-packages (see the Makefile)."""

PYTHON_TYPES = (dict, list, str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call as it went over the wire, and its answer."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    status: int
    answer: bytes

    @property
    def is_token_call(self) -> bool:
        return self.path == "/oauth2/token"


class Wrong(AssertionError):
    """An exchange is not what the contract says."""


class Judge(Protocol):
    """Holds an exchange against a contract; raises Wrong, or what its own means raise."""

    version: str

    def request(self, exchange: Exchange) -> None: ...

    def answer(self, exchange: Exchange) -> None: ...


def recording(app: ASGIApp, exchanges: list[Exchange]) -> ASGIApp:
    """Write down every call of the API that passes, but none of the admin API."""

    async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/_admin"):
            await app(scope, receive, send)
            return
        asked, told, status = bytearray(), bytearray(), 0

        async def hear() -> Message:
            message = await receive()
            asked.extend(message.get("body", b""))
            return message

        async def say(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            told.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body"):
                headers = {name.decode(): value.decode() for name, value in scope["headers"]}
                query = scope["query_string"].decode()
                path, content = scope["path"], bytes(asked)
                exchanges.append(Exchange(scope["method"], path, query, headers, content, status, bytes(told)))
            await send(message)

        await app(scope, hear, say)

    return recorded


@contextmanager
def sdk(version: str) -> Iterator[str]:
    """Give the package of the SDK for this API version; one of a folder of its own can be imported only meanwhile."""
    package, folder = f"criteo_api_marketingsolutions_v{version.replace('-', '_')}", ORACLES[version]
    if folder is None:
        yield package
        return
    if not folder.is_dir():
        raise FileNotFoundError(f"The SDK of {version} is not in {folder}: run `make venv`.")
    sys.path.insert(0, str(folder))
    try:
        yield package
    finally:
        sys.path.remove(str(folder))


class SdkJudge:
    """An official SDK: finds the operation of a call, and reads both bodies with every type checked."""

    def __init__(self, version: str, package: str) -> None:
        self.version = version
        self._package = package
        self._utils = self._module("model_utils")
        self._configuration = self._module("configuration").Configuration()
        client = self._module("api_client_builder").ApiClientBuilder.WithClientCredentials("i", "s", host="http://x")
        self._operations: dict[tuple[str, str], Any] = {}
        for module, name in (("audience_api", "AudienceApi"), ("advertiser_api", "AdvertiserApi"),
                             ("gateway_api", "GatewayApi"), ("campaign_api", "CampaignApi")):  # fmt: skip
            for endpoint in vars(getattr(self._module(f"api.{module}"), name)(client)).values():
                if hasattr(endpoint, "settings"):
                    key = endpoint.settings["http_method"], endpoint.settings["endpoint_path"]
                    self._operations[key] = endpoint

    def request(self, exchange: Exchange) -> None:
        endpoint = self._endpoint(exchange)
        models = [kind for name, kind in endpoint.openapi_types.items() if self._is_model(kind[0])]
        if not models:
            if exchange.body:
                raise Wrong(f"{exchange.method} {exchange.path} takes no body")
            return
        self._read(json.loads(exchange.body), models[0])
        known = set(endpoint.attribute_map.values())
        if unknown := {pair.partition("=")[0] for pair in filter(None, exchange.query.split("&"))} - known:
            raise Wrong(f"{exchange.path} has no parameter {unknown}")

    def answer(self, exchange: Exchange) -> None:
        content = json.loads(exchange.answer)
        if exchange.status == 200:
            self._read(content, self._endpoint(exchange).settings["response_type"])
            return
        problem = self._module("model.common_problem").CommonProblem
        if not content["errors"]:
            raise Wrong("A refusal names no error")
        for error in content["errors"]:
            self._read(error, (problem,))

    def _endpoint(self, exchange: Exchange) -> Any:
        for (method, template), endpoint in self._operations.items():
            if method == exchange.method and _fits(template, exchange.path):
                return endpoint
        raise Wrong(f"The SDK has no {exchange.method} {exchange.path}")

    def _read(self, content: Any, kind: tuple[type, ...]) -> None:
        model = self._utils.validate_and_convert_types(
            copy.deepcopy(content), kind, ["body"], spec_property_naming=True, _check_type=True,
            configuration=self._configuration,
        )  # fmt: skip
        self._refuse_unknown(model)

    def _refuse_unknown(self, model: Any) -> None:
        """The SDK lets members pass that the contract lacks; this does not (traceIdentifier was seen on the wire)."""
        if isinstance(model, list):
            for item in model:
                self._refuse_unknown(item)
        store = getattr(model, "_data_store", None)
        if store is None:
            return
        if unknown := set(store) - set(model.attribute_map) - {"traceIdentifier", "trace_identifier"}:
            raise Wrong(f"{type(model).__name__} has no member {unknown}")
        for value in store.values():
            self._refuse_unknown(value)

    def _is_model(self, kind: object) -> bool:
        return isinstance(kind, type) and issubclass(kind, self._utils.ModelNormal | self._utils.ModelSimple)

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self._package}.{name}")


class OpenApiJudge:
    """Criteo's OpenAPI file, read as JSON schema."""

    def __init__(self, file: Path) -> None:
        content = json.loads(file.read_text())
        self._paths = content["paths"]
        self._components = nullable_as_json_schema(content["components"])
        (self.version,) = {path.split("/")[1] for path in self._paths if re.match(r"/\d{4}-\d\d/", path)}

    def request(self, exchange: Exchange) -> None:
        operation = self._operation(exchange)
        if "requestBody" in operation:
            self._validate(json.loads(exchange.body), operation["requestBody"])
        elif exchange.body:
            raise Wrong(f"{exchange.method} {exchange.path} takes no body")
        known = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"}
        if unknown := {pair.partition("=")[0] for pair in filter(None, exchange.query.split("&"))} - known:
            raise Wrong(f"{exchange.path} has no parameter {unknown}")

    def answer(self, exchange: Exchange) -> None:
        if exchange.status == 200:  # the file declares nothing else
            self._validate(json.loads(exchange.answer), self._operation(exchange)["responses"]["200"])

    def _operation(self, exchange: Exchange) -> Any:
        for template, operations in self._paths.items():
            if exchange.method.lower() in operations and _fits(template, exchange.path):
                return operations[exchange.method.lower()]
        raise Wrong(f"The contract has no {exchange.method} {exchange.path}")

    def _validate(self, content: object, described: dict[str, Any]) -> None:
        schema = nullable_as_json_schema(described["content"]["application/json"]["schema"])
        jsonschema.validate(content, {**schema, "components": self._components})


def nullable_as_json_schema(node: Any) -> Any:
    """Turn OpenAPI 3.0's `nullable` into JSON schema's own way to say it."""
    if isinstance(node, list):
        return [nullable_as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    turned = {key: nullable_as_json_schema(value) for key, value in node.items()}
    return {"anyOf": [turned, {"type": "null"}]} if turned.pop("nullable", False) is True else turned


def _fits(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\{[^/]+\}", "[^/]+", template), path) is not None
