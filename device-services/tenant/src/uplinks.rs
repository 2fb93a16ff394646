//! The stream of uplinks, line by line.

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::{Error, LINE_BYTES_MAX, Uplink};

/// A line of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// An uplink.
    Uplink(Box<Uplink>),
    /// Something that is none; the stream goes on behind it.
    Malformed(String),
}

/// An open stream of uplinks.
#[derive(Debug)]
pub struct Uplinks {
    body: Incoming,
    lines: Lines,
}

impl Uplinks {
    pub(crate) fn new(body: Incoming) -> Self {
        Uplinks { body, lines: Lines::default() }
    }

    /// Whether [`Uplinks::next`] has a line at once, without the node.
    pub fn is_ready(&self) -> bool {
        self.lines.has_line()
    }

    /// The next line; `None` when the node ended the stream. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when the connection broke.
    pub async fn next(&mut self) -> Result<Option<Line>, Error> {
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(Some(line));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Error::Unreachable(Box::new(error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.extend(&data);
                    }
                }
            }
        }
    }
}

/// Cuts bytes into lines of bounded length.
#[derive(Debug, Default)]
struct Lines {
    buffer: BytesMut,
    /// Bytes at the beginning of the buffer that are known to hold no newline.
    searched: usize,
    /// Within a line that is too long.
    skipping: bool,
}

impl Lines {
    fn extend(&mut self, data: &Bytes) {
        self.buffer.extend_from_slice(data);
    }

    /// A whole line that is not blank.
    fn has_line(&self) -> bool {
        let end = self.buffer.iter().rposition(|byte| *byte == b'\n');
        end.is_some_and(|end| !self.buffer[..end].trim_ascii().is_empty())
    }

    fn next(&mut self) -> Option<Line> {
        loop {
            let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                if self.searched > LINE_BYTES_MAX {
                    self.skipping = true;
                    self.buffer.clear();
                    self.searched = 0;
                }
                return None;
            };
            let line = self.buffer.split_to(self.searched + end);
            self.buffer.advance(1);
            self.searched = 0;
            if std::mem::take(&mut self.skipping) || line.len() > LINE_BYTES_MAX {
                return Some(Line::Malformed("the line is too long".to_owned()));
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            return Some(match serde_json::from_slice(&line) {
                Ok(uplink) => Line::Uplink(Box::new(uplink)),
                Err(error) => Line::Malformed(error.to_string()),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Line> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in pieces {
            lines.extend(&Bytes::copy_from_slice(piece));
            // What is said to be there is there; only what was too long comes though it was not said.
            while lines.has_line() {
                found.push(lines.next().expect("a line"));
            }
            found.extend(std::iter::from_fn(|| lines.next()));
            assert!(lines.buffer.len() <= LINE_BYTES_MAX + piece.len());
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Where the network cuts does not matter, and what is kept is bounded.
        #[test]
        fn lines_do_not_depend_on_the_pieces(
            texts in prop::collection::vec((0..6000_usize, any::<bool>()), 0..8),
            piece_bytes in 1..5000_usize,
        ) {
            let stream: Vec<u8> = texts.iter().flat_map(|(length, space)| {
                let mut line = vec![if *space { b' ' } else { b'x' }; *length];
                line.push(b'\n');
                line
            }).collect();
            let whole = lines_of([&stream[..]]);
            prop_assert_eq!(&whole, &lines_of(stream.chunks(piece_bytes)));
            let expected = texts.iter().filter(|(length, space)| *length > LINE_BYTES_MAX || !space && *length > 0).count();
            prop_assert_eq!(whole.len(), expected);
        }
    }
}
