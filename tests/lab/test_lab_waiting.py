import itertools
import time

import pytest

from lablib import DeadlineExceeded, LabError, wait_until


def test_what_the_condition_returns_is_returned():
    answers = iter([0, None, "", "there"])

    assert wait_until(lambda: next(answers), "an answer", timeout=5, interval=0) == "there"


def test_the_last_failed_assert_is_the_reason_given():
    counter = itertools.count(1)

    def condition():
        seen = next(counter)
        raise AssertionError(f"saw {seen} of 5")

    with pytest.raises(DeadlineExceeded, match=r"not within 0 s: five of them; at last: saw 1 of"):
        wait_until(condition, "five of them", timeout=0)


def test_an_error_of_the_lab_is_waited_out():
    answers = iter([LabError("not yet"), True])

    def condition():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert wait_until(condition, "no error", timeout=5, interval=0) is True


def test_a_mistake_in_the_condition_is_not_waited_out():
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 / 0, "nothing", timeout=5)


def test_a_condition_that_comes_to_hold_at_the_deadline_still_counts():
    ends_at = time.monotonic() + 0.05

    assert wait_until(lambda: time.monotonic() >= ends_at, "the end", timeout=0.05, interval=0.001)
