from ipaddress import IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from meshd.keys import NodeId
from meshd.plan.claims import Claim, choose_claim, resolve_claims, usable

PREFIX = IPv4Network("100.64.0.0/29")  # six usable addresses: conflicts are the rule
NODES = [NodeId(bytes([i]) * 32) for i in range(12)]

addresses = st.integers(0, 7).map(lambda i: PREFIX.network_address + i)
claims = st.lists(
    st.builds(
        Claim,
        node=st.sampled_from(NODES),
        address=addresses,
        pinned=st.booleans(),
        admitted_at=st.integers(0, 3),
    ),
    unique_by=lambda claim: claim.node,
)


@given(claims, st.randoms())
def test_the_order_in_which_claims_are_learnt_does_not_matter(claimed, random):
    shuffled = claimed.copy()
    random.shuffle(shuffled)

    assert resolve_claims(claimed, PREFIX) == resolve_claims(shuffled, PREFIX)


@given(claims)
def test_an_address_has_one_holder_and_is_never_an_end_of_the_prefix(claimed):
    holders = resolve_claims(claimed, PREFIX)

    assert len(set(holders.values())) == len(holders)
    assert all(usable(address, PREFIX) for address in holders.values())


@given(claims)
def test_nobody_loses_to_a_later_claim(claimed):
    holders = resolve_claims(claimed, PREFIX)

    for claim in claimed:
        if claim.node not in holders and usable(claim.address, PREFIX):
            winner = next(c for c in claimed if holders.get(c.node) == claim.address)
            assert winner.precedence < claim.precedence


def test_a_pin_takes_an_address_from_an_older_claim():
    address = PREFIX.network_address + 1
    old = Claim(NODES[0], address, pinned=False, admitted_at=1)
    pinned = Claim(NODES[1], address, pinned=True, admitted_at=2)

    assert resolve_claims([old, pinned], PREFIX) == {NODES[1]: address}


@given(st.sets(addresses), st.sampled_from(NODES))
def test_a_chosen_claim_is_free_and_found_whenever_there_is_one(taken, node):
    chosen = choose_claim(node, taken=taken, prefix=PREFIX)

    free = {a for a in PREFIX if usable(a, PREFIX)} - taken
    assert (chosen in free) if free else (chosen is None)


@given(st.lists(st.sampled_from(NODES), unique=True, min_size=1, max_size=6), st.randoms())
def test_losers_that_claim_again_end_with_an_address_each(nodes, random):
    claimed = {node: Claim(node, PREFIX.network_address + 3, False, 0) for node in nodes}
    for _ in range(len(nodes)):
        holders = resolve_claims(claimed.values(), PREFIX)
        losers = [node for node in nodes if node not in holders]
        if not losers:
            break
        loser = random.choice(losers)
        address = choose_claim(loser, taken=set(holders.values()), prefix=PREFIX)
        assert address is not None
        claimed[loser] = Claim(loser, address, False, 0)

    assert len(resolve_claims(claimed.values(), PREFIX)) == len(nodes)


def test_a_node_asks_for_the_same_address_wherever_it_starts():
    prefix = IPv4Network("100.64.0.0/10")

    first, second = (choose_claim(NODES[3], taken=(), prefix=prefix) for _ in range(2))

    assert first == second
    assert str(first) == "100.90.79.27"
