//! Owns looking at the broker's process through /proc: its CPU time, its memory, who listens on a port.
//! Reads only. Used when the broker is on this machine.

use std::fs;
use std::net::ToSocketAddrs;
use std::time::Duration;

/// What a process has used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Usage {
    /// User and system time of all its threads, in ticks of 10 ms.
    pub(crate) cpu: Duration,
    /// Resident memory, including the mapped pages of its files that are in the page cache.
    pub(crate) rss_bytes: u64,
    /// Resident memory that belongs to it alone and has no file behind it.
    pub(crate) anonymous_bytes: u64,
}

/// The usage of a process; none if it is gone or hidden.
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Usage {
        cpu: parse_cpu(&stat, rustix::param::clock_ticks_per_second())?,
        rss_bytes: parse_status_kib(&status, "VmRSS:")? * 1024,
        anonymous_bytes: parse_status_kib(&status, "RssAnon:")? * 1024,
    })
}

/// `utime` and `stime`, fields 14 and 15 (proc(5)); the name before them may hold blanks.
fn parse_cpu(stat: &str, ticks_per_s: u64) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs_f64((user + system) as f64 / ticks_per_s.max(1) as f64))
}

fn parse_status_kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The process that listens where the URL points, if that is this machine and we may look.
pub(crate) fn listener_of(url: &str) -> Option<u32> {
    let (host, port) = first_address(url)?;
    let addresses = (host.as_str(), port).to_socket_addrs().ok()?;
    if !addresses.into_iter().all(|address| address.ip().is_loopback()) {
        return None;
    }
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .collect();
    owner_of_socket(&inodes)
}

/// Host and port of the first address of `postrider://user@host:port,...`.
fn first_address(url: &str) -> Option<(String, u16)> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let first = rest.split([',', '/']).next()?;
    match first.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !host.ends_with(':') => {
            Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
        }
        _ => Some((first.trim_matches(['[', ']']).to_owned(), 7420)),
    }
}

/// The inodes of the sockets of /proc/net/tcp that listen on `port` (state 0A).
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let wanted = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let listens = fields.get(1)?.ends_with(&wanted) && *fields.get(3)? == "0A";
            listens.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
        })
        .collect()
}

fn owner_of_socket(inodes: &[String]) -> Option<u32> {
    let wanted: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            if wanted.iter().any(|socket| target.as_os_str() == socket.as_str()) {
                return Some(pid);
            }
        }
    }
    None
}

/// What the result says about this machine.
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
}

/// Looks at this machine.
pub(crate) fn machine() -> Machine {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpu_info = read("/proc/cpuinfo");
    let model = cpu_info
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("unknown", |(_, model)| model.trim());
    Machine {
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: model.to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_any_name() {
        let stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0";
        assert_eq!(parse_cpu(stat, 100), Some(Duration::from_secs(2)));
        assert_eq!(parse_cpu("nonsense", 100), None);
    }

    #[test]
    fn this_process_has_usage_and_owns_its_listener() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = socket.local_addr().expect("bound").port();
        let pid = listener_of(&format!("postrider://127.0.0.1:{port}"));
        assert_eq!(pid, Some(std::process::id()));
        assert!(usage(std::process::id()).expect("ours").rss_bytes > 0);
        assert_eq!(listener_of(&format!("postrider://192.0.2.1:{port}")), None);
    }

    #[test]
    fn addresses_are_found_in_urls() {
        let address = |url: &str| first_address(url);
        assert_eq!(address("postrider://h:1,i:2"), Some(("h".into(), 1)));
        assert_eq!(address("postrider://h"), Some(("h".into(), 7420)));
        assert_eq!(address("postrider://[::1]:5"), Some(("::1".into(), 5)));
        assert_eq!(address("postrider://u:p@h:9"), Some(("h".into(), 9)));
    }
}
