//! Owns the settings of a broker and where they come from: defaults, file, environment, flags.
//!
//! Every source goes through the one table in `keys`. Never opens a socket or a data directory.
//! Driven by the command line before the server starts.

mod keys;
mod options;
mod value;

use std::fmt::{self, Write as _};
use std::io;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use keys::{
    AdminConfig, Config, KEYS, Key, LimitsConfig, NetConfig, RetentionConfig, RuntimeConfig,
    SECTIONS, ServerConfig, StorageConfig,
};
pub use value::{Address, ByteSize, Setting, Unit};

/// The file that is read when none is named and it exists in the working directory.
pub const DEFAULT_FILE: &str = "postrider.toml";

/// What stands before the section in an environment variable.
pub const ENVIRONMENT_PREFIX: &str = "POSTRIDER__";

/// Largest configuration file, so that a wrong path cannot fill the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A value from the command line: `("server.data_dir", "/var/lib/postrider")`.
pub type Flag = (&'static str, String);

/// Where a bad setting stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A line of the file, from 1.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
    /// Several settings together.
    Together,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag for {name}"),
            Self::Together => f.write_str("configuration"),
        }
    }
}

/// Why a configuration was refused. The text names the place, the cause and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A setting is unknown, of the wrong form, out of range, or in conflict with another.
    #[error("{origin}: {message}")]
    Setting {
        /// Where it stands.
        origin: Origin,
        /// What is wrong with it and what to write.
        message: String,
    },
}

impl Config {
    /// Reads the settings from all sources; a later source wins: defaults, file, environment, flags.
    ///
    /// Without a file name, [`DEFAULT_FILE`] is read if it exists.
    ///
    /// # Errors
    /// The first setting that is unknown or invalid, with its place.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        flags: &[Flag],
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(path) = file {
            config.merge_file(path)?;
        } else if Path::new(DEFAULT_FILE).exists() {
            config.merge_file(Path::new(DEFAULT_FILE))?;
        }
        config.merge_environment(environment)?;
        config.merge_flags(flags)?;
        config.validate()?;
        Ok(config)
    }

    /// Applies a file.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or holds an unknown or invalid setting.
    pub fn merge_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let read_error = |source| ConfigError::Read { path: path.to_owned(), source };
        let length = std::fs::metadata(path).map_err(read_error)?.len();
        if length > FILE_BYTES_MAX {
            return Err(read_error(io::Error::other(format!(
                "{length} bytes are more than a configuration has; the limit is {FILE_BYTES_MAX}"
            ))));
        }
        let text = std::fs::read_to_string(path).map_err(read_error)?;
        self.merge_text(path, &text)
    }

    fn merge_text(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let at = |span: std::ops::Range<usize>, message: String| ConfigError::Setting {
            origin: Origin::File { path: path.to_owned(), line: line_of(text, span.start) },
            message,
        };
        let document =
            DeTable::parse(text).map_err(|e| at(e.span().unwrap_or_default(), syntax(&e)))?;
        for (section, table) in document.get_ref() {
            let name = section.get_ref().as_ref();
            if !SECTIONS.contains(&name) {
                return Err(at(section.span(), unknown_section(name)));
            }
            let DeValue::Table(table) = table.get_ref() else {
                return Err(at(section.span(), format!("`{name}` is a section: write [{name}]")));
            };
            for (key, value) in table {
                let (key_name, span) = (key.get_ref().as_ref(), key.span());
                let text = scalar(value).map_err(|kind| {
                    at(span.clone(), format!("`{name}.{key_name}` must not be {kind}"))
                })?;
                self.set(name, key_name, &text).map_err(|message| at(span, message))?;
            }
        }
        Ok(())
    }

    /// Applies `POSTRIDER__SECTION__KEY` variables; others are left alone.
    ///
    /// # Errors
    /// A variable with the prefix that names no key, or whose value is invalid.
    pub fn merge_environment(
        &mut self,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            let lower = rest.to_lowercase();
            let (section, key) = lower.split_once("__").unwrap_or((&lower, ""));
            self.set(section, key, &text).map_err(|message| ConfigError::Setting {
                origin: Origin::Environment(name.clone()),
                message,
            })?;
        }
        Ok(())
    }

    /// Applies flags of the command line.
    ///
    /// # Errors
    /// A value is invalid.
    pub fn merge_flags(&mut self, flags: &[Flag]) -> Result<(), ConfigError> {
        for (path, text) in flags {
            let (section, key) = path.split_once('.').unwrap_or((path, ""));
            self.set(section, key, text).map_err(|message| ConfigError::Setting {
                origin: Origin::Flag((*path).to_owned()),
                message,
            })?;
        }
        Ok(())
    }

    fn set(&mut self, section: &str, name: &str, text: &str) -> Result<(), String> {
        let Some(key) = keys::find(section, name) else {
            return Err(unknown_key(section, name));
        };
        (key.set)(self, text, &key.range).map_err(|problem| format!("`{}`: {problem}", key.path()))
    }

    /// Checks what no key alone can: sizes that must fit into each other, and open listen addresses.
    ///
    /// # Errors
    /// The first conflict, with the keys to change.
    pub fn validate(&self) -> Result<(), ConfigError> {
        /// Room for the heads of frame and publish around a batch.
        const OVERHEAD_BYTES: u64 = 4 << 10;
        let fits = [
            ("limits.message_bytes_max", 0, "limits.batch_bytes_max"),
            ("limits.batch_bytes_max", OVERHEAD_BYTES, "limits.frame_bytes_max"),
            ("limits.batch_bytes_max", OVERHEAD_BYTES, "limits.publish_in_flight_bytes"),
            ("limits.batch_bytes_max", OVERHEAD_BYTES, "limits.publish_bytes_max"),
            ("limits.batch_bytes_max", OVERHEAD_BYTES, "storage.queue_bytes_max"),
            ("limits.batch_bytes_max", OVERHEAD_BYTES, "storage.segment_bytes_max"),
            ("storage.segment_bytes_min", 0, "storage.segment_bytes_max"),
            ("storage.journal_bytes_min", 0, "storage.journal_bytes_max"),
        ];
        for (inner, overhead, outer) in fits {
            let (need, have) = (self.bytes(inner) + overhead, self.bytes(outer));
            if need > have {
                let (need, have) = (ByteSize(need), ByteSize(have));
                return Err(together(format!(
                    "`{inner}` does not fit into `{outer}`: raise the latter from {have} to at least {need}, or lower the former"
                )));
            }
        }
        self.validate_listen("server.listen", &self.server.listen)?;
        self.validate_listen("admin.listen", &self.admin.listen)
    }

    /// The value of a size.
    fn bytes(&self, path: &str) -> u64 {
        let key = KEYS.iter().find(|key| key.path() == path).expect("the caller names a key");
        let size = ByteSize::parse(&(key.show)(self), &key.range);
        size.expect("a value of the table reads back").0
    }

    fn validate_listen(&self, key: &str, address: &Address) -> Result<(), ConfigError> {
        let resolved = address.resolve().map_err(|error| {
            together(format!(
                "`{key}`: {address} cannot be resolved: {error}; write an address of this host"
            ))
        })?;
        if resolved.is_empty() {
            return Err(together(format!(
                "`{key}`: {address} resolves to nothing; write an address of this host"
            )));
        }
        if !self.server.insecure && !resolved.iter().all(|a| a.ip().is_loopback()) {
            return Err(together(format!(
                "`{key}`: {address} can be reached from other hosts, and there is no authentication yet: \
                 use a loopback address, or set `server.insecure = true` (--insecure) if the network is trusted"
            )));
        }
        Ok(())
    }

    /// The file that sets every key to its default, with its meaning as comments.
    #[must_use]
    pub fn print_default() -> String {
        Self::default().print()
    }

    /// The file that sets every key to its present value.
    #[must_use]
    pub fn print(&self) -> String {
        let mut out = String::new();
        let mut section = "";
        for key in KEYS {
            if key.section != section {
                section = key.section;
                let gap = if out.is_empty() { "" } else { "\n" };
                let _ = writeln!(out, "{gap}[{section}]");
            }
            let value = (key.show)(self);
            let _ = writeln!(out, "#{}", key.doc);
            if key.unit.quoted() {
                let _ = writeln!(out, "{} = {}", key.name, toml::Value::String(value));
            } else {
                let _ = writeln!(out, "{} = {value}", key.name);
            }
        }
        out
    }

    /// The section of docs/OPERATIONS.md: every key with its meaning.
    #[must_use]
    pub fn document() -> String {
        let mut out = String::new();
        let mut section = "";
        for key in KEYS {
            if key.section != section {
                section = key.section;
                let _ = write!(
                    out,
                    "\n### [{section}]\n\n| key | default | unit, range | meaning |\n|---|---|---|---|\n"
                );
            }
            let default = if key.default.is_empty() { "(empty)" } else { key.default };
            let range = key.range_text();
            let separator = if range.is_empty() { "" } else { ", " };
            let _ = writeln!(
                out,
                "| `{}` | `{default}` | {}{separator}{range} |{} |",
                key.name,
                key.unit.name(),
                key.doc
            );
        }
        out
    }
}

fn together(message: String) -> ConfigError {
    ConfigError::Setting { origin: Origin::Together, message }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|b| *b == b'\n').count() + 1
}

fn syntax(error: &toml::de::Error) -> String {
    format!("not valid TOML: {}", error.message().replace('\n', ", "))
}

/// A file's value as the text that the environment would hold.
fn scalar(value: &Spanned<DeValue<'_>>) -> Result<String, &'static str> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.as_ref().to_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Boolean(switch) => Ok(switch.to_string()),
        DeValue::Integer(_) => Err("a number that is not decimal"),
        DeValue::Float(_) => Err("a fraction; write it in quotes with a unit"),
        DeValue::Datetime(_) => Err("a date"),
        DeValue::Array(_) => Err("a list"),
        DeValue::Table(_) => Err("a table"),
    }
}

fn unknown_section(name: &str) -> String {
    let known = SECTIONS.join(", ");
    match KEYS.iter().find(|key| key.name == name) {
        Some(key) => {
            format!("unknown section `{name}`: the key `{name}` stands in [{}]", key.section)
        }
        None => format!("unknown section `{name}`: there are {known}"),
    }
}

fn unknown_key(section: &str, name: &str) -> String {
    if !SECTIONS.contains(&section) {
        return unknown_section(section);
    }
    if let Some(elsewhere) = KEYS.iter().find(|key| key.name == name) {
        return format!("unknown key `{section}.{name}`: did you mean `{}`?", elsewhere.path());
    }
    let here = KEYS.iter().filter(|key| key.section == section);
    let near = here.clone().map(|key| (distance(key.name, name), key.name)).min();
    match near {
        Some((far, near)) if far <= 3 => {
            format!("unknown key `{section}.{name}`: did you mean `{section}.{near}`?")
        }
        _ => {
            let known: Vec<&str> = here.map(|key| key.name).collect();
            format!("unknown key `{section}.{name}`: [{section}] has {}", known.join(", "))
        }
    }
}

/// Levenshtein distance in bytes; names are short.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or(usize::MAX - 1);
            let next = (diagonal + usize::from(x != y)).min(left + 1).min(above + 1);
            diagonal = above;
            left = next;
            if let Some(cell) = row.get_mut(j + 1) {
                *cell = next;
            }
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        config.merge_text(Path::new("postrider.toml"), text)?;
        config.validate()?;
        Ok(config)
    }

    fn refused(text: &str) -> String {
        file(text).expect_err("this configuration must be refused").to_string()
    }

    #[test]
    fn every_default_is_valid_and_prints_back() {
        let printed = Config::print_default();
        assert_eq!(file(&printed).unwrap(), Config::default());
        for key in KEYS {
            assert!(key.doc.ends_with('.'), "{}: full sentences", key.path());
            assert_eq!((key.show)(&Config::default()), key.default, "{}", key.path());
        }
    }

    #[test]
    fn a_later_source_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        std::fs::write(
            &path,
            "[server]\nnode_id = 2\ndata_dir = \"f\"\nlisten = \"127.0.0.1:1\"\n",
        )
        .unwrap();
        let variables = [
            ("POSTRIDER__SERVER__NODE_ID", "3"),
            ("POSTRIDER__SERVER__DATA_DIR", "e"),
            ("POSTRIDER_SERVER", "not ours"),
            ("HOME", "/"),
        ];
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let flags = [("server.node_id", "4".to_owned())];
        let config = Config::load(Some(&path), variables, &flags).unwrap();
        assert_eq!(config.server.node_id, 4);
        assert_eq!(config.server.data_dir, PathBuf::from("e"));
        assert_eq!(config.server.listen, Address("127.0.0.1:1".to_owned()));
        assert_eq!(config.server.insecure, Config::default().server.insecure);
    }

    #[test]
    fn a_bad_file_names_line_key_and_remedy() {
        for (text, expected) in [
            (
                "[server]\n\nnode_idd = 1\n",
                "postrider.toml:3: unknown key `server.node_idd`: did you mean `server.node_id`?",
            ),
            ("[sever]\n", "postrider.toml:1: unknown section `sever`: there are server,"),
            (
                "listen = \"127.0.0.1:1\"\n",
                "postrider.toml:1: unknown section `listen`: the key `listen` stands in [server]",
            ),
            (
                "[net]\nmessage_bytes_max = \"1MiB\"\n",
                "postrider.toml:2: unknown key `net.message_bytes_max`: did you mean `limits.message_bytes_max`?",
            ),
            (
                "[server]\nshutdown_timeout = 5\n",
                "postrider.toml:2: `server.shutdown_timeout`: \"5\" is not a duration: write a number and one of",
            ),
            (
                "[net]\n# c\nconnections_max = 0\n",
                "postrider.toml:3: `net.connections_max`: 0 is out of range: from 1 to 1000000",
            ),
            (
                "[net]\nconnections_max = -1\n",
                "postrider.toml:2: `net.connections_max`: \"-1\" is not a number",
            ),
            (
                "[net]\nconnections_max = [1]\n",
                "postrider.toml:2: `net.connections_max` must not be a list",
            ),
            ("[server]\nlisten = \n", "postrider.toml:2: not valid TOML"),
            (
                "[server]\nnode_id = 1\nnode_id = 2\n",
                "postrider.toml:3: not valid TOML: duplicate key",
            ),
            ("server = 1\n", "postrider.toml:1: `server` is a section: write [server]"),
        ] {
            let error = refused(text);
            assert!(error.starts_with(expected), "{text:?}\n got {error}\nwant {expected}");
        }
    }

    #[test]
    fn an_open_address_needs_insecure() {
        let open = "[server]\nlisten = \"0.0.0.0:7420\"\n";
        assert!(refused(open).contains("server.insecure = true"));
        assert!(file(&format!("{open}insecure = true\n")).is_ok());
        assert!(refused("[admin]\nlisten = \"0.0.0.0:7421\"\n").contains("admin.listen"));
        assert!(file("[server]\nlisten = \"[::1]:7420\"\n").is_ok());
    }

    #[test]
    fn sizes_that_do_not_fit_into_each_other_are_refused() {
        let error = refused("[limits]\nbatch_bytes_max = \"16MiB\"\n");
        assert!(
            error.contains("`limits.batch_bytes_max` does not fit into `limits.frame_bytes_max`"),
            "{error}"
        );
    }

    #[test]
    fn an_unknown_variable_with_our_prefix_is_refused() {
        let mut config = Config::default();
        let variables = [("POSTRIDER__NET__CONNECTION_MAX".to_owned(), "1".to_owned())];
        let error = config.merge_environment(variables.into_iter()).unwrap_err().to_string();
        assert!(error.contains("environment variable POSTRIDER__NET__CONNECTION_MAX"), "{error}");
        assert!(error.contains("did you mean `net.connections_max`?"), "{error}");
    }

    #[test]
    fn no_name_stands_in_two_sections_except_listen_and_connections_max() {
        for key in KEYS {
            let count = KEYS.iter().filter(|other| other.name == key.name).count();
            assert!(count == 1 || matches!(key.name, "listen" | "connections_max"), "{}", key.name);
        }
    }
}
