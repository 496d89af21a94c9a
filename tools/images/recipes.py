"""What each image holds: which of our packages, which third-party ones, what it starts as, and how large it may get over its base.

The simulator is in the toys' images alone: an agent or a controller that could load it could mistake play for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from swingbus import __version__
from swingbus.faults import InvalidInput

REPOSITORY = "swingbus.invalid"  # never resolves: a node that lacks the image can't fetch something else in its place
USER = "65532:65532"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One image.

    Args:
        name: of archive and image.
        what: one line for the label.
        packages: ours, as folders of the repository.
        extra: third-party packages: an extra of pyproject.toml (with the project's own dependencies); None for none at all.
        programs: command to module; the first is the entry.
        over_base_bytes_max: what wheels and code may take unpacked.
    """

    name: str
    what: str
    packages: tuple[str, ...]
    extra: str | None
    programs: tuple[tuple[str, str], ...]
    over_base_bytes_max: int

    @property
    def image(self) -> str:
        """Return the name that a pod asks for."""
        return f"{REPOSITORY}/{self.name}:{__version__}"

    @property
    def entry(self) -> str:
        """Return the command that the image starts."""
        return self.programs[0][0]


_CONTRACT = "protos/swingbus"
_SIM = "sim/swingbus_sim"
RECIPES = (
    Recipe(
        name="swingbus-agent",
        what="The Swingbus agent: samples a host's GPUs, ASICs and meters, carries out what its controller grants",
        packages=(_CONTRACT, "agent/swingbus_agent"),
        extra="agent",
        programs=(("swingbus-agent", "swingbus_agent.main"),),
        over_base_bytes_max=80_000_000,
    ),
    Recipe(
        name="swingbus-controller",
        what="The Swingbus controller: one power budget for a site's mining and inference; with swingctl",
        packages=(_CONTRACT, "controller/swingbus_controller", "controller/swingctl"),
        extra="controller",
        programs=(("swingbus-controller", "swingbus_controller.main"), ("swingctl", "swingctl.main")),
        over_base_bytes_max=280_000_000,
    ),
    Recipe(
        name="toy-miner",
        what="A toy that keeps simulated GPUs busy as a miner does; for tests of Swingbus",
        packages=(_CONTRACT, _SIM),
        extra=None,
        programs=(("toy-miner", "swingbus_sim.toys.miner"),),
        over_base_bytes_max=5_000_000,
    ),
    Recipe(
        name="toy-inference",
        what="A toy inference server on simulated GPUs; for tests of Swingbus",
        packages=(_CONTRACT, _SIM),
        extra=None,
        programs=(("toy-inference", "swingbus_sim.toys.inference"),),
        over_base_bytes_max=5_000_000,
    ),
)


def find_recipe(name: str) -> Recipe:
    """Return a recipe by its name."""
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    raise InvalidInput(f"no image {name!r}: there are {', '.join(recipe.name for recipe in RECIPES)}")
