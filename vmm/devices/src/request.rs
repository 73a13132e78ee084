/// What a device asks of the VM as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// The guest turned its machine off.
    PowerOff,
    /// The guest reset its machine.
    Reset,
    /// A test guest ended with this value, as written to the exit device.
    Exit(u32),
}
