//! See [`guests::cpuid_msr`].
#![cfg_attr(target_os = "none", no_std, no_main)]

trt::guest!(guests::cpuid_msr::run);
