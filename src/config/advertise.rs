//! What clients of the streaming server are told: a host, with a port or without.

use std::net::Ipv6Addr;

/// An IPv6 address is given without its brackets. None: it is no host.
pub fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Some((text, None));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    // In a URL and in a certificate a name in another script is its xn-- form.
    let odd = |c: char| !c.is_ascii_graphic() || "/@?#[]\\\"".contains(c);
    if host.is_empty() || host.contains(odd) {
        return None;
    }
    let port = match port {
        None => None,
        // Not "+80".
        Some(port) => {
            Some(port.parse().ok().filter(|number: &u16| *number > 0 && number.to_string() == port)?)
        }
    };
    Some((host, port))
}

/// As it stands in a URL.
pub fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_ports_or_none() {
        for (text, expected) in [
            ("node.lan", ("node.lan", None)),
            ("node.lan:7", ("node.lan", Some(7))),
            ("10.0.0.1:65535", ("10.0.0.1", Some(65535))),
            ("fd00::1", ("fd00::1", None)),
            ("::1", ("::1", None)),
            ("[fd00::1]", ("fd00::1", None)),
            ("[fd00::1]:70", ("fd00::1", Some(70))),
        ] {
            assert_eq!(host_and_port(text), Some(expected), "{text}");
        }
        for text in [
            "",
            ":80",
            "x:",
            "x:0",
            "x:65536",
            "x:+80",
            "x:080",
            "http://x",
            "x/y",
            "a@b",
            "x y",
            "[fd00::1",
            "[x]:1",
            "[fd00::1]70",
            "fd00::g",
            "a:b:1",
            "[::1]:",
            "büro.lan",
            "büro.lan:80",
        ] {
            assert_eq!(host_and_port(text), None, "{text}");
        }
    }
}
