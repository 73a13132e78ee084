//! Enumerations whose values are part of the contract.

/// Declares one: `Name: representation { Variant = value, … }`. A value of the other side is decoded with `from_raw`.
macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident: $raw:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[repr($raw)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $value,)*
        }

        impl $name {
            /// Every one of them, in the order of values.
            pub const ALL: &'static [Self] = &[$($name::$variant,)*];

            /// The one with this value; `None` if it means nothing.
            #[inline]
            pub const fn from_raw(raw: $raw) -> Option<Self> {
                match raw {
                    $($value => Some($name::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

pub(crate) use numbers;
