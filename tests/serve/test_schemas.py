"""An invalid body gives one message: the field, the value, the expected value."""

import json

import msgspec
import pytest
from hypothesis import given, strategies

from twofold.serve.http_errors import HttpError, read_body
from twofold.serve.schemas import Events, Recommend

RECOMMEND, EVENTS = msgspec.json.Decoder(Recommend), msgspec.json.Decoder(Events)


def refused(decoder, body):
    with pytest.raises(HttpError) as caught:
        read_body(decoder, body)
    return caught.value


@pytest.mark.parametrize(
    ("decoder", "body", "field", "says"),
    [
        (RECOMMEND, {"k": 0}, "k", "k is '0': expected `int` >= 1."),
        (RECOMMEND, {"k": 1001}, "k", "k is '1001': expected `int` <= 1000."),
        (RECOMMEND, {"k": "x"}, "k", "k is 'x': expected `int`, got `str`."),
        (RECOMMEND, {"kk": 1}, "", "The body: object contains unknown field `kk`."),
        (
            RECOMMEND,
            {"user_id": float(10**300)},
            "user_id",
            f"user_id is '{float(10**300)}': expected `int | str | null`",
        ),
        (RECOMMEND, [1], "", "The body: expected `object`, got `array`."),
        (RECOMMEND, {"history": [1, 2.5]}, "history[1]", "history[1] is '2.5': expected `int | str`, got `float`."),
        (RECOMMEND, {"history": [1] * 1001}, "history", "history: expected `array` of length <= 1000."),
        (RECOMMEND, {"user_id": ""}, "user_id", "user_id is '': expected `str` of length >= 1."),
        (RECOMMEND, {"user_id": 10**30}, "user_id", f"user_id is '{10**30}': expected `int` <="),
        (RECOMMEND, {"context": {"at": -1}}, "context.at", "context.at is '-1': expected `int` >= 0."),
        (EVENTS, {"events": []}, "events", "events: expected `array` of length >= 1."),
        (EVENTS, {"events": [{"item_id": 1}]}, "events[0]", "events[0]: object missing required field `user_id`."),
        (
            EVENTS,
            {"events": [{"user_id": 1, "item_id": 2}, {"user_id": 1, "item_id": 2, "kind": "liked"}]},
            "events[1].kind",
            "events[1].kind is 'liked': invalid enum value 'liked'. The page /docs lists the valid values.",
        ),
    ],
)
def test_an_invalid_field_is_named_with_its_value(decoder, body, field, says):
    error = refused(decoder, json.dumps(body).encode())
    assert error.status == 422
    assert error.problem.detail.startswith(says)
    assert error.problem.field == field


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"NaN", b'{"k": 01}', b"{'k': 1}"])
def test_a_body_that_is_not_json_is_refused_as_such(body):
    error = refused(RECOMMEND, body)
    assert (error.status, error.problem.detail[:21]) == (400, "The body is not JSON:")


def status_of(body):
    """Returns the status of the reply, which must be encodable."""
    try:
        read_body(RECOMMEND, body)
    except HttpError as error:
        return error.status if msgspec.json.encode(error.problem) else None
    return 200


def test_a_thousand_brackets_are_one_message():
    assert refused(RECOMMEND, b"[" * 100_000).problem.detail.startswith("The body: expected `object`, got `array`.")
    assert refused(RECOMMEND, b'{"kk":' * 100_000).status == 422


@given(strategies.binary(max_size=64) | strategies.text(max_size=32).map(str.encode))
def test_any_bytes_are_a_request_or_one_message(body):
    assert status_of(body) in (200, 400, 422)


json_values = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers()
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.text(max_size=5),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(max_size=3), inner),
    max_leaves=5,
)  # fmt: skip


@given(strategies.dictionaries(strategies.sampled_from(Recommend.__struct_fields__), json_values))
def test_any_values_of_the_fields_are_a_request_or_one_message(body):
    assert status_of(json.dumps(body).encode()) in (200, 422)


def test_every_type_has_a_schema_with_its_limits(client):
    schemas = client.get("/openapi.json")[1]["components"]["schemas"]
    assert schemas["Recommend"]["properties"]["k"]["maximum"] == 1000
    assert schemas["Events"]["properties"]["events"]["maxItems"] == 1000
    assert "item_id" in schemas["Item"]["required"]
