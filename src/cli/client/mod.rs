//! A plain CRI client: what the verbs share that work against any runtime's socket.

pub(super) mod find;
pub(super) mod log_file;
pub(super) mod table;

use std::process::ExitCode;

use clap::Args;
use tonic::transport::Channel;

use crate::cri::wire::image_service_client::ImageServiceClient;
use crate::cri::wire::runtime_service_client::RuntimeServiceClient;
use crate::cri::wire::store::store_client::StoreClient;
use crate::error::{Kind, Step};
use crate::{Error, Result};

/// Lists of a full node are beyond the default of 4 MiB.
const MAX_MESSAGE: usize = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct Endpoint {
    /// The runtime's CRI socket
    #[arg(
        long,
        value_name = "SOCKET",
        env = "CONTAINER_RUNTIME_ENDPOINT",
        default_value = "unix:///run/podwright/podwright.sock"
    )]
    endpoint: String,
}

/// The services of a runtime.
#[derive(Clone)]
pub(super) struct Client {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    /// Ours alone: other runtimes answer that it is unimplemented.
    pub store: StoreClient<Channel>,
}

impl Endpoint {
    /// `unix:///run/x.sock`, `unix:/run/x.sock` or a plain path.
    fn uri(&self) -> String {
        let path = self.endpoint.trim();
        let path = path.strip_prefix("unix://").or_else(|| path.strip_prefix("unix:")).unwrap_or(path);
        format!("unix://{path}")
    }

    /// Connects and runs one verb on a single thread.
    pub(super) fn run(&self, verb: impl AsyncFnOnce(Client) -> Result<ExitCode>) -> Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.step(|| "starting the client")?.block_on(async {
            let client = self.connect().await?;
            verb(client).await
        })
    }

    async fn connect(&self) -> Result<Client> {
        let uri = self.uri();
        let unusable = |e: tonic::transport::Error| {
            let cause = root_cause(&e);
            Error::unavailable(format!("no runtime answers on {uri}: {cause}"))
        };
        let channel = tonic::transport::Endpoint::from_shared(uri.clone()).map_err(unusable)?;
        let channel = channel.connect().await.map_err(unusable)?;
        Ok(Client {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            store: StoreClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        })
    }
}

/// The last of an error's causes, which says what happened.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    match cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
        Some(errno) => crate::error::errno_text(errno),
        None => cause.to_string(),
    }
}

/// What a runtime refused, in its words.
impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        let kind = match status.code() {
            Code::NotFound => Kind::NotFound,
            Code::InvalidArgument => Kind::InvalidArgument,
            Code::Unimplemented => Kind::Unimplemented,
            Code::FailedPrecondition => Kind::FailedPrecondition,
            Code::DeadlineExceeded => Kind::DeadlineExceeded,
            Code::Unavailable => Kind::Unavailable,
            Code::ResourceExhausted => Kind::ResourceExhausted,
            Code::PermissionDenied | Code::Unauthenticated => Kind::PermissionDenied,
            Code::DataLoss => Kind::WrongBytes,
            Code::Cancelled | Code::Aborted => Kind::Cancelled,
            _ => Kind::Internal,
        };
        let text = if status.message().is_empty() { status.code().description() } else { status.message() };
        Error::new(kind, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_uri_or_a_path() {
        for text in ["unix:///run/x.sock", "unix:/run/x.sock", "/run/x.sock"] {
            assert_eq!(Endpoint { endpoint: text.into() }.uri(), "unix:///run/x.sock");
        }
    }

    #[test]
    fn a_missing_runtime_is_a_sentence() {
        let endpoint = Endpoint { endpoint: "/nonexistent/x.sock".into() };
        let error = endpoint.run(|_| async { Ok(ExitCode::SUCCESS) }).unwrap_err();
        assert_eq!(
            error.message,
            "no runtime answers on unix:///nonexistent/x.sock: no such file or directory"
        );
    }
}
