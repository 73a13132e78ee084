//! See [`guests::pv_net`].
#![cfg_attr(target_os = "none", no_std, no_main)]

trt::guest!(guests::pv_net::run);
