//! Has the disk work while the processors do, so that little is left for the commit to wait for.
//!
//! A periodic syncfs would do the same, but it also writes metadata to its place, and whoever makes
//! the next file in a directory waits for its block. Nor does the thread that unpacks ask for it:
//! a busy disk makes that wait. What finds the queue full is left to the commit.

use std::fs::File;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

/// Files that may wait, each with its descriptor.
const QUEUE: usize = 32;

pub struct Writeback {
    files: Option<SyncSender<File>>,
    thread: Option<JoinHandle<()>>,
}

impl Writeback {
    /// Without the thread everything is left to the commit.
    pub fn start() -> Self {
        let (files, waiting) = sync_channel::<File>(QUEUE);
        let thread = thread::Builder::new().name("writeback".into()).spawn(move || {
            for file in waiting {
                // The commit's syncfs tells of all that could not be written.
                let _ = crate::sys::writeback::start(&file);
            }
        });
        Self { files: Some(files), thread: thread.ok() }
    }

    pub fn add(&self, file: &File) {
        if let (Some(files), Ok(file)) = (&self.files, file.try_clone()) {
            let _ = files.try_send(file);
        }
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        self.files = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
