"""CapacityService over mutual TLS on loopback, above the real engine of a virtual site."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from swingbus.capacity.v1alpha import capacity_pb2 as pb
from swingbus.capacity.v1alpha import capacity_service_pb2 as rpc
from swingbus.capacity.v1alpha.capacity_service_pb2_grpc import CapacityServiceStub
from swingbus.faults import AlreadyExists, Forbidden, InvalidInput, NotFound, OverBudget, SwingbusError, WrongState
from swingbus.fleet.v1alpha import fleet_pb2
from swingbus.link.v1alpha import link_pb2
from swingbus.rpc.channel import open_channel
from swingbus.rpc.roles import Role
from swingbus.rpc.status import faults_raised
from swingbus_controller.adapters.pki import CertificateAuthority
from swingbus_controller.domain.flips.flip import Phase
from tests.fakes.authority import issue, make_authority, serving
from tests.fakes.site import VirtualSite, settled_site
from tests.fakes.site_files import make_site

DEADLINE_S = 10.0
SITE = "sites/north"
BANK = f"{SITE}/agents/gpu1/banks/gpus"
ASICS = f"{SITE}/agents/edge1/banks/asics"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Make one CA for the module."""
    return make_authority(tmp_path_factory.mktemp("pki") / "site")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Make another CA that nobody here trusts."""
    return make_authority(tmp_path_factory.mktemp("pki") / "stranger")


@asynccontextmanager
async def connected(
    site: VirtualSite, authority: CertificateAuthority, role: Role, name: str
) -> AsyncIterator[CapacityServiceStub]:
    """Serve the site's controller and connect as one role."""
    assert site.deciding is not None
    async with (
        serving(authority, site.deciding.add_to_server) as port,
        open_channel(issue(authority, name, role, port)) as channel,
    ):
        yield CapacityServiceStub(channel)


async def call(method: Any, request: Any) -> Any:
    """Call with a deadline, our own faults raised."""
    with faults_raised():
        return await method(request, timeout=DEADLINE_S)


def options(id: str, *, validate_only: bool = False) -> rpc.WriteOptions:
    """Return what every write carries."""
    return rpc.WriteOptions(request_id=id, reason="test", validate_only=validate_only)


def span(seconds: float) -> Duration:
    """Return a protobuf duration."""
    made = Duration()
    made.FromTimedelta(timedelta(seconds=seconds))
    return made


def curtailment(id: str = "c", **changes: Any) -> rpc.StartCurtailmentRequest:
    """Return a good order to curtail, with changes."""
    fields: dict[str, Any] = {
        "parent": SITE,
        "feeder": "grid",
        "limit_w": 90_000.0,
        "notice": span(30),
        "duration": span(120),
        "options": options(id),
    }
    return rpc.StartCurtailmentRequest(**{**fields, **changes})


def flip(id: str = "f", **changes: Any) -> rpc.RequestFlipRequest:
    """Return a good request for a flip, with changes."""
    fields: dict[str, Any] = {
        "bank": BANK,
        "device_count": 8,
        "from_mode": link_pb2.MODE_MINING,
        "to_mode": link_pb2.MODE_INFERENCE,
        "options": options(id),
    }
    return rpc.RequestFlipRequest(**{**fields, **changes})


def writes() -> list[tuple[str, Any]]:
    """Return every write with a request that would be carried out for whoever may."""
    return [
        ("RequestFlip", flip("w-1")),
        ("CancelFlip", rpc.CancelFlipRequest(name=f"{SITE}/flips/none", options=options("w-2"))),
        ("StartCurtailment", curtailment("w-3")),
        ("EndCurtailment", rpc.EndCurtailmentRequest(name=f"{SITE}/curtailments/none", options=options("w-4"))),
        ("SetFeederLimit", rpc.SetFeederLimitRequest(name=f"{SITE}/feeders/grid", limit_w=1e5, options=options("w-5"))),
        ("SetPin", rpc.SetPinRequest(bank=BANK, pinned=True, options=options("w-6"))),
        ("SetLockout", rpc.SetLockoutRequest(bank=BANK, locked_out=True, options=options("w-7"))),
        (
            "SetAuthority",
            rpc.SetAuthorityRequest(name=SITE, authority=fleet_pb2.AUTHORITY_OBSERVE, options=options("w-8")),
        ),
        ("CreateReservation", rpc.CreateReservationRequest(parent=SITE, reservation_id="r", options=options("w-9"))),
        ("EndReservation", rpc.EndReservationRequest(name=f"{SITE}/reservations/r", options=options("w-10"))),
    ]


async def test_viewer_reads_everything_and_is_refused_every_write(authority: CertificateAuthority) -> None:
    """A viewer's certificate changes nothing: not even a check is made for it."""
    site = settled_site()
    async with connected(site, authority, Role.VIEWER, "vic") as stub:
        revision = site.journal.newest_revision()
        for name, request in writes():
            with pytest.raises(Forbidden):
                await call(getattr(stub, name), request)
        assert site.journal.newest_revision() == revision
        assert (await call(stub.GetPlan, rpc.GetPlanRequest(parent=SITE))).plan.banks
        for name in ("Flips", "Curtailments", "Pins", "Lockouts", "Reservations"):
            request = getattr(rpc, f"List{name}Request")(parent=SITE)
            await call(getattr(stub, f"List{name}"), request)


async def test_stranger_is_refused_everything(authority: CertificateAuthority, stranger: CertificateAuthority) -> None:
    """A certificate of another authority opens no connection at all."""
    site = settled_site()
    assert site.deciding is not None
    async with (
        serving(authority, site.deciding.add_to_server) as port,
        open_channel(issue(stranger, "eve", Role.ADMIN, port)) as channel,
    ):
        stub = CapacityServiceStub(channel)
        with pytest.raises(SwingbusError):
            await call(stub.GetPlan, rpc.GetPlanRequest(parent=SITE))
        with pytest.raises(SwingbusError):
            await call(stub.SetPin, rpc.SetPinRequest(bank=BANK, pinned=True, options=options("x")))
        assert not site.state.pins


async def test_operator_flips_pins_and_curtails_but_sets_no_limit(authority: CertificateAuthority) -> None:
    """The operator's name is the author on the record; limits, authority and the lifting of lockouts are an admin's."""
    site = settled_site()
    async with connected(site, authority, Role.OPERATOR, "olga") as stub:
        made = (await call(stub.RequestFlip, flip())).flip
        assert made.author == "olga" and made.device_count == 8
        again = (await call(stub.RequestFlip, flip())).flip
        assert again.name == made.name
        site.market.demand = None
        assert site.run(120, lambda: not site.state.open_flips()), site.explain()
        shown = (await call(stub.GetFlip, rpc.GetFlipRequest(name=made.name))).flip
        assert shown.phase == pb.FLIP_PHASE_ACTIVE and shown.history

        pin = (await call(stub.SetPin, rpc.SetPinRequest(bank=ASICS, pinned=True, options=options("p")))).pin
        assert pin.author == "olga"
        pins = (await call(stub.ListPins, rpc.ListPinsRequest(parent=SITE))).pins
        assert [p.bank for p in pins] == [ASICS]

        dry = await call(stub.StartCurtailment, curtailment("dry", options=options("dry", validate_only=True)))
        assert dry.preview and not site.state.curtailments
        started = (await call(stub.StartCurtailment, curtailment())).curtailment
        site.run(60)
        found = (await call(stub.GetCurtailment, rpc.GetCurtailmentRequest(name=started.name))).curtailment
        assert found.state == "CURTAILED" and found.HasField("met_time")
        assert found.metered_power_w < 90_000.0
        own = found.evidence[0]
        assert own.settled and len(own.windows) >= 3 and all(w.upper_power_w <= 90_000.0 for w in own.windows)
        ended = await call(stub.EndCurtailment, rpc.EndCurtailmentRequest(name=started.name, options=options("e")))
        assert ended.curtailment.state == "CANCELLED"

        lock = rpc.SetLockoutRequest(bank=BANK, locked_out=True, options=options("l"))
        assert (await call(stub.SetLockout, lock)).lockout.author == "olga"
        lift = rpc.SetLockoutRequest(bank=BANK, locked_out=False, cleared_by="grace", options=options("lift"))
        for name, request in [
            *(w for w in writes() if w[0] in ("SetFeederLimit", "SetAuthority")),
            ("SetLockout", lift),
        ]:
            with pytest.raises(Forbidden):
                await call(getattr(stub, name), request)
        assert "gpu1/gpus" in site.state.lockouts


async def test_admin_sets_limits_and_lifts_lockouts_on_somebodys_word(authority: CertificateAuthority) -> None:
    """The limit is shown with its source; a lockout goes only with the name of who looked inside."""
    site = settled_site()
    async with connected(site, authority, Role.ADMIN, "ada") as stub:
        request = rpc.SetFeederLimitRequest(name=f"{SITE}/feeders/grid", limit_w=100_000.0, options=options("s"))
        feeder = (await call(stub.SetFeederLimit, request)).feeder
        assert feeder.limit_w == 100_000.0 and "operator ada" in [lim.source for lim in feeder.limits]
        clear = rpc.SetFeederLimitRequest(name=f"{SITE}/feeders/grid", options=options("t"))
        assert (await call(stub.SetFeederLimit, clear)).feeder.limit_w == 145_000.0

        lock = rpc.SetLockoutRequest(bank=BANK, locked_out=True, options=options("l"))
        await call(stub.SetLockout, lock)
        with pytest.raises(InvalidInput) as unnamed:
            await call(stub.SetLockout, rpc.SetLockoutRequest(bank=BANK, options=options("m")))
        assert unnamed.value.reason == "NOT_CLEARED"
        lift = rpc.SetLockoutRequest(bank=BANK, cleared_by="grace", options=options("n"))
        await call(stub.SetLockout, lift)
        assert not (await call(stub.ListLockouts, rpc.ListLockoutsRequest(parent=SITE))).lockouts

        lower = rpc.SetAuthorityRequest(name=SITE, authority=fleet_pb2.AUTHORITY_ADVISE, options=options("a"))
        assert (await call(stub.SetAuthority, lower)).site.authority == fleet_pb2.AUTHORITY_ADVISE
        with pytest.raises(Forbidden) as below:
            await call(stub.RequestFlip, flip("late"))
        assert below.value.reason == "NO_AUTHORITY"


@pytest.mark.parametrize(
    ("method", "request_", "fault", "reason"),
    [
        ("RequestFlip", flip(device_count=7), InvalidInput, "NOT_WHOLE_UNITS"),
        ("RequestFlip", flip(device_count=800), OverBudget, "NOT_ENOUGH_DEVICES"),
        ("RequestFlip", flip(bank=f"{SITE}/agents/x/banks/y"), NotFound, "NO_SUCH_BANK"),
        ("RequestFlip", flip(bank="sites/south/agents/gpu1/banks/gpus"), NotFound, "NO_SUCH_SITE"),
        ("RequestFlip", flip(bank="nonsense"), InvalidInput, ""),
        ("RequestFlip", flip(from_mode=link_pb2.MODE_UNSPECIFIED), InvalidInput, "BAD_MODE"),
        ("RequestFlip", flip(from_mode=link_pb2.MODE_INFERENCE), WrongState, "NOTHING_IN_MODE"),
        ("RequestFlip", flip(options=options("")), InvalidInput, "BAD_REQUEST_ID"),
        ("RequestFlip", flip(options=rpc.WriteOptions(request_id="x")), InvalidInput, "BAD_REASON"),
        ("CancelFlip", rpc.CancelFlipRequest(name=f"{SITE}/flips/x", options=options("x")), NotFound, "NO_SUCH_FLIP"),
        ("StartCurtailment", curtailment(limit_w=-1.0), InvalidInput, "BAD_LIMIT"),
        ("StartCurtailment", curtailment(limit_w=float("nan")), InvalidInput, "BAD_LIMIT"),
        ("StartCurtailment", curtailment(duration=span(0)), InvalidInput, "BAD_SPAN"),
        ("StartCurtailment", curtailment(notice=span(-5)), InvalidInput, "BAD_SPAN"),
        ("StartCurtailment", curtailment(window=span(-60)), InvalidInput, "BAD_SPAN"),
        ("StartCurtailment", curtailment(feeder="moon"), NotFound, ""),
        ("StartCurtailment", curtailment(payment_usd_per_mwh="a lot"), InvalidInput, "BAD_DECIMAL"),
        (
            "SetPin",
            rpc.SetPinRequest(bank=BANK, pinned=True, duration=span(-1), options=options("x")),
            InvalidInput,
            "BAD_SPAN",
        ),
        ("SetFeederLimit", rpc.SetFeederLimitRequest(name=f"{SITE}/feeders/moon", options=options("x")), NotFound, ""),
        (
            "SetFeederLimit",
            rpc.SetFeederLimitRequest(name=f"{SITE}/feeders/grid", limit_w=float("nan"), options=options("x")),
            InvalidInput,
            "BAD_LIMIT",
        ),
        ("SetAuthority", rpc.SetAuthorityRequest(name=SITE, options=options("x")), InvalidInput, "BAD_AUTHORITY"),
        ("ListFlips", rpc.ListFlipsRequest(parent=SITE, page_size=-1), InvalidInput, "BAD_PAGE_SIZE"),
        ("ListFlips", rpc.ListFlipsRequest(parent=SITE, page_token="zzz"), InvalidInput, "BAD_PAGE_TOKEN"),
        ("ListFlips", rpc.ListFlipsRequest(parent="sites/south"), NotFound, "NO_SUCH_SITE"),
        ("GetFlip", rpc.GetFlipRequest(name=f"{SITE}/flips/x"), NotFound, "NO_SUCH_FLIP"),
        ("GetCurtailment", rpc.GetCurtailmentRequest(name=f"{SITE}/curtailments/x"), NotFound, "NO_SUCH_CURTAILMENT"),
        ("ExplainBank", rpc.ExplainBankRequest(name=f"{SITE}/agents/x/banks/y"), NotFound, ""),
        (
            "CreateReservation",
            rpc.CreateReservationRequest(parent=SITE, reservation_id="r", options=options("x")),
            InvalidInput,
            "",
        ),
        (
            "EndReservation",
            rpc.EndReservationRequest(name=f"{SITE}/reservations/x", options=options("x")),
            NotFound,
            "NO_SUCH_RESERVATION",
        ),
    ],
)
async def test_bad_requests_are_told_what_is_wrong_and_change_nothing(
    authority: CertificateAuthority, method: str, request_: Any, fault: type[SwingbusError], reason: str
) -> None:
    """Each kind of bad input has its own fault and reason; nothing is recorded, nothing crashes."""
    site = shared_site()
    async with connected(site, authority, Role.ADMIN, f"ada-{next(COUNTER)}") as stub:
        revision = site.journal.newest_revision()
        with pytest.raises(fault) as refused:
            await call(getattr(stub, method), request_)
        assert reason in ("", refused.value.reason)
        assert len(str(refused.value)) > 10
        assert site.journal.newest_revision() == revision


COUNTER = iter(range(1000))
_shared: list[VirtualSite] = []


def shared_site() -> VirtualSite:
    """Return a site that no test changes: bad requests leave it as it was."""
    if not _shared:
        _shared.append(settled_site())
    return _shared[0]


async def test_request_id_used_for_something_else_is_refused(authority: CertificateAuthority) -> None:
    """The same id, other content."""
    site = settled_site()
    async with connected(site, authority, Role.OPERATOR, "olga-2") as stub:
        await call(stub.SetPin, rpc.SetPinRequest(bank=ASICS, pinned=True, options=options("same")))
        with pytest.raises(AlreadyExists) as refused:
            await call(stub.SetPin, rpc.SetPinRequest(bank=ASICS, pinned=False, options=options("same")))
        assert refused.value.reason == "REQUEST_ID_REUSED"


async def test_plan_is_explained_in_money_also_for_a_bank_nobody_has_heard(authority: CertificateAuthority) -> None:
    """`plan show`, `explain` and `why-not` answer for every bank; one whose agent never came is told as such."""
    site = VirtualSite(make_site(), mining=10)
    site.agents["gpu2"].is_alive = False
    site.start_controller()
    assert site.run(200, lambda: not site.state.open_flips() and site.clock.s > 10_060), site.explain()
    async with connected(site, authority, Role.VIEWER, "vic-2") as stub:
        plan = (await call(stub.GetPlan, rpc.GetPlanRequest(parent=SITE))).plan
        assert len(plan.banks) == 3 and plan.signals
        told = await call(stub.ExplainBank, rpc.ExplainBankRequest(name=ASICS))
        assert "USD/MWh" in told.explanation and told.facts
        why = await call(stub.ExplainBank, rpc.ExplainBankRequest(name=BANK, why_not=link_pb2.MODE_INFERENCE))
        assert why.explanation and why.facts["code"]
        with pytest.raises(SwingbusError) as silent:
            await call(stub.ExplainBank, rpc.ExplainBankRequest(name=f"{SITE}/agents/gpu2/banks/gpus"))
        assert isinstance(silent.value, (NotFound, WrongState))


async def test_reservation_is_accepted_served_and_ended(authority: CertificateAuthority) -> None:
    """What fits is accepted and served, what does not is refused with the feeder, the end frees it."""
    site = settled_site()
    now_s = site.clock.now().timestamp()
    reservation = pb.Reservation(
        device_class="h100", gpu_count=8, price_usd_per_gpu_h="3.10", uptime_ratio=0.99, credit_steps=["0.99:0.10"]
    )
    reservation.start_time.FromSeconds(round(now_s))
    reservation.end_time.FromSeconds(round(now_s + 3600))
    async with connected(site, authority, Role.OPERATOR, "olga-3") as stub:
        ask = rpc.CreateReservationRequest(
            parent=SITE, reservation_id="acme", reservation=reservation, options=options("r")
        )
        made = (await call(stub.CreateReservation, ask)).reservation
        assert made.author == "olga-3"
        assert site.run(
            150,
            lambda: (
                len(site.flips(Phase.ACTIVE, bank="gpu1/gpus")) > 2
                or len(site.flips(Phase.ACTIVE, bank="gpu2/gpus")) > 2
            ),
        )
        (shown,) = (await call(stub.ListReservations, rpc.ListReservationsRequest(parent=SITE))).reservations
        assert shown.served_gpu_count == 8
        too_many = pb.Reservation()
        too_many.CopyFrom(reservation)
        too_many.gpu_count = 64
        with pytest.raises(OverBudget) as refused:
            await call(
                stub.CreateReservation,
                rpc.CreateReservationRequest(
                    parent=SITE, reservation_id="big", reservation=too_many, options=options("big")
                ),
            )
        assert refused.value.reason == "RESERVATION_DOES_NOT_FIT"
        ended = await call(stub.EndReservation, rpc.EndReservationRequest(name=made.name, options=options("e")))
        assert ended.reservation.end_time.ToSeconds() <= round(now_s + 3600)
        site.run(1)
        with pytest.raises(WrongState):
            await call(stub.EndReservation, rpc.EndReservationRequest(name=made.name, options=options("e2")))
