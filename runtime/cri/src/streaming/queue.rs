//! Bytes on their way from a client to their consumer, bounded in bytes over all streams of a session.
//!
//! Who sends waits for room, and does not read its socket meanwhile: a client is paced by its socket, and what a slow consumer costs
//! is [`BYTES_MAX`], whatever the client sends and in whatever pieces. Invariant: room is given back when the consumer takes a piece,
//! or goes.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Of one session, waiting for their consumers.
const BYTES_MAX: usize = 1 << 20;

/// No piece takes more room at once.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// What a piece of few bytes costs all the same.
const PIECE_BYTES_MIN: usize = 256;

/// The room of one session.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<Semaphore>);

#[derive(Debug)]
struct Piece {
    data: Bytes,
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(crate) struct Sender {
    pieces: mpsc::UnboundedSender<Piece>,
    room: Room,
}

#[derive(Debug)]
pub(crate) struct Receiver(mpsc::UnboundedReceiver<Piece>);

impl Room {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BYTES_MAX)))
    }

    /// One stream of the session.
    pub(crate) fn channel(&self) -> (Sender, Receiver) {
        // Bounded by its room.
        let (pieces, received) = mpsc::unbounded_channel();
        (Sender { pieces, room: self.clone() }, Receiver(received))
    }
}

impl Sender {
    /// Waits for room; false when nobody will take it.
    pub(crate) async fn send(&self, mut data: Bytes) -> bool {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
            let charge = u32::try_from(piece.len().max(PIECE_BYTES_MIN)).unwrap_or(u32::MAX);
            let room = tokio::select! {
                room = Arc::clone(&self.room.0).acquire_many_owned(charge) => room,
                () = self.pieces.closed() => return false,
            };
            let Ok(room) = room else { return false };
            if self.pieces.send(Piece { data: piece, _room: room }).is_err() {
                return false;
            }
        }
        true
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.pieces.is_closed()
    }
}

impl Receiver {
    /// `None` once the sender has gone and everything is taken.
    pub(crate) async fn recv(&mut self) -> Option<Bytes> {
        self.0.recv().await.map(|piece| piece.data)
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn who_sends_waits_for_room_and_goes_on_when_it_is_taken_or_nobody_is_left() {
        let room = Room::new();
        let (sender, mut receiver) = room.channel();
        let (other, other_receiver) = room.channel();
        assert!(sender.send(Bytes::from(vec![1; BYTES_MAX])).await);
        assert_eq!(room.0.available_permits(), 0);
        // The room is the session's: another stream of it waits too.
        let mut waiting = Box::pin(other.send(Bytes::from_static(b"x")));
        assert!(poll!(&mut waiting).is_pending());
        assert_eq!(receiver.recv().await.unwrap().len(), PIECE_BYTES_MAX);
        assert!(waiting.await);
        drop(other_receiver);
        assert!(!other.send(Bytes::from_static(b"x")).await);
        let mut waiting = Box::pin(sender.send(Bytes::from(vec![1; BYTES_MAX])));
        assert!(poll!(&mut waiting).is_pending());
        drop(receiver);
        assert!(!waiting.await);
        assert!(sender.is_closed());
        assert_eq!(room.0.available_permits(), BYTES_MAX);
    }

    #[tokio::test]
    async fn small_pieces_cost_their_share() {
        let room = Room::new();
        let (sender, _receiver) = room.channel();
        for _ in 0..BYTES_MAX / PIECE_BYTES_MIN {
            assert!(sender.send(Bytes::from_static(b"x")).await);
        }
        assert!(poll!(Box::pin(sender.send(Bytes::from_static(b"x")))).is_pending());
    }
}
