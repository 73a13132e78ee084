//! What can go wrong.

use core::fmt;
use hypercall_abi::guest::device::Fault;
use hypercall_abi::guest::op::Status;

/// Why a driver could not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no device page at this address.
    NoDevice,
    /// The device is of another kind.
    WrongKind,
    /// The device has fewer queues than the driver needs.
    NoQueue,
    /// The queue's memory is not physically contiguous, or not aligned.
    BadMemory,
    /// Every place of the queue is taken: collect completions first.
    Full,
    /// Requests are in flight whose completions a call that waits would have to take: collect them first.
    Busy,
    /// The buffer has more pieces than a request can name.
    TooScattered,
    /// [`crate::Hal::keep_waiting`] gave up; the device was reset and has to be opened again.
    TimedOut,
    /// The device stopped because of this; it has to be opened again.
    Stopped(Option<Fault>),
    /// The device completed what it was not asked for; it was reset and has to be opened again.
    Broken,
    /// The request was carried out and failed.
    Failed(Status),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoDevice => f.write_str("no device page"),
            Error::WrongKind => f.write_str("a device of another kind"),
            Error::NoQueue => f.write_str("too few queues"),
            Error::BadMemory => f.write_str("queue memory that is not contiguous"),
            Error::Full => f.write_str("the queue is full"),
            Error::Busy => f.write_str("requests are in flight"),
            Error::TooScattered => f.write_str("the buffer has too many pieces"),
            Error::TimedOut => f.write_str("the device did not answer"),
            Error::Stopped(Some(fault)) => write!(f, "the device stopped: {fault:?}"),
            Error::Stopped(None) => f.write_str("the device stopped"),
            Error::Broken => f.write_str("the device answered what was not asked"),
            Error::Failed(status) => write!(f, "the request failed: {status:?}"),
        }
    }
}

impl core::error::Error for Error {}

/// What a driver's call returns.
pub type Result<T> = core::result::Result<T, Error>;
