"""What is known after a restart: the newest stored batch of each agent and the accusations on the record.

Decides nothing. Invariant: what is rebuilt is known, not heard: every agent is dark until it speaks.
"""

from __future__ import annotations

from collections.abc import Callable

from swingbus.faults import SwingbusError
from swingbus.logs import get_logger
from swingbus.names import DeviceName, parse_name
from swingbus_controller.app.sums import columns_of, read_bank
from swingbus_controller.domain.fleet.fleet import ACCUSATIONS, Fleet
from swingbus_controller.domain.fleet.frames import AgentInventory, BatchFrame
from swingbus_controller.ports.journal import Journal
from swingbus_controller.ports.telemetry_store import LastBatch, TelemetryArchive

# Turns a stored batch back into what ingest saw. Raises a SwingbusError where it cannot.
Decode = Callable[[LastBatch], tuple[AgentInventory, BatchFrame]]


def rebuild(fleet: Fleet, archive: TelemetryArchive, journal: Journal, decode: Decode) -> int:
    """Fill an empty fleet from what is stored; return how many agents were found."""
    found = 0
    for last in archive.last_batches():
        try:
            inventory, batch = decode(last)
        except SwingbusError as error:
            # A batch of an older format must not keep the controller from starting: the agent will send its inventory anew.
            get_logger().warning("stored_batch_unreadable", agent=last.agent, reason=error.reason, message=str(error))
            continue
        fleet.take_inventory(inventory)
        columns = {bank.bank: columns_of(bank) for bank in inventory.banks}
        fleet.restore(
            batch,
            {frame.bank: read_bank(frame, columns[frame.bank]) for frame in batch.banks},
            received_unix_s=last.received_unix_s,
            spool_uid=last.spool_uid,
            sample_count=last.sample_count,
            acked_sequence=last.acked_sequence,
        )
        found += 1
    for journaled in journal.read():
        entry = journaled.entry
        if entry.kind in ACCUSATIONS and "accusation" in entry.facts:
            name = parse_name(entry.subject)
            if isinstance(name, DeviceName):
                fleet.accuse(name.agent, name.bank, name.device, entry.kind)
    return found
