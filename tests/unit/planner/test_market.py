"""Signals: fresh, stale, missing, fallback; and the feed from files."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from swingbus.faults import InvalidInput, NotFound
from swingbus_controller.adapters.market_file import load_market
from swingbus_controller.domain.planning.market import (
    Fallback,
    Gap,
    MarketBook,
    Quote,
    Signal,
    SignalKey,
    SignalKind,
    to_canonical,
)

POWER = SignalKey(kind=SignalKind.POWER_PRICE)


def make_signal(
    value: str = "50", *, from_s: float = 0.0, received_s: float | None = None, until_s: float | None = None
) -> Signal:
    """Return a power price."""
    return Signal(
        key=POWER, value=Decimal(value), source="test", valid_from_s=from_s,
        received_at_s=from_s if received_s is None else received_s, stale_after_s=100.0, valid_until_s=until_s,
    )  # fmt: skip


def test_newest_signal_in_force_answers_and_the_future_waits() -> None:
    """A day-ahead price is known but not yet in force."""
    book = MarketBook().with_signals([make_signal("60", from_s=50.0), make_signal("50")])
    quote = book.quote(POWER, 49.0)
    assert isinstance(quote, Quote) and quote.value == 50.0
    later = book.quote(POWER, 50.0)
    assert isinstance(later, Quote) and later.value == 60.0


@pytest.mark.parametrize(("signal", "now_s"), [(make_signal(), 100.0), (make_signal(until_s=60.0), 60.0)])
def test_stale_signal_is_a_gap_that_says_so(signal: Signal, now_s: float) -> None:
    """By age or by the end of its own window."""
    gap = MarketBook().with_signals([signal]).quote(POWER, now_s)
    assert isinstance(gap, Gap) and gap.reason.startswith("stale") and not gap.has_fallback


def test_fallback_stands_in_and_is_marked() -> None:
    """The planner may use it; the operator sees that it is one."""
    book = MarketBook().with_fallbacks([Fallback(key=POWER, value=Decimal("99"))])
    view = book.view(0.0)
    assert view.power_price_usd_per_mwh is not None
    assert view.power_price_usd_per_mwh.value == 99.0 and view.power_price_usd_per_mwh.is_fallback
    assert [(str(g.key), g.has_fallback) for g in view.gaps] == [("power_price", True), ("hashprice", False)]
    assert view.hashprice_usd_per_th_day is None


def test_correction_replaces_and_older_news_does_not() -> None:
    """Same start: the later received holds, whatever the order of arrival."""
    first, fixed = make_signal("50"), make_signal("51", received_s=5.0)
    for order in ([first, fixed], [fixed, first]):
        quote = MarketBook().with_signals(order).quote(POWER, 10.0)
        assert isinstance(quote, Quote) and quote.value == 51.0


def test_pruning_keeps_the_newest() -> None:
    """Old prices go, the last one stays to say how stale it is."""
    book = MarketBook().with_signals([make_signal(from_s=float(i)) for i in range(0, 1000, 100)])
    assert [s.valid_from_s for s in book.pruned(10_000.0).signals[POWER]] == [900.0]


def test_nonsense_signals_are_refused() -> None:
    """No NaN, no negative hashprice, no demand without a class, no unknown unit."""
    with pytest.raises(InvalidInput, match="must be finite"):
        make_signal("NaN")
    with pytest.raises(InvalidInput, match="only power may"):
        Signal(
            key=SignalKey(kind=SignalKind.HASHPRICE),
            value=Decimal(-1),
            source="x",
            valid_from_s=0,
            received_at_s=0,
            stale_after_s=1,
        )
    with pytest.raises(InvalidInput, match="needs a class"):
        SignalKey(kind=SignalKind.INFERENCE_DEMAND)
    with pytest.raises(InvalidInput, match="use one of USD/MWh, USD/kWh"):
        to_canonical(SignalKind.POWER_PRICE, Decimal(1), "EUR/MWh")


FEED = """
[[series]]
kind = "power_price"
file = "p.csv"
time_column = "ts"
value_column = "usd"
holds_s = 3600
stale_after_s = 7200

[[fallback]]
kind = "hashprice"
value = "46.5"
unit = "USD/PH/day"
"""


def write(folder: Path, csv_text: str, feed: str = FEED) -> Path:
    """Write a feed and its CSV; return the feed's path."""
    (folder / "p.csv").write_text(csv_text, encoding="utf-8")
    (folder / "feed.toml").write_text(feed, encoding="utf-8")
    return folder / "feed.toml"


def test_feed_reads_series_and_fallbacks(tmp_path: Path) -> None:
    """Empty cells are unknown; units become canonical; decimals stay exact."""
    book = load_market(
        write(tmp_path, "ts,usd\n2023-01-01T00:00:00Z,41.10\n2023-01-01T01:00:00Z,\n2023-01-01T02:00:00Z,-3\n")
    )
    start_s = 1_672_531_200.0
    assert [s.value for s in book.signals[POWER]] == [Decimal("41.10"), Decimal(-3)]
    assert isinstance(book.quote(POWER, start_s + 3599), Quote)
    assert isinstance(book.quote(POWER, start_s + 3600), Gap)
    hashprice = book.view(start_s).hashprice_usd_per_th_day
    assert hashprice is not None and hashprice.value == pytest.approx(0.0465)


def test_seconds_with_a_start_and_a_factor(tmp_path: Path) -> None:
    """A trace without a calendar is laid over any day; requests become GPUs."""
    feed = (
        '[[series]]\nkind = "inference_demand"\nclass = "h100"\nfile = "p.csv"\ntime_column = "offset_s"\nvalue_column = "rps"\n'
        'stale_after_s = 1200\nstart = "2023-01-01T00:00:00Z"\nfactor = "0.5"\n'
    )
    book = load_market(write(tmp_path, "offset_s,rps\n0,10\n600,20\n", feed))
    key = SignalKey(kind=SignalKind.INFERENCE_DEMAND, subject="h100")
    assert [(s.valid_from_s, s.value) for s in book.signals[key]] == [
        (1_672_531_200.0, Decimal("5.0")),
        (1_672_531_800.0, Decimal("10.0")),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ts,usd\n2023-01-01T00:00:00Z,abc\n", r"row 2, column 'usd': 'abc' is not a number"),
        ("ts,usd\n2023-01-01T00:00:00Z,NaN\n", r"row 2, column 'usd'.*must be finite"),
        ("ts,usd\nyesterday,1\n", r"row 2, column 'ts': 'yesterday' is not an ISO 8601"),
        ("ts,usd\n2023-01-01T00:00:00,1\n", "names no time zone"),
        ("ts,usd\n,1\n", "the time is empty"),
        ("ts,usd\n2023-01-01T00:00:00Z\n", "the row ends before"),
        ("ts,usd\n2023-01-01T00:00:00Z,1\n2023-01-01T00:00:00Z,2\n", r"row 3.*appears twice"),
        ("ts,eur\n2023-01-01T00:00:00Z,1\n", r"no column 'usd'; it has ts, eur"),
        ("ts,usd\n2023-01-01T00:00:00Z,\n", "holds no value at all"),
        ("", "no column"),
        ("ts,usd\n" + "".join(f"2023-01-01T00:00:{i:02d}Z,x\n" for i in range(20)), r"20 bad cell\(s\).*and 12 more"),
    ],
)
def test_bad_csv_names_file_row_and_column(tmp_path: Path, text: str, words: str) -> None:
    """What, where, and what to do."""
    with pytest.raises(InvalidInput, match=words) as caught:
        load_market(write(tmp_path, text))
    assert "p.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ("kind =", "not TOML"),
        ("", "declares no series"),
        ("prices = 1", "unknown key 'prices'"),
        ("series = 3", r"write \[\[series\]\]"),
        (FEED.replace("holds_s = 3600", "holds = 1"), "unknown key 'holds'"),
        (FEED.replace('"power_price"', '"weather"'), "kind is 'weather'"),
        (FEED.replace("stale_after_s = 7200", ""), "stale_after_s is missing"),
        (FEED.replace("stale_after_s = 7200", "stale_after_s = -1"), "must be a number of seconds above 0"),
        (FEED.replace('"46.5"', '"many"'), "must be a number"),
        (FEED.replace("USD/PH/day", "USD/hash"), "unit 'USD/hash' is unknown"),
    ],
)
def test_bad_feed_names_the_table_and_the_key(tmp_path: Path, feed: str, words: str) -> None:
    """A typing slip is not a silent default."""
    with pytest.raises(InvalidInput, match=words):
        load_market(write(tmp_path, "ts,usd\n2023-01-01T00:00:00Z,1\n", feed))


def test_missing_and_binary_files_are_told_apart(tmp_path: Path) -> None:
    """Not there is NotFound; not text is InvalidInput."""
    with pytest.raises(NotFound, match="no such file"):
        load_market(tmp_path / "nothing.toml")
    path = write(tmp_path, "")
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        load_market(path)
