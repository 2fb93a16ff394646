//! Bytes as hexadecimal digits. Ids, payloads and frames go through this many times per frame, so nothing here collects character by
//! character, and ids need no heap.

/// Lower-case digits of all bytes, two each.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let mut digits = vec![0; 2 * bytes.len()];
    write(bytes, &mut digits);
    String::from_utf8(digits).expect("digits are ASCII")
}

/// The bytes that lower- or upper-case digits stand for; `None` if they are an odd number or no digits.
#[must_use]
pub fn bytes(digits: &str) -> Option<Vec<u8>> {
    let mut bytes = vec![0; digits.len() / 2];
    read(digits, &mut bytes).then_some(bytes)
}

/// Whether `digits` stand for exactly as many bytes as `bytes` holds; then they are in it.
pub(crate) fn read(digits: &str, bytes: &mut [u8]) -> bool {
    hex::decode_to_slice(digits, bytes).is_ok()
}

/// Two digits for each byte into `digits`, which is twice as long.
pub(crate) fn write(bytes: &[u8], digits: &mut [u8]) {
    hex::encode_to_slice(bytes, digits).expect("two digits for each byte");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_written_and_read_as_hex_does() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(text(&all), hex::encode(&all));
        assert_eq!(bytes(&text(&all)), Some(all.clone()));
        assert_eq!(bytes(&text(&all).to_uppercase()), Some(all));
        assert_eq!(bytes(""), Some(Vec::new()));
        for wrong in ["0", "abc", "0g", "é", "0x"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
