"""When a machine counts as having slept."""

from meshd.daemon.sleep import SLEPT_MIN, SleepWatch, seconds_asleep


class Clock:
    def __init__(self):
        self.asleep = 500.0

    def __call__(self):
        return self.asleep


def test_each_sleep_is_told_once():
    clock = Clock()
    watch = SleepWatch(clock)
    assert watch.slept() == 0.0

    clock.asleep += 3600.0

    assert watch.slept() == 3600.0
    assert watch.slept() == 0.0


def test_what_is_too_short_adds_up():
    clock = Clock()
    watch = SleepWatch(clock)

    clock.asleep += SLEPT_MIN / 2
    assert watch.slept() == 0.0
    clock.asleep += SLEPT_MIN / 2
    assert watch.slept() == SLEPT_MIN


def test_a_machine_that_is_awake_does_not_fall_asleep():
    watch = SleepWatch()

    assert watch.slept() == 0.0
    assert seconds_asleep() >= 0.0
