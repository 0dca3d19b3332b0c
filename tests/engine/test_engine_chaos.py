"""Everything at once, at random; then it stops, and the mesh has to be whole again by itself."""

from random import Random

import pytest

from engine.engine_world import World, all_ping, whole

TURMOIL = 60.0
# Nearly always a few seconds.  But a mesh may have come apart into groups that have all moved, and
# then the next search of one of them for its seeds has to be waited for.
HEALING = 60.0


class Chaos:
    """Does to a mesh what happens to meshes."""

    def __init__(self, seed):
        self.world = World(seed=seed)
        self.rng = Random(f"chaos {seed}")
        self.machines = [self.world.machine(f"n{number}") for number in range(5)]
        self.seeds = ["seed0.example.org:51820", "seed1.example.org:51820"]
        self.name_seeds()
        self.numbers = iter(range(1, 255))
        for machine in self.machines:
            machine.start(seeds=self.seeds)
        self.world.run_until(lambda: whole(*self.machines), within=10.0)

    def name_seeds(self):
        """Have DNS say where the first two machines are."""
        for number, machine in enumerate(self.machines[:2]):
            self.world.names[f"seed{number}.example.org"] = tuple(map(str, machine.addresses))

    def rage(self):
        """Let one thing happen."""
        machine = self.rng.choice(self.machines)
        running = machine.engine is not None
        match self.rng.randrange(9):
            case 0 if running:
                machine.kill()
            case 1:
                machine.power_off()
            case 2 | 3 if not running:
                machine.start(seeds=self.seeds)
            case 4:
                machine.unplug(noticed=self.rng.random() < 0.5)
            case 5:
                machine.plug()
            case 6:
                machine.renumber(f"198.51.100.{next(self.numbers)}")
                self.name_seeds()
            case 7:
                names = [each.name for each in self.machines]
                self.world.underlay.island = frozenset(self.rng.sample(names, 2))
            case 8 if running and self.rng.random() < 0.3:
                machine.leave()
            case _:
                self.world.underlay.loss = self.rng.choice((0.0, 0.1, 0.5))

    def heal(self):
        """End it all, and have everybody run."""
        self.world.underlay.island = frozenset()
        self.world.underlay.loss = 0.0
        for machine in self.machines:
            machine.plug()
            if machine.engine is None:
                machine.start(seeds=self.seeds)


def survive(seed):
    chaos = Chaos(seed)
    world, machines = chaos.world, chaos.machines
    addresses = {machine.name: machine.ipv4 for machine in machines}
    end = world.now + TURMOIL
    while world.now < end:
        chaos.rage()
        world.run_for(chaos.rng.expovariate(0.5))
    chaos.heal()
    took = world.run_until(lambda: whole(*machines), within=HEALING)
    # A path may have broken between two that have not missed each other yet.
    world.run_until(lambda: all_ping(*machines), within=HEALING)
    assert {machine.name: machine.ipv4 for machine in machines} == addresses
    assert not [notice for machine in machines for notice in machine.of("identity-cloned")]
    return took


@pytest.mark.parametrize("seed", range(8))
def test_a_mesh_survives_whatever_happens_to_it(seed):
    survive(seed)
