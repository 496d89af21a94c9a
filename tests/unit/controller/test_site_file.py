"""The site file: what it means, what is refused, and that its page names every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swingbus.faults import InvalidInput, NotFound
from swingbus_controller.checking import describe, sum_of_ceilings_w
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.power.bank import ceiling_w
from swingbus_controller.settings import Configuration, load_configuration
from tests.fakes.controllers import SITE

PAGE = Path(__file__).parents[3] / "docs" / "controller.md"


def load(tmp_path: Path, text: str, **environment: str) -> Configuration:
    """Load a text as a site file."""
    path = tmp_path / "site.toml"
    path.write_text(text, encoding="utf-8")
    return load_configuration(path, environment=environment)


def example() -> str:
    """Return the full example of the page."""
    found = re.search(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_example_of_the_page_is_a_right_site_file(tmp_path: Path) -> None:
    """The documented example parses and means what it says."""
    site = load(tmp_path, example()).site
    assert site.authority is Authority.OBSERVE
    assert site.agents() == ("edge-1", "gpu-1")
    assert site.protocol.ttl_s == 20.0 and site.protocol.settle_windows == 3
    assert [change.sentence() for change in site.changed_settings] == [
        "ttl_s=20 (default 120): demo: agents fall to their safe share within seconds"
    ]
    bank = site.bank("edge-1", "s19j")
    assert bank is not None
    # Nameplate of the bank wins over the class's; each device counts at max(boot draw, 1.1 x ceiling).
    assert ceiling_w(bank.spec) == pytest.approx((60 * 3250 * 1.1 * 1.05 + 800 + 1000) * 1.01)
    full = site.classes["h100"].point("full")
    assert full is not None and full.workload == "llm" and full.counted_w == 749
    assert site.feeder_of_meter("m-c1") == "c1"
    assert site.tree.feeder("c1").limits[0].limit_w == pytest.approx(0.8 * 3**0.5 * 380 * 800 * 0.95)


def test_every_key_is_on_the_page(tmp_path: Path) -> None:
    """Each key that the parser asks for stands in backquotes on docs/controller.md."""
    page = PAGE.read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z0-9_]+)`", page))
    keys = load(tmp_path, example()).known_keys
    tables = {key for key in keys if any(other.startswith((f"{key}.", f"{key}[]")) for other in keys)}
    leaves = {re.split(r"[.]", key)[-1].removesuffix("[]") for key in keys - tables}
    assert len(leaves) > 100
    assert sorted(leaves - documented) == []


def test_every_key_of_the_example_is_one_that_is_read(tmp_path: Path) -> None:
    """A key more in any table of the example is refused."""
    with pytest.raises(InvalidInput, match="unknown key"):
        load(tmp_path, example() + "\nplanned = 3\n")


FAULTY = {
    "unknown key with its neighbour": ('[site]\nname = "north"\nautorithy = "observe"\n', "did you mean 'authority'"),
    "bad authority": ('[site]\nname = "north"\nauthority = "controll"\n', "did you mean 'control'"),
    "no limit at the head": (
        '[site]\nname = "n"\n[[feeder]]\nname = "grid"\nkind = "grid"\n',
        "the head feeder has no limit",
    ),
    "no feeder": ('[site]\nname = "n"\n', "no feeder is declared"),
    "bad name": ('[site]\nname = "North Site"\n', "is not a name"),
    "override without why": ("[protocol.ttl_s]\nvalue = 20\n", "protocol.ttl_s.why: is missing"),
    "unknown setting": ("[protocol.tttl_s]\nvalue = 20\n", "did you mean 'ttl_s'"),
    "too few windows": ('[protocol.settle_windows]\nvalue = 2\nwhy = "x"\n', "evidence needs at least 3 windows"),
    "half a window": ('[protocol.settle_windows]\nvalue = 3.5\nwhy = "x"\n', "not a whole number"),
    "NaN": ("[tariff]\ntake_or_pay_w = nan\n", "is not a finite number"),
    "money as float": ("[tariff]\nadder_usd_per_mwh = 4.2\n", "a decimal number in quotes"),
    "unknown signal": ('[[signal]]\nsignal = "price"\nstale_after_s = 5\n', "is no signal"),
    "bad address": ('[controller]\nlisten = "7443"\n', "is not host:port"),
    "table where a list is due": ('[feeder]\nname = "grid"\n', "a list of tables [[feeder]]"),
    "time without an anchor": ("[market]\nspeed_ratio = 60\n", "speed_ratio needs them"),
    "no TOML": ("[site\n", "is no TOML"),
    "a number too large for floats": (f"[tariff]\ntake_or_pay_w = {'9' * 401}\n", "is not a finite number"),
    "a number of thousands of digits": (f"[tariff]\ntake_or_pay_w = {'9' * 5000}\n", "is no TOML"),
    "endless brackets": (f"[site]\nname = {'[' * 5000}\n", "is no TOML"),
    "policy out of range": ("[policy]\npool_fee_ratio = 2.0\n", "pool_fee_ratio"),
}


@pytest.mark.parametrize("case", FAULTY)
def test_faulty_file_is_refused_with_where_and_what(tmp_path: Path, case: str) -> None:
    """Each kind of fault names its place."""
    text, words = FAULTY[case]
    with pytest.raises(InvalidInput) as refused:
        load(tmp_path, text)
    assert words in str(refused.value)


BROKEN_SITES = {
    "bank on no feeder": ('feeder = "c1"\ndevice_count', 'feeder = "c9"\ndevice_count', "'c9' is none of c1, grid"),
    "bank of no class": ('class = "s19j"', 'class = "s19"', "did you mean 's19j'"),
    "feeder above itself": ('name = "c1"\nparent = "grid"', 'name = "c1"\nparent = "c1"', "lies above itself"),
    "two heads": ('name = "c1"\nparent = "grid"', 'name = "c1"', "has 2"),
    "ASIC without boot draw": ("boot_w = 3400\n", "", "boot_w: is missing"),
    "point above its ceiling": ("power_w = 3068", "power_w = 9000", "above the ceiling"),
    "no place to rest": ('mode = "standby"', 'mode = "off"', "no point has mode standby"),
    "limit named as an order": ('name = "contract"', 'name = "operator"', "is kept for limits that people order later"),
    "limit named as the breaker's": (
        '[[feeder.limit]]\nname = "contract"',
        '[feeder.breaker]\nrated_a = 900\nmin_v = 380\npower_factor_ratio = 0.95\n[[feeder.limit]]\nname = "breaker"',
        "is the limit that [feeder.breaker] makes",
    ),
    "negative limit": ("limit_w = 400000", "limit_w = -1", "out of range"),
    "load larger than all": ('name = "c1"\n', 'name = "c1"\nu_max_w = 5\nu_step_w = 6\n', "cannot be larger than all"),
    "load measured without a meter": (
        'name = "c1"\n',
        'name = "c1"\nu_measured = true\n',
        "own meter only: it has none",
    ),
    "load measured of which none is rated": (
        'kind = "grid"\n',
        'kind = "grid"\nu_measured = true\n',
        "feeder[grid].u_measured: no load below it has a rating",
    ),
    "load measured without its step": (
        'kind = "grid"\n',
        'kind = "grid"\nu_measured = true\nu_max_w = 900\n',
        "feeder[grid].u_step_w: grid measures",
    ),
    "no devices": ("device_count = 3", "device_count = 0", "out of range"),
    "inference on an ASIC": ('mode = "mining"', 'mode = "inference"', "throughput_ratio"),
}


@pytest.mark.parametrize("case", BROKEN_SITES)
def test_inconsistent_site_is_refused(tmp_path: Path, case: str) -> None:
    """References and physics are checked, not only types."""
    old, new, words = BROKEN_SITES[case]
    assert old in SITE
    with pytest.raises(InvalidInput) as refused:
        load(tmp_path, SITE.replace(old, new, 1))
    assert words in str(refused.value)


def test_measured_load_says_how_much_of_it_starts_at_once(tmp_path: Path) -> None:
    """Ratings and steps of all feeders below count at the one that measures; by default none does."""
    text = SITE.replace('kind = "grid"\n', 'kind = "grid"\nu_measured = true\nu_max_w = 900\nu_step_w = 300\n')
    tree = load(tmp_path, text).site.tree
    assert tree.feeder("grid").measures_uncontrolled and not tree.feeder("c1").measures_uncontrolled
    assert (tree.uncontrolled_max_w("grid"), tree.uncontrolled_step_w("grid")) == (900.0, 300.0)


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    """A file with three faults tells three, each with its place."""
    text = SITE.replace("limit_w = 400000", 'limit_w = "much"').replace("ceiling_w", "celing_w") + "\n[surprise]\n"
    with pytest.raises(InvalidInput) as refused:
        load(tmp_path, text)
    message = str(refused.value)
    assert "feeder[grid].limit[contract].limit_w: 'much' is not a finite number" in message
    assert "class[s19j].ceiling_w: is missing" in message
    assert "class[s19j].celing_w: unknown key; did you mean 'ceiling_w'?" in message
    assert "surprise: unknown key" in message
    assert int(refused.value.metadata["fault_count"]) == 4


def test_missing_file_says_the_next_step(tmp_path: Path) -> None:
    """No file: where it was looked for and what to do."""
    with pytest.raises(NotFound, match="--config"):
        load_configuration(tmp_path / "none.toml", environment={})


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    """SWINGBUS_LISTEN replaces [controller] listen."""
    assert load(tmp_path, SITE, SWINGBUS_LISTEN="127.0.0.1:9").controller.listen == "127.0.0.1:9"


def test_check_shows_ceilings_beside_limits(tmp_path: Path) -> None:
    """The table has each feeder's sum of ceilings, losses included, and says what is not commissioned."""
    configuration = load(tmp_path, SITE)
    text = describe(configuration)
    assert sum_of_ceilings_w(configuration.site, "grid") == pytest.approx(3 * 3250 * 1.1)
    assert re.search(r"grid +grid +400 kW +10.7 kW +3%", text)
    assert "authority observe: everything is read, nothing is written" in text
    assert "class s19j: factors are defaults" in text
