//! See [`guests::pv_hostile`].
#![cfg_attr(target_os = "none", no_std, no_main)]

trt::guest!(guests::pv_hostile::run);
