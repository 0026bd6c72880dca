//! Bodies of answers: one piece, many pieces put together while they are sent, or a stream of events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::limits::Permit;

/// How much of a long body is put together at a time.
const CHUNK: usize = 64 << 10;

/// The body of an answer.
#[derive(Debug)]
pub(crate) struct Body {
    content: Content,
    /// Held until the last of it is gone.
    #[expect(dead_code, reason = "its end is what counts")]
    permit: Option<Permit>,
}

#[derive(Debug)]
enum Content {
    /// Pieces, sent in chunks. The number is their length together.
    Pieces(VecDeque<Bytes>, u64),
    /// The same, compressed on the way.
    Gzip(VecDeque<Bytes>, Option<GzEncoder<Vec<u8>>>),
    /// Whatever comes, until the sender is dropped.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body {
    pub(crate) fn pieces(pieces: impl Into<VecDeque<Bytes>>) -> Self {
        let pieces = pieces.into();
        let length = pieces.iter().map(|p| p.len() as u64).sum();
        Content::Pieces(pieces, length).into()
    }

    /// Whatever comes, until the sender is dropped.
    pub(crate) fn stream(receiver: mpsc::Receiver<Bytes>) -> Self {
        Content::Stream(receiver).into()
    }

    /// Counts as under way until it is sent.
    #[must_use]
    pub(crate) fn holding(self, permit: Option<Permit>) -> Self {
        Self { permit, ..self }
    }

    /// How long it is, if that is known.
    pub(crate) fn len(&self) -> Option<u64> {
        match &self.content {
            Content::Pieces(_, length) => Some(*length),
            _ => None,
        }
    }

    /// All of it, where it is there in one: no stream, and not compressed.
    pub(crate) fn whole(&self) -> Option<Vec<u8>> {
        match &self.content {
            Content::Pieces(pieces, _) => Some(pieces.iter().flatten().copied().collect()),
            _ => None,
        }
    }

    #[must_use]
    pub(crate) fn compressed(self) -> Self {
        let content = match self.content {
            // The real server's level: lists are long and repetitive.
            Content::Pieces(pieces, _) => {
                Content::Gzip(pieces, Some(GzEncoder::new(Vec::new(), Compression::fast())))
            }
            other => other,
        };
        Self { content, ..self }
    }
}

impl From<Content> for Body {
    fn from(content: Content) -> Self {
        Self {
            content,
            permit: None,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::pieces([bytes])
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

fn chunk(pieces: &mut VecDeque<Bytes>) -> Option<Bytes> {
    let first = pieces.pop_front()?;
    if first.len() >= CHUNK || pieces.is_empty() {
        return Some(first);
    }
    let mut whole = Vec::with_capacity(CHUNK + first.len());
    whole.extend_from_slice(&first);
    while whole.len() < CHUNK
        && let Some(piece) = pieces.pop_front()
    {
        whole.extend_from_slice(&piece);
    }
    Some(whole.into())
}

/// The next compressed chunk. Writing to memory does not fail.
fn squeeze(pieces: &mut VecDeque<Bytes>, encoder: &mut Option<GzEncoder<Vec<u8>>>) -> Option<Bytes> {
    while let Some(open) = encoder {
        let Some(piece) = pieces.pop_front() else {
            let rest = encoder.take()?.finish().unwrap_or_default();
            return Some(rest.into());
        };
        _ = open.write_all(&piece);
        if open.get_ref().len() >= CHUNK / 4 {
            return Some(std::mem::take(open.get_mut()).into());
        }
    }
    None
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = |bytes: Option<Bytes>| bytes.map(|b| Ok(Frame::data(b)));
        match &mut self.get_mut().content {
            Content::Pieces(pieces, left) => {
                let next = chunk(pieces);
                *left -= next.as_ref().map_or(0, |b| b.len() as u64);
                Poll::Ready(frame(next))
            }
            Content::Gzip(pieces, encoder) => Poll::Ready(frame(squeeze(pieces, encoder))),
            Content::Stream(receiver) => receiver.poll_recv(context).map(frame),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.len().map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Pieces(_, 0))
    }
}
