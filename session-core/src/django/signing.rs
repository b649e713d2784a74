//! Django's signed text: `payload:time:signature`, all of it ASCII. The time is in seconds since 1970, with
//! the digits `0-9A-Za-z`. The signature is an HMAC of the text before it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::UnreadablePayload;
use super::keys::{HmacSha256, made_by, tag};
use crate::Timestamp;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Returns `true` if `text` has the form of Django's signed texts. Does not verify the signature.
#[must_use]
pub fn is_signed_text(text: &[u8]) -> bool {
    let mut parts = text.split(|byte| *byte == b':');
    let is_base64url = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let (payload, time, signature) = (parts.next(), parts.next(), parts.next());
    let payload = payload.map(|payload| payload.strip_prefix(b".").unwrap_or(payload));
    let is_part = |part: Option<&[u8]>| part.is_some_and(|part| part.iter().all(is_base64url));
    is_part(payload) && is_part(time) && is_part(signature) && parts.next().is_none()
}

/// Returns the instant at which `text` says that it was signed, to the second. Does not verify the signature.
#[must_use]
pub fn signed_at(text: &[u8]) -> Option<Timestamp> {
    let time = text.rsplit(|byte| *byte == b':').nth(1)?;
    decode_base62(std::str::from_utf8(time).ok()?).map(Timestamp::from_secs)
}

/// Signs `payload` at the time `now`.
pub(super) fn sign(signer: &HmacSha256, payload: &str, now: Timestamp) -> String {
    let seconds = now.as_micros().div_euclid(1_000_000);
    let mut text = format!("{payload}:{}", encode_base62(seconds));
    let signature = tag(signer, &text);
    text.push(':');
    URL_SAFE_NO_PAD.encode_string(signature, &mut text);
    text
}

/// Returns the payload of `text` if one of `signers` has signed it.
pub(super) fn unsign<'t>(signers: &[HmacSha256], text: &'t str) -> Result<&'t str, UnreadablePayload> {
    let (signed, signature) = text.rsplit_once(':').ok_or(UnreadablePayload::Signature)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| UnreadablePayload::Signature)?;
    made_by(signers, signed, &signature).ok_or(UnreadablePayload::Signature)?;
    let (payload, time) = signed.rsplit_once(':').ok_or(UnreadablePayload::Form)?;
    decode_base62(time).ok_or(UnreadablePayload::Form)?;
    Ok(payload)
}

fn encode_base62(number: i64) -> String {
    let mut digits = Vec::new();
    let mut rest = number.unsigned_abs();
    while rest > 0 || digits.is_empty() {
        let digit = usize::try_from(rest % 62).unwrap_or_default();
        digits.push(DIGITS.get(digit).copied().unwrap_or_default());
        rest /= 62;
    }
    let sign = if number < 0 { "-" } else { "" };
    sign.chars().chain(digits.into_iter().rev().map(char::from)).collect()
}

fn decode_base62(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    if digits.is_empty() {
        return None;
    }
    let number = digits.bytes().try_fold(0_i64, |number, byte| {
        let digit = DIGITS.iter().position(|digit| *digit == byte)?;
        number.checked_mul(62)?.checked_add(i64::try_from(digit).ok()?)
    });
    Some(sign * number?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_encoded_as_django_encodes_them() {
        for (number, text) in [(0, "0"), (61, "z"), (62, "10"), (-62, "-10"), (1_700_000_000, "1r31eq")] {
            assert_eq!(encode_base62(number), text);
            assert_eq!(decode_base62(text), Some(number));
        }
        for text in ["", "-", "1 2", "é", "zzzzzzzzzzzz"] {
            assert_eq!(decode_base62(text), None, "{text}");
        }
    }

    #[test]
    fn form_of_a_signed_text_is_recognized_without_a_key() {
        let text = b".eJyrVspWslKqGCZAqRYAxxtf5g:1r31eq:kS7d4U-YG7oY1DsV7uzhA3_242L0_imkczJmb53udZI";
        assert!(is_signed_text(text));
        assert_eq!(signed_at(text), Some(Timestamp::from_secs(1_700_000_000)));
        for other in [&b""[..], b"a:b", b"a:b:c:d", b"1{}", b"{}:1:x", b"a:1:x\n", b"..a:1:x", b"\xff:1:x"] {
            assert!(!is_signed_text(other), "{other:?}");
        }
        for other in [&b""[..], b"a", b"a::b", b"a:?:b", b"\xff"] {
            assert_eq!(signed_at(other), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn every_number_is_decoded_to_itself(number in -i64::MAX..) {
            prop_assert_eq!(decode_base62(&encode_base62(number)), Some(number));
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in ".*") {
            let _ = (unsign(&[], &text), signed_at(text.as_bytes()), is_signed_text(text.as_bytes()));
        }
    }
}
