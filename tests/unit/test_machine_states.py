"""A VM's state moves along one table, and a call at a wrong time is one clear error."""

from __future__ import annotations

import pytest

from dvisor.errors import StateError
from dvisor.machine.states import TRANSITIONS, Lifecycle, State


def test_every_state_has_a_row() -> None:
    assert set(TRANSITIONS) == set(State)


def test_nothing_follows_an_end() -> None:
    assert not TRANSITIONS[State.SHUTDOWN]
    assert not TRANSITIONS[State.CRASHED]


def test_every_living_state_can_crash() -> None:
    ended = {State.SHUTDOWN, State.CRASHED}
    assert all(State.CRASHED in TRANSITIONS[state] for state in set(State) - ended)


def test_a_move_that_the_table_lacks_is_refused() -> None:
    lifecycle = Lifecycle("web1")
    with pytest.raises(StateError, match="from created to running"):
        lifecycle.move(State.RUNNING)
    assert lifecycle.state is State.CREATED


def test_moving_to_the_present_state_is_no_change() -> None:
    lifecycle = Lifecycle("web1")
    assert lifecycle.move(State.STARTING)
    assert not lifecycle.move(State.STARTING)


@pytest.mark.parametrize("state", list(State))
def test_a_wrong_call_says_the_state_and_what_to_do(state: State) -> None:
    lifecycle = Lifecycle("web1")
    lifecycle.state = state
    with pytest.raises(StateError) as caught:
        lifecycle.require("pause")
    assert str(caught.value).startswith(f"cannot pause VM web1: it is {state}; ")
    assert len(str(caught.value).split("; ", 1)[1]) > 10
    lifecycle.require("pause", state)
