//! The daemon's own log, to standard error: for people on a terminal, JSON otherwise.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// `level` is a validated `log_level`.
pub(super) fn start(level: &str) {
    let filter = filter(level);
    let registry = tracing_subscriber::registry();
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        registry.with(filter).with(layer.with_target(false)).init();
    } else {
        registry.with(filter).with(layer.json().flatten_event(true)).init();
    }
}

/// A plain level is ours; of the libraries only warnings are of interest then.
fn filter(level: &str) -> Targets {
    match level.parse::<LevelFilter>() {
        Ok(level) => {
            Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("podwright", level)
        }
        Err(_) => level.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO)),
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_level_is_for_us_and_libraries_only_warn() {
        let debug = filter("debug");
        assert!(debug.would_enable("podwright::pod", &Level::DEBUG));
        assert!(!debug.would_enable("h2", &Level::INFO));
        assert!(debug.would_enable("h2", &Level::WARN));
        assert!(!filter("error").would_enable("h2", &Level::WARN));
        assert!(!filter("off").would_enable("podwright", &Level::ERROR));
        let directives = filter("warn,podwright::network=trace");
        assert!(directives.would_enable("podwright::network::cni", &Level::TRACE));
        assert!(!directives.would_enable("podwright::pod", &Level::INFO));
    }
}
