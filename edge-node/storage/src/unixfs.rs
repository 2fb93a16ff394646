//! Decoding of dag-pb nodes and the UnixFS message inside. Hand-written because it reads what peers send: bounded, no panics,
//! and strict about the sizes that a reader relies on. (Specs: IPLD dag-pb, IPFS UnixFS 2.1.)

use bytes::Bytes;
use cid::Cid;

use crate::{
    Error,
    content::{RAW, digest_of, normalise},
};

/// A decoded block.
#[derive(Debug)]
pub(crate) struct Node {
    /// Children in order, ids in version 1.
    pub(crate) links: Vec<Link>,
    /// Present if the block is a part of a file.
    pub(crate) file: Option<FilePart>,
}

/// A link of a dag-pb node.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) cid: Cid,
    /// Size of the sub-DAG in bytes as the node claims it.
    pub(crate) total_bytes: u64,
}

/// What a block says about the file bytes at and below it.
#[derive(Debug)]
pub(crate) struct FilePart {
    /// Bytes in the block itself.
    pub(crate) data: Bytes,
    /// File bytes below each link.
    pub(crate) below: Vec<u64>,
    /// All file bytes at and below.
    pub(crate) file_bytes: u64,
}

/// Decodes a verified block by the codec of its id.
pub(crate) fn decode(cid: &Cid, block: &Bytes) -> Result<Node, Error> {
    if cid.codec() == RAW {
        let file = FilePart { data: block.clone(), below: Vec::new(), file_bytes: block.len() as u64 };
        return Ok(Node { links: Vec::new(), file: Some(file) });
    }
    let malformed = |reason| Error::Malformed { cid: *cid, reason };
    let mut links = Vec::new();
    let mut data = None;
    for field in Fields(block) {
        match field.map_err(malformed)? {
            (1, Value::Bytes(bytes)) if data.is_none() => data = Some(bytes),
            (2, Value::Bytes(bytes)) => links.push(decode_link(bytes).map_err(malformed)?),
            _ => return Err(malformed("unknown or repeated field in a dag-pb node")),
        }
    }
    for link in &links {
        digest_of(&link.cid)?;
    }
    let file = match data {
        Some(bytes) => decode_file(block, bytes, links.len()).map_err(malformed)?,
        None => None,
    };
    Ok(Node { links, file })
}

fn decode_link(bytes: &[u8]) -> Result<Link, &'static str> {
    let mut cid = None;
    let mut total_bytes = 0;
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(hash)) => cid = Some(Cid::try_from(hash).map_err(|_| "a link's id is no CID")?),
            (2, Value::Bytes(_name)) => {}
            (3, Value::Integer(size)) => total_bytes = size,
            _ => return Err("unknown field in a dag-pb link"),
        }
    }
    let cid = cid.ok_or("a link has no id")?;
    Ok(Link { cid: normalise(&cid), total_bytes })
}

/// UnixFS types that hold file bytes: 0 raw, 2 file. Others (directory, symlink, sharded directory) give `None`.
fn decode_file(block: &Bytes, message: &[u8], links: usize) -> Result<Option<FilePart>, &'static str> {
    let mut kind = None;
    let mut data = Bytes::new();
    let mut announced = None;
    let mut below = Vec::new();
    for field in Fields(message) {
        match field? {
            (1, Value::Integer(value)) => kind = Some(value),
            (2, Value::Bytes(bytes)) => data = block.slice_ref(bytes),
            (3, Value::Integer(size)) => announced = Some(size),
            (4, Value::Integer(size)) => below.push(size),
            (4, Value::Bytes(packed)) => decode_packed(packed, &mut below)?,
            // 5 hash type, 6 fanout (directories); 7 mode, 8 modification time (metadata, not content).
            (5 | 6, Value::Integer(_)) | (7, Value::Integer(_)) | (8, Value::Bytes(_)) => {}
            _ => return Err("unknown field in a UnixFS message"),
        }
    }
    match kind {
        Some(0 | 2) => {}
        Some(_) => return Ok(None),
        None => return Err("a UnixFS message has no type"),
    }
    if below.len() != links {
        return Err("a file node has another number of sizes than of links");
    }
    let sum = below
        .iter()
        .try_fold(data.len() as u64, |sum, size| sum.checked_add(*size))
        .ok_or("the sizes of a file node overflow")?;
    if announced.is_some_and(|size| size != sum) {
        return Err("the size of a file node is not the sum of its parts");
    }
    Ok(Some(FilePart { data, below, file_bytes: sum }))
}

fn decode_packed(mut bytes: &[u8], sizes: &mut Vec<u64>) -> Result<(), &'static str> {
    while !bytes.is_empty() {
        let (size, rest) = decode_varint(bytes).ok_or("a packed size is cut off")?;
        sizes.push(size);
        bytes = rest;
    }
    Ok(())
}

enum Value<'a> {
    Integer(u64),
    Bytes(&'a [u8]),
}

/// Fields of a protobuf message; ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = next_field(&mut self.0);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Value<'a>), &'static str> {
    let (tag, after) = decode_varint(rest).ok_or("a field's tag is cut off")?;
    let (value, after) = decode_varint(after).ok_or("a field is cut off")?;
    match tag & 7 {
        0 => {
            *rest = after;
            Ok((tag >> 3, Value::Integer(value)))
        }
        2 => {
            let length = usize::try_from(value).map_err(|_| "a field is longer than its message")?;
            let (bytes, after) = after.split_at_checked(length).ok_or("a field is longer than its message")?;
            *rest = after;
            Ok((tag >> 3, Value::Bytes(bytes)))
        }
        _ => Err("a field has an unknown wire type"),
    }
}

/// Reads an unsigned LEB128 number of at most 64 bits.
pub(crate) fn decode_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value: u64 = 0;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        let shift = 7 * index;
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

/// Writes an unsigned LEB128 number.
pub(crate) fn encode_varint(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let bits = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(bits);
            return;
        }
        out.push(bits | 0x80);
    }
}
