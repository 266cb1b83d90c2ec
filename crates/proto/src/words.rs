//! Enums whose variants have fixed words.

/// Declares an enum of fixed words. Variants, `ALL` and the function that returns the word come from one list, so none
/// of them can lack an entry, and a discriminant is an index into `ALL`.
#[macro_export]
macro_rules! enum_of_words {
    (
        $(#[$of_enum:meta])*
        $vis:vis enum $name:ident {
            $($(#[$of_variant:meta])* $variant:ident = $word:literal,)+
        }
        $(#[$of_word:meta])*
        $word_vis:vis fn $word_of:ident
    ) => {
        $(#[$of_enum])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        $vis enum $name {
            $($(#[$of_variant])* $variant,)+
        }

        impl $name {
            /// All of them, in the order of their discriminants.
            $vis const ALL: [$name; [$($word),+].len()] = [$($name::$variant),+];

            $(#[$of_word])*
            $word_vis const fn $word_of(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }
    };
}
