"""Shapes: pydantic's findings about single keys, told in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from criteo_provider.settings.canvas import Canvas
from criteo_provider.settings.problems import Finding, Place

_PLAIN_WORDS = {
    "missing": "is missing.",
    "string_type": "has to be text.",
    "string_too_short": "is empty.",
    "string_too_long": "is longer than {max_length} characters.",
    "too_short": "is empty.",
    "bool_type": "has to be true or false.",
    "int_type": "has to be a whole number.",
    "int_parsing": "has to be a whole number.",
    "int_from_float": "has to be a whole number.",
    "greater_than_equal": "has to be at least {ge}.",
    "enum": "has to be one of {expected}.",
    "literal_error": "has to be one of {expected}.",
    "tuple_type": "has to be a list.",
    "dict_type": "has to be a block of keys.",
    "model_type": "has to be a block of keys.",
    "model_attributes_type": "has to be a block of keys.",
}
_PATTERNS = {
    "ad_account": "has to be Criteo's number of the ad account.",
    "callable": "has to be a dotted path, module.function.",
    "connection": "has to be the id of an Airflow connection: letters, digits, dot, dash, underscore.",
    "id": "has to be 1 to 64 of a-z, 0-9 and underscore.",
}


def findings(error: ValidationError, root: type[BaseModel] = Canvas) -> Iterator[Finding]:
    """Tell each of pydantic's errors about a canvas (or another file) as a place, what is wrong and how to mend it."""
    for detail in error.errors(include_url=False, include_input=False):
        yield _finding(detail, root)


def _finding(detail: ErrorDetails, root: type[BaseModel]) -> Finding:
    kind, context = detail["type"], detail.get("ctx", {})
    place: Place = tuple(part for part in detail["loc"] if part != "[key]")
    if kind == "canvas":
        return Finding(place, str(context["what"]), str(context["mend"]))
    if kind == "extra_forbidden":
        return Finding(place, "is not a key that belongs here.", _nearest(str(place[-1]), place[:-1], root))
    if kind == "invalid_key" or detail["loc"][-1:] == ("[key]",):
        return Finding(place, "has a key that is not text.", "Put the key in quotes.")
    if kind == "string_pattern_mismatch":
        return Finding(place, _PATTERNS[str(place[-1])], _example(place, root))
    what = _PLAIN_WORDS.get(kind, "is not what belongs here.").format(**context)
    return Finding(place, what.replace("'", ""), _example(place, root))


def _nearest(key: str, block: Place, root: type[BaseModel]) -> str:
    known = list(_keys(_model_at(block, root)))
    close = get_close_matches(key, known, n=1)
    return f"Did you mean {close[0]}?" if close else f"Keys here are: {', '.join(known)}."


def _example(place: Place, root: type[BaseModel]) -> str:
    """Show how the nearest key with an example is written."""
    while place and isinstance(place[-1], int):
        place = place[:-1]
    key = str(place[-1]) if place else ""
    field = _keys(_model_at(place[:-1], root)).get(key)
    return f"Write it like `{key}: {field.examples[0]}`." if field and field.examples else "Correct it."


def _model_at(place: Place, root: type[BaseModel]) -> type[BaseModel] | None:
    """Follow the keys of a place down the models."""
    model: type[BaseModel] | None = root
    for part in place:
        if isinstance(part, str):
            field = _keys(model).get(part)
            model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the model inside ``Model | None``, ``tuple[Model, ...]`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _keys(model: type[BaseModel] | None) -> dict[str, FieldInfo]:
    """List the keys of a block as they are written in YAML."""
    fields = model.model_fields if model else {}
    return {field.alias or name: field for name, field in fields.items()}
