"""Tokens that a mesh does not accept, and names that it does not give."""

import os
from dataclasses import replace

import pytest

from badinput.machines import NEEDS_ROOT
from meshd.keys import KEY_BYTES, InviteKey, NodeKey
from meshd.trust.invite import (
    Invite,
    format_token,
    open_invite_untrusted,
    parse_token_untrusted,
    sign_invite,
)

pytestmark = NEEDS_ROOT

TOKEN_FILE = "/etc/meshd/token"
BY_TOKEN = ("--token-file", TOKEN_FILE)


@pytest.fixture
def seed(machines):
    """A member that invites."""
    machines["a"].start("--init")
    return machines["a"]


def invite(seed, *flags):
    """Return a token of a member's."""
    outcome = seed.meshctl("invite", *flags)
    assert outcome.status == 0, outcome.output
    return outcome.output.splitlines()[0]


def refused(machine, token, *parts, args=()):
    """Hold a machine to being refused with a token, and to leaving nothing behind."""
    machine.write_token(token)
    with machine.unchanged():
        outcome = machine.meshd(*BY_TOKEN, *args)
    outcome.refuses(1, "does not let this node in", *parts)


def test_a_token_that_has_been_used_is_refused(machines, seed):
    token = invite(seed)
    machines["b"].write_token(token)
    machines["b"].start(*BY_TOKEN)
    machines["b"].wait_members(2)

    refused(machines["c"], token, "the token has been used", "ask for another one")

    assert seed.node.status()["mesh"]["members"] == {"alive": 2, "suspect": 0, "dead": 0, "left": 0}


def test_a_token_that_has_expired_is_refused_with_both_times(machines, seed):
    token = invite(seed, "--expires", "1h")
    seed.node.stop_daemon()
    seed.start(clock=7200)

    refused(machines["b"], token, "the token expired at", "by the clock", "ask for another token")


def test_a_token_is_refused_to_a_name_that_another_member_has(machines, seed):
    token = invite(seed, "--reusable")

    refused(machines["b"], token, "the name 'a' belongs to another", "--name", args=("--name", "a"))

    machines["b"].start(*BY_TOKEN, "--name", "other")
    machines["b"].wait_members(2)


def test_a_token_whose_invite_was_altered_is_refused_before_anybody_is_asked(machines, seed):
    token = parse_token_untrusted(invite(seed))
    granted = open_invite_untrusted(token.invite, token.mesh)
    altered = bytearray(token.invite)
    altered[-1] ^= 1
    thief = machines["b"]
    thief.write_token(format_token(replace(token, invite=bytes(altered))))

    with thief.unchanged():
        outcome = thief.meshd(*BY_TOKEN)

    assert granted.uses == 1
    outcome.refuses(2, TOKEN_FILE, "token is malformed: ask for another one")


def test_a_token_of_an_inviter_whom_nobody_knows_is_asked_about_again_and_again(machines, seed):
    genuine = parse_token_untrusted(invite(seed))
    stranger, key = NodeKey(os.urandom(KEY_BYTES)), InviteKey(os.urandom(KEY_BYTES))
    promise = Invite(id=key.id, issuer=stranger.id, expires_at=2**33, admit=True)
    forged = replace(genuine, invite_key=key, invite=sign_invite(promise, stranger, genuine.mesh))
    machine = machines["b"]
    machine.write_token(format_token(forged))
    with machine.unchanged():
        machine.start(*BY_TOKEN)

        assert "has not heard of the inviter" in machine.wait_finding("refused")
        assert machine.meshctl("status", "--check", "ready").status == 1
        assert seed.node.status()["members"] == []

        # The node may be known elsewhere by then, so its key is the one thing that stays.
        assert machine.node.stop_daemon() == 0
        machine.sh("rm -r /var/lib/meshd/mesh0")


def test_how_a_token_file_ends_does_not_matter(machines, seed):
    token = invite(seed, "--reusable")
    ends = dict(zip("bcde", ("", "\n", "\r\n", " \n\n"), strict=True))
    for name, end in ends.items():
        machines[name].write_token(token + end)
        machines[name].launch(*BY_TOKEN)

    seed.wait_members(1 + len(ends))


def test_a_node_that_is_killed_while_its_token_waits_begins_again_where_it_was(machines, seed):
    token = invite(seed)
    seed.node.stop_daemon()
    machine = machines["b"]
    machine.write_token(token)
    before = machine.start(*BY_TOKEN)["self"]
    machine.node.kill_daemon()

    machine.start(*BY_TOKEN)
    seed.start()

    after = machine.wait_members(2)["self"]
    assert after["id"] == before["id"]
    assert after["public_key"] == before["public_key"]


def test_a_start_that_is_refused_removes_what_a_killed_one_has_left(machines, seed):
    token = invite(seed)
    machines["c"].write_token(token)
    machines["c"].start(*BY_TOKEN)
    machines["c"].wait_members(2)
    seed.node.stop_daemon()
    machine = machines["b"]
    machine.write_token(token)
    machine.start(*BY_TOKEN)
    machine.node.kill_daemon()
    seed.start()

    machine.meshd(*BY_TOKEN, "--seed", "10.77.0.1").refuses(1, "the token has been used")

    traces = machine.traces()
    assert traces["interfaces"] == ["eth0", "lo"]
    assert traces["tables"] == []
