//! The macros by which sections declare their keys.
//!
//! A key is added in one place, the `settings!` block of its section. The block yields the struct field with its rustdoc,
//! the entry of the schema that file, environment and flags are looked up in, the parsing with its checks, and the line
//! of `config show`.

/// Declares a section: a struct whose fields are keys. After each type stand the key's rules, methods of [`Rule`].
macro_rules! settings {
    (
        $(#[doc = $struct_doc:literal])+
        pub struct $name:ident in $section:literal $(, shorthand $shorthand:path)? {
            $(
                $(#[doc = $doc:literal])+
                pub $field:ident: $ty:ty $(=> $($rule:ident($($arg:expr),*)),+)?;
            )+
        }
    ) => {
        $(#[doc = $struct_doc])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $(
                $(#[doc = $doc])+
                #[doc = ""]
                #[doc = concat!(
                    "Key `", $section, stringify!($field), "`",
                    $($("; `", stringify!($rule($($arg),*)), "`",)+)?
                    "."
                )]
                pub $field: $ty,
            )+
        }

        impl $name {
            const FIELDS: &'static [$crate::config::settings::Field] = &[$(
                $crate::config::settings::Field {
                    name: stringify!($field),
                    doc: &[$($doc),+],
                    rule: $crate::config::settings::Rule::new()$($(.$rule($($arg),*))+)?,
                    shape: <$ty as $crate::config::settings::Setting>::SHAPE,
                },
            )+];
        }

        impl $crate::config::settings::Setting for $name {
            const SHAPE: $crate::config::settings::Shape =
                $crate::config::settings::Shape::Section($crate::config::settings::Section {
                    fields: Self::FIELDS,
                    shorthand: $crate::config::declare::optional!($($shorthand)?),
                });
            // A section with a short form is one that can be written as a single word.
            $(const CAN_BE_OFF: bool = {
                let _ = $shorthand;
                true
            };)?

            fn read(
                place: &$crate::config::settings::Place<'_>,
                _: &$crate::config::settings::Rule,
                errors: &mut Vec<$crate::config::ConfigError>,
            ) -> Option<Self> {
                if !$crate::config::settings::check_section(place, Self::FIELDS, errors) {
                    return None;
                }
                // All fields are read before the first bad one counts, so that every mistake is reported.
                $(let $field = <$ty as $crate::config::settings::Setting>::read(
                    &place.field(stringify!($field)),
                    &const { $crate::config::settings::Rule::new()$($(.$rule($($arg),*))+)? },
                    errors,
                );)+
                Some($name { $($field: $field?),+ })
            }

            fn show(
                &self,
                place: &$crate::config::settings::Place<'_>,
                _: &$crate::config::settings::Rule,
                entries: &mut Vec<$crate::config::Entry>,
            ) {
                $(<$ty as $crate::config::settings::Setting>::show(
                    &self.$field,
                    &place.field(stringify!($field)),
                    &const { $crate::config::settings::Rule::new()$($(.$rule($($arg),*))+)? },
                    entries,
                );)+
            }
        }
    };
}

/// `Some` of what stands in it, `None` of nothing.
macro_rules! optional {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}

/// Declares a choice: an enum written as one of a few words.
macro_rules! choices {
    (
        $(#[doc = $enum_doc:literal])+
        pub enum $name:ident {
            $( $(#[doc = $doc:literal])+ $variant:ident = $word:literal, )+
        }
    ) => {
        $(#[doc = $enum_doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $( $(#[doc = $doc])+ $variant, )+
        }

        impl $name {
            /// The word that stands for it in a configuration.
            pub fn as_str(self) -> &'static str {
                match self {
                    $( $name::$variant => $word, )+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::config::settings::Leaf for $name {
            fn expected(_: &$crate::config::settings::Rule) -> std::borrow::Cow<'static, str> {
                [$($word),+].join(" or ").into()
            }

            fn parse(
                text: &str,
                _: &$crate::config::settings::Rule,
            ) -> Result<Self, $crate::config::settings::Fault> {
                match text {
                    $( $word => Ok($name::$variant), )+
                    _ => Err($crate::config::settings::Fault::Type),
                }
            }

            fn render(&self, _: &$crate::config::settings::Rule) -> serde_json::Value {
                self.as_str().into()
            }
        }
    };
}

pub(crate) use {choices, optional, settings};
