//! CARv1 streams: a header with one root, then frames of id and block, parents first. (Spec: IPLD CARv1; order and shape as an IPFS
//! trustless gateway gives them for `?format=car`: depth-first, no repeated blocks.)

use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use futures_util::{StreamExt as _, stream::BoxStream};
use iroh_car::CarHeader;
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader};

use crate::{
    BLOCK_BYTES_MAX, CAR_HEADER_BYTES_MAX, Error,
    content::{DAG_PB, RAW, normalise},
    dag::blocks_of,
    disk::Disk,
    pins::check_label,
    receive::{Limits, Received, Receiver},
    store::{BlockStore, blocking},
    unixfs::{decode_varint, encode_varint},
};

/// Longest id in a frame, in bytes: version, codec, hash code, length, 32 bytes of SHA-256.
const CID_BYTES_MAX: usize = 36;

/// Buffer before a CAR stream, in bytes; blocks larger than it pass by.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// Pieces of a CAR in order; ends after the first error.
pub type CarStream = BoxStream<'static, Result<Bytes, Error>>;

impl BlockStore {
    /// The DAG as a CARv1 stream. Fails before the first byte if a block is missing, so that an HTTP status can still say so.
    ///
    /// # Errors
    /// [`Error::Missing`] and as [`BlockStore::missing`]; in the stream [`Error::Corrupt`] and [`Error::Io`].
    pub async fn export_car(&self, root: &Cid) -> Result<CarStream, Error> {
        let root = normalise(root);
        let disk = Arc::clone(&self.inner.disk);
        let blocks = self.run(move |inner| blocks_of(&inner.disk, &root)).await?;
        let header = encode_header(root)?;
        let frames = futures_util::stream::unfold(Some((disk, blocks.into_iter())), |state| async move {
            let (disk, mut blocks) = state?;
            let cid = blocks.next()?;
            match blocking(move || Ok((encode_frame(&disk, &cid)?, disk))).await {
                Ok((frame, disk)) => Some((Ok(frame), Some((disk, blocks)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(futures_util::stream::once(async { Ok(header) }).chain(frames).boxed())
    }

    /// Stores the DAG below `root` from a CARv1 stream and pins it under `label`. Blocks that are stored already need not be in the
    /// stream. If it fails, the verified blocks that came are kept without a pin.
    ///
    /// # Errors
    /// [`Error::CarHeader`], [`Error::CarRoot`], [`Error::CarFrame`], [`Error::Truncated`], [`Error::HashMismatch`], [`Error::Unexpected`],
    /// [`Error::Malformed`], [`Error::BlockTooLarge`], [`Error::TooLarge`], [`Error::Full`], [`Error::PinRefused`], [`Error::Io`].
    pub async fn import_car<R: AsyncRead + Send + Unpin>(
        &self,
        reader: R,
        root: &Cid,
        label: &str,
        limits: Limits,
    ) -> Result<Received, Error> {
        let root = normalise(root);
        let _writing = self.begin_writing().await;
        let label = check_label(label)?;
        let receiver = self.run(move |inner| Receiver::new(Arc::clone(&inner.disk), root, limits)).await?;
        let (mut receiver, outcome) = receive_car(reader, &root, receiver, &|_| {}).await?;
        self.run(move |inner| {
            if let Err(error) = outcome {
                receiver.commit()?;
                return Err(error);
            }
            let received = receiver.finish()?;
            inner.pin(root, label)?;
            Ok(received)
        })
        .await
    }
}

/// Feeds the frames of a CAR to a receiver and gives the receiver back. The inner `Ok` means that the stream ended at the end of a
/// frame, not that the DAG is complete.
pub(crate) async fn receive_car<R: AsyncRead + Send + Unpin>(
    reader: R,
    root: &Cid,
    mut receiver: Receiver,
    accepted: &(dyn Fn(&Receiver) + Send + Sync),
) -> Result<(Receiver, Result<(), Error>), Error> {
    let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
    let mut next = match read_header(&mut reader, root).await {
        Ok(()) => read_frame(&mut reader).await,
        Err(error) => Err(error),
    };
    loop {
        let (cid, block) = match next {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok((receiver, Ok(()))),
            Err(Error::Truncated { .. }) => {
                let missing = receiver.wanted_blocks();
                return Ok((receiver, Err(Error::Truncated { missing })));
            }
            Err(error) => return Ok((receiver, Err(error))),
        };
        // Off the async thread: hashing a block takes well under a millisecond, but the sync of a full batch does not.
        let (back, result) = blocking(move || {
            let result = receiver.accept(&cid, &block);
            Ok((receiver, result))
        })
        .await?;
        receiver = back;
        if let Err(error) = result {
            return Ok((receiver, Err(error)));
        }
        accepted(&receiver);
        next = read_frame(&mut reader).await;
    }
}

async fn read_header<R: AsyncRead + Send + Unpin>(reader: &mut R, root: &Cid) -> Result<(), Error> {
    match read_section(reader, CAR_HEADER_BYTES_MAX).await? {
        Section::Whole(bytes) => check_header(&bytes, root),
        Section::End | Section::Cut => Err(Error::Truncated { missing: 0 }),
        Section::TooLong(_) => Err(Error::CarHeader("its header is too long".to_owned())),
    }
}

async fn read_frame<R: AsyncRead + Send + Unpin>(reader: &mut R) -> Result<Option<(Cid, Bytes)>, Error> {
    match read_section(reader, BLOCK_BYTES_MAX + CID_BYTES_MAX).await? {
        Section::Whole(bytes) => decode_frame(&bytes).map(Some),
        Section::End => Ok(None),
        Section::Cut => Err(Error::Truncated { missing: 0 }),
        Section::TooLong(bytes) => Err(Error::BlockTooLarge { bytes }),
    }
}

enum Section {
    Whole(Bytes),
    /// The stream ended before the section began.
    End,
    /// The stream ended inside the section.
    Cut,
    TooLong(u64),
}

/// A section is a varint length and as many bytes.
async fn read_section<R: AsyncRead + Send + Unpin>(reader: &mut R, bytes_max: usize) -> Result<Section, Error> {
    let mut prefix = Vec::with_capacity(10);
    let length = loop {
        let mut byte = [0];
        if reader.read(&mut byte).await.map_err(Error::Stream)? == 0 {
            return Ok(if prefix.is_empty() { Section::End } else { Section::Cut });
        }
        prefix.push(byte[0]);
        if byte[0] & 0x80 == 0 {
            break decode_varint(&prefix).ok_or(Error::CarFrame("its length is out of range"))?.0;
        }
        if prefix.len() == 10 {
            return Err(Error::CarFrame("its length is out of range"));
        }
    };
    let mut bytes = match usize::try_from(length) {
        Ok(size) if size <= bytes_max => vec![0; size],
        Ok(_) | Err(_) => return Ok(Section::TooLong(length)),
    };
    match reader.read_exact(&mut bytes).await {
        Ok(_) => Ok(Section::Whole(Bytes::from(bytes))),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(Section::Cut),
        Err(error) => Err(Error::Stream(error)),
    }
}

fn check_header(bytes: &[u8], root: &Cid) -> Result<(), Error> {
    let header = CarHeader::decode(bytes).map_err(|error| Error::CarHeader(error.to_string()))?;
    match header.roots() {
        [only] if normalise(only) == *root => Ok(()),
        _ => Err(Error::CarRoot(*root)),
    }
}

fn encode_header(root: Cid) -> Result<Bytes, Error> {
    let header = CarHeader::new_v1(vec![root]).encode().map_err(|error| Error::CarHeader(error.to_string()))?;
    let mut section = Vec::with_capacity(header.len() + 1);
    encode_varint(header.len() as u64, &mut section);
    section.extend_from_slice(&header);
    Ok(Bytes::from(section))
}

fn decode_frame(frame: &Bytes) -> Result<(Cid, Bytes), Error> {
    let mut rest: &[u8] = frame;
    let cid = Cid::read_bytes(&mut rest).map_err(|_| Error::CarFrame("it does not begin with a CID"))?;
    let block = frame.slice_ref(rest);
    if block.len() > BLOCK_BYTES_MAX {
        return Err(Error::BlockTooLarge { bytes: block.len() as u64 });
    }
    if cid.codec() != RAW && cid.codec() != DAG_PB {
        return Err(Error::Unexpected(cid));
    }
    Ok((cid, block))
}

fn encode_frame(disk: &Disk, cid: &Cid) -> Result<Bytes, Error> {
    let block = disk.load(cid)?;
    let id = cid.to_bytes();
    let mut frame = Vec::with_capacity(block.len() + id.len() + 5);
    encode_varint((block.len() + id.len()) as u64, &mut frame);
    frame.extend_from_slice(&id);
    frame.extend_from_slice(&block);
    Ok(Bytes::from(frame))
}
