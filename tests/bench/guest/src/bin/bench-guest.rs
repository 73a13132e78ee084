//! See [`bench_guest::run`].
#![cfg_attr(target_os = "none", no_std, no_main)]

trt::guest!(bench_guest::run);
