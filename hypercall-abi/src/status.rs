//! Results of hypercalls (SPEC.md 3).

use crate::numbers::numbers;

numbers! {
    /// What a hypercall came to: bits 0 to 31 of RAX on return.
    ///
    /// SPEC.md lists for each call which of these it returns, and exactly when.
    Status: u32 {
        /// Done.
        Success = 0,
        /// No such hypercall number.
        BadHypercall = 1,
        /// The selector is out of range or names nothing.
        BadSelector = 2,
        /// The capability names an object of another type.
        BadType = 3,
        /// The capability lacks a right that the call needs.
        BadRights = 4,
        /// An argument is outside its range.
        BadArgument = 5,
        /// The pool that pays for the call has too few free frames.
        NoMemory = 6,
        /// The destination selector or address is in use.
        Occupied = 7,
        /// The object belongs to another CPU.
        WrongCpu = 8,
        /// The deadline passed.
        Timeout = 9,
        /// The object went away while the caller waited on it.
        Aborted = 10,
        /// The object is in use by another thread.
        Busy = 11,
        /// Something the call needs is not bound to the object.
        Unbound = 12,
        /// This machine cannot do it.
        Unsupported = 13,
        /// Part of the range was done; the count is in the first result register.
        Partial = 14,
    }
}
