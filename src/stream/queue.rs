//! Bytes from a client on their way to a process or a socket: a queue whose writer waits where the
//! reader does not keep up, so that a connection holds no more than this for each of its streams.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Bytes that wait; what was pushed last may go beyond it.
const LIMIT: usize = 64 << 10;

/// A chunk below this is copied: it may be a small part of a large buffer, which it would hold.
const COPIED: usize = 16 << 10;

#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    /// Nothing more comes.
    ended: bool,
    /// Nobody reads any more.
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room. What nobody reads is dropped: so many bytes.
    pub async fn push(&self, chunk: Bytes) -> usize {
        loop {
            let emptied = self.emptied.notified();
            {
                let mut state = self.lock();
                if state.closed || state.ended || chunk.is_empty() {
                    return chunk.len();
                }
                if state.bytes < LIMIT {
                    state.bytes += chunk.len();
                    let small = chunk.len() < COPIED;
                    state.chunks.push_back(if small { Bytes::copy_from_slice(&chunk) } else { chunk });
                    self.filled.notify_one();
                    return 0;
                }
            }
            emptied.await;
        }
    }

    /// Nothing more comes; what is there is still read.
    pub fn end(&self) {
        self.lock().ended = true;
        self.filled.notify_one();
        self.emptied.notify_one();
    }

    /// Nobody reads any more: whoever waits for room goes on. So many bytes that were there are dropped.
    pub fn close(&self) -> usize {
        let mut state = self.lock();
        state.closed = true;
        state.chunks.clear();
        self.emptied.notify_one();
        self.filled.notify_one();
        std::mem::take(&mut state.bytes)
    }

    /// The next chunk. None: the end.
    pub async fn pop(&self) -> Option<Bytes> {
        loop {
            let filled = self.filled.notified();
            {
                let mut state = self.lock();
                if let Some(chunk) = state.chunks.pop_front() {
                    state.bytes -= chunk.len();
                    self.emptied.notify_one();
                    return Some(chunk);
                }
                if state.ended || state.closed {
                    return None;
                }
            }
            filled.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_full_queue_holds_its_writer_and_nothing_is_lost() {
        let queue = Arc::new(Queue::default());
        let writer = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move {
                for i in 0..100u8 {
                    queue.push(Bytes::from(vec![i; 10_000])).await;
                }
                queue.end();
            }
        });
        tokio::task::yield_now().await;
        assert!(queue.lock().bytes <= LIMIT + 10_000);
        for i in 0..100u8 {
            assert_eq!(queue.pop().await, Some(Bytes::from(vec![i; 10_000])));
        }
        assert_eq!(queue.pop().await, None);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_left_holds_nobody() {
        let queue = Arc::new(Queue::default());
        queue.push(Bytes::from(vec![0; LIMIT])).await;
        let writer = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.push(Bytes::from_static(b"more")).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(queue.close(), LIMIT);
        assert_eq!(writer.await.unwrap(), 4);
        assert_eq!(queue.pop().await, None);
        assert_eq!(queue.push(Bytes::from_static(b"still more")).await, 10);
        assert_eq!(queue.lock().bytes, 0);
    }
}
