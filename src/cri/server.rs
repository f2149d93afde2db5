//! The gRPC server: both services on one unix socket, until it is told to stop.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tonic::transport::Server;

use crate::cri::call_log::CallLogLayer;
use crate::cri::deadline::DeadlineLayer;
use crate::cri::decode::Host;
use crate::cri::image_service::Images;
use crate::cri::listener;
use crate::cri::runtime_service::Runtime;
use crate::cri::store_service::StoreService;
use crate::cri::wire::image_service_server::ImageServiceServer;
use crate::cri::wire::runtime_service_server::RuntimeServiceServer;
use crate::cri::wire::store::store_server::StoreServer;
use crate::error::{Error, Result, Step};
use crate::node::Node;

/// Of one message, either way: what kubelet's client and the peers' servers are set to.
pub(super) const MAX_MESSAGE: usize = 16 << 20;

/// How long running calls may go on once the server was told to stop. What is still running then
/// is dropped; every verb is safe to drop.
const GRACE: Duration = Duration::from_secs(10);

/// Serves the CRI on `node.config.listen` until `shutdown` resolves and the running calls are done.
///
/// FAILED_PRECONDITION where another server answers on that socket.
pub async fn serve(node: Arc<Node>, shutdown: impl Future<Output = ()>) -> Result<()> {
    let (_guard, socket) = listener::listen(&node.config.listen)?;
    tracing::info!(socket = %node.config.listen.display(), "serving the CRI");
    serve_on(node, socket, shutdown).await
}

/// As [`serve`], on a non-blocking socket that is listening already.
pub async fn serve_on(
    node: Arc<Node>,
    socket: StdListener,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let socket = UnixListener::from_std(socket).step(|| "taking the CRI socket over")?;
    let (stop, stopping) = watch::channel(false);
    let streaming = crate::stream::Server::open(Arc::clone(&node)).await?;
    let runtime = Runtime::new(node.clone(), Host::detect(), streaming, stopping.clone());
    let runtime = RuntimeServiceServer::new(runtime)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let store = StoreServer::new(StoreService::new(node.clone())).max_decoding_message_size(MAX_MESSAGE);
    let images = ImageServiceServer::new(Images::new(node))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let server = Server::builder()
        .layer(CallLogLayer)
        .layer(DeadlineLayer)
        .add_service(runtime)
        .add_service(images)
        .add_service(store)
        .serve_with_incoming_shutdown(connections(socket), stopped(stopping));
    let server = tokio::spawn(server);

    shutdown.await;
    // Ends the event streams too, which no client would end.
    let _ = stop.send(true);
    let abort = server.abort_handle();
    match tokio::time::timeout(GRACE, server).await {
        Ok(Ok(done)) => done.map_err(|e| Error::internal(format!("serving the CRI: {e}"))),
        Ok(Err(panic)) => Err(Error::internal(format!("serving the CRI: {panic}"))),
        Err(_) => {
            abort.abort();
            tracing::warn!("calls were still running {} s after the stop", GRACE.as_secs());
            Ok(())
        }
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, and so is the server's owner.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Accepted connections. An accept that fails, as it does when fds run out, is retried after a
/// moment; without that the server would spin.
fn connections(socket: UnixListener) -> impl Stream<Item = std::io::Result<UnixStream>> {
    futures_util::stream::unfold(socket, |socket| async {
        loop {
            match socket.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), socket)),
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}
