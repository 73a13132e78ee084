//! See [`guests::debug_regs`].
#![cfg_attr(target_os = "none", no_std, no_main)]

trt::guest!(guests::debug_regs::run);
