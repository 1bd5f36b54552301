//! Owns what a pattern of topic names means. Never knows a topic. Used by the broker, which keeps subscriptions by
//! pattern, and by clients, which find the topics that are meant.
//!
//! `*` stands for any number of characters, also none; all others for themselves. The whole name must match.

/// The longest pattern: as long as names may be.
pub const PATTERN_BYTES_MAX: usize = 200;

/// Whether it is a pattern, and not a name: no name holds a `*`.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text.contains('*')
}

/// Whether a pattern could mean a topic at all: a `*`, and the characters of names.
#[must_use]
pub fn is_valid(pattern: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-*".contains(&byte);
    is_pattern(pattern) && pattern.len() <= PATTERN_BYTES_MAX && pattern.bytes().all(allowed)
}

/// Whether a name is meant by a pattern. Takes time in proportion to the product of their lengths at most.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.as_bytes(), name.as_bytes());
    // Where to go on if what follows the newest star does not fit: behind the star, one character later.
    let mut retry = None;
    loop {
        match (pattern.split_first(), name.split_first()) {
            (Some((b'*', rest)), _) => {
                pattern = rest;
                retry = Some((rest, name));
            }
            (Some((wanted, rest)), Some((found, left))) if wanted == found => {
                (pattern, name) = (rest, left);
            }
            (None, None) => return true,
            (Some(_) | None, _) => {
                let Some((rest, from)) = retry else { return false };
                let Some((_, from)) = from.split_first() else { return false };
                (pattern, name) = (rest, from);
                retry = Some((rest, from));
            }
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a definition as one would say it"
)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_number_of_characters() {
        for (pattern, name) in [
            ("*", ""),
            ("*", "orders"),
            ("orders.*", "orders."),
            ("orders.*", "orders.eu.de"),
            ("*.dead", "jobs.dead"),
            ("a*b*c", "aXbbYc"),
            ("a**b", "ab"),
            ("*ab*", "aab"),
            ("orders", "orders"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("orders.*", "orders"),
            ("orders.*", "my.orders.eu"),
            ("*.dead", "jobs.dead.old"),
            ("a*b*c", "acb"),
            ("", "a"),
            ("orders", "order"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_is_made_of_stars_and_what_names_are_made_of() {
        assert!(is_valid("*") && is_valid("orders.*-eu_1"));
        let long = "*".repeat(PATTERN_BYTES_MAX + 1);
        for wrong in ["", "orders", "or ders*", "a/*", "ü*", long.as_str()] {
            assert!(!is_valid(wrong), "{wrong}");
        }
    }

    // Against the definition: a star takes each prefix in turn.
    #[test]
    fn patterns_match_as_they_are_defined() {
        fn naive(pattern: &[u8], name: &[u8]) -> bool {
            match pattern.split_first() {
                None => name.is_empty(),
                Some((b'*', rest)) => (0..=name.len()).any(|cut| naive(rest, &name[cut..])),
                Some((byte, rest)) => name.first() == Some(byte) && naive(rest, &name[1..]),
            }
        }
        let words = |letters: &'static [u8], longest: u32| {
            let base = letters.len();
            (0..=longest).flat_map(move |len| {
                (0..base.pow(len)).map(move |mut number| {
                    (0..len)
                        .map(|_| {
                            let letter = letters[number % base];
                            number /= base;
                            char::from(letter)
                        })
                        .collect::<String>()
                })
            })
        };
        for pattern in words(b"ab*", 5) {
            for name in words(b"ab", 5) {
                let expected = naive(pattern.as_bytes(), name.as_bytes());
                assert_eq!(matches(&pattern, &name), expected, "{pattern} {name}");
            }
        }
    }
}
