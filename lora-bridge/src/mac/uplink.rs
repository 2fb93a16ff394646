//! Uplinks: the header read from the bytes, the counter's upper half inferred, the integrity code checked with every session of the address.

use std::ops::Range;

use contracts::ids::DevAddr;

use super::downlink::Wants;
use super::registry::SlotIndex;
use super::served::WINDOW;
use super::session::NwkSKey;

/// A counter may be ahead of the expected one by at most this (MAX_FCNT_GAP, LoRaWAN 1.0.2, 4.3.1.5).
pub const F_CNT_GAP_MAX: u16 = 16_384;

/// MHDR, FHDR without options, integrity code.
const FRAME_BYTES_MIN: usize = 12;

/// Why a frame is not a verified uplink of a registered device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the frame is too short or its options do not fit")]
    Malformed,
    #[error("a downlink, heard by a gateway")]
    Downlink,
    #[error("a join or rejoin request")]
    Join,
    #[error("a proprietary frame")]
    Proprietary,
    #[error("no session has this address")]
    UnknownAddress,
    #[error("the integrity code is wrong for every session of the address")]
    IntegrityCode,
    #[error("the counter lies below the window of every session of the address")]
    OldCounter,
    #[error("the counter is more than {F_CNT_GAP_MAX} ahead, or more than the device may be")]
    CounterGap,
    #[error("too many devices have this address to try all of them now")]
    TrialsExhausted,
}

/// The header of a data uplink; positions refer to the frame's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub is_confirmed: bool,
    pub dev_addr: DevAddr,
    pub adr_ack_req: bool,
    /// The network may choose its data rate.
    pub is_adr: bool,
    /// It acknowledges the last confirmed downlink.
    pub is_ack: bool,
    pub f_cnt_low: u16,
    pub f_opts: Range<usize>,
    pub f_port: Option<u8>,
    pub frm_payload: Range<usize>,
}

/// Reads the header (LoRaWAN 1.0.2, chapter 4).
pub(crate) fn header(phy: &[u8]) -> Result<Header, Error> {
    let mhdr = *phy.first().ok_or(Error::Malformed)?;
    let is_confirmed = match mhdr >> 5 {
        0b010 => false,
        0b100 => true,
        0b001 | 0b011 | 0b101 => return Err(Error::Downlink),
        0b000 | 0b110 => return Err(Error::Join),
        _ => return Err(Error::Proprietary),
    };
    // The low bits are reserved and the major version; the library would check the code of other bytes than those on air.
    if mhdr & 0x1f != 0 || phy.len() < FRAME_BYTES_MIN {
        return Err(Error::Malformed);
    }
    let f_ctrl = phy[5];
    let (options_end, end) = (8 + usize::from(f_ctrl & 0x0f), phy.len() - 4);
    if options_end > end {
        return Err(Error::Malformed);
    }
    let f_port = (options_end < end).then(|| phy[options_end]);
    if f_port == Some(0) && options_end > 8 {
        return Err(Error::Malformed);
    }
    Ok(Header {
        is_confirmed,
        dev_addr: DevAddr::from_bytes([phy[4], phy[3], phy[2], phy[1]]),
        adr_ack_req: f_ctrl & 0x40 != 0,
        is_adr: f_ctrl & 0x80 != 0,
        is_ack: f_ctrl & 0x20 != 0,
        f_cnt_low: u16::from_le_bytes([phy[6], phy[7]]),
        f_opts: 8..options_end,
        f_port,
        frm_payload: (options_end + 1).min(end)..end,
    })
}

/// A counter that does not fit a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misfit {
    Old,
    Gap,
}

/// The 32-bit counter whose low half was on air: ahead of `next` by at most [`F_CNT_GAP_MAX`], or below it by at most [`WINDOW`], or, if the
/// operator allows more, ahead by at most `gap_max`.
pub(crate) fn infer(next: u32, low: u16, gap_max: u16) -> Result<u32, Misfit> {
    let [a, b, ..] = next.to_le_bytes();
    let ahead = low.wrapping_sub(u16::from_le_bytes([a, b]));
    let forward = next.checked_add(u32::from(ahead)).filter(|f_cnt| *f_cnt < u32::MAX);
    if ahead <= F_CNT_GAP_MAX.min(gap_max) {
        return forward.ok_or(Misfit::Gap);
    }
    let behind = 0x1_0000 - u32::from(ahead);
    match next.checked_sub(behind) {
        Some(f_cnt) if behind <= WINDOW => Ok(f_cnt),
        _ if ahead <= gap_max => forward.ok_or(Misfit::Gap),
        Some(_) if behind < u32::from(ahead) => Err(Misfit::Old),
        Some(_) | None => Err(Misfit::Gap),
    }
}

/// A frame that belongs to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verified {
    pub slot: SlotIndex,
    pub f_cnt: u32,
    /// The counter fits only a device that began anew.
    pub is_reset: bool,
}

/// What the frame asks the network for. MAC commands stand in the options, or encrypted on port 0.
pub(crate) fn wants(header: &Header, phy: &[u8], f_cnt: u32, key: NwkSKey) -> Wants {
    let mut wants = Wants { ack: header.is_confirmed, any: header.adr_ack_req, ..Wants::default() };
    if !header.f_opts.is_empty() {
        read_commands(&phy[header.f_opts.clone()], &mut wants);
    } else if header.f_port == Some(0) {
        let address = lrwn::DevAddr::from_be_bytes(*header.dev_addr.as_bytes());
        let payload = &phy[header.frm_payload.clone()];
        if let Ok(commands) = lrwn::encrypt_frm_payload(&key.aes(), true, &address, f_cnt, payload) {
            read_commands(&commands, &mut wants);
        }
    }
    // It repeats them until it receives something.
    wants.any |= wants.link.are_repeated();
    wants
}

/// Battery (0 external power, 1 to 254, 255 not known) and margin in dB that a frame tells in its options (`DevStatusAns`). What stands on
/// port 0 is encrypted; devices send there only what does not fit into the options.
#[must_use]
pub fn told_status(phy: &[u8]) -> Option<(u8, i8)> {
    let mut told = Wants::default();
    read_commands(phy.get(header(phy).ok()?.f_opts)?, &mut told);
    told.status
}

/// Whether all parts of a request were taken.
fn status(rest: &[u8], all: u8) -> Option<bool> {
    rest.first().map(|bits| bits & all == all)
}

/// Walks over the commands; an unknown one ends the walk, for its length is unknown too (LoRaWAN 1.0.2, chapter 5).
fn read_commands(mut commands: &[u8], wants: &mut Wants) {
    while let [cid, rest @ ..] = commands {
        let len = match cid {
            0x02 => {
                wants.link_check = true;
                0
            }
            0x0d => {
                wants.device_time = true;
                0
            }
            0x03 => {
                wants.link_adr = rest.first().copied();
                1
            }
            0x05 => {
                wants.link.rx_params = status(rest, 0x07);
                1
            }
            0x06 => {
                // The margin is a signed number of 6 bits.
                wants.status =
                    rest.first().zip(rest.get(1)).map(|(battery, margin)| (*battery, (margin << 2).cast_signed() >> 2));
                2
            }
            0x07 => {
                wants.link.new_channel = status(rest, 0x03);
                1
            }
            0x08 => {
                wants.link.rx_timing = Some(true);
                0
            }
            0x0a => {
                wants.link.downlink_channel = status(rest, 0x03);
                1
            }
            0x04 | 0x09 => 0,
            _ => return,
        };
        let Some(next) = rest.get(len..) else { return };
        commands = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inference_by_table() {
        for (next, low, expected) in [
            (0, 0, Ok(0)),
            (0, 16_384, Ok(16_384)),
            (0, 16_385, Err(Misfit::Gap)),
            (0, 0xffff, Err(Misfit::Gap)),
            (10, 9, Ok(9)),
            (0xffff, 0xffff, Ok(0xffff)),
            (0xffff, 0, Ok(0x1_0000)),
            (0x1_0000, 0xffff, Ok(0xffff)),
            (0x1_0000, 0, Ok(0x1_0000)),
            (0x1_0003, 5, Ok(0x1_0005)),
            (5_000, 3_976, Ok(3_976)),
            (5_000, 3_975, Err(Misfit::Old)),
            (50_000, 1_000, Err(Misfit::Gap)),
            (50_000, 848, Ok(0x1_0000 + 848)),
            (u32::MAX - 1, 0xfffe, Ok(u32::MAX - 1)),
            (u32::MAX - 1, 0xffff, Err(Misfit::Gap)),
            (u32::MAX - 1, 3, Err(Misfit::Gap)),
        ] {
            assert_eq!(infer(next, low, F_CNT_GAP_MAX), expected, "next {next}, low {low}");
        }
        for (next, low, gap_max, expected) in [
            (0, 40_000, 50_000, Ok(40_000)),
            (0, 50_001, 50_000, Err(Misfit::Gap)),
            (0, 0xffff, u16::MAX, Ok(0xffff)),
            (5_000, 3_976, u16::MAX, Ok(3_976)),
            (5_000, 3_975, u16::MAX, Ok(0x1_0000 + 3_975)),
            (5_000, 5_100, 99, Err(Misfit::Gap)),
            (5_000, 5_099, 99, Ok(5_099)),
        ] {
            assert_eq!(infer(next, low, gap_max), expected, "next {next}, low {low}, gap {gap_max}");
        }
    }

    #[test]
    fn headers_by_table() {
        let frame = |mhdr: u8, f_ctrl: u8, tail: &[u8]| [&[mhdr, 4, 3, 2, 1, f_ctrl, 0x34, 0x12][..], tail, &[0; 4]].concat();
        let good = header(&frame(0x80, 0xc1, &[0x02, 7, 9, 9])).expect("a header");
        assert_eq!(good.dev_addr, DevAddr::from_u32(0x0102_0304));
        assert_eq!((good.is_confirmed, good.adr_ack_req, good.f_cnt_low, good.f_port), (true, true, 0x1234, Some(7)));
        assert_eq!((good.f_opts, good.frm_payload), (8..9, 10..12));
        let empty = header(&frame(0x40, 0, &[])).expect("a header");
        assert_eq!((empty.f_port, empty.frm_payload.is_empty()), (None, true));
        for (phy, why) in [
            (vec![], Error::Malformed),
            (vec![0x40; 11], Error::Malformed),
            (frame(0x41, 0, &[]), Error::Malformed),
            (frame(0x44, 0, &[]), Error::Malformed),
            (frame(0x40, 1, &[]), Error::Malformed),
            (frame(0x40, 1, &[2, 0]), Error::Malformed),
            (frame(0x20, 0, &[]), Error::Downlink),
            (frame(0x60, 0, &[]), Error::Downlink),
            (frame(0xa0, 0, &[]), Error::Downlink),
            (frame(0x00, 0, &[]), Error::Join),
            (frame(0xc0, 0, &[]), Error::Join),
            (frame(0xe0, 0, &[]), Error::Proprietary),
        ] {
            assert_eq!(header(&phy), Err(why), "{phy:02x?}");
        }
    }

    #[test]
    fn commands_are_walked_and_the_unknown_ends_it() {
        let read = |commands: &[u8]| {
            let mut wants = Wants::default();
            read_commands(commands, &mut wants);
            (wants.link_check, wants.device_time)
        };
        assert_eq!(read(&[0x02]), (true, false));
        assert_eq!(read(&[0x03, 0x02, 0x06, 0x02, 0x02, 0x0d]), (false, true));
        assert_eq!(read(&[0x80, 0x02]), (false, false));
        assert_eq!(read(&[0x06, 0x02]), (false, false));
        let mut wants = Wants::default();
        read_commands(&[0x05, 0x07, 0x08, 0x06, 254, 0x3e, 0x07, 0x02, 0x0a, 0x03], &mut wants);
        assert_eq!((wants.link.rx_params, wants.link.rx_timing), (Some(true), Some(true)));
        assert_eq!((wants.link.new_channel, wants.link.downlink_channel), (Some(false), Some(true)));
        assert_eq!(wants.status, Some((254, -2)));
        let frame = |f_ctrl: u8, tail: &[u8]| [&[0x40, 4, 3, 2, 1, f_ctrl, 0, 0][..], tail, &[0; 4]].concat();
        assert_eq!(told_status(&frame(0x04, &[0x08, 0x06, 254, 0x3e, 1, 9])), Some((254, -2)));
        assert_eq!(told_status(&frame(0, &[1, 0x06, 254, 0x3e])), None, "a payload");
        assert_eq!(told_status(&[0x40; 5]), None);
    }
}
