//! One SPDY connection: a task that reads, a task that writes, and streams handed out in the order they were opened.
//!
//!     peer -> reader task -> Stream.reader (bounded)        SYN_STREAM  -> handed out by `accept`
//!     peer <- writer task <- Stream.writer (bounded)        FIN, RST    -> the stream's end, the connection goes on
//!
//! Invariant: only the writer task writes, so the encoder's zlib state advances in wire order. A reader whose consumer is slow
//! stops the whole connection once its room is full (`queue`): the peer is paced by its socket.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::frame::{Frame, FrameError, Parser, reset};
use super::headers::{Decoder, Encoder, Headers, HeadersError};
use crate::streaming::queue::{self, Room};

/// Streams alive at once; a further one is refused. kubectl opens five, a port-forward two per connection.
const STREAMS_MAX: usize = 1000;

/// Frames waiting for the socket.
const OUTGOING_FRAMES_MAX: usize = 64;

/// Payload of a data frame that we send.
const DATA_LENGTH: usize = 32 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("read from the SPDY connection")]
    Read(#[source] std::io::Error),
    #[error("write to the SPDY connection")]
    Write(#[source] std::io::Error),
    #[error("read a SPDY frame")]
    Frame(#[from] FrameError),
    #[error("read or write SPDY headers")]
    Headers(#[from] HeadersError),
    #[error("SPDY stream id {0} is even, or not above its predecessors")]
    StreamOrder(u32),
}

/// The connection's end failed or is gone; what was sent is lost.
#[derive(Debug, thiserror::Error)]
#[error("the SPDY connection is closed")]
pub(crate) struct Closed;

#[derive(Debug)]
pub(crate) struct Connection {
    incoming: mpsc::Receiver<Stream>,
    /// Dropped with the connection: reading ends at once, what is queued is still written.
    _reading: DropGuard,
}

/// A stream that the peer opened; already accepted.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) headers: Headers,
    pub(crate) reader: StreamReader,
    pub(crate) writer: StreamWriter,
}

#[derive(Debug)]
pub(crate) struct StreamReader {
    stream: u32,
    data: queue::Receiver,
    out: mpsc::Sender<Outgoing>,
}

#[derive(Clone, Debug)]
pub(crate) struct StreamWriter {
    stream: u32,
    out: mpsc::Sender<Outgoing>,
}

#[derive(Debug)]
enum Outgoing {
    Frame(Frame),
    /// Compressed by the writer, so that blocks are compressed in the order they are sent.
    Reply {
        stream: u32,
    },
}

impl Connection {
    /// Serves a connection that has been upgraded. When this handle is dropped reading ends; once the streams are dropped too,
    /// what they sent is written and the connection is closed.
    pub(crate) fn serve<S>(socket: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read_half, write_half) = tokio::io::split(socket);
        let (out, outgoing) = mpsc::channel(OUTGOING_FRAMES_MAX);
        let (accepted, incoming) = mpsc::channel(16);
        let reading = CancellationToken::new();
        let cancelled = reading.clone();
        tokio::spawn(async move {
            if let Err(error) = write(write_half, outgoing).await {
                debug!(%error, "SPDY writer ended");
            }
        });
        tokio::spawn(async move {
            let mut reader = Reader {
                decoder: Decoder::new(),
                streams: HashMap::new(),
                room: Room::new(),
                last_stream: 0,
                accepted,
                out: out.clone(),
            };
            let outcome = tokio::select! {
                outcome = reader.run(read_half) => outcome,
                () = cancelled.cancelled() => Ok(()),
            };
            if let Err(error) = outcome {
                debug!(%error, "SPDY reader ended");
                let _ = out.send(Outgoing::Frame(Frame::GoAway { last_stream: reader.last_stream, status: 1 })).await;
            }
        });
        Self { incoming, _reading: reading.drop_guard() }
    }

    /// The next stream that the peer opens; `None` when it will open none any more.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }
}

impl StreamReader {
    /// The next bytes; `None` after the peer's FIN, a reset, or the connection's end.
    pub(crate) async fn read(&mut self) -> Option<Bytes> {
        let data = self.data.recv().await?;
        if let Ok(delta) = u32::try_from(data.len())
            && delta > 0
        {
            // Section 2.6.8: stream 0 is the connection's own window.
            for stream in [self.stream, 0] {
                let _ = self.out.try_send(Outgoing::Frame(Frame::WindowUpdate { stream, delta }));
            }
        }
        Some(data)
    }
}

impl StreamWriter {
    pub(crate) async fn write(&self, mut data: Bytes) -> Result<(), Closed> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(DATA_LENGTH));
            self.send(Frame::Data { stream: self.stream, fin: false, data: piece }).await?;
        }
        Ok(())
    }

    /// No more data from us; the peer may go on sending.
    pub(crate) async fn finish(&self) -> Result<(), Closed> {
        self.send(Frame::Data { stream: self.stream, fin: true, data: Bytes::new() }).await
    }

    /// Ends both directions at once.
    pub(crate) async fn reset(&self) -> Result<(), Closed> {
        self.send(Frame::RstStream { stream: self.stream, status: reset::INVALID_STREAM }).await
    }

    async fn send(&self, frame: Frame) -> Result<(), Closed> {
        self.out.send(Outgoing::Frame(frame)).await.map_err(|_| Closed)
    }
}

struct Reader {
    decoder: Decoder,
    /// Streams whose peer may still send.
    streams: HashMap<u32, queue::Sender>,
    room: Room,
    last_stream: u32,
    accepted: mpsc::Sender<Stream>,
    out: mpsc::Sender<Outgoing>,
}

impl Reader {
    async fn run<R: AsyncRead + Unpin>(&mut self, mut socket: R) -> Result<(), ConnectionError> {
        let mut buffer = BytesMut::with_capacity(16 * 1024);
        let mut parser = Parser::default();
        loop {
            while let Some(frame) = parser.next(&mut buffer)? {
                self.handle(frame).await?;
            }
            if socket.read_buf(&mut buffer).await.map_err(ConnectionError::Read)? == 0 {
                return Ok(());
            }
        }
    }

    async fn handle(&mut self, frame: Frame) -> Result<(), ConnectionError> {
        match frame {
            Frame::SynStream { stream, fin, block, .. } => {
                let headers = self.decoder.decode(&block)?;
                self.open(stream, fin, headers).await
            }
            // We open no streams; the block still moves the decoder.
            Frame::SynReply { block, .. } => self.decoder.decode(&block).map(drop).map_err(Into::into),
            Frame::Headers { stream, fin, block } => {
                self.decoder.decode(&block)?;
                if fin {
                    self.streams.remove(&stream);
                }
                Ok(())
            }
            Frame::Data { stream, fin, data } => {
                if let Some(sender) = self.streams.get(&stream)
                    && !data.is_empty()
                    && !sender.send(data).await
                {
                    // Nobody reads this stream any more: what comes is dropped, as after a closed pipe.
                    self.streams.remove(&stream);
                }
                if fin {
                    self.streams.remove(&stream);
                }
                Ok(())
            }
            Frame::RstStream { stream, .. } => {
                self.streams.remove(&stream);
                Ok(())
            }
            // Section 2.6.5: a ping of the client has an odd id, and is sent back.
            Frame::Ping { id } if id % 2 == 1 => {
                self.answer(Frame::Ping { id }).await;
                Ok(())
            }
            Frame::Ping { .. } | Frame::Settings { .. } | Frame::GoAway { .. } | Frame::WindowUpdate { .. } => Ok(()),
        }
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> Result<(), ConnectionError> {
        if stream.is_multiple_of(2) || stream <= self.last_stream {
            return Err(ConnectionError::StreamOrder(stream));
        }
        self.last_stream = stream;
        self.streams.retain(|_, sender| !sender.is_closed());
        if self.streams.len() >= STREAMS_MAX {
            self.answer(Frame::RstStream { stream, status: reset::REFUSED_STREAM }).await;
            return Ok(());
        }
        let (sender, data) = self.room.channel();
        if !fin {
            self.streams.insert(stream, sender);
        }
        // The client library waits for the reply before it uses the stream.
        let _ = self.out.send(Outgoing::Reply { stream }).await;
        let handed_out = Stream {
            headers,
            reader: StreamReader { stream, data, out: self.out.clone() },
            writer: StreamWriter { stream, out: self.out.clone() },
        };
        if self.accepted.send(handed_out).await.is_err() {
            self.streams.remove(&stream);
            self.answer(Frame::RstStream { stream, status: reset::PROTOCOL_ERROR }).await;
        }
        Ok(())
    }

    async fn answer(&self, frame: Frame) {
        let _ = self.out.send(Outgoing::Frame(frame)).await;
    }
}

async fn write<W: AsyncWrite + Unpin>(
    mut socket: W,
    mut outgoing: mpsc::Receiver<Outgoing>,
) -> Result<(), ConnectionError> {
    let mut encoder = Encoder::new()?;
    let mut buffer = BytesMut::new();
    while let Some(first) = outgoing.recv().await {
        let mut next = Some(first);
        // What is ready goes out in one write.
        while let Some(item) = next {
            match item {
                Outgoing::Frame(frame) => frame.encode(&mut buffer),
                Outgoing::Reply { stream } => {
                    let block = encoder.encode(&Headers::new())?;
                    Frame::SynReply { stream, fin: false, block }.encode(&mut buffer);
                }
            }
            next = if buffer.len() < 2 * DATA_LENGTH { outgoing.try_recv().ok() } else { None };
        }
        socket.write_all(&buffer).await.map_err(ConnectionError::Write)?;
        socket.flush().await.map_err(ConnectionError::Write)?;
        buffer.clear();
    }
    socket.shutdown().await.map_err(ConnectionError::Write)
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    /// The peer's side, by hand.
    struct Peer {
        socket: DuplexStream,
        encoder: Encoder,
        buffer: BytesMut,
    }

    impl Peer {
        fn connect() -> (Self, Connection) {
            let (socket, server) = tokio::io::duplex(1 << 16);
            let peer = Self { socket, encoder: Encoder::new().unwrap(), buffer: BytesMut::new() };
            (peer, Connection::serve(server))
        }

        async fn send(&mut self, frame: Frame) {
            let mut bytes = BytesMut::new();
            frame.encode(&mut bytes);
            self.socket.write_all(&bytes).await.unwrap();
        }

        async fn open(&mut self, stream: u32, name: &str) {
            let headers = Headers::from([("streamtype".to_string(), name.to_string())]);
            let block = self.encoder.encode(&headers).unwrap();
            self.send(Frame::SynStream { stream, associated: 0, priority: 0, fin: false, block }).await;
        }

        /// The next frame that is not about windows.
        async fn receive(&mut self) -> Option<Frame> {
            loop {
                match Frame::parse(&mut self.buffer).unwrap() {
                    Some(Frame::WindowUpdate { .. }) => {}
                    Some(frame) => return Some(frame),
                    None if self.socket.read_buf(&mut self.buffer).await.unwrap() == 0 => return None,
                    None => {}
                }
            }
        }
    }

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_and_half_close() {
        let (mut peer, mut connection) = Peer::connect();
        peer.open(1, "data").await;
        peer.open(3, "error").await;
        let mut data = connection.accept().await.unwrap();
        let error = connection.accept().await.unwrap();
        assert_eq!(data.headers["streamtype"], "data");
        assert_eq!(error.headers["streamtype"], "error");
        assert!(matches!(peer.receive().await, Some(Frame::SynReply { stream: 1, .. })));
        assert!(matches!(peer.receive().await, Some(Frame::SynReply { stream: 3, .. })));

        peer.send(Frame::Data { stream: 1, fin: false, data: Bytes::from_static(b"ping") }).await;
        peer.send(Frame::Data { stream: 1, fin: true, data: Bytes::new() }).await;
        assert_eq!(data.reader.read().await.unwrap(), "ping");
        assert!(data.reader.read().await.is_none());
        // Our half is still open after the peer's is closed.
        data.writer.write(Bytes::from_static(b"pong")).await.unwrap();
        data.writer.finish().await.unwrap();
        let expect = Frame::Data { stream: 1, fin: false, data: Bytes::from_static(b"pong") };
        assert_eq!(peer.receive().await, Some(expect));
        assert_eq!(peer.receive().await, Some(Frame::Data { stream: 1, fin: true, data: Bytes::new() }));

        peer.send(Frame::Ping { id: 7 }).await;
        assert_eq!(peer.receive().await, Some(Frame::Ping { id: 7 }));
    }

    #[tokio::test]
    async fn a_stream_id_out_of_order_ends_the_connection() {
        let (mut peer, mut connection) = Peer::connect();
        peer.open(3, "data").await;
        assert!(connection.accept().await.is_some());
        assert!(matches!(peer.receive().await, Some(Frame::SynReply { .. })));
        peer.open(1, "data").await;
        assert_eq!(peer.receive().await, Some(Frame::GoAway { last_stream: 3, status: 1 }));
        assert!(connection.accept().await.is_none());
    }
}
