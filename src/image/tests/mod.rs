//! Pulls from a registry of the test's own, and the life of images in the store.

mod archives;
mod check;
mod fake;
mod hostile;
mod pull;
mod races;
mod registries;
mod store;

use std::path::Path;

use super::*;

pub async fn open(root: &Path) -> Images {
    Images::open(super::Config { root: root.to_owned(), ..super::Config::default() }).await.unwrap()
}

/// Runs until background work has had its effect.
pub async fn eventually(mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("it did not happen within ten seconds");
}

pub fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}
