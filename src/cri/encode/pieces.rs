//! A list as a stream of messages, each well below the limit of one message.

use std::pin::Pin;

use futures_util::{Stream, stream};
use prost::Message;
use tonic::Status;

pub(in crate::cri) type Pieces<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

/// Bytes of items after which a message is sent. One item may be larger by itself.
const PIECE: usize = 1 << 20;

/// The items in order, in messages that `wrap` makes. An empty list is an empty stream.
pub(in crate::cri) fn pieces<T, R>(items: Vec<T>, wrap: fn(Vec<T>) -> R) -> Pieces<R>
where
    T: Message + Send + 'static,
    R: Send + 'static,
{
    let messages = cut(items).into_iter().map(move |piece| Ok(wrap(piece)));
    Box::pin(stream::iter(messages.collect::<Vec<_>>()))
}

fn cut<T: Message>(items: Vec<T>) -> Vec<Vec<T>> {
    let mut pieces = Vec::new();
    let (mut piece, mut size) = (Vec::new(), 0);
    for item in items {
        let length = item.encoded_len();
        if size + length > PIECE && !piece.is_empty() {
            pieces.push(std::mem::take(&mut piece));
            size = 0;
        }
        size += length;
        piece.push(item);
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::wire::Image;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn behaviour_37_nothing_is_lost_and_no_piece_is_too_large(
            sizes in prop::collection::vec(0usize..(3 << 19), 0..24),
        ) {
            let image = |size: &usize| Image { username: "u".repeat(*size), ..Default::default() };
            let items: Vec<_> = sizes.iter().map(image).collect();
            let pieces = cut(items.clone());
            for piece in &pieces {
                let size: usize = piece.iter().map(Message::encoded_len).sum();
                prop_assert!(!piece.is_empty() && (size <= PIECE || piece.len() == 1));
            }
            prop_assert_eq!(pieces.concat(), items);
        }
    }
}
