//! Compresses a chunk's payload, whole.
//!
//! In: a payload and what the requester asked for. Out: one frame.
//! Invariant: the result is never larger than the payload and `GROWTH_BYTES_MAX` together say.

use std::io::{self, Write as _};

use bytes::Bytes;
use wire::snapshot_request::Compression;

/// Reads as fast as the link for all three; the levels are those the formats' own tools call fast.
const ZSTD_LEVEL: i32 = 1;

/// What a frame may add to `bytes` that do not compress: block headers (deflate's are the most, 5 bytes
/// on each 16 KiB) and the frame's own.
pub fn growth_bytes_max(bytes: usize) -> usize {
    64 + bytes / 1024
}

/// Writing into memory does not fail, but each library's signature says it may.
pub fn compress(compression: Compression, payload: Bytes) -> io::Result<Bytes> {
    match compression {
        Compression::None => Ok(payload),
        Compression::Zstd => zstd::bulk::compress(&payload, ZSTD_LEVEL).map(Bytes::from),
        Compression::Lz4 => {
            let mut frame =
                lz4_flex::frame::FrameEncoder::new(Vec::with_capacity(payload.len() / 2));
            frame.write_all(&payload)?;
            Ok(Bytes::from(frame.finish().map_err(io::Error::other)?))
        }
        Compression::Gzip => {
            let level = flate2::Compression::fast();
            let mut member =
                flate2::write::GzEncoder::new(Vec::with_capacity(payload.len() / 2), level);
            member.write_all(&payload)?;
            Ok(Bytes::from(member.finish()?))
        }
    }
}

/// The payload again, for `bridge verify`. `bytes_max` bounds what a hostile frame may take.
pub fn decompress(encoding: Option<&str>, payload: Bytes, bytes_max: usize) -> io::Result<Bytes> {
    use std::io::Read as _;
    let limit = bytes_max as u64;
    let mut out = Vec::new();
    match encoding {
        None => return Ok(payload),
        Some("zstd") => {
            zstd::stream::Decoder::new(payload.as_ref())?
                .take(limit)
                .read_to_end(&mut out)?;
        }
        Some("lz4") => {
            lz4_flex::frame::FrameDecoder::new(payload.as_ref())
                .take(limit)
                .read_to_end(&mut out)?;
        }
        Some("gzip") => {
            flate2::read::GzDecoder::new(payload.as_ref())
                .take(limit)
                .read_to_end(&mut out)?;
        }
        Some(other) => {
            return Err(io::Error::other(format!(
                "unknown Content-Encoding {other}"
            )));
        }
    }
    Ok(Bytes::from(out))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Compression; 4] = [
        Compression::None,
        Compression::Zstd,
        Compression::Lz4,
        Compression::Gzip,
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_frame_leads_back_to_the_payload_and_hardly_grows(payload: Vec<u8>, repeat in 1_usize..2000) {
            let payload = Bytes::from(payload.repeat(repeat));
            for compression in ALL {
                let frame = compress(compression, payload.clone()).unwrap();
                prop_assert!(frame.len() <= payload.len() + growth_bytes_max(payload.len()));
                let back = decompress(compression.content_encoding(), frame, payload.len()).unwrap();
                prop_assert_eq!(&back, &payload);
            }
        }
    }
}
