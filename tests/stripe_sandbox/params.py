"""Request parameters: decoded from Stripe's form encoding, checked against the SDK's own types.

The `TypedDict`s of `stripe.params` are generated from Stripe's OpenAPI description, so a parameter
that is not in them does not exist at the pinned API version.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from functools import cache
from types import UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints

import stripe.params
from stripe._request_options import RequestOptions
from typing_extensions import is_typeddict

from .errors import Refusal, bad_param

# Names that the generated modules import for type checkers only.
TYPE_CHECKING_NAMES = {"StripeContext": str, "Mapping": Mapping}
OPTIONS = frozenset(RequestOptions.__annotations__)
KEY = re.compile(r"\[([^\[\]]*)\]")
METADATA_KEYS, METADATA_KEY_LENGTH, METADATA_VALUE_LENGTH = 50, 40, 500

Params = dict[str, Any]


def decode_form(pairs: Iterable[tuple[str, str]]) -> Params:
    """`items[0][price]=p&expand[]=a` as nested dicts: `{"items": {"0": {"price": "p"}}, …}`.

    Lists stay dicts with numbers for keys until `check` knows that a list is meant.
    """
    tree: Params = {}
    for key, value in pairs:
        head, bracket, _ = key.partition("[")
        path = [head, *(KEY.findall(key[len(head) :]) if bracket else [])]
        node = tree
        for step in path[:-1]:
            child = node.setdefault(step or str(len(node)), {})
            if not isinstance(child, dict):
                raise bad_param(f"Invalid request: {head} is both a value and a hash", head)
            node = child
        node[path[-1] or str(len(node))] = value
    return tree


def params_class(name: str) -> type:
    """`checkout.SessionCreateParams` → the class of that name in `stripe.params.checkout`."""
    *package, cls = name.split(".")
    module = stripe.params
    for part in package:
        module = getattr(module, part)
    found: type = getattr(module, cls)
    return found


@cache
def fields_of(cls: type) -> dict[str, tuple[Any, bool]]:
    """Name → (type, required) of a parameter class, without the SDK's request options."""
    fields = {}
    for name, hint in get_type_hints(cls, localns=TYPE_CHECKING_NAMES, include_extras=True).items():
        if name in OPTIONS:
            continue
        optional = get_origin(hint) is NotRequired
        fields[name] = (get_args(hint)[0] if optional else hint, not optional)
    return fields


def check(params: Params, cls: type, clearable: Collection[str] = ()) -> Params:
    """The parameters with their types (int, bool, list …), or Stripe's refusal.

    `clearable`: plain texts of the top level that an empty value unsets.
    """
    return _hash(params, cls, "", clearable)


def _at(path: str, name: str) -> str:
    return f"{path}[{name}]" if path else name


def _hash(params: Params, cls: type, path: str, clearable: Collection[str] = ()) -> Params:
    fields = fields_of(cls)
    unknown = [_at(path, name) for name in params if name not in fields]
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        message = f"Received unknown parameter{plural}: {', '.join(unknown)}"
        raise bad_param(message, unknown[0], "parameter_unknown")
    for name, (_, required) in fields.items():
        if required and params.get(name, "") == "":
            where = _at(path, name)
            raise bad_param(f"Missing required param: {where}.", where, "parameter_missing")
    return {
        name: None
        if value == "" and name in clearable and not path
        else _value(value, fields[name][0], _at(path, name))
        for name, value in params.items()
    }


def _value(value: Any, hint: Any, path: str) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, dict):
        return _nested(value, options, path)
    words = [word for o in options if get_origin(o) is Literal for word in get_args(o)]
    if value in words:
        return value
    for scalar in (bool, int, float, Decimal):
        if scalar in options:
            return _scalar(value, scalar, words, path)
    # The SDK leaves enums open (`Literal[…] | str`), Stripe does not.
    choices = [word for word in words if word]
    if choices:
        listing = ", ".join(choices[:-1]) + (" or " if choices[1:] else "") + choices[-1]
        raise bad_param(f"Invalid {path}: must be one of {listing}", path)
    if str in options:
        if value == "":
            raise bad_param(
                f"You passed an empty string for '{path}'. We assume empty values are an attempt "
                f"to unset a parameter; however '{path}' cannot be unset.",
                path,
                "parameter_invalid_empty",
            )
        return value
    kind = "array" if any(get_origin(o) is list for o in options) else "object"
    raise bad_param(f"Invalid {kind}", path)


def _nested(value: Params, options: tuple[Any, ...], path: str) -> Any:
    for option in options:
        if is_typeddict(option):
            return _hash(value, option, path)
        if get_origin(option) is list:
            if not all(key.isdigit() for key in value):
                raise bad_param("Invalid array", path)
            (element,) = get_args(option)
            keys = sorted(value, key=int)
            return [_value(value[key], element, f"{path}[{i}]") for i, key in enumerate(keys)]
        if get_origin(option) is dict:
            return _metadata(value, get_args(option)[1], path)
    raise bad_param("Invalid string: " + str(value), path)


def _metadata(value: Params, hint: Any, path: str) -> Params:
    """A free map: each value checked, and metadata's published limits when it holds texts."""
    if hint is not str:
        return {k: _value(v, hint, _at(path, k)) for k, v in value.items()}
    if len(value) > METADATA_KEYS:
        raise bad_param(f"Metadata can have at most {METADATA_KEYS} keys", path)
    for key, text in value.items():
        where = _at(path, key)
        if not isinstance(text, str):
            raise bad_param(f"Invalid string: {text}", where)
        if len(key) > METADATA_KEY_LENGTH:
            raise bad_param(f"Metadata keys can be up to {METADATA_KEY_LENGTH} characters long", where)
        check_length(text, METADATA_VALUE_LENGTH, where)
    return value


def _scalar(value: str, scalar: type, words: list[str], path: str) -> Any:
    if scalar is bool and value in ("true", "false"):
        return value == "true"
    if scalar is int and re.fullmatch(r"-?[0-9]{1,18}", value):
        return int(value)
    if scalar in (float, Decimal):
        try:
            number = Decimal(value)
        except InvalidOperation:
            raise bad_param(f"Invalid decimal: {value}", path) from None
        if number.is_finite():
            return float(number) if scalar is float else str(number)
    names: dict[type, str] = {bool: "boolean", int: "integer"}
    name = names.get(scalar, "decimal")
    choices = "".join(f" or '{word}'" for word in words if word)
    code = "parameter_invalid_integer" if scalar is int else None
    raise bad_param(f"Invalid {name}{choices}: {value}", path, code)


def check_length(text: str | None, most: int, param: str) -> None:
    if text is not None and len(text) > most:
        raise bad_param(
            f"Invalid string: {text[:6]}...{text[-6:]}; must be at most {most} characters",
            param,
            "parameter_invalid_string_length" if "metadata" not in param else None,
        )


def check_supported(params: Params, supported: Collection[str], path: str = "") -> None:
    """Stripe would take it, this sandbox has no such behaviour: said, never silently ignored.

    `supported` has dotted names; a name stands for all below it unless longer ones exist.
    """
    for name, value in params.items():
        dotted = f"{path}.{name}" if path else name
        deeper = any(s.startswith(dotted + ".") for s in supported)
        if deeper:
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    check_supported(part, supported, dotted)
        elif dotted not in supported:
            raise Refusal(
                400,
                f"The parameter {dotted} exists at Stripe, but this sandbox does not model it",
                code="sandbox_unsupported",
                param=dotted,
                saved=False,
            )
