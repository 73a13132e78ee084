//! See [`guests::pv_balloon`].
#![cfg_attr(target_os = "none", no_std, no_main)]

trt::guest!(guests::pv_balloon::run);
