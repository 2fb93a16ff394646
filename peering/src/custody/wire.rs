//! How custody messages travel: items, each for one group, back to back in a datagram or in the body of a request.
//!
//! An item is its length (4 bytes, big-endian, highest bit clear) and its postcard form. A bad item is counted and dropped alone.
//!
//! A sign of life ([`super::life`]) is its index (2 bytes, the two highest bits set) and its link. It stands for the whole datagram, at its begin.
//!
//! Renewals and their answers are nearly all that is ever said, so many of them share one block: a length (2 bytes, of the two highest bits only the
//! first set, the third says whether they are answers), then a number to count from, and for each group the last two bytes of its id, the epoch and
//! the number's distance from the first. The short name means a group among those that both nodes share; a renewal that is not answered in time
//! is repeated with the whole id, so two groups with one short name lose nothing but bytes.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use contracts::envelope::{Envelope, KeySignature, Statement};
use contracts::ids::{Epoch, GroupId, NodeId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::life::{LINK_BYTES, Life};

/// Items in one datagram or request; what follows them is dropped.
pub const ITEMS_MAX: usize = 64;
/// The body of a request with custody messages.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Write-ahead records in a grant, handover in a release.
pub const ATTACHMENT_BYTES_MAX: usize = 2 << 20;

/// Renewals in all blocks of one datagram; what follows them is dropped.
pub const RENEWALS_MAX: usize = 256;

const LENGTH_BYTES: usize = 4;
const SHORT_LENGTH_BYTES: usize = 2;
/// In the first two bytes: this is not an item.
const IS_SHORT: u16 = 1 << 15;
/// Then: what follows is a sign of life, not a block of renewals.
const IS_LIFE: u16 = 1 << 14;
/// Else: the block is of answers.
const IS_ANSWERS: u16 = 1 << 13;
/// Longest block: what the rest of the two bytes can say.
const BLOCK_BYTES_MAX: usize = (1 << 13) - 1;
/// A sign of life, written.
pub(super) const LIFE_BYTES: usize = SHORT_LENGTH_BYTES + LINK_BYTES;

/// Bytes in one piece, not number by number as serde would have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob(pub(super) Bytes);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(bytes)))
            }
        }

        deserializer.deserialize_bytes(Visitor)
    }
}

/// Payload and signature of a statement by the sender: the envelope without what the receiver knows anyway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Signed {
    payload: Blob,
    signature: Blob,
}

impl Signed {
    /// Of an envelope with one signature.
    pub(super) fn new(mut envelope: Envelope) -> Self {
        let signature = envelope.signatures.pop().map(|signature| signature.sig).unwrap_or_default();
        Self { payload: Blob(envelope.payload.into()), signature: Blob(signature.into()) }
    }

    /// The whole envelope again, not yet verified.
    pub(super) fn envelope<T: Statement>(self, signer: NodeId) -> Envelope {
        let signatures = vec![KeySignature { key: signer.into(), sig: self.signature.0.into() }];
        Envelope { payload_type: T::TYPE.to_owned(), payload: self.payload.0.into(), signatures }
    }
}

/// A message on its way; what counts is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Said {
    /// The certificate as JSON, where the receiver needs it.
    Renew {
        epoch: Epoch,
        seq: u64,
        certificate: Option<Blob>,
    },
    Renewed {
        epoch: Epoch,
        seq: u64,
    },
    Ask(Signed),
    AskYes {
        seq: u64,
        voted_epoch: Epoch,
    },
    Claim {
        epoch: Epoch,
        seq: u64,
    },
    Grant {
        signed: Signed,
        records: Blob,
    },
    /// To an ask, a claim or a renewal.
    Refusal(Signed),
    Release {
        signed: Signed,
        handover: Blob,
    },
    Query {
        seq: u64,
    },
    QueryAnswer {
        seq: u64,
        voted_epoch: Epoch,
    },
    /// A [`super::life::LifeAnchor`]; of two nodes, not of the group that it travels under.
    Anchor(Signed),
    /// "What you sent binds nobody here: I cannot check its sign of life."
    AnchorWanted,
}

impl Said {
    /// Whether it binds only whoever hears a sign of life of its sender.
    pub(super) const fn needs_life(&self) -> bool {
        match self {
            Self::Renew { .. } | Self::Claim { .. } => true,
            Self::Renewed { .. }
            | Self::Ask(_)
            | Self::AskYes { .. }
            | Self::Grant { .. }
            | Self::Refusal(_)
            | Self::Release { .. }
            | Self::Query { .. }
            | Self::QueryAnswer { .. }
            | Self::Anchor(_)
            | Self::AnchorWanted => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    group: [u8; 16],
    pub(super) said: Said,
}

impl Item {
    pub(super) fn new(group: GroupId, said: Said) -> Self {
        Self { group: *group.as_bytes(), said }
    }

    pub(super) fn group(&self) -> GroupId {
        GroupId::from_bytes(self.group)
    }

    /// Length and content; none if it is longer than a request may be.
    pub(super) fn write(&self) -> Option<Bytes> {
        let content = postcard::to_allocvec(self).ok()?;
        let length = u32::try_from(content.len()).ok()?;
        if content.len() + LENGTH_BYTES > MESSAGE_BYTES_MAX {
            return None;
        }
        let mut item = BytesMut::with_capacity(LENGTH_BYTES + content.len());
        item.put_u32(length);
        item.put_slice(&content);
        Some(item.freeze())
    }
}

/// Names a group among those that two nodes share.
pub(super) type ShortGroup = [u8; 2];

/// The last bytes of the id: random in every kind of id that there is.
pub(super) fn short(group: GroupId) -> ShortGroup {
    group.as_bytes().last_chunk().copied().unwrap_or_default()
}

/// A renewal, or the answer to one, in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Renewal {
    pub(super) group: ShortGroup,
    pub(super) epoch: Epoch,
    pub(super) seq: u64,
    pub(super) is_answer: bool,
}

#[derive(Serialize, Deserialize)]
struct BlockHead {
    first_seq: u64,
}

#[derive(Serialize, Deserialize)]
struct BlockEntry {
    group: ShortGroup,
    epoch: Epoch,
    /// From `first_seq`, around the end of the numbers if need be.
    distance: i64,
}

/// A block that is being written: its length is still to be filled in.
struct Block {
    is_answer: bool,
    first_seq: u64,
    bytes: BytesMut,
    count: usize,
}

impl Block {
    fn new(is_answer: bool, first_seq: u64) -> Option<Self> {
        let head = postcard::to_allocvec(&BlockHead { first_seq }).ok()?;
        let mut bytes = BytesMut::zeroed(SHORT_LENGTH_BYTES);
        bytes.put_slice(&head);
        Some(Self { is_answer, first_seq, bytes, count: 0 })
    }

    /// False if it does not fit.
    fn put(&mut self, renewal: &Renewal, bytes_max: usize) -> bool {
        let distance = renewal.seq.wrapping_sub(self.first_seq).cast_signed();
        let entry = BlockEntry { group: renewal.group, epoch: renewal.epoch, distance };
        let Ok(entry) = postcard::to_allocvec(&entry) else { return false };
        let bytes_max = bytes_max.min(BLOCK_BYTES_MAX);
        let is_full = self.count >= RENEWALS_MAX || self.bytes.len() + entry.len() > bytes_max;
        if is_full || self.is_answer != renewal.is_answer {
            return false;
        }
        self.bytes.put_slice(&entry);
        self.count += 1;
        true
    }

    fn close(mut self) -> Bytes {
        let length = u16::try_from(self.bytes.len() - SHORT_LENGTH_BYTES).unwrap_or_default();
        let kind = if self.is_answer { IS_SHORT | IS_ANSWERS } else { IS_SHORT };
        self.bytes[..SHORT_LENGTH_BYTES].copy_from_slice(&(length | kind).to_be_bytes());
        self.bytes.freeze()
    }
}

/// Renewals as blocks of at most `bytes_max`, questions and answers apart.
pub(super) fn write_renewals(renewals: &[Renewal], bytes_max: usize) -> Vec<Bytes> {
    let (mut blocks, mut open) = (Vec::new(), None::<Block>);
    let of_kind = |wanted: bool| renewals.iter().filter(move |renewal| renewal.is_answer == wanted);
    for renewal in of_kind(false).chain(of_kind(true)) {
        if open.as_mut().is_some_and(|block| block.put(renewal, bytes_max)) {
            continue;
        }
        blocks.extend(open.take().map(Block::close));
        open = Block::new(renewal.is_answer, renewal.seq);
        if let Some(block) = &mut open {
            block.put(renewal, bytes_max);
        }
    }
    blocks.extend(open.map(Block::close));
    blocks
}

/// Reads one block; false if it has a bad end or too many renewals.
fn read_renewals(block: &[u8], is_answer: bool, renewals: &mut Vec<Renewal>) -> bool {
    let Ok((BlockHead { first_seq }, mut rest)) = postcard::take_from_bytes(block) else { return false };
    while !rest.is_empty() {
        if renewals.len() >= RENEWALS_MAX {
            return false;
        }
        let Ok((BlockEntry { group, epoch, distance }, after)) = postcard::take_from_bytes(rest) else { return false };
        renewals.push(Renewal { group, epoch, seq: first_seq.wrapping_add(distance.cast_unsigned()), is_answer });
        rest = after;
    }
    true
}

/// What a datagram or body says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// At most [`ITEMS_MAX`].
    pub(super) items: Vec<Item>,
    /// At most [`RENEWALS_MAX`].
    pub(super) renewals: Vec<Renewal>,
    pub(super) life: Option<Life>,
    /// Items and blocks that could not be read.
    pub(super) malformed: u64,
}

/// Reads items and blocks, as many as there may be.
pub(super) fn read(mut bytes: Bytes) -> Content {
    let mut content = Content::default();
    for _ in 0..ITEMS_MAX {
        if bytes.is_empty() {
            return content;
        }
        let head = bytes.first_chunk::<SHORT_LENGTH_BYTES>().map_or(0, |head| u16::from_be_bytes(*head));
        let is_read =
            if head & IS_SHORT == 0 { read_item(&mut bytes, &mut content) } else { read_short(head, &mut bytes, &mut content) };
        if is_read.is_none() {
            content.malformed += 1;
            return content;
        }
    }
    content.malformed += u64::from(!bytes.is_empty());
    content
}

/// A sign of life or a block; none if it is cut short.
fn read_short(head: u16, bytes: &mut Bytes, content: &mut Content) -> Option<()> {
    let is_life = head & IS_LIFE != 0;
    let length = if is_life { LINK_BYTES } else { usize::from(head & !(IS_SHORT | IS_ANSWERS)) };
    if length > bytes.len() - SHORT_LENGTH_BYTES {
        return None;
    }
    let _head = bytes.split_to(SHORT_LENGTH_BYTES);
    let rest = bytes.split_to(length);
    if is_life {
        content.malformed += u64::from(content.life.is_some());
        content.life = rest.first_chunk().map(|link| Life { index: head & !(IS_SHORT | IS_LIFE), link: *link });
    } else {
        content.malformed += u64::from(!read_renewals(&rest, head & IS_ANSWERS != 0, &mut content.renewals));
    }
    Some(())
}

/// None if it is cut short.
fn read_item(bytes: &mut Bytes, content: &mut Content) -> Option<()> {
    let length = bytes.first_chunk::<LENGTH_BYTES>().map(|length| u32::from_be_bytes(*length))?;
    let length = usize::try_from(length).ok().filter(|length| *length <= bytes.len() - LENGTH_BYTES)?;
    let _head = bytes.split_to(LENGTH_BYTES);
    match postcard::take_from_bytes::<Item>(&bytes.split_to(length)) {
        Ok((item, [])) => content.items.push(item),
        Ok(_) | Err(_) => content.malformed += 1,
    }
    Some(())
}

/// A datagram that begins with a sign of life.
pub(super) fn with_life(life: Life, datagram: &Bytes) -> Bytes {
    let mut bytes = BytesMut::with_capacity(LIFE_BYTES + datagram.len());
    bytes.put_u16(life.index | IS_SHORT | IS_LIFE);
    bytes.put_slice(&life.link);
    bytes.put_slice(datagram);
    bytes.freeze()
}

/// Puts written items together into as few datagrams of at most `bytes_max` as their order allows; too long ones come back apart.
pub(super) fn pack(items: Vec<Bytes>, bytes_max: usize) -> (Vec<Bytes>, Vec<Bytes>) {
    let (mut datagrams, mut too_long) = (Vec::new(), Vec::new());
    let (mut open, mut count) = (BytesMut::new(), 0);
    for item in items {
        if item.len() > bytes_max {
            too_long.push(item);
            continue;
        }
        if open.len() + item.len() > bytes_max || count == ITEMS_MAX {
            datagrams.push(open.split().freeze());
            count = 0;
        }
        open.put_slice(&item);
        count += 1;
    }
    if !open.is_empty() {
        datagrams.push(open.freeze());
    }
    (datagrams, too_long)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn renew(group: u8, seq: u64) -> Item {
        Item::new(GroupId::from_bytes([group; 16]), Said::Renew { epoch: Epoch(3), seq, certificate: None })
    }

    fn written(items: &[Item]) -> Vec<Bytes> {
        items.iter().map(|item| item.write().expect("short")).collect()
    }

    #[test]
    fn many_groups_share_a_datagram() {
        let items: Vec<_> = (0..60).map(|group| renew(group, 7)).collect();
        let (datagrams, too_long) = pack(written(&items), 1_100);
        assert!(too_long.is_empty());
        assert_eq!(datagrams.len(), 2, "60 renewals of {} bytes", written(&items)[0].len());
        let read_back: Vec<_> = datagrams
            .into_iter()
            .flat_map(|datagram| {
                assert!(datagram.len() <= 1_100);
                let content = read(datagram);
                assert_eq!(content.malformed, 0);
                content.items
            })
            .collect();
        assert_eq!(read_back, items);
    }

    #[test]
    fn what_does_not_fit_goes_apart_and_the_rest_keeps_its_order() {
        let long = Item::new(
            GroupId::from_bytes([9; 16]),
            Said::Renew { epoch: Epoch(1), seq: 1, certificate: Some(Blob(vec![0; 2_000].into())) },
        );
        let (datagrams, too_long) = pack(written(&[renew(1, 1), long.clone(), renew(2, 2)]), 1_100);
        assert_eq!((datagrams.len(), too_long.len()), (1, 1));
        assert_eq!(read(datagrams[0].clone()).items, [renew(1, 1), renew(2, 2)]);
        assert_eq!(read(too_long[0].clone()).items, [long]);
        let endless = Item::new(
            GroupId::from_bytes([9; 16]),
            Said::Renew { epoch: Epoch(1), seq: 1, certificate: Some(Blob(vec![0; MESSAGE_BYTES_MAX].into())) },
        );
        assert!(endless.write().is_none());
    }

    #[test]
    fn a_bad_item_is_dropped_alone() {
        let mut bytes = BytesMut::new();
        bytes.put_slice(&written(&[renew(1, 1)])[0]);
        bytes.put_slice(&[0, 0, 0, 3, 0xff, 0xff, 0xff]);
        bytes.put_slice(&written(&[renew(2, 2)])[0]);
        let content = |malformed| Content { items: vec![renew(1, 1), renew(2, 2)], malformed, ..Content::default() };
        assert_eq!(read(bytes.clone().freeze()), content(1));
        bytes.put_slice(&[0, 0, 1]);
        assert_eq!(read(bytes.freeze()), content(2), "cut short");
    }

    #[test]
    fn no_more_items_than_allowed_are_read() {
        let mut bytes = BytesMut::new();
        for _ in 0..=ITEMS_MAX {
            bytes.put_slice(&written(&[renew(1, 1)])[0]);
        }
        let content = read(bytes.freeze());
        assert_eq!((content.items.len(), content.malformed), (ITEMS_MAX, 1));
    }

    fn renewal(group: u32, seq: u64, is_answer: bool) -> Renewal {
        Renewal { group: [group.to_be_bytes()[2], group.to_be_bytes()[3]], epoch: Epoch(2), seq, is_answer }
    }

    #[test]
    fn fifty_renewals_fit_into_a_third_of_a_datagram() {
        let renewals: Vec<_> = (0..50).map(|group| renewal(group, (1 << 40) + u64::from(group % 7), false)).collect();
        let blocks = write_renewals(&renewals, 1_100);
        assert_eq!(blocks.len(), 1);
        assert!(blocks[0].len() <= 330, "{} bytes", blocks[0].len());
        let (datagrams, _) = pack([written(&[renew(1, 1)]), blocks].concat(), 1_100);
        assert_eq!(datagrams.len(), 1);
        assert_eq!(read(datagrams[0].clone()), Content { items: vec![renew(1, 1)], renewals, ..Content::default() });
    }

    #[test]
    fn no_more_renewals_than_allowed_are_read() {
        let renewals: Vec<_> = (0..300).map(|group| renewal(group, 5, true)).collect();
        let blocks = write_renewals(&renewals, usize::MAX);
        assert_eq!(blocks.len(), 2);
        let content = read(Bytes::from(blocks.concat()));
        assert_eq!((content.renewals.as_slice(), content.malformed), (&renewals[..RENEWALS_MAX], 1));
    }

    proptest! {
        #[test]
        fn garbage_never_panics_and_is_counted(garbage in proptest::collection::vec(any::<u8>(), 0..400)) {
            let content = read(Bytes::from(garbage.clone()));
            prop_assert!(content != Content::default() || garbage.is_empty() || garbage[0] & 0x80 != 0);
        }

        #[test]
        fn a_sign_of_life_reads_back(index in 0..1_u16 << 14, link in any::<[u8; LINK_BYTES]>()) {
            let life = Life { index, link };
            let item = written(&[renew(1, 1)])[0].clone();
            let bytes = with_life(life, &item);
            prop_assert_eq!(bytes.len(), LIFE_BYTES + item.len());
            let expected = Content { items: vec![renew(1, 1)], life: Some(life), ..Content::default() };
            prop_assert_eq!(read(bytes.clone()), expected);
            prop_assert_eq!(read(with_life(life, &bytes)).malformed, 1, "one is enough");
            prop_assert_eq!(read(bytes.slice(..LIFE_BYTES - 1)).malformed, 1, "cut short");
        }

        #[test]
        fn renewals_read_back(
            renewals in proptest::collection::vec((any::<ShortGroup>(), any::<u64>(), any::<u64>(), any::<bool>()), 0..200),
            bytes_max in 60_usize..1_200,
        ) {
            let of = |(group, epoch, seq, is_answer)| Renewal { group, epoch: Epoch(epoch), seq, is_answer };
            let mut renewals: Vec<_> = renewals.into_iter().map(of).collect();
            let blocks = write_renewals(&renewals, bytes_max);
            prop_assert!(blocks.iter().all(|block| block.len() <= bytes_max));
            let (datagrams, too_long) = pack(blocks, bytes_max);
            prop_assert!(too_long.is_empty());
            let read_back: Vec<_> = datagrams.into_iter().map(read).collect();
            prop_assert!(read_back.iter().all(|content| content.malformed == 0));
            renewals.sort_by_key(|renewal| renewal.is_answer);
            prop_assert_eq!(read_back.into_iter().flat_map(|content| content.renewals).collect::<Vec<_>>(), renewals);
        }

        #[test]
        fn mutated_blocks_never_panic(position in 0..40_usize, byte in any::<u8>()) {
            let renewals: Vec<_> = (0..5).map(|group| renewal(group, 300, false)).collect();
            let mut bytes = write_renewals(&renewals, 1_100)[0].to_vec();
            let position = position % bytes.len();
            bytes[position] = byte;
            let _ = read(Bytes::from(bytes));
        }

        #[test]
        fn mutated_items_never_panic(position in 0..30_usize, byte in any::<u8>()) {
            let mut bytes = written(&[renew(1, 300)])[0].to_vec();
            let position = position % bytes.len();
            bytes[position] = byte;
            let _ = read(Bytes::from(bytes));
        }
    }
}
