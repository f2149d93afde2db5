//! Tokens: what a URL stands for, for one use within a minute (BEHAVIOUR 18).

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;

use crate::error::Kind;
use crate::{Error, Result};

pub const LIFETIME: Duration = Duration::from_secs(60);
pub const MAX_OUTSTANDING: usize = 1000;

/// Of a token in a URL.
pub const TEXT: usize = 22;
/// Of randomness.
const BYTES: usize = 16;

pub struct Tokens<T> {
    /// In the order of their making, and so of their end.
    issued: Mutex<VecDeque<Issued<T>>>,
}

struct Issued<T> {
    token: [u8; BYTES],
    until: Instant,
    what: T,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self { issued: Mutex::default() }
    }
}

impl<T> Tokens<T> {
    /// RESOURCE_EXHAUSTED while too many wait to be used.
    pub fn issue(&self, what: T) -> Result<String> {
        self.issue_at(what, Instant::now())
    }

    /// What the token stands for, once. None: it was never issued, was used, or is too old.
    pub fn redeem(&self, token: &str) -> Option<T> {
        self.redeem_at(token, Instant::now())
    }

    fn issue_at(&self, what: T, now: Instant) -> Result<String> {
        let mut token = [0; BYTES];
        getrandom::fill(&mut token).map_err(|e| Error::internal(format!("drawing a token: {e}")))?;
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        drop_expired(&mut issued, now);
        if issued.len() >= MAX_OUTSTANDING {
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!("{MAX_OUTSTANDING} streaming requests wait for their clients to connect"),
            ));
        }
        issued.push_back(Issued { token, until: now + LIFETIME, what });
        Ok(BASE64_URL_SAFE_NO_PAD.encode(token))
    }

    fn redeem_at(&self, token: &str, now: Instant) -> Option<T> {
        let token = BASE64_URL_SAFE_NO_PAD.decode(token).ok().filter(|token| token.len() == BYTES)?;
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        drop_expired(&mut issued, now);
        // All of them, each in constant time: how long it takes says nothing of how near a guess is.
        let mut found = None;
        for (place, one) in issued.iter().enumerate() {
            if bool::from(one.token[..].ct_eq(&token)) {
                found = Some(place);
            }
        }
        issued.remove(found?).map(|issued| issued.what)
    }
}

fn drop_expired<T>(issued: &mut VecDeque<Issued<T>>, now: Instant) {
    while issued.front().is_some_and(|first| first.until <= now) {
        issued.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_18_a_token_is_used_once() {
        let tokens = Tokens::default();
        let (a, b) = (tokens.issue("a").unwrap(), tokens.issue("b").unwrap());
        assert_ne!(a, b);
        assert_eq!(tokens.redeem(&b), Some("b"));
        assert_eq!(tokens.redeem(&b), None);
        assert_eq!(tokens.redeem(&a), Some("a"));
    }

    #[test]
    fn behaviour_18_a_token_lives_a_minute() {
        let (tokens, start) = (Tokens::default(), Instant::now());
        let early = tokens.issue_at(1, start).unwrap();
        let late = tokens.issue_at(2, start + LIFETIME / 2).unwrap();
        assert_eq!(tokens.redeem_at(&early, start + LIFETIME), None);
        assert_eq!(tokens.redeem_at(&late, start + LIFETIME), Some(2));
    }

    #[test]
    fn behaviour_18_there_are_a_thousand_at_most() {
        let (tokens, start) = (Tokens::default(), Instant::now());
        let first = tokens.issue_at(0, start).unwrap();
        (1..MAX_OUTSTANDING).for_each(|i| drop(tokens.issue_at(i, start).unwrap()));
        assert_eq!(tokens.issue_at(0, start).unwrap_err().kind, Kind::ResourceExhausted);
        tokens.redeem_at(&first, start).unwrap();
        tokens.issue_at(0, start).unwrap();
        tokens.issue_at(0, start + LIFETIME).unwrap();
    }

    #[test]
    fn guesses_are_refused() {
        let tokens = Tokens::default();
        let token = tokens.issue(()).unwrap();
        let mut near = token.clone().into_bytes();
        near[5] = if near[5] == b'A' { b'B' } else { b'A' };
        let guesses = [
            "",
            "A",
            &token[..21],
            &format!("{token}="),
            &format!("{token}/x"),
            "\u{e9}",
            &token.to_lowercase(),
        ];
        for guess in guesses.into_iter().chain([std::str::from_utf8(&near).unwrap()]) {
            assert_eq!(tokens.redeem(guess), None, "{guess}");
        }
        assert!(tokens.redeem(&token).is_some());
    }
}
