//! The errors that callers branch on: one kind per gRPC code that the CRI uses, with a sentence.
//!
//! An error is made where the step, the path and the cause are known, travels unchanged, and is
//! logged once, at the edge (`cri/`), which also maps [`Kind`] to a gRPC code.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error; the gRPC code follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// NOT_FOUND: an unknown pod, container or image.
    NotFound,
    /// INVALID_ARGUMENT: a request that can never work.
    InvalidArgument,
    /// UNIMPLEMENTED: a request that means something, but not yet to us.
    Unimplemented,
    /// ALREADY_EXISTS: the name is taken by something else.
    AlreadyExists,
    /// FAILED_PRECONDITION: a request that the present state forbids.
    FailedPrecondition,
    /// DEADLINE_EXCEEDED: a time limit of the request ran out.
    DeadlineExceeded,
    /// UNAVAILABLE: something that we need does not answer now; a retry may work.
    Unavailable,
    /// RESOURCE_EXHAUSTED: no space, no address, too many of something.
    ResourceExhausted,
    /// PERMISSION_DENIED: a registry refused the credentials.
    PermissionDenied,
    /// DATA_LOSS: bytes that came in are not what their digest or their format says.
    WrongBytes,
    /// ABORTED or CANCELLED: the call was given up.
    Cancelled,
    /// INTERNAL: all else. The message is all there is.
    Internal,
}

/// A kind and a sentence that names the step, the path and the cause.
///
/// Cheap to clone, since a retried call that joins a running one gets the same error.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    /// `what` is the field or the call that is not built yet, as the client spelled it.
    pub fn unimplemented(what: impl fmt::Display) -> Self {
        Self::new(Kind::Unimplemented, format!("{what} is not implemented by podwright yet"))
    }

    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Kind::FailedPrecondition, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    pub fn wrong_bytes(message: impl Into<String>) -> Self {
        Self::new(Kind::WrongBytes, message)
    }

    /// An I/O error of `step` (a gerund phrase with the path: "opening /etc/x").
    pub fn io(step: impl fmt::Display, cause: impl Into<std::io::Error>) -> Self {
        let cause = cause.into();
        let kind = match cause.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Kind::ResourceExhausted,
            _ => Kind::Internal,
        };
        Self::new(kind, format!("{step}: {}", sentence(&cause)))
    }

    /// The same error with the step that it happened in put before it.
    pub fn during(self, step: impl fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{step}: {}", self.message) }
    }
}

/// The cause in words, without Rust's "(os error 19)" and in lower case, as C's tools print it.
fn sentence(cause: &std::io::Error) -> String {
    let text = cause.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    if cause.raw_os_error().is_none() {
        return text.to_owned();
    }
    let mut chars = text.chars();
    chars.next().map(|c| c.to_lowercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

/// The text of an errno, as in `no such device`.
pub fn errno_text(errno: i32) -> String {
    sentence(&std::io::Error::from_raw_os_error(errno))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Error {}

impl From<anyhow::Error> for Error {
    /// Keeps the kind of an [`Error`] inside; everything else is internal.
    fn from(error: anyhow::Error) -> Self {
        let kind = error.chain().find_map(|e| e.downcast_ref::<Error>()).map_or(Kind::Internal, |e| e.kind);
        Self::new(kind, format!("{error:#}"))
    }
}

/// `result.step(|| format!("opening {path}"))` on anything with an errno in it.
pub trait Step<T> {
    fn step<S: fmt::Display>(self, step: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Step<T> for std::io::Result<T> {
    fn step<S: fmt::Display>(self, step: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::io(step(), e))
    }
}

impl<T> Step<T> for rustix::io::Result<T> {
    fn step<S: fmt::Display>(self, step: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::io(step(), e))
    }
}

impl<T> Step<T> for Result<T> {
    fn step<S: fmt::Display>(self, step: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.during(step()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_errors_read_as_sentences() {
        let e = Error::io("mounting volume /data (hostPath /srv/x)", rustix::io::Errno::NODEV);
        assert_eq!(e.message, "mounting volume /data (hostPath /srv/x): no such device");
        assert_eq!(Error::io("writing /x", rustix::io::Errno::NOSPC).kind, Kind::ResourceExhausted);
    }
}
