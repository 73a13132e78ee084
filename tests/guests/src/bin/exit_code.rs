//! See [`guests::exit_code`].
#![cfg_attr(target_os = "none", no_std, no_main)]

trt::guest!(guests::exit_code::run);
