//! See [`guests::triple_fault`].
#![cfg_attr(target_os = "none", no_std, no_main)]

trt::guest!(guests::triple_fault::run);
