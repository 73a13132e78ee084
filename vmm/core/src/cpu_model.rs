//! The CPU model `nacre-v1`: which of the host's features a guest may have.
//!
//! A feature is in the model exactly if it has a name in [`WORDS`]. What is not there is hidden from guests: VMX and
//! SVM, MONITOR, performance counters, the debug store, SGX, SMX, 57-bit addresses, TSX, CET, AMX, memory
//! bandwidth control, and speculation control, whose MSRs no guest is given.

use alloc::string::String;

/// Name of the model.
pub const NAME: &str = "nacre-v1";

/// A register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// A register full of feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Leaf.
    pub leaf: u32,
    /// Subleaf.
    pub subleaf: u32,
    /// Register.
    pub register: Register,
    /// The features in it that the model allows: bit, and name in Linux's /proc/cpuinfo.
    features: &'static [(u8, &'static str)],
}

impl Word {
    /// The features in it that the model allows.
    pub const fn mask(&self) -> u32 {
        let (mut mask, mut index) = (0, 0);
        while index < self.features.len() {
            mask |= 1 << self.features[index].0;
            index += 1;
        }
        mask
    }
}

/// Indices into [`WORDS`].
pub mod word {
    /// Leaf 1 ECX.
    pub const LEAF1_ECX: usize = 0;
    /// Leaf 1 EDX.
    pub const LEAF1_EDX: usize = 1;
    /// Leaf 7 subleaf 0 EBX.
    pub const LEAF7_EBX: usize = 2;
    /// Leaf 7 subleaf 0 ECX.
    pub const LEAF7_ECX: usize = 3;
    /// Leaf 7 subleaf 0 EDX.
    pub const LEAF7_EDX: usize = 4;
    /// Leaf 7 subleaf 1 EAX.
    pub const LEAF7_1_EAX: usize = 5;
    /// Leaf 0xD subleaf 1 EAX.
    pub const LEAFD_1_EAX: usize = 6;
    /// Leaf 0x8000_0001 ECX.
    pub const EXT1_ECX: usize = 7;
    /// Leaf 0x8000_0001 EDX.
    pub const EXT1_EDX: usize = 8;
    /// Leaf 0x8000_0008 EBX.
    pub const EXT8_EBX: usize = 9;
    /// Number of words.
    pub const COUNT: usize = 10;
}

const fn features(
    leaf: u32,
    subleaf: u32,
    register: Register,
    features: &'static [(u8, &'static str)],
) -> Word {
    Word { leaf, subleaf, register, features }
}

/// The model. Bits on both vendors' CPUs mean the same (SDM 2A CPUID; APM 3 appendix E).
#[rustfmt::skip]
pub const WORDS: [Word; word::COUNT] = [
    features(1, 0, Register::Ecx, &[
        (0, "pni"), (1, "pclmulqdq"), (9, "ssse3"), (12, "fma"), (13, "cx16"), (17, "pcid"), (19, "sse4_1"),
        (20, "sse4_2"), (21, "x2apic"), (22, "movbe"), (23, "popcnt"), (24, "tsc_deadline_timer"), (25, "aes"),
        (26, "xsave"), (28, "avx"), (29, "f16c"), (30, "rdrand"), (31, "hypervisor"),
    ]),
    features(1, 0, Register::Edx, &[
        (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"), (7, "mce"), (8, "cx8"),
        (9, "apic"), (11, "sep"), (12, "mtrr"), (13, "pge"), (14, "mca"), (15, "cmov"), (16, "pat"), (17, "pse36"),
        (19, "clflush"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2"), (27, "ss"),
    ]),
    features(7, 0, Register::Ebx, &[
        (0, "fsgsbase"), (1, "tsc_adjust"), (3, "bmi1"), (5, "avx2"), (6, "fdp_excptn_only"), (7, "smep"),
        (8, "bmi2"), (9, "erms"), (10, "invpcid"), (13, "zero_fcs_fds"), (16, "avx512f"), (17, "avx512dq"),
        (18, "rdseed"), (19, "adx"), (20, "smap"), (21, "avx512ifma"), (23, "clflushopt"), (24, "clwb"),
        (26, "avx512pf"), (27, "avx512er"), (28, "avx512cd"), (29, "sha_ni"), (30, "avx512bw"), (31, "avx512vl"),
    ]),
    features(7, 0, Register::Ecx, &[
        (1, "avx512vbmi"), (2, "umip"), (3, "pku"), (6, "avx512_vbmi2"), (8, "gfni"), (9, "vaes"),
        (10, "vpclmulqdq"), (11, "avx512_vnni"), (12, "avx512_bitalg"), (14, "avx512_vpopcntdq"), (22, "rdpid"),
        (25, "cldemote"), (27, "movdiri"), (28, "movdir64b"),
    ]),
    features(7, 0, Register::Edx, &[
        (2, "avx512_4vnniw"), (3, "avx512_4fmaps"), (4, "fsrm"), (8, "avx512_vp2intersect"), (10, "md_clear"),
        (14, "serialize"), (23, "avx512_fp16"),
    ]),
    features(7, 1, Register::Eax, &[
        (4, "avx_vnni"), (5, "avx512_bf16"), (10, "fzrm"), (11, "fsrs"), (12, "fsrc"), (23, "avx_ifma"),
    ]),
    features(0xd, 1, Register::Eax, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")]),
    features(0x8000_0001, 0, Register::Ecx, &[
        (0, "lahf_lm"), (5, "abm"), (6, "sse4a"), (7, "misalignsse"), (8, "3dnowprefetch"), (11, "xop"),
        (16, "fma4"), (21, "tbm"),
    ]),
    // On AMD bits 0 to 24 repeat leaf 1; `cpuid.rs` keeps the two in step.
    features(0x8000_0001, 0, Register::Edx, &[
        (11, "syscall"), (20, "nx"), (22, "mmxext"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm"),
    ]),
    features(0x8000_0008, 0, Register::Ebx, &[(0, "clzero"), (2, "xsaveerptr")]),
];

/// Well-known features that no guest has: hiding them changes nothing.
const NEVER_OFFERED: &[&str] = &[
    "vmx",
    "svm",
    "monitor",
    "monitorx",
    "mwaitx",
    "smx",
    "est",
    "tm2",
    "pdcm",
    "dca",
    "dts",
    "acpi",
    "ht",
    "tm",
    "pbe",
    "ds_cpl",
    "dtes64",
    "xtpr",
    "hle",
    "rtm",
    "mpx",
    "cqm",
    "rdt_a",
    "intel_pt",
    "la57",
    "waitpkg",
    "enqcmd",
    "user_shstk",
    "ibt",
    "amx_bf16",
    "amx_tile",
    "amx_int8",
    "ibrs",
    "ibpb",
    "stibp",
    "ssbd",
    "arch_capabilities",
    "osvw",
    "ibs",
    "topoext",
    "perfctr_core",
    "perfctr_nb",
    "fxsr_opt",
    "3dnow",
    "3dnowext",
    "arch_perfmon",
    "sgx",
];

/// Features that need another one: without the second the first is meaningless.
#[rustfmt::skip]
const NEEDS: &[(&str, &str)] = &[
    ("avx", "xsave"), ("pku", "xsave"), ("xsaveopt", "xsave"), ("xsavec", "xsave"), ("xgetbv1", "xsave"),
    ("xsaves", "xsavec"), ("pcid", "invpcid"), ("invpcid", "pcid"),
    ("fma", "avx"), ("f16c", "avx"), ("avx2", "avx"), ("xop", "avx"), ("fma4", "avx"), ("vaes", "avx"),
    ("vpclmulqdq", "avx"), ("avx_vnni", "avx2"), ("avx_ifma", "avx2"), ("avx512f", "avx2"),
    ("avx512dq", "avx512f"), ("avx512ifma", "avx512f"), ("avx512pf", "avx512f"), ("avx512er", "avx512f"),
    ("avx512cd", "avx512f"), ("avx512bw", "avx512f"), ("avx512vl", "avx512f"), ("avx512vbmi", "avx512f"),
    ("avx512_vbmi2", "avx512f"), ("avx512_vnni", "avx512f"), ("avx512_bitalg", "avx512f"),
    ("avx512_vpopcntdq", "avx512f"), ("avx512_4vnniw", "avx512f"), ("avx512_4fmaps", "avx512f"),
    ("avx512_vp2intersect", "avx512f"), ("avx512_fp16", "avx512f"), ("avx512_bf16", "avx512f"),
];

/// Features of a guest, word by word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub [u32; word::COUNT]);

/// A feature to hide that is not in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownFeature(pub String);

impl Features {
    /// Everything that the model allows.
    pub fn model() -> Self {
        Features(core::array::from_fn(|index| WORDS[index].mask()))
    }

    /// Whether the feature with this name is among them; `false` for a name that the model does not have.
    pub fn has(&self, name: &str) -> bool {
        find(name).is_some_and(|(index, bit)| self.0[index] & bit != 0)
    }

    /// Takes the feature with this name away.
    ///
    /// # Errors
    /// The name is neither in the model nor one of the well-known features that it never offers.
    pub fn hide(&mut self, name: &str) -> Result<(), UnknownFeature> {
        match find(name) {
            Some((index, bit)) => self.0[index] &= !bit,
            None if NEVER_OFFERED.contains(&name) => {}
            None => return Err(UnknownFeature(name.into())),
        }
        Ok(())
    }

    /// Takes away what lacks something that it needs, until nothing does.
    pub fn drop_dependents(&mut self) {
        loop {
            let before = *self;
            for (feature, needed) in NEEDS {
                if let (Some((index, bit)), false) = (find(feature), self.has(needed)) {
                    self.0[index] &= !bit;
                }
            }
            if *self == before {
                return;
            }
        }
    }
}

/// The word and the bit of a feature.
fn find(name: &str) -> Option<(usize, u32)> {
    WORDS.iter().enumerate().find_map(|(index, word)| {
        let (bit, _) = word.features.iter().find(|(_, known)| *known == name)?;
        Some((index, 1 << bit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_once_and_every_dependency_is_a_name() {
        let mut names: alloc::vec::Vec<_> =
            WORDS.iter().flat_map(|word| word.features).map(|(_, name)| name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
        for name in NEEDS.iter().flat_map(|(feature, needed)| [feature, needed]) {
            assert!(find(name).is_some(), "{name}");
        }
        assert!(NEVER_OFFERED.iter().all(|name| find(name).is_none()));
    }

    #[test]
    fn hiding_avx_hides_what_builds_on_it() {
        let mut features = Features::model();
        features.hide("avx").unwrap();
        features.drop_dependents();
        assert!(!features.has("avx2") && !features.has("avx512_bf16") && !features.has("fma"));
        assert!(features.has("xsave") && features.has("sse4_2"));
    }

    #[test]
    fn hiding_an_unknown_feature_is_an_error_and_a_withheld_one_is_not() {
        let mut features = Features::model();
        assert_eq!(features.hide("avx3"), Err(UnknownFeature("avx3".into())));
        assert_eq!(features.hide("vmx"), Ok(()));
    }
}
