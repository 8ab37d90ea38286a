"""The control socket's language takes what it knows and refuses all else, whatever is sent."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvisor import errors
from dvisor.errors import DvisorError, EngineError, UsageError
from dvisor.machine import messages
from dvisor.machine.messages import AnyRequest, Describe, Failure, Quit
from dvisor.machine.states import State

REQUESTS = AnyRequest.__args__

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=4,
)
request_like = st.fixed_dictionaries(
    {"do": st.sampled_from([kind.__struct_config__.tag for kind in REQUESTS])},
    optional=dict.fromkeys(("descriptors", "force", "timeout_s", "replay", "x"), json_values),
)


@pytest.mark.parametrize("kind", REQUESTS)
def test_every_request_survives_the_wire(kind: type[messages.Request]) -> None:
    line = messages.encode(kind())
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert messages.decode_request(line) == kind()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_usage_error(line: bytes) -> None:
    with contextlib.suppress(UsageError):
        messages.decode_request(line)


@given(json_values | request_like)
def test_any_json_is_a_request_or_a_usage_error(value: object) -> None:
    try:
        request = messages.decode_request(msgspec.json.encode(value))
    except UsageError:
        return
    assert isinstance(request, messages.Request)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_reply_or_an_engine_error(line: bytes) -> None:
    with contextlib.suppress(EngineError):
        messages.decode_reply(line)


@pytest.mark.parametrize("opening", [b"[", b'{"do":', b'{"do":"quit","force":['])
def test_deep_nesting_is_refused(opening: bytes) -> None:
    line = opening * (messages.REQUEST_LIMIT // len(opening))
    with pytest.raises(UsageError):
        messages.decode_request(line)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown field `forse`"):
        messages.decode_request(b'{"do":"quit","forse":true}')


def test_a_wrong_type_is_refused() -> None:
    with pytest.raises(UsageError, match="Expected `bool`"):
        messages.decode_request(b'{"do":"quit","force":1}')
    assert messages.decode_request(b'{"do":"quit","force":true}') == Quit(force=True)
    assert messages.decode_request(b'{"do":"describe"}') == Describe()


@pytest.mark.parametrize("kind", ["StateError", "UsageError", "HostError", "EngineError"])
def test_an_error_is_the_same_on_the_other_side(kind: str) -> None:
    sent: DvisorError = getattr(errors, kind)("what to do")
    reply = messages.decode_reply(messages.encode(messages.failure(sent)))
    assert isinstance(reply, Failure)
    received = messages.to_error(reply)
    assert (type(received), str(received)) == (type(sent), str(sent))


def test_a_kind_of_error_from_the_future_is_an_engine_error() -> None:
    assert type(messages.to_error(Failure("TimeTravelError", "x"))) is EngineError


def test_states_go_over_the_wire_by_name() -> None:
    assert b'"state":"paused"' in messages.encode(messages.Done(State.PAUSED))
