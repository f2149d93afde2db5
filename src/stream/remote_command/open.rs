//! The streams of a session, made as its protocol has it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Inlet, Outlet, StatusForm, Streams, Wanted};
use crate::stream::chunk::Chunk;
use crate::stream::spdy::header::Headers;
use crate::stream::spdy::session::{self, Refusal, Stream};
use crate::stream::websocket::channel::{self, Protocol};
use crate::stream::websocket::session::{Channel, Inbound};
use crate::stream::websocket::tunnel::{Messages, Source};
use crate::stream::wire::{Gone, Wire};

/// How long a client may take to open its streams: what the peers give it.
pub const CREATION_LIMIT: Duration = Duration::from_secs(30);

/// The versions over SPDY; without one it is the first.
pub const SPDY_PROTOCOLS: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Error,
    Stdin,
    Stdout,
    Stderr,
    Resize,
}

impl Kind {
    fn of(headers: &Headers) -> Option<Self> {
        Some(match headers.get("streamtype")? {
            "error" => Self::Error,
            "stdin" => Self::Stdin,
            "stdout" => Self::Stdout,
            "stderr" => Self::Stderr,
            "resize" => Self::Resize,
            _ => return None,
        })
    }
}

/// Which streams the client is to open, in the version's own way: sizes came with the third.
fn expected(wanted: Wanted, protocol: &str) -> Vec<Kind> {
    let resizes = matches!(protocol, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    let all = [
        (true, Kind::Error),
        (wanted.stdin, Kind::Stdin),
        (wanted.stdout, Kind::Stdout),
        (wanted.stderr && !wanted.tty, Kind::Stderr),
        (wanted.tty && resizes, Kind::Resize),
    ];
    all.into_iter().filter(|(wanted, _)| *wanted).map(|(_, kind)| kind).collect()
}

/// Waits for the client to open its streams. Gone: it has not, in time.
pub async fn spdy(wire: Arc<Wire>, source: Source, wanted: Wanted, protocol: &str) -> Result<Streams, Gone> {
    let mut left = expected(wanted, protocol);
    let count = left.len();
    let accept = Box::new(move |headers: &Headers, _| {
        let kind = Kind::of(headers).ok_or(Refusal::Invalid)?;
        let place = left.iter().position(|other| *other == kind).ok_or(Refusal::TooMany)?;
        left.remove(place);
        Ok(())
    });
    let (sender, mut opened) = mpsc::channel(count);
    tokio::spawn(session::serve(Arc::clone(&wire), source, accept, sender));
    let mut streams: Vec<(Kind, Stream)> = Vec::with_capacity(count);
    let all = async {
        while streams.len() < count {
            let stream = opened.recv().await.ok_or(Gone)?;
            let kind = Kind::of(&stream.headers).ok_or(Gone)?;
            streams.push((kind, stream));
        }
        Ok::<_, Gone>(())
    };
    let all = tokio::time::timeout(CREATION_LIMIT, all).await;
    if !matches!(all, Ok(Ok(()))) {
        tracing::debug!("a client has not opened its streams in time");
        wire.go();
        return Err(Gone);
    }
    let mut take = |kind: Kind| {
        let place = streams.iter().position(|(other, _)| *other == kind)?;
        Some(streams.swap_remove(place).1)
    };
    Ok(Streams {
        stdin: take(Kind::Stdin).map(Inlet::Spdy),
        resize: take(Kind::Resize).map(Inlet::Spdy),
        stdout: take(Kind::Stdout).map(Outlet::Spdy),
        stderr: take(Kind::Stderr).map(Outlet::Spdy),
        error: take(Kind::Error).map(Outlet::Spdy).ok_or(Gone)?,
        form: if protocol == SPDY_PROTOCOLS[0] { StatusForm::Json } else { StatusForm::Text },
        wire,
    })
}

/// Channels are there at once; the client learns of it by an empty message.
pub async fn websocket(wire: Arc<Wire>, messages: Messages, wanted: Wanted, protocol: Protocol) -> Streams {
    let mut inbound = Inbound::of(channel::COUNT);
    let mut inlet = |wanted: bool, number| wanted.then(|| Inlet::WebSocket(inbound.open(number)));
    let outlet = |number| Outlet::WebSocket(Channel { wire: Arc::clone(&wire), number, protocol });
    let streams = Streams {
        stdin: inlet(wanted.stdin, channel::STDIN),
        resize: inlet(wanted.tty, channel::RESIZE),
        stdout: wanted.stdout.then(|| outlet(channel::STDOUT)),
        stderr: (wanted.stderr && !wanted.tty).then(|| outlet(channel::STDERR)),
        error: outlet(channel::ERROR),
        form: if protocol.status { StatusForm::Json } else { StatusForm::Text },
        wire: Arc::clone(&wire),
    };
    tokio::spawn(crate::stream::websocket::session::serve(wire, messages, protocol, inbound));
    let lowest = streams.stdout.as_ref().or(streams.stderr.as_ref()).unwrap_or(&streams.error);
    // Who has left already may have said something before.
    let _ = lowest.write(Chunk::copied(&[])).await;
    streams
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_streams() {
        let all = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
        let plain = vec![Kind::Error, Kind::Stdin, Kind::Stdout, Kind::Stderr];
        assert_eq!(expected(all, "v4.channel.k8s.io"), plain);
        let tty = Wanted { tty: true, ..all };
        assert_eq!(
            expected(tty, "v3.channel.k8s.io"),
            [Kind::Error, Kind::Stdin, Kind::Stdout, Kind::Resize]
        );
        assert_eq!(expected(tty, "v2.channel.k8s.io"), [Kind::Error, Kind::Stdin, Kind::Stdout]);
    }
}
