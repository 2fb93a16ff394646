//! How custody messages travel: items, each for one group, back to back in a datagram or in the body of a request.
//!
//! An item is its length (4 bytes, big-endian) and its postcard form. A bad item is counted and dropped alone.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use contracts::envelope::{Envelope, KeySignature, Statement};
use contracts::ids::{Epoch, GroupId, NodeId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Items in one datagram or request; what follows them is dropped.
pub const ITEMS_MAX: usize = 64;
/// The body of a request with custody messages.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Write-ahead records in a grant, handover in a release.
pub const ATTACHMENT_BYTES_MAX: usize = 2 << 20;

const LENGTH_BYTES: usize = 4;

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

/// The items of a datagram or body, at most [`ITEMS_MAX`]; the number of those that could not be read comes with them.
pub(super) fn read(mut bytes: Bytes) -> (Vec<Item>, u64) {
    let (mut items, mut malformed) = (Vec::new(), 0);
    for _ in 0..ITEMS_MAX {
        if bytes.is_empty() {
            return (items, malformed);
        }
        let length = bytes.first_chunk::<LENGTH_BYTES>().map(|length| u32::from_be_bytes(*length));
        let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else { return (items, malformed + 1) };
        let _ = bytes.split_to(LENGTH_BYTES);
        if length > bytes.len() {
            return (items, malformed + 1);
        }
        match postcard::take_from_bytes::<Item>(&bytes.split_to(length)) {
            Ok((item, [])) => items.push(item),
            Ok(_) | Err(_) => malformed += 1,
        }
    }
    (items, malformed + u64::from(!bytes.is_empty()))
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
                let (items, malformed) = read(datagram);
                assert_eq!(malformed, 0);
                items
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
        assert_eq!(read(datagrams[0].clone()).0, [renew(1, 1), renew(2, 2)]);
        assert_eq!(read(too_long[0].clone()).0, [long]);
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
        assert_eq!(read(bytes.clone().freeze()), (vec![renew(1, 1), renew(2, 2)], 1));
        bytes.put_slice(&[0, 0, 1]);
        assert_eq!(read(bytes.freeze()), (vec![renew(1, 1), renew(2, 2)], 2), "cut short");
    }

    #[test]
    fn no_more_items_than_allowed_are_read() {
        let mut bytes = BytesMut::new();
        for _ in 0..=ITEMS_MAX {
            bytes.put_slice(&written(&[renew(1, 1)])[0]);
        }
        let (items, malformed) = read(bytes.freeze());
        assert_eq!((items.len(), malformed), (ITEMS_MAX, 1));
    }

    proptest! {
        #[test]
        fn garbage_never_panics_and_is_counted(garbage in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (items, malformed) = read(Bytes::from(garbage.clone()));
            prop_assert!(!items.is_empty() || malformed > 0 || garbage.is_empty());
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
