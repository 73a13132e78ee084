//! See [`guests::virtio`].
#![cfg_attr(target_os = "none", no_std, no_main)]

trt::guest!(guests::virtio::run);
