//! One line in the log for each call: method, code, duration, and the error if there was one.
//!
//! Errors are logged here and nowhere below. What kubelet and crictl ask over and over (lists,
//! statuses, stats) goes to the debug level; calls that change something go to info.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

#[derive(Clone)]
pub(super) struct CallLogLayer;

#[derive(Clone)]
pub(super) struct CallLog<S>(S);

impl<S> Layer<S> for CallLogLayer {
    type Service = CallLog<S>;

    fn layer(&self, inner: S) -> CallLog<S> {
        CallLog(inner)
    }
}

impl<S, B, R> Service<Request<B>> for CallLog<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = Call::begin(request.uri().path());
        let response = self.0.call(request);
        Box::pin(async move {
            let response = response.await;
            if let Ok(response) = &response {
                // A call that failed has its status in the headers; one that did not has none yet.
                call.end(Status::from_header_map(response.headers()));
            }
            response
        })
    }
}

/// A running call. Dropped before its end, it was given up by the client.
struct Call {
    method: String,
    begun: Instant,
    ended: bool,
}

impl Call {
    fn begin(path: &str) -> Self {
        let method = path.rsplit('/').next().unwrap_or(path).to_owned();
        Self { method, begun: Instant::now(), ended: false }
    }

    fn end(mut self, status: Option<Status>) {
        self.ended = true;
        match status.filter(|s| s.code() != Code::Ok) {
            None => self.log(Code::Ok, ""),
            Some(status) => self.log(status.code(), status.message()),
        }
    }

    fn log(&self, code: Code, error: &str) {
        let micros = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let method = self.method.as_str();
        // Code's Debug is the name without a number, in the form that gRPC's tools print.
        match (code, is_frequent_read(method)) {
            (Code::Ok, true) => tracing::debug!(method, ?code, micros, "call"),
            (Code::Ok, false) => tracing::info!(method, ?code, micros, "call"),
            // kubelet asks for what it has just removed; that is not worth a warning.
            (Code::NotFound, true) => tracing::debug!(method, ?code, micros, error, "call"),
            _ => tracing::warn!(method, ?code, micros, error, "call"),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.log(Code::Cancelled, "the client gave the call up");
        }
    }
}

fn is_frequent_read(method: &str) -> bool {
    method.starts_with("List")
        || method.starts_with("Stream")
        || method.ends_with("Status")
        || method.ends_with("Stats")
        || matches!(method, "Version" | "ImageFsInfo" | "RuntimeConfig" | "Pulls")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::wire::DESCRIPTORS;
    use prost::Message;

    #[test]
    fn every_call_that_changes_something_is_logged_at_info() {
        let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let mut changes: Vec<_> = set
            .file
            .iter()
            .flat_map(|f| &f.service)
            .flat_map(|s| &s.method)
            .map(|m| m.name())
            .filter(|name| !is_frequent_read(name))
            .collect();
        changes.sort_unstable();
        let expected = [
            "Attach",
            "Check",
            "CheckpointContainer",
            "CheckpointPod",
            "CreateContainer",
            "Exec",
            "ExecSync",
            "GetContainerEvents",
            "Import",
            "PortForward",
            "PullImage",
            "RemoveContainer",
            "RemoveImage",
            "RemovePodSandbox",
            "ReopenContainerLog",
            "RestorePod",
            "RunPodSandbox",
            "StartContainer",
            "StopContainer",
            "StopPodSandbox",
            "UpdateContainerResources",
            "UpdatePodSandboxResources",
            "UpdateRuntimeConfig",
        ];
        assert_eq!(changes, expected);
    }
}
