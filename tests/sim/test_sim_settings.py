"""Each setting is what it says, each switch switches something, and the table tells of both."""

import dataclasses

import pytest

from meshd.gossip.config import GossipConfig
from sim.settings import SETTINGS, SWITCHES, Job, ablated, by_setting, measure, run


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_nobody_who_is_in_no_trouble_dies_and_all_learn_of_a_crash(setting):
    result = measure(setting, 10, 1, watch=20.0)
    print(result)
    assert result.false_deaths == 0
    assert result.all_know is not None


def test_in_a_quiet_place_nobody_is_suspected():
    result = measure(SETTINGS[0], 10, 1, watch=20.0)
    assert (result.suspicions, result.path_faults, result.troubled_deaths) == (0, 0, 0)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_is_off_when_it_says_so(switch):
    off = dataclasses.replace(GossipConfig(), **SWITCHES[switch])
    assert off != GossipConfig()


def test_the_tables_have_a_row_for_each_setting_and_switch():
    jobs = [Job("quiet LAN", 4, switch, 1) for switch in (None, "observers")]
    results = {(job.setting, job.size, job.switch): [run(job)[1]] for job in jobs}
    plain, detailed = by_setting(results), ablated(results)
    assert plain.count("\n") == 2
    assert "| quiet LAN | 4 |" in plain
    assert "| all on |" in detailed
    assert "| without observers |" in detailed
