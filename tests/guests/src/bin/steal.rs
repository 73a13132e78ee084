//! See [`guests::steal`].
#![cfg_attr(target_os = "none", no_std, no_main)]

trt::guest!(guests::steal::run);
