//! Tables of pods and containers by ID. Reads take a short lock and never wait for an operation.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::{Error, Result};

pub struct Table<T> {
    what: &'static str,
    rows: RwLock<HashMap<String, Arc<T>>>,
}

impl<T> Table<T> {
    pub fn new(what: &'static str) -> Self {
        Self { what, rows: RwLock::default() }
    }

    pub fn insert(&self, id: &str, row: Arc<T>) {
        self.rows.write().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), row);
    }

    pub fn remove(&self, id: &str) -> Option<Arc<T>> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner).remove(id)
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// By ID or a unique prefix of one; NOT_FOUND names what was looked for.
    pub fn find(&self, id: &str) -> Result<Arc<T>> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = rows.get(id) {
            return Ok(Arc::clone(row));
        }
        let unknown = || Error::not_found(format!("{} {id:?} is not known", self.what));
        if id.is_empty() {
            return Err(unknown());
        }
        let mut matches = rows.iter().filter(|(key, _)| key.starts_with(id));
        match (matches.next(), matches.next()) {
            (Some((_, row)), None) => Ok(Arc::clone(row)),
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("{} prefix {id:?} means more than one", self.what)))
            }
            (None, _) => Err(unknown()),
        }
    }
}

/// 32 random bytes in hex, as the peers' IDs are.
pub fn new_id() -> Result<String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|e| Error::internal(format!("drawing a random ID: {e}")))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn rows_are_found_by_unique_prefix() {
        let table = Table::new("container");
        table.insert("abc1", Arc::new(1));
        table.insert("abd2", Arc::new(2));
        assert_eq!(*table.find("abc").unwrap(), 1);
        assert_eq!(table.find("ab").unwrap_err().kind, Kind::InvalidArgument);
        assert_eq!(table.find("x").unwrap_err().kind, Kind::NotFound);
        assert_eq!(table.find("").unwrap_err().kind, Kind::NotFound);
    }

    #[test]
    fn ids_are_64_hex_digits() {
        let id = new_id().unwrap();
        assert_eq!(id.len(), 64);
        assert_ne!(id, new_id().unwrap());
    }
}
