//! Owns the meaning of a connection URL. Never resolves a name. Driven by the client builder.

/// The data port.
pub const DEFAULT_PORT: u16 = 7420;

/// A broker to try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HostPort {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why a URL cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// Another scheme, or none.
    #[error(
        "\"{0}\" does not begin with postrider://; write for example postrider://127.0.0.1:7420"
    )]
    Scheme(String),
    /// Encrypted connections do not exist yet.
    #[error(
        "postrider+tls:// is not supported by this release: use postrider:// inside a trusted network or a tunnel"
    )]
    Tls,
    /// Authentication does not exist yet.
    #[error(
        "the URL has a user or a password, but this release has no authentication: remove everything up to and with the @"
    )]
    Credentials,
    /// There is no host between two commas, or none at all.
    #[error("the URL names no host; write for example postrider://127.0.0.1:7420")]
    NoHost,
    /// A port is not a number from 1 to 65535.
    #[error("\"{0}\" is not a port: give a number from 1 to 65535")]
    Port(String),
    /// Something follows the hosts.
    #[error("\"{0}\" follows the hosts in the URL: nothing may; remove it")]
    Rest(String),
}

/// The hosts of `postrider://host:port,host2:port2`.
pub(crate) fn parse(url: &str) -> Result<Vec<HostPort>, UrlError> {
    if url.starts_with("postrider+tls://") {
        return Err(UrlError::Tls);
    }
    let rest = url.strip_prefix("postrider://").ok_or_else(|| UrlError::Scheme(scheme_of(url)))?;
    let (authority, tail) = match rest.find(['/', '?', '#']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if authority.contains('@') {
        return Err(UrlError::Credentials);
    }
    if !matches!(tail, "" | "/") {
        return Err(UrlError::Rest(tail.to_owned()));
    }
    authority.split(',').map(host_port).collect()
}

/// What may be shown of a URL that might hold a password.
fn scheme_of(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://"),
        None if url.contains('@') => "...".to_owned(),
        None => url.to_owned(),
    }
}

fn host_port(text: &str) -> Result<HostPort, UrlError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']').ok_or(UrlError::NoHost)?;
            match port.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if port.is_empty() => (host, None),
                None => return Err(UrlError::Port(port.to_owned())),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err(UrlError::NoHost);
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => match port.parse() {
            Ok(number) if number > 0 => number,
            _ => return Err(UrlError::Port(port.to_owned())),
        },
    };
    Ok(HostPort { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(url: &str) -> Vec<String> {
        parse(url).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn hosts_and_ports_are_taken_in_order() {
        assert_eq!(
            hosts("postrider://a:1,b,[::1]:3,[::2]/"),
            ["a:1", "b:7420", "[::1]:3", "[::2]:7420"]
        );
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        assert_eq!(parse("postrider://u:p@a"), Err(UrlError::Credentials));
        assert_eq!(parse("postrider+tls://a"), Err(UrlError::Tls));
        assert_eq!(parse("kafka://u:secret@a"), Err(UrlError::Scheme("kafka://".into())));
        assert_eq!(parse("postrider://a,"), Err(UrlError::NoHost));
        assert_eq!(parse("postrider://a:0"), Err(UrlError::Port("0".into())));
        assert_eq!(parse("postrider://a/x"), Err(UrlError::Rest("/x".into())));
    }
}
