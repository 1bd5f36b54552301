//! Owns how random histories are chosen and replayed: the numbers in the environment, and the line that a failing
//! history prints. Never runs one. Shared by the model tests of this package.

/// Prints the replay of a history that panics while this lives.
pub(crate) struct Replay {
    /// The history.
    pub(crate) seed: u64,
    /// The test target that runs it.
    pub(crate) test: &'static str,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, test } = self;
            println!("replay: POSTRIDER_SEED={seed} cargo test -p postrider-core --test {test}");
        }
    }
}

/// A number from the environment, if it is set.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}
