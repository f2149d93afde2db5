//! From the errors of this crate to gRPC's codes. kubelet branches on the code, not on the text.

use tonic::{Code, Status};

use crate::error::{Error, Kind};

fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Unavailable => Code::Unavailable,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::WrongBytes => Code::DataLoss,
        Kind::Cancelled => Code::Cancelled,
        Kind::Internal => Code::Internal,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(code(error.kind), error.message)
    }
}

/// PullImage's errors: kubelet tells a registry that does not answer by the first word of the
/// message, and looks at it only where the code is UNKNOWN (kubelet's images package and cri-api's
/// errors).
pub(in crate::cri) fn pull(error: Error) -> Status {
    match error.kind {
        Kind::Unavailable => Status::new(Code::Unknown, format!("RegistryUnavailable: {}", error.message)),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_1_unknown_is_not_found() {
        let status = Status::from(Error::not_found("no container abc"));
        assert_eq!((status.code(), status.message()), (Code::NotFound, "no container abc"));
    }

    #[test]
    fn a_registry_that_does_not_answer_is_what_kubelet_knows() {
        let status = pull(Error::unavailable("registry a.b: refused"));
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unknown, "RegistryUnavailable: registry a.b: refused")
        );
        assert_eq!(pull(Error::not_found("x")).code(), Code::NotFound);
    }

    #[test]
    fn what_is_not_built_is_named() {
        let status = Status::from(Error::unimplemented("config.CDI_devices"));
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().starts_with("config.CDI_devices"));
    }
}
