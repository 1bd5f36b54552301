//! What the kernel knows about this process: memory, time, files, threads.
//!
//! Owns reading /proc/self. Never fails: a value that cannot be read is left out. Driven by each
//! request for `/metrics`.

use std::fs;

/// Numbers of this process at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProcessSample {
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) virtual_bytes: Option<u64>,
    pub(crate) threads: Option<u64>,
    pub(crate) open_files: Option<u64>,
    pub(crate) open_files_max: Option<u64>,
    pub(crate) start_seconds: Option<f64>,
}

impl ProcessSample {
    /// Reads them.
    pub(crate) fn take() -> Self {
        let mut sample = Self {
            open_files: fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count() as u64),
            open_files_max: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            ..Self::default()
        };
        let page = rustix::param::page_size() as u64;
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
            sample.read_stat(&stat, page, ticks);
        }
        sample
    }

    /// Fields of proc(5), counted from 3 behind the command name, which may hold anything.
    fn read_stat(&mut self, stat: &str, page_bytes: u64, ticks_per_second: f64) {
        let Some((_, rest)) = stat.rsplit_once(") ") else { return };
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second;
        self.cpu_seconds = field(14).zip(field(15)).map(|(user, system)| seconds(user + system));
        self.threads = field(20);
        self.virtual_bytes = field(23);
        self.resident_bytes = field(24).map(|pages| pages * page_bytes);
        self.start_seconds = field(22).zip(boot_seconds()).map(|(t, boot)| boot + seconds(t));
    }
}

fn boot_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_blanks_and_parentheses_is_skipped() {
        let mut sample = ProcessSample::default();
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 9 0 100 4096 3 0";
        sample.read_stat(stat, 4096, 100.0);
        assert_eq!(sample.cpu_seconds, Some(2.0));
        assert_eq!(sample.threads, Some(9));
        assert_eq!(sample.virtual_bytes, Some(4096));
        assert_eq!(sample.resident_bytes, Some(3 * 4096));
    }

    #[test]
    fn this_process_has_all_of_them() {
        let sample = ProcessSample::take();
        assert!(sample.resident_bytes.is_some_and(|bytes| bytes > 0));
        assert!(sample.open_files.is_some_and(|count| count > 2));
        assert!(sample.threads.is_some_and(|count| count > 0));
        assert!(sample.start_seconds.is_some_and(|at| at > 1e9));
        assert!(sample.cpu_seconds.is_some() && sample.virtual_bytes.is_some());
    }
}
