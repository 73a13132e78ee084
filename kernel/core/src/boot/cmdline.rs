//! The kernel's command line: words separated by white space.
//!
//! | word | meaning |
//! |---|---|
//! | `loglevel=error`, `warn`, `info`, `debug` or `trace` | least severe message that is logged; `info` if absent |
//! | `console=` list of `serial`, `e9`, or `none` | where the log goes: COM1, port E9 of an emulator; `e9` if absent |
//! | `panic=reboot` or `halt` | what a panic ends with; `halt` if absent |
//! | `kmem=`MiB | memory kept for kernel objects |
//! | `selftest=panic` or `fault` | end on purpose after boot, to see the epitaph |
//! | `mitigations=auto` or `off` | what the CPU needs against side channels, or nothing; `auto` if absent |
//! | `apicv` | use APIC virtualization, whatever a word before says |
//! | `nox2apic`, `notscdeadline`, `noxsave`, `noiommu`, `noapicv` | do without a feature |

/// Severity of a log message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is odd.
    Warn,
    /// What happens.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// Where the log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console {
    /// COM1.
    pub serial: bool,
    /// Port E9.
    pub e9: bool,
}

/// What a panic ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicAction {
    /// A reset.
    Reboot,
    /// Stopped CPUs.
    Halt,
}

/// A way for the kernel to end on purpose, once it has booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// It panics.
    Panic,
    /// It reads an address that is not mapped.
    Fault,
}

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Least severe level that is logged.
    pub log_level: LogLevel,
    /// Where the log goes.
    pub console: Console,
    /// What a panic ends with.
    pub panic: PanicAction,
    /// MiB for kernel objects, if given.
    pub kmem_mib: Option<u32>,
    /// Use x2APIC mode if there is one.
    pub x2apic: bool,
    /// Use TSC-deadline if there is one.
    pub tsc_deadline: bool,
    /// Use XSAVE if there is one.
    pub xsave: bool,
    /// Use IOMMUs if there are any.
    pub iommu: bool,
    /// Use APIC virtualization if there is any.
    pub apic_virtualization: bool,
    /// Mitigate side channels as the CPU needs it.
    pub mitigations: bool,
    /// Way to end on purpose, for a test of the epitaph.
    pub self_test: Option<SelfTest>,
    /// Words that mean nothing; [`unknown_words`] names them.
    pub unknown: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            log_level: LogLevel::Info,
            console: Console { serial: false, e9: true },
            panic: PanicAction::Halt,
            kmem_mib: None,
            x2apic: true,
            tsc_deadline: true,
            xsave: true,
            iommu: true,
            apic_virtualization: true,
            mitigations: true,
            self_test: None,
            unknown: 0,
        }
    }
}

/// Parses a line, up to its first zero byte. The last word of a kind wins.
pub fn parse(line: &[u8]) -> Options {
    let mut options = Options::default();
    for word in words(line) {
        if options.apply(word).is_none() {
            options.unknown += 1;
        }
    }
    options
}

/// The words of a line that mean nothing to [`parse`].
pub fn unknown_words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    words(line).filter(|word| Options::default().apply(word).is_none())
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = line.iter().position(|&byte| byte == 0).unwrap_or(line.len());
    line[..end].split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

impl Options {
    /// Does what a word says; `None`, and no change, if it means nothing.
    fn apply(&mut self, word: &[u8]) -> Option<()> {
        let word = core::str::from_utf8(word).ok()?;
        match word.split_once('=') {
            None => match word {
                "nox2apic" => self.x2apic = false,
                "notscdeadline" => self.tsc_deadline = false,
                "noxsave" => self.xsave = false,
                "apicv" => self.apic_virtualization = true,
                "noapicv" => self.apic_virtualization = false,
                "noiommu" => self.iommu = false,
                _ => return None,
            },
            Some(("loglevel", value)) => self.log_level = log_level(value)?,
            Some(("console", value)) => self.console = console(value)?,
            Some(("panic", "reboot")) => self.panic = PanicAction::Reboot,
            Some(("panic", "halt")) => self.panic = PanicAction::Halt,
            Some(("kmem", value)) => self.kmem_mib = Some(value.parse().ok().filter(|&mib| mib > 0)?),
            Some(("mitigations", "auto")) => self.mitigations = true,
            Some(("mitigations", "off")) => self.mitigations = false,
            Some(("selftest", "panic")) => self.self_test = Some(SelfTest::Panic),
            Some(("selftest", "fault")) => self.self_test = Some(SelfTest::Fault),
            Some(_) => return None,
        }
        Some(())
    }
}

fn log_level(value: &str) -> Option<LogLevel> {
    Some(match value {
        "error" => LogLevel::Error,
        "warn" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => return None,
    })
}

fn console(value: &str) -> Option<Console> {
    let mut console = Console { serial: false, e9: false };
    if value == "none" {
        return Some(console);
    }
    for sink in value.split(',') {
        match sink {
            "serial" => console.serial = true,
            "e9" => console.e9 = true,
            _ => return None,
        }
    }
    Some(console)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_line_gives_the_defaults() {
        assert_eq!(parse(b""), Options::default());
        assert_eq!(parse(b" \t \0 nox2apic"), Options::default());
    }

    #[test]
    fn every_word_is_understood() {
        let line = b"loglevel=trace console=serial,e9 panic=reboot  kmem=64 \
            nox2apic notscdeadline noxsave noiommu noapicv mitigations=off selftest=fault\0";
        let expected = Options {
            log_level: LogLevel::Trace,
            console: Console { serial: true, e9: true },
            panic: PanicAction::Reboot,
            kmem_mib: Some(64),
            x2apic: false,
            tsc_deadline: false,
            xsave: false,
            iommu: false,
            apic_virtualization: false,
            mitigations: false,
            self_test: Some(SelfTest::Fault),
            unknown: 0,
        };
        assert_eq!(parse(line), expected);
        assert_eq!(parse(b"console=e9 console=none").console, Console { serial: false, e9: false });
    }

    #[test]
    fn unknown_words_are_counted_and_named() {
        let line =
            b"quiet loglevel=loud kmem=0 kmem=-1 console=serial,tty panic mitigations=on nox2apic \xff";
        let options = parse(line);
        assert_eq!(options, Options { x2apic: false, unknown: 8, ..Options::default() });
        let names: Vec<_> = unknown_words(line).collect();
        let expected: [&[u8]; 8] = [
            b"quiet",
            b"loglevel=loud",
            b"kmem=0",
            b"kmem=-1",
            b"console=serial,tty",
            b"panic",
            b"mitigations=on",
            b"\xff",
        ];
        assert_eq!(names, expected);
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(parse(&line).unknown as usize, unknown_words(&line).count());
        }
    }
}
