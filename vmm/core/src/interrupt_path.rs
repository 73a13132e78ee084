//! The way of an interrupt: from a device's line through the I/O APIC to the local APIC.

use vdev::Request;
use vdev::interrupt::{DeliveryMode, Message};
use vdev::ioapic::IoApic;
use vdev::lapic::Lapic;
use vdev::virtio::mmio::Line;

use crate::virtio::LineChange;

/// What lies on the way. There is one CPU.
pub(crate) struct InterruptPath<'a> {
    pub(crate) ioapic: &'a mut IoApic,
    pub(crate) lapic: &'a mut Lapic,
    pub(crate) is_nmi_pending: &'a mut bool,
    pub(crate) request: &'a mut Option<Request>,
}

impl InterruptPath<'_> {
    /// The line of a virtio device did this.
    pub(crate) fn follow(&mut self, change: LineChange) {
        let (falls, rises) = match change.line {
            Line::Same => return,
            Line::Raised => (false, true),
            Line::Lowered => (true, false),
            Line::Pulsed => (true, true),
        };
        if falls {
            self.set_line(change.gsi, false);
        }
        if rises {
            self.set_line(change.gsi, true);
        }
    }

    /// The line of a device at this input of the I/O APIC has this level.
    pub(crate) fn set_line(&mut self, gsi: usize, level: bool) {
        if let Some(message) = self.ioapic.set_line(gsi, level) {
            self.deliver(&message);
        }
    }

    /// The I/O APIC sent a message.
    pub(crate) fn deliver(&mut self, message: &Message) {
        if self.lapic.is_destination(message.destination, message.logical) {
            self.interrupt(message.mode, message.vector, message.level);
        }
    }

    /// The local APIC got an interrupt.
    pub(crate) fn interrupt(&mut self, mode: DeliveryMode, vector: u8, level: bool) {
        match mode {
            DeliveryMode::Nmi => *self.is_nmi_pending = true,
            // INIT lets the bootstrap processor begin anew with the firmware (SDM 3A 9.1), and the only CPU is that one.
            DeliveryMode::Init => *self.request = self.request.or(Some(Request::Reset)),
            mode if mode.has_vector() => _ = self.lapic.accept(vector, level),
            // No firmware handles SMIs, no PIC gives a vector, and the only CPU does not wait for a start-up message.
            _ => {}
        }
    }
}
