//! How much may be sent: SPDY's flow control (section 2.6.8), as far as the peer takes part in it.
//!
//! The clients of Kubernetes have none: they neither heed a window nor ever enlarge one, and rely
//! on TCP. So a peer's window holds for what it was told from the first WINDOW_UPDATE or initial
//! window on; all that was sent before then counts. And it is told of room, until it is seen to
//! send more than it was given.

use super::frame::MAX_WINDOW;

/// Of a stream and of a session until somebody says otherwise.
pub const INITIAL: i64 = 64 << 10;

/// What we may send.
#[derive(Debug, Clone, Copy)]
pub struct Send {
    sent: i64,
    granted: i64,
    heeded: bool,
}

/// The window went beyond its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow;

impl Send {
    pub fn new(initial: Option<u32>) -> Self {
        let granted = initial.map_or(INITIAL, i64::from);
        Self { sent: 0, granted, heeded: initial.is_some() }
    }

    /// Bytes of `wanted` that may go now; they count as sent.
    pub fn take(&mut self, wanted: usize) -> usize {
        let room = if self.heeded { self.granted - self.sent } else { MAX_WINDOW };
        let taken = (wanted as i64).min(room).max(0);
        self.sent += taken;
        taken as usize
    }

    /// Gives back what was taken and not sent.
    pub fn untake(&mut self, bytes: usize) {
        self.sent -= bytes as i64;
    }

    pub fn grant(&mut self, delta: u32) -> Result<(), Overflow> {
        self.heeded = true;
        self.granted += i64::from(delta);
        if self.granted - self.sent > MAX_WINDOW { Err(Overflow) } else { Ok(()) }
    }

    /// The initial window was changed by so much.
    pub fn shift(&mut self, by: i64) -> Result<(), Overflow> {
        self.heeded = true;
        self.granted += by;
        if self.granted - self.sent > MAX_WINDOW { Err(Overflow) } else { Ok(()) }
    }
}

/// What the peer may send.
#[derive(Debug, Clone, Copy)]
pub struct Receive {
    received: i64,
    consumed: i64,
    granted: i64,
    ignored: bool,
}

impl Receive {
    pub fn new() -> Self {
        Self { received: 0, consumed: 0, granted: INITIAL, ignored: false }
    }

    pub fn received(&mut self, bytes: usize) {
        self.received += bytes as i64;
        self.ignored |= self.received > self.granted;
    }

    /// Bytes that came and are not consumed.
    pub fn held(&self) -> i64 {
        self.received - self.consumed
    }

    /// The delta to tell the peer of, once half of its window is used up; with `later` it waits for
    /// the next call.
    pub fn consumed(&mut self, bytes: usize, later: bool) -> Option<u32> {
        self.consumed += bytes as i64;
        let delta = self.consumed + INITIAL - self.granted;
        if self.ignored || later || delta < INITIAL / 2 {
            return None;
        }
        self.granted += delta;
        u32::try_from(delta).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_peer_without_flow_control_gets_all() {
        let mut window = Send::new(None);
        assert_eq!(window.take(10 << 20), 10 << 20);
        // Then it begins to speak of windows: what was sent counts.
        window.grant(1000).unwrap();
        assert_eq!(window.take(1), 0);
        window.grant((10 << 20) - (64 << 10)).unwrap();
        assert_eq!(window.take(5000), 1000);
    }

    #[test]
    fn what_is_told_later_is_told_whole() {
        let mut window = Receive::new();
        window.received(60_000);
        assert_eq!(window.consumed(40_000, true), None);
        assert_eq!(window.consumed(20_000, false), Some(60_000));
    }

    #[test]
    fn windows_do_not_overflow() {
        let mut window = Send::new(Some(65536));
        assert_eq!(window.grant(0x7fff_ffff), Err(Overflow));
        let mut window = Send::new(Some(10));
        assert_eq!(window.shift(-20), Ok(()));
        assert_eq!(window.take(1), 0);
        window.grant(15).unwrap();
        assert_eq!(window.take(9), 5);
    }

    #[test]
    fn who_sends_more_than_it_may_is_told_no_more() {
        let mut window = Receive::new();
        window.received(40_000);
        assert_eq!(window.consumed(20_000, false), None);
        assert_eq!(window.consumed(20_000, false), Some(40_000));
        window.received(66_000);
        assert_eq!(window.consumed(66_000, false), None);
    }

    proptest! {
        #[test]
        fn no_more_is_sent_than_granted(steps in prop::collection::vec((any::<bool>(), 0u32..100_000), 0..60)) {
            let mut window = Send::new(Some(65536));
            let (mut sent, mut granted) = (0, 65536);
            for (grant, bytes) in steps {
                if grant {
                    window.grant(bytes).unwrap();
                    granted += bytes as usize;
                } else {
                    sent += window.take(bytes as usize);
                }
                prop_assert!(sent <= granted);
            }
            prop_assert_eq!(window.take(granted - sent), granted - sent);
        }

        #[test]
        fn a_peer_that_heeds_its_window_never_waits_for_ever(reads in prop::collection::vec(1usize..70_000, 1..40)) {
            let mut window = Receive::new();
            let mut room = INITIAL;
            for read in reads {
                let sent = (read as i64).min(room);
                window.received(sent as usize);
                room -= sent;
                room += i64::from(window.consumed(sent as usize, false).unwrap_or(0));
                prop_assert!(room >= INITIAL / 2);
            }
        }
    }
}
