//! Drives the target `entry` of `tests/src/fuzz.rs` with libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| postrider_fuzz::entry(bytes));
