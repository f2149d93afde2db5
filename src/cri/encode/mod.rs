//! From views of the node to the wire. Nothing here can fail but for JSON.

pub(super) mod container;
pub(super) mod exec;
#[cfg(test)]
pub(super) mod fixtures;
pub(super) mod image;
pub(super) mod metrics;
pub(super) mod node;
pub(super) mod pieces;
pub(super) mod pod;
pub(super) mod stats;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Nanoseconds since the epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The `info` of a verbose answer: everything under one key, as crictl prints it.
fn info(value: &impl serde::Serialize) -> Result<BTreeMap<String, String>> {
    let text = serde_json::to_string(value)
        .map_err(|e| Error::internal(format!("writing verbose information as JSON: {e}")))?;
    Ok(BTreeMap::from([("info".to_owned(), text)]))
}
